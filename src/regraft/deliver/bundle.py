"""The delivered model: a folder that predicts by itself. No pickle anywhere, and no torch.

regraft.json        what it is, and the sha256 of every other file; written last
model.onnx          images (B, H, W, 3) uint8 -> logits (B, C), features (B, D), novelty (B,); normalisation inside
model.safetensors   the same weights under the library's own names
config.json         builds the network in timm: timm.create_model("local-dir:BUNDLE", pretrained=True)
README.md           the model card
"""

import json
import mmap
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from regraft.backbones.engine import Engine, Pooled, Precision, pooled, usable_precision
from regraft.data.decode import Unreadable, read_bytes, to_rgb
from regraft.data.transforms import Preprocessing, photo_to_input, transform
from regraft.ground.errors import BundleError, DataError
from regraft.ground.files import sha256_file
from regraft.ground.memory import is_lack_of_memory, too_little
from regraft.ground.runtime import num_cores
from regraft.ground.statistics import Accuracy

MANIFEST = "regraft.json"
FORMAT = 1
FILES = ("model.onnx", "model.safetensors", "config.json", "README.md")

ELSEWHERE = b"location"  # what each tensor bears whose numbers lie in another file
Photo = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a model says of one photo. Probabilities are 0..1 and sum to 1; `probability` is the label's.

    novelty: how far the photo is from those learned from, beside what all but 1 % of them keep; None where the model
    cannot tell.  unsure: whether an answer so probable is wrong more often than was allowed.  labels: classes that hold
    the right one as often as was asked for, most probable first; None where nothing was asked.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    novelty: float | None = None
    unsure: bool = False
    labels: tuple[str, ...] | None = None

    @property
    def looks_new(self) -> bool:
        """Whether it looks like nothing that was learned from: the label then means little."""
        return self.novelty is not None and self.novelty > 1


@dataclass(frozen=True)
class Bundle:
    """A loaded model. Safe to use from many threads.

    folder: where it lies.  manifest: content of regraft.json.  wanted_precision: None for the one it was made with.
    max_error: 0..1, share of wrong answers above which it is rather unsure; None for never.  coverage: 0..1, how often
    the right class is to be among `Prediction.labels`; None for no such list.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    wanted_precision: Precision | None = None
    max_error: float | None = None
    coverage: float | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of the logits."""
        return tuple(self.manifest["classes"])

    def _repr_html_(self) -> str:
        """What it is and how good, in a notebook."""
        m = self.manifest
        facts = {
            "classes": ", ".join(self.classes),
            "accuracy": str(Accuracy(**m["metrics"]["accuracy"])) if m["metrics"] else "not measured",
            "backbone": m["backbone"]["name"],
            "mode": m["provenance"]["mode"],
            "folder": str(self.folder),
        }
        rows = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table>{rows}</table>"

    @property
    def preprocessing(self) -> Preprocessing:
        """What a photo goes through before the graph."""
        return Preprocessing.from_json(self.manifest["preprocessing"])

    @property
    def precision(self) -> Precision:
        """Arithmetic of the engine: as wanted, else bf16 where the model was made with it and the processor has it."""
        if self.wanted_precision is not None:
            return self.wanted_precision
        return usable_precision(self.manifest["precision"])

    @cached_property
    def least_sure(self) -> float:
        """Probability, 0..1, below which it is unsure; 0 for never. Raises BundleError for what it cannot promise."""
        return 0.0 if self.max_error is None else threshold(self.manifest, "max_error", self.max_error)

    @cached_property
    def least_likely(self) -> float | None:
        """Probability, 0..1, from which on a class is among `Prediction.labels`. Raises BundleError as above."""
        return None if self.coverage is None else threshold(self.manifest, "coverage", self.coverage)

    @cached_property
    def engine(self) -> Engine:
        """The compiled graph; compiling takes a moment, once. Raises BundleError for one that is none."""
        return self._compiled(self.precision)

    @cached_property
    def quick_engine(self) -> Engine:
        """The compiled graph with all cores for one photo: for the one that nothing else waits beside."""
        return self._compiled(self.precision, threads=num_cores())

    @cached_property
    def pooled(self) -> tuple[Pooled, ...] | None:
        """The maps whose means and maxima are the features; None for a network that does not end in pooling."""
        return pooled(self.folder / "model.onnx")

    @cached_property
    def map_engine(self) -> Engine:
        """The compiled graph in f32, with the maps that its features are pooled from among its outputs.

        In bf16 places would add up to the answer only roughly, and what a covered place costs would drown in rounding.
        """
        names = dict.fromkeys(part.name for part in self.pooled or ())
        return self._compiled("f32", tuple(names))

    def _compiled(self, precision: Precision, also: tuple[str, ...] = (), threads: int = 1) -> Engine:
        path = self.folder / "model.onnx"
        try:
            return Engine(path, precision, also, threads)
        except (RuntimeError, ValueError, MemoryError) as error:
            if is_lack_of_memory(error):
                raise too_little(f"Cannot load {path}") from error
            raise BundleError(f"{path} is no graph that can be run. Train again or restore a copy.") from error

    @cached_property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """weight `(C, D)` and bias `(C,)` float32 of the last layer, as saved. Raises BundleError without them."""
        path, name = self.folder / "model.safetensors", next(iter(self.manifest["heads"]), "")
        try:
            with safe_open(path, framework="np") as file:
                weight, bias = file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias")
        except SafetensorError as error:
            raise BundleError(f"{path} has no head {name[:80]!r}. Train again or restore a copy.") from error
        return weight.reshape(len(weight), -1), bias

    def predict(self, photo: Photo) -> Prediction:
        """Label and probabilities of one photo: a path, a file's bytes, a Pillow image, or RGB `(H, W, 3)` uint8.

        Raises DataError when it cannot be read.
        """
        said = self.engine(self.to_input(photo)[np.newaxis])
        return self.to_prediction(said["logits"][0], float(said["novelty"][0]) if "novelty" in said else None)

    def to_input(self, photo: Photo) -> np.ndarray:
        """`(H, W, 3)` uint8 as the graph takes it. Raises DataError."""
        if isinstance(photo, np.ndarray):
            photo = Image.fromarray(photo)
        if isinstance(photo, Image.Image):
            return transform(to_rgb(photo), self.preprocessing)
        try:
            data = photo if isinstance(photo, bytes) else read_bytes(Path(photo))
            return photo_to_input(data, self.preprocessing)
        except Unreadable as error:
            what = "The photo" if isinstance(photo, bytes) else str(photo)
            raise DataError(f"{what} cannot be used: {error}. Expected a JPEG, PNG, WebP or similar file.") from error

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """`(N, C)` float64 in 0..1 of logits `(N, C)`, with the bundle's temperature."""
        scaled = logits.astype(np.float64) / self.manifest["temperature"]
        exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(exp / exp.sum(axis=1, keepdims=True))

    def to_prediction(self, logits: np.ndarray, novelty: float | None = None) -> Prediction:
        """Prediction from the logits `(C,)` of one photo. Raises BundleError where they are not one for each class."""
        if logits.shape != (len(self.classes),):
            raise BundleError(
                f"{self.folder} contradicts itself: {len(self.classes)} classes and {logits.size} logits. "
                "Train again or restore a copy."
            )
        p = self.probabilities(logits[np.newaxis])[0]
        best, shares = int(p.argmax()), dict(zip(self.classes, map(float, p), strict=True))
        labels = None
        if self.least_likely is not None:
            order = [int(i) for i in np.argsort(-p, kind="stable")]
            labels = tuple(self.classes[i] for i in order if i == best or p[i] >= self.least_likely)
        return Prediction(self.classes[best], float(p[best]), shares, novelty, bool(p[best] < self.least_sure), labels)


def threshold(manifest: dict[str, Any], kind: Literal["max_error", "coverage"], wanted: float) -> float:
    """The probability that keeps a promise: no more errors, or no less coverage, than wanted, both 0..1.

    Raises BundleError, with what could be promised, where the photos that were learned from do not allow it.
    """
    thresholds = manifest["thresholds"]
    steps = thresholds.get(kind, [])
    if kind == "max_error":
        kept = [probability for error, probability, _ in steps if error <= wanted]
        least = _rounded_up(100 * min((step[0] for step in steps), default=1.0))
        possible = [f"{least:g} %"] if least < 100 else []
    else:
        kept = [probability for coverage, probability in steps if coverage >= wanted]
        possible = [f"{100 * coverage:g} %" for coverage, _ in steps]
    if kept:
        return float(kept[0])
    name = kind.replace("_", "-")
    seen = f"the {thresholds['n']} photos that could tell" if thresholds else "no photos were set apart that could tell"
    cure = f"Expected {' or '.join(possible)}" if possible else "Train with --mode frozen, or with val and test folders"
    raise BundleError(f"This model cannot promise --{name} {100 * wanted:g}%: {seen} do not allow it. {cure}.")


def _rounded_up(percent: float) -> float:
    """To three digits or so."""
    steps = 10 if percent >= 10 else 100
    return ceil(percent * steps) / steps


def load(
    folder: str | Path,
    *,
    precision: Precision | None = None,
    max_error: float | None = None,
    coverage: float | None = None,
) -> Bundle:
    """A bundle from disk, every file verified. A run's folder will do: its bundle is taken.

    max_error, coverage: see Bundle.  Raises BundleError when it is missing, damaged, of a newer format, or cannot
    promise what is wanted of it.
    """
    folder = Path(folder).expanduser()
    if not (folder / MANIFEST).is_file() and (folder / "bundle" / MANIFEST).is_file():
        folder = folder / "bundle"
    bundle = Bundle(folder, _read_manifest(folder), precision, max_error, coverage)
    for name in FILES:
        _verify(folder / name, bundle.manifest["sha256"].get(name))
    _refuse_other_files(folder / "model.onnx")
    _ = bundle.least_sure, bundle.least_likely
    return bundle


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"There is no bundle at {folder}. Expected a folder with {MANIFEST}, as `regraft train` makes."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: it cannot be read as JSON. Train again or restore a copy.") from error
    if version != FORMAT:
        raise BundleError(f"{path} has format {version!r}. Expected {FORMAT}. Update regraft: pip install -U regraft.")
    if problem := _problem(manifest):
        raise BundleError(f"{path} is damaged: {problem}. Train again or restore a copy.")
    return dict(manifest)


def _problem(manifest: dict[str, Any]) -> str | None:
    """What is wrong with a manifest, so that nothing behind this point has to doubt it."""
    classes = manifest.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or len(classes) < 2:
        return "its classes are not a list of names"
    if len(set(classes)) != len(classes):
        return "a class is named twice"
    temperature = manifest.get("temperature")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < 1e6:
        return "its temperature is not a positive number"
    if not isinstance(manifest.get("sha256"), dict) or not isinstance(manifest.get("heads"), dict):
        return "its lists of files and heads are missing"
    if not _are_thresholds(manifest.get("thresholds")):
        return "its thresholds are not lists of numbers"
    try:
        Preprocessing.from_json(manifest["preprocessing"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return "its preprocessing is incomplete or wrong"
    return None


def _are_thresholds(found: Any) -> bool:
    """Whether they are as `learn.calibrate.thresholds` gives them."""
    if found == {}:
        return True
    if not isinstance(found, dict) or not isinstance(found.get("n"), int):
        return False
    widths = {"max_error": 3, "coverage": 2}
    return all(
        isinstance(found.get(kind), list)
        and all(
            isinstance(row, list)
            and len(row) == width
            and all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in row)
            for row in found[kind]
        )
        for kind, width in widths.items()
    )


def _verify(path: Path, expected: str | None) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is missing, or not a plain file. The bundle is incomplete: restore a copy.")
    found = sha256_file(path)
    if found != expected:
        raise BundleError(
            f"{path} is damaged: expected sha256 {str(expected)[:12]}..., got {found[:12]}.... "
            "Train again or restore a copy."
        )


def _refuse_other_files(graph: Path) -> None:
    """A graph may keep its numbers in files that it names, anywhere on this machine. Those of regraft never do."""
    if graph.stat().st_size == 0:
        return  # what runs it will say so
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(ELSEWHERE) >= 0:
            raise BundleError(
                f"{graph} keeps weights in another file. Expected all of them inside, as regraft writes it. "
                "It may have been made to read what is not its own: do not use it."
            )
