"""The saved model: a folder that predicts by itself. No pickle anywhere, and no torch.

regraft.json        what it is, and the sha256 of every other file; written last
model.onnx          images (B, H, W, 3) uint8 -> logits (B, C), features (B, D), novelty (B,); normalisation inside
model.safetensors   the same weights under the library's own names
config.json         builds the network in timm: timm.create_model("local-dir:BUNDLE", pretrained=True)
README.md           the model card
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from html import escape
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regraft.backbones.engine import BEFORE_ROOTS, Engine, Pooled, Precision, pooled, takes_roots, usable_precision
from regraft.bundle.content import Content, read_again, read_content
from regraft.bundle.format import MANIFEST, manifest_sha256
from regraft.core.errors import BundleError
from regraft.core.files import json_bytes
from regraft.core.memory import is_lack_of_memory, too_little
from regraft.core.runtime import num_cores
from regraft.core.statistics import Accuracy, softmax
from regraft.data.inputs import Photo, to_input
from regraft.data.transforms import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """What a model says of one photo.

    Attributes:
        label: The most probable class.
        probability: Of the label, 0..1.
        probabilities: Of each class, 0..1; they sum to 1.
        novelty: How far the photo is from those learned from, relative to the distance that all but 1 % of them keep;
            None where the model cannot tell.
        unsure: Whether an answer with this probability is wrong more often than was allowed.
        labels: Classes that hold the right one as often as was asked for, most probable first; None where nothing was
            asked for.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    novelty: float | None = None
    unsure: bool = False
    labels: tuple[str, ...] | None = None

    @property
    def looks_new(self) -> bool:
        """Whether the photo is unlike the training photos: the label then means little."""
        return self.novelty is not None and self.novelty > 1

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft predict --json` prints and a server sends."""
        return {**vars(self), "looks_new": self.looks_new}


@dataclass(frozen=True)
class Bundle:
    """A loaded model: what was verified when it was loaded, whatever becomes of its folder.

    Safe to use from many threads and after `fork`, `os.chdir` and `pickle`.

    Attributes:
        folder: Where it was loaded from, absolute.
        content: What was read and verified there.
        wanted_precision: Arithmetic that was asked for; None for the one that it was made with.
        max_error: Share of wrong answers, 0..1, above which it rather says that it is unsure; None for never.
        coverage: How often the right class is to be among `Prediction.labels`, 0..1; None for no such list.
    """

    folder: Path
    content: Content = field(repr=False)
    wanted_precision: Precision | None = None
    max_error: float | None = None
    coverage: float | None = None

    @property
    def manifest(self) -> dict[str, Any]:
        """What regraft.json holds."""
        return self.content.manifest

    @cached_property
    def sha256(self) -> str:
        """The model's identity: hash of its manifest, which holds the hashes of all other files."""
        return manifest_sha256(self.manifest)

    @property
    def graph(self) -> bytes:
        """The bytes of model.onnx, as they were verified."""
        return self.content.graph.data

    def read(self, name: str) -> bytes:
        """Read one of the bundle's files: manifest and graph from memory, others from the folder, verified once more.

        Raises:
            BundleError: It was replaced since the model was loaded.
        """
        if name == MANIFEST:
            return json_bytes(self.manifest)
        return self.graph if name == "model.onnx" else read_again(self.folder, name, self.manifest["sha256"][name])

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of the logits."""
        return tuple(self.manifest["classes"])

    def _repr_html_(self) -> str:
        """Show what the model is, and how good, in a notebook."""
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
        """Probability, 0..1, below which an answer is unsure; 0 for never.

        Raises:
            BundleError: The model cannot promise `max_error`.
        """
        return 0.0 if self.max_error is None else threshold(self.manifest, "max_error", self.max_error)

    @cached_property
    def least_likely(self) -> float | None:
        """Probability, 0..1, from which on a class is among `Prediction.labels`; None where no list is asked for.

        Raises:
            BundleError: The model cannot promise `coverage`.
        """
        return None if self.coverage is None else threshold(self.manifest, "coverage", self.coverage)

    @cached_property
    def engine(self) -> Engine:
        """The compiled graph; compiling takes a moment, once.

        Raises:
            BundleError: The graph cannot be run.
        """
        return self._compiled(self.precision)

    @cached_property
    def quick_engine(self) -> Engine:
        """The compiled graph that uses all cores for one photo: for use while no other photo waits.

        Raises:
            BundleError: The graph cannot be run.
        """
        return self._compiled(self.precision, threads=num_cores())

    @cached_property
    def pooled(self) -> tuple[Pooled, ...] | None:
        """The maps whose means and maxima the features, or their roots, are; None for a network without such an end."""
        return pooled(self.content.graph)

    @cached_property
    def map_engine(self) -> Engine:
        """The compiled graph in f32, with the maps that its features are pooled from among its outputs.

        In bf16 places would add up to the answer only roughly, and what a covered place costs would drown in rounding.

        Raises:
            BundleError: The graph cannot be run.
        """
        names = dict.fromkeys(part.name for part in self.pooled or ())
        roots = (BEFORE_ROOTS,) if takes_roots(self.content.graph) else ()
        return self._compiled("f32", (*names, *roots))

    def _compiled(self, precision: Precision, also: tuple[str, ...] = (), threads: int = 1) -> Engine:
        try:
            return Engine(self.content.graph, precision, also, threads)
        except (RuntimeError, ValueError, MemoryError) as error:
            path = self.folder / "model.onnx"
            if is_lack_of_memory(error):
                raise too_little(f"Cannot load {path}") from error
            raise BundleError(
                f"{path} is no graph that can be run: {_one_line(error)}. Train again or restore a copy."
            ) from error

    @property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight `(C, D)` and bias `(C,)` float32 of the last layer, as saved."""
        return self.content.head

    def predict(self, photo: Photo) -> Prediction:
        """Predict the label and the probabilities of one photo.

        Args:
            photo: A path, a file's bytes, an open binary file, a Pillow image, an array `(H, W, 3)`, `(H, W)` or
                `(H, W, 4)`, uint8 or float in 0..1, or a tensor `(3, H, W)` of such numbers.

        Raises:
            DataError: It cannot be read, or is none of these.
        """
        outputs = self.engine(self.to_input(photo)[np.newaxis])
        return self.to_prediction(outputs["logits"][0], float(outputs["novelty"][0]) if "novelty" in outputs else None)

    def to_input(self, photo: Photo) -> np.ndarray:
        """Convert a photo, as `predict` takes it, to `(H, W, 3)` uint8 as the graph takes it.

        Raises:
            DataError: It cannot be read, or is nothing that `predict` takes.
        """
        return to_input(photo, self.preprocessing)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return `(N, C)` float64 probabilities, 0..1, of logits `(N, C)`, with the bundle's temperature."""
        return softmax(logits.astype(np.float64) / self.manifest["temperature"])

    def to_prediction(self, logits: np.ndarray, novelty: float | None = None) -> Prediction:
        """Make a prediction from the logits of one photo.

        Args:
            logits: `(C,)`.
            novelty: See Prediction.

        Raises:
            BundleError: There are not as many logits as classes.
        """
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
    """Return the probability that keeps a promise: no more errors, or no less coverage, than wanted.

    Args:
        manifest: Of the bundle.
        kind: Which promise.
        wanted: Share of errors or coverage, 0..1.

    Raises:
        BundleError: The photos that were learned from do not allow it; the message says what could be promised.
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
    """Round up, to one decimal from 10 % on and to two below."""
    steps = 10 if percent >= 10 else 100
    return ceil(percent * steps) / steps


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def load(
    folder: str | Path,
    *,
    precision: Precision | None = None,
    max_error: float | None = None,
    coverage: float | None = None,
    expected_sha256: str | None = None,
) -> Bundle:
    """Load a bundle from disk, every file read once and verified. A run's folder will do: its bundle is taken.

    Args:
        folder: The bundle's, or a run's.
        precision: Arithmetic; None for that which it was made with.
        max_error: Share of wrong answers, 0..1, above which it rather says that it is unsure; None for never.
        coverage: How often the right class is to be among `Prediction.labels`, 0..1; None for no such list.
        expected_sha256: `Bundle.sha256` of the only model that will do; None for any.

    Raises:
        BundleError: It is missing, damaged, of a newer format, another model than expected, or cannot promise what is
            wanted of it.
    """
    folder = Path(folder).expanduser().absolute()
    if not (folder / MANIFEST).is_file() and (folder / "bundle" / MANIFEST).is_file():
        folder = folder / "bundle"
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"There is no bundle at {folder}. Expected a folder with {MANIFEST}, as `regraft train` makes."
        )
    bundle = Bundle(folder, read_content(folder, expected_sha256), precision, max_error, coverage)
    _ = bundle.least_sure, bundle.least_likely
    return bundle
