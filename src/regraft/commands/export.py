"""The command `regraft export`: a model for another runtime, proven first to give the same answers as the bundle.

The proof covers everything from a file's bytes to probabilities, on the user's own photos. It is run by the program
that goes with the model, in a process of its own that does not have regraft. How that program reads photos of every
kind is compared too.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backbones.engine import Engine
from regraft.bundle.bundle import Bundle
from regraft.bundle.format import special_features
from regraft.bundle.predict import find_photos
from regraft.commands.report import eval_photos, train_photos
from regraft.core.errors import BundleError, DataError, ExportError
from regraft.core.files import workspace
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import import_torch_module
from regraft.data.scan import Dataset
from regraft.data.sources import on_disk
from regraft.exporters.output_files import SUFFIXES, ExportedFiles, Format
from regraft.exporters.proof import RunningProgram, running
from regraft.exporters.sample_photos import write_samples
from regraft.exporters.standalone_proof import digest
from regraft.exporters.standalone_script import RUNTIMES, script

TIE = 1e-4  # between the two most probable classes: which comes first is then chance
BATCH = 32  # photos compared at a time
NOTHING = "Nothing was written."
NUM_RANGES = 64  # photos that show an int8 model what its numbers reach


@dataclass(frozen=True)
class ExportTolerance:
    """How far an exported model may be from its bundle.

    Of each photo, the largest difference of any probability counts.

    Attributes:
        agree: Share of photos, 0..1, whose label has to be the same.
        largest: The largest of the photos' differences that is allowed, 0..1.
        mean: The mean of the photos' differences that is allowed, 0..1.
    """

    agree: float
    largest: float
    mean: float

    def __str__(self) -> str:
        differences = f"at most {self.largest:g}" if self.largest < 1 else f"on average at most {self.mean:g}"
        return f"{100 * self.agree:g} % of labels to agree and differences of {differences}"


EXACT, INT8 = ExportTolerance(1.0, 1e-4, 1e-4), ExportTolerance(0.98, 1.0, 0.02)


@dataclass(frozen=True)
class Exported:
    """An exported model and its proof.

    Attributes:
        files: All files, the model first.
        format: "onnx", "openvino" or "torch".
        num_photos: Photos that bundle and exported model were compared on.
        num_agree: Photos that got the same label from both.
        num_ties: Photos whose labels differ, but whose two classes are equally probable.
        max_difference: Largest difference of any probability, 0..1.
        mean_difference: Mean over photos of the largest difference of a probability, 0..1.
        size_bytes: Size of the model.
        seconds: Duration of the proof.
        precision: "f32" or "int8".
        speedup: How many times as fast an int8 model is as the same model in f32 in the same runtime; None for others.
    """

    files: tuple[Path, ...]
    format: str
    num_photos: int
    num_agree: int
    num_ties: int
    max_difference: float
    mean_difference: float
    size_bytes: int
    seconds: float
    precision: str = "f32"
    speedup: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft export --json` prints."""
        return {**asdict(self), "files": [str(path) for path in self.files]}

    def __str__(self) -> str:
        proof = f"{self.num_photos} photos, {self.num_agree} agree, largest difference {self.max_difference:.0e}"
        if self.speedup is None:
            return proof
        return f"{proof}, on average {self.mean_difference:.0e}; int8, {self.speedup:.1f} times as fast as f32"


def export(
    bundle: Bundle,
    out: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002  # the word that users know
    photos: str | Path | None = None,
    int8: bool = False,
    progress: Progress = QUIET,
) -> Exported:
    """Write a model for another runtime, and the program that feeds it photos, if both answer as the bundle does.

    Args:
        bundle: What is exported.
        out: The model's file; the program gets the same name with .py. Files of an earlier export are replaced, no
            others.
        format: "onnx", "openvino" or "torch".
        photos: A folder or file of photos to prove it on; None for those that the training kept to evaluate the bundle.
        int8: Whether to write whole numbers of eight bits. Their ranges come from photos that the bundle has learned
            from, or from every second one of `photos`. `INT8` says how far the answers may differ.
        progress: Where messages and progress bars go.

    Returns:
        The files and the proof.

    Raises:
        ExportError: Answers differ by more than is allowed, the program does not read a photo as the bundle does, or
            int8 is wanted for format "torch"; nothing is written.
        OutputError: Something else has one of the files' names; it stays.
        BundleError: The network is one that torch does not have.
        DataError: There are no photos.
        MissingExtra: What runs the model is not installed.
    """
    if int8 and format == "torch":
        raise ExportError("There is no int8 for --format torch. Choose onnx or openvino.")
    exact, allowed = replace(bundle, wanted_precision="f32"), INT8 if int8 else EXACT
    place = ExportedFiles(Path(out), format)
    place.check()
    paths, ranges = _photos(bundle, photos, progress, int8)
    with workspace(place.model.parent) as folder:
        draft = _draft(exact, place, folder, ranges, progress)
        began = time.monotonic()
        agreement = _proven(exact, format, draft, paths, allowed, progress)
        seconds, speedup = time.monotonic() - began, _speedup(exact, format, draft, ranges) if int8 else None
        place.check()
        for final in place.files[::-1]:  # the model last: where it is, all is
            _publish(folder / final.name, final)
    return Exported(
        place.files,
        format,
        agreement.num_photos,
        agreement.num_agree,
        agreement.num_ties,
        agreement.largest,
        agreement.total / agreement.num_photos,
        sum(path.stat().st_size for path in place.files[: len(SUFFIXES[format])]),
        seconds,
        "int8" if int8 else "f32",
        speedup,
    )


def _photos(
    bundle: Bundle, photos: str | Path | None, progress: Progress, int8: bool
) -> tuple[list[Path], list[np.ndarray]]:
    """Return photos for the proof, and for int8 inputs `(H, W, 3)` of others for its ranges. Raises DataError."""
    cure = "Give some with --photos DIR"
    if photos is None:
        evaluated = _paths(eval_photos(bundle, progress, cure))
        return evaluated, _ranges(bundle, _paths(train_photos(bundle, progress, cure))) if int8 else []
    paths = list(find_photos([photos]))
    if not paths:
        raise DataError(f"{photos} has no photos to prove the export on. Name a folder that has some.")
    return (paths[::2], _ranges(bundle, paths[1::2])) if int8 else (paths, [])


def _paths(dataset: Dataset) -> list[Path]:
    return [dataset.root / path for path in dataset.paths]


def _ranges(bundle: Bundle, paths: list[Path]) -> list[np.ndarray]:
    """Return the inputs of some photos, evenly spread. Raises DataError where none can be read."""
    inputs = []
    for path in paths[:: 1 + len(paths) // NUM_RANGES]:
        with suppress(DataError):
            inputs.append(bundle.to_input(path))
    if not inputs:
        raise DataError("No photo can be read that would show an int8 model its ranges. Name more with --photos DIR.")
    return inputs


def _draft(
    bundle: Bundle, place: ExportedFiles, folder: Path, ranges: Sequence[np.ndarray], progress: Progress
) -> Path:
    """Write the model and its program into `folder`, under the names that they will have; return the model."""
    model = folder / place.model.name
    with progress.step(f"write {place.format}"):
        _write(bundle, place.format, model, ranges)
        program = place.program_of(script(place.format, bundle.preprocessing, bundle.classes), folder)
        model.with_suffix(".py").write_bytes(program)
    return model


def _write(bundle: Bundle, format: Format, path: Path, ranges: Sequence[np.ndarray] = ()) -> None:  # noqa: A002
    """Write the model, in int8 where there are inputs for its ranges."""
    if format == "torch":
        if special := special_features(bundle.manifest["backbone"]):
            raise BundleError(
                f"{bundle.folder} has features that are {' and '.join(special)}: that is a graph and no network of "
                "torch. Export it with --format onnx or openvino."
            )
        weights = path.with_suffix(".safetensors")
        weights.write_bytes(bundle.read("model.safetensors"))
        config = json.loads(bundle.read("config.json"))
        import_torch_module("backbones.torch_export").write_program(bundle.manifest, config, weights, bundle.head, path)
        return
    from regraft.exporters.formats import write_onnx, write_openvino  # takes onnx along

    (write_onnx if format == "onnx" else write_openvino)(bundle, path, ranges)


def _speedup(bundle: Bundle, format: Format, model: Path, inputs: list[np.ndarray]) -> float:  # noqa: A002
    """Measure how many times as fast an int8 model is as the same in f32, photo by photo, on one core, in turns."""
    whole = model.with_name(f"f32-{model.name}")
    _write(bundle, format, whole)
    start = _onnx_session if format == "onnx" else Engine
    runs, seconds = [start(whole), start(model)], np.empty((len(inputs), 2))
    for number, image in enumerate(inputs):
        for column, run in enumerate(runs):
            began = time.perf_counter()
            run(image[np.newaxis])
            seconds[number, column] = time.perf_counter() - began
    slow, fast = np.median(seconds, axis=0)
    return float(slow / fast)


def _onnx_session(model: Path) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options)
    return lambda images: session.run(["probabilities"], {"images": images})


@dataclass
class _Agreement:
    """How the answers of an exported model agree with its bundle's, on the photos so far.

    Attributes:
        num_photos: Photos compared.
        num_agree: Photos that got the same label from both.
        num_ties: Photos whose labels differ, but whose two classes are equally probable.
        largest: Largest difference of a probability, 0..1.
        total: Sum over photos of the largest difference of a probability.
        worst: The photo with the largest difference.
    """

    num_photos: int = 0
    num_agree: int = 0
    num_ties: int = 0
    largest: float = 0.0
    total: float = 0.0
    worst: str = ""

    def add(self, paths: list[Path], expected: np.ndarray, predicted: np.ndarray) -> None:
        """Count B more photos, from the probabilities `(B, C)` of the bundle and of the exported model."""
        differences = np.abs(expected - predicted).max(axis=1)
        if not np.isfinite(predicted).all() or differences.max() >= self.largest:
            self.largest, self.worst = float(differences.max()), str(paths[int(differences.argmax())])
        ranked = np.sort(expected, axis=1)
        is_tie = ranked[:, -1] - ranked[:, -2] < TIE
        agrees = expected.argmax(axis=1) == predicted.argmax(axis=1)
        self.num_photos, self.num_agree = self.num_photos + len(paths), self.num_agree + int(agrees.sum())
        self.num_ties += int((~agrees & is_tie).sum())
        self.total += float(differences.sum())

    def is_within(self, allowed: ExportTolerance) -> bool:
        """Return whether the exported model answers as the bundle does, as far as is wanted."""
        agree = self.num_agree + self.num_ties >= allowed.agree * self.num_photos
        return agree and self.largest <= allowed.largest and self.total <= allowed.mean * self.num_photos

    def refusal(self, format: Format, allowed: ExportTolerance) -> str:  # noqa: A002
        """Say in a sentence how the answers differ, and what to do."""
        is_int8 = allowed is INT8
        name, cure = (f"int8 {format}", "without --int8") if is_int8 else (format, "with another --format")
        return (
            f"The {name} model answers otherwise than the bundle: {self.num_agree} of {self.num_photos} labels agree, "
            f"probabilities differ by up to {self.largest:.1e}, on average {self.total / self.num_photos:.1e}, most on "
            f"{self.worst}. Expected {allowed}. Nothing was written; export {cure}."
        )


def _proven(
    bundle: Bundle,
    format: Format,  # noqa: A002
    model: Path,
    paths: Sequence[Path],
    allowed: ExportTolerance,
    progress: Progress,
) -> _Agreement:
    """Compare the answers of the exported model, in a process of its own, with those of the bundle.

    Raises ExportError where they differ by more than is allowed.
    """
    agreement = _Agreement()
    reference = _reference(bundle, progress) if format == "openvino" else _bundle_probabilities(bundle)
    with (
        running(model.with_suffix(".py"), RUNTIMES[format][0]) as program,
        progress.step("prove", total=len(paths)) as advance,
    ):
        _prove_reading(bundle, program, model.parent)
        for start in range(0, len(paths), BATCH):
            with on_disk(paths[start : start + BATCH], model.parent) as files:
                some, images, predicted = _read_alike(bundle, program, files)
            if some:
                agreement.add(some, reference(np.stack(images)), predicted)
            advance(len(some))
    if agreement.num_photos == 0:
        raise DataError(f"None of the {len(paths)} photos can be read. Name others with --photos DIR.")
    if not agreement.is_within(allowed):
        raise ExportError(agreement.refusal(format, allowed))
    return agreement


def _prove_reading(bundle: Bundle, program: RunningProgram, folder: Path) -> None:
    """Have both read photos of every kind. Raises ExportError where they differ."""
    place = folder / "samples"
    place.mkdir()
    _read_alike(bundle, program, write_samples(place), predict=False)


def _read_alike(
    bundle: Bundle, program: RunningProgram, paths: Sequence[Path], *, predict: bool = True
) -> tuple[list[Path], list[np.ndarray], np.ndarray]:
    """Return the photos that the bundle can read, their inputs, and the program's probabilities `(N, C)` for them.

    Raises ExportError where the program reads a photo otherwise than the bundle.
    """
    some, images = [], []
    for path in paths:
        with suppress(DataError):
            images.append(bundle.to_input(path))
            some.append(path)
    answers = program(some, predict=predict)
    for path, image, input_digest, error in zip(some, images, answers.inputs, answers.errors, strict=True):
        if input_digest is None:
            raise ExportError(f"The exported program cannot read {path}, as the bundle can: {error}. {NOTHING}")
        if input_digest != digest(image):
            raise ExportError(f"The exported program reads {path} otherwise than the bundle. {NOTHING}")
    return some, images, answers.probabilities


def _bundle_probabilities(bundle: Bundle) -> Any:
    return lambda images: bundle.probabilities(bundle.engine(images)["logits"])


def _reference(bundle: Bundle, progress: Progress) -> Any:
    """Run the bundle's own graph in ONNX Runtime, where the exported model runs in OpenVINO, as the bundle itself does.

    Without ONNX Runtime, OpenVINO runs that graph too, which proves the exported file but not the runtime.
    """
    try:
        import onnxruntime
    except ImportError:
        progress.say(
            "judged by OpenVINO on the bundle's own graph; by another runtime with pip install 'regraft[export]'"
        )
        return _bundle_probabilities(bundle)
    session = onnxruntime.InferenceSession(bundle.graph)
    return lambda images: bundle.probabilities(session.run(["logits"], {"images": images})[0])


def _publish(draft: Path, final: Path) -> None:
    """Write a file through to the disk, then rename it into place."""
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, final)
