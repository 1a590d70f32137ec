"""The story of `regraft export`: a model for another runtime, which first proves that it says what the bundle says.

The proof is from file bytes to probabilities, on the user's own photos, by the program that goes with the model.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from regraft.deliver.bundle import Bundle
from regraft.deliver.predict import find_photos
from regraft.deliver.reference import script
from regraft.ground.errors import BundleError, DataError, ExportError, MissingExtra
from regraft.ground.files import PARTIAL, make_folder
from regraft.ground.progress import QUIET, Progress
from regraft.ground.runtime import torch_room
from regraft.reporting import judged_photos

Format = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[Format, tuple[str, ...]] = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "torch": (".pt2",)}
MAX_DIFFERENCE = 1e-4  # of a probability
TIE = 1e-4  # between the two most probable classes: which comes first is then chance
BATCH = 32  # photos judged at a time


@dataclass(frozen=True)
class Exported:
    """An exported model and its proof. files: all of them, the model first.

    num_photos: judged.  num_agree: with the same label as the bundle's.  num_ties: labels that differ where two classes
    are equally probable.  max_difference: of any probability, 0..1.  size_bytes: of the model.  seconds: of the proof.
    """

    files: tuple[Path, ...]
    format: str
    num_photos: int
    num_agree: int
    num_ties: int
    max_difference: float
    size_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As printed by `regraft export --json`."""
        return {**asdict(self), "files": [str(path) for path in self.files]}

    def __str__(self) -> str:
        return f"{self.num_photos} photos, {self.num_agree} agree, largest difference {self.max_difference:.0e}"


def export(
    bundle: Bundle,
    out: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002  # the word that users know
    photos: str | Path | None = None,
    progress: Progress = QUIET,
) -> Exported:
    """Write a model for another runtime, and the program that feeds it photos, if both say what the bundle says.

    out: the model's file; the program gets the same name with .py.  photos: a folder or file to prove it on, None for
    those that the training kept for judging.  Raises ExportError, and writes nothing, where an answer differs;
    BundleError for a network that torch does not have; DataError without photos.
    """
    exact = replace(bundle, wanted_precision="f32")
    out = Path(out).with_suffix(SUFFIXES[format][0])
    paths = _photos(bundle, photos, progress)
    make_folder(out.parent, kind="output folder")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=PARTIAL) as folder:
        draft = Path(folder) / out.name
        with progress.step(f"write {format}"):
            _write(exact, format, draft)
            draft.with_suffix(".py").write_text(script(format, bundle.preprocessing, bundle.classes), encoding="utf-8")
        found = _proven(exact, format, draft, paths, progress)
        names = [".py", *SUFFIXES[format][::-1]]  # the model last: where it is, all is
        for suffix in names:
            _publish(draft.with_suffix(suffix), out.with_suffix(suffix))
    files = tuple(out.with_suffix(suffix) for suffix in names[::-1])
    return replace(found, files=files, size_bytes=sum(path.stat().st_size for path in files[:-1]))


def _photos(bundle: Bundle, photos: str | Path | None, progress: Progress) -> list[Path]:
    """Photos to prove it on. Raises DataError where there are none."""
    if photos is None:
        dataset = judged_photos(bundle, progress, "Give some with --photos DIR")
        return [dataset.root / path for path in dataset.paths]
    found = list(find_photos([photos]))
    if not found:
        raise DataError(f"{photos} has no photos to prove the export on. Name a folder that has some.")
    return found


def _write(bundle: Bundle, format: Format, path: Path) -> None:  # noqa: A002
    if format == "torch":
        if bundle.manifest["backbone"]["levels"]:
            raise BundleError(
                f"{bundle.folder} takes features from all levels, which is a graph and no network of torch. "
                "Export it with --format onnx or openvino."
            )
        torch_room("backbones.program").write_program(bundle.folder, bundle.manifest, bundle.head, path)
        return
    from regraft.deliver.export import write_onnx, write_openvino  # takes onnx along

    (write_onnx if format == "onnx" else write_openvino)(bundle, path)


def _proven(bundle: Bundle, format: Format, model: Path, paths: Sequence[Path], progress: Progress) -> Exported:  # noqa: A002
    """What the exported model says, beside what the bundle says. Raises ExportError."""
    program, began = _program(model.with_suffix(".py")), time.monotonic()
    num_photos = num_agree = num_ties = 0
    largest, worst = 0.0, ""
    judge = _onnx_runtime(bundle) if format == "openvino" else _own(bundle)
    with progress.step("prove", total=len(paths)) as advance:
        for some, images in _inputs(bundle, program, paths):
            expected, said = judge(images), np.asarray(program.predict(images))
            differences = np.abs(expected - said).max(axis=1)
            if not np.isfinite(said).all() or differences.max() >= largest:
                largest, worst = float(differences.max()), str(some[int(differences.argmax())])
            ranked = np.sort(expected, axis=1)
            is_tie = ranked[:, -1] - ranked[:, -2] < TIE
            agrees = expected.argmax(axis=1) == said.argmax(axis=1)
            num_photos, num_agree = num_photos + len(some), num_agree + int(agrees.sum())
            num_ties += int((~agrees & is_tie).sum())
            advance(len(some))
    if num_photos == 0:
        raise DataError(f"None of the {len(paths)} photos can be read. Name others with --photos DIR.")
    if not largest <= MAX_DIFFERENCE or num_agree + num_ties < num_photos:
        raise ExportError(
            f"The {format} model answers otherwise than the bundle: {num_agree} of {num_photos} labels agree, "
            f"probabilities differ by up to {largest:.1e} (expected at most {MAX_DIFFERENCE:.0e}), most on {worst}. "
            "Nothing was written; choose another --format."
        )
    return Exported((), format, num_photos, num_agree, num_ties, largest, 0, time.monotonic() - began)


def _inputs(bundle: Bundle, program: ModuleType, paths: Sequence[Path]) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Photos and what the model is given of them, in batches; those that the bundle cannot read are left out.

    Raises ExportError where the program reads a photo otherwise than the bundle.
    """
    for start in range(0, len(paths), BATCH):
        some, images = [], []
        for path in paths[start : start + BATCH]:
            try:
                ours = bundle.to_input(path)
            except DataError:
                continue
            if not np.array_equal(ours, program.to_input(path)):
                raise ExportError(f"The exported program reads {path} otherwise than the bundle. Nothing was written.")
            some.append(path)
            images.append(ours)
        if some:
            yield some, np.stack(images)


def _own(bundle: Bundle) -> Any:
    return lambda images: bundle.probabilities(bundle.engine(images)["logits"])


def _onnx_runtime(bundle: Bundle) -> Any:
    """The bundle's own graph in a runtime of other make: the judge where the exported model runs in ours."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "export") from error
    session = onnxruntime.InferenceSession(str(bundle.folder / "model.onnx"))
    return lambda images: bundle.probabilities(session.run(["logits"], {"images": images})[0])


def _program(path: Path) -> ModuleType:
    """The program beside the model, as it lies on disk."""
    spec = importlib.util.spec_from_file_location("regraft_exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise MissingExtra(error.name or "onnxruntime", "export") from error
    return module


def _publish(draft: Path, final: Path) -> None:
    """Written through to the disk, then renamed into place."""
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, final)
