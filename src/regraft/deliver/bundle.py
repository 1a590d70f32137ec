"""The delivered model: a folder that predicts by itself. No pickle anywhere, and no torch.

regraft.json        what it is, and the sha256 of every other file; written last
model.onnx          images (B, H, W, 3) uint8 -> logits (B, C), features (B, D), novelty (B,); normalisation inside
model.safetensors   the same weights under the library's own names
config.json         builds the network in timm: timm.create_model("local-dir:BUNDLE", pretrained=True)
README.md           the model card
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from regraft.backbones.engine import Engine, Precision, usable_precision
from regraft.data.decode import Unreadable, read_bytes, to_rgb
from regraft.data.transforms import Preprocessing, photo_to_input, transform
from regraft.ground.errors import BundleError, DataError
from regraft.ground.files import sha256_file

MANIFEST = "regraft.json"
FORMAT = 1
FILES = ("model.onnx", "model.safetensors", "config.json", "README.md")

Photo = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a model says of one photo. Probabilities are 0..1 and sum to 1; `probability` is the label's.

    novelty: how far the photo is from those learned from, beside what all but 1 % of them keep; None where the model
    cannot tell.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    novelty: float | None = None

    @property
    def looks_new(self) -> bool:
        """Whether it looks like nothing that was learned from: the label then means little."""
        return self.novelty is not None and self.novelty > 1


@dataclass(frozen=True)
class Bundle:
    """A loaded model. Safe to use from many threads.

    folder: where it lies.  manifest: content of regraft.json.  wanted_precision: None for the one it was made with.
    """

    folder: Path
    manifest: dict[str, Any]
    wanted_precision: Precision | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of the logits."""
        return tuple(self.manifest["classes"])

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
    def engine(self) -> Engine:
        """The compiled graph; compiling takes a moment, once."""
        return Engine(self.folder / "model.onnx", self.precision)

    @cached_property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """weight `(C, D)` and bias `(C,)` float32 of the last layer, as saved."""
        name = next(iter(self.manifest["heads"]))
        with safe_open(self.folder / "model.safetensors", framework="np") as file:
            weight, bias = file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias")
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
        """Prediction from the logits `(C,)` of one photo."""
        p = self.probabilities(logits[np.newaxis])[0]
        best, shares = int(p.argmax()), dict(zip(self.classes, map(float, p), strict=True))
        return Prediction(self.classes[best], float(p[best]), shares, novelty)


def load(folder: str | Path, *, precision: Precision | None = None) -> Bundle:
    """A bundle from disk, every file verified. A run's folder will do: its bundle is taken.

    Raises BundleError when it is missing, damaged, or of a newer format.
    """
    folder = Path(folder).expanduser()
    if not (folder / MANIFEST).is_file() and (folder / "bundle" / MANIFEST).is_file():
        folder = folder / "bundle"
    bundle = Bundle(folder, _read_manifest(folder), precision)
    for name in FILES:
        _verify(folder / name, bundle.manifest["sha256"].get(name))
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
    try:
        Preprocessing.from_json(manifest["preprocessing"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return "its preprocessing is incomplete or wrong"
    return None


def _verify(path: Path, expected: str | None) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is missing, or not a plain file. The bundle is incomplete: restore a copy.")
    found = sha256_file(path)
    if found != expected:
        raise BundleError(
            f"{path} is damaged: expected sha256 {str(expected)[:12]}..., got {found[:12]}.... "
            "Train again or restore a copy."
        )
