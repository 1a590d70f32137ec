"""The manifest of a bundle: its schema, and the seal that shows damage to it."""

import json
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from regraft.core.files import sha256_json
from regraft.data.transforms import MAX_SIZE, Preprocessing

MANIFEST = "regraft.json"
FORMAT = 2  # from 2 on a manifest is sealed
READABLE = (1, 2)
FILES = ("model.onnx", "model.safetensors", "config.json", "README.md")
SEAL = "seal"

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Pixels = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
Level = Annotated[float, Meta(ge=-100, le=100)]
Row = dict[str, Any]
Part = TypeVar("Part", bound=Struct)
MISSING = "Object missing required field "


class Input(Struct, forbid_unknown_fields=True):
    """What a photo goes through before the graph, as `data.transforms.Preprocessing` describes it."""

    height: Pixels
    width: Pixels
    resize: tuple[Pixels, Pixels]
    interpolation: str
    crop_mode: Literal["center", "squash", "border"]
    mean: tuple[Level, Level, Level]
    std: tuple[Level, Level, Level]
    grey_bits: Annotated[int, Meta(ge=8, le=15)] | None = None


class Interval(Struct):
    """A share of photos with its 95 % interval.

    Attributes:
        value: The share, 0..1.
        low: Lower end of the interval, 0..1.
        high: Upper end of the interval, 0..1.
        n: How many photos.
        split: What the photos are called.
    """

    value: Share
    low: Share
    high: Share
    n: Count
    split: str


class ClassRow(Struct):
    """Precision, recall and F1 of one class, on `n` photos of it."""

    name: str = msgspec.field(name="class")
    n: Count
    precision: Share
    recall: Share
    f1: Share


class Metrics(Struct):
    """How good the bundle is on photos not learned from; all of it missing where that was not measured."""

    accuracy: Interval
    macro_f1: Share | None = None
    balanced_accuracy: Share | None = None
    log_loss: float | None = None
    ece: Share | None = None
    confusion: list[list[Count]] = []
    per_class: list[ClassRow] = []
    cross_validated: Interval | None = None


class Thresholds(Struct):
    """From which probability on an answer can be relied on, as `models.calibration.thresholds` gives it."""

    n: Count
    max_error: list[tuple[Share, Share, Share]]
    coverage: list[tuple[Share, Share]]


class BackboneInfo(Struct):
    """The network below the head.

    Attributes:
        name: By which `load_backbone` finds it.
        num_features: D.
        num_params: How many numbers its weights are.
        licence: Of the weights.
        origin: Where the weights come from.
        levels: Whether the features are mean and maximum of all its levels, beside the usual ones.
        roots: Whether signed square roots are taken of the features, which then have length 1.
        graph_sha256: Hash of its own graph, without a head.
        loaded: How much of the file of weights was loaded, in words; None for random weights.
        bf16_agreement: Worst cosine between its features in bf16 and in f32; None where the processor has no bf16.
    """

    name: str
    num_features: Annotated[int, Meta(ge=1, le=2**20)]
    num_params: Count
    licence: str
    origin: str
    levels: bool
    graph_sha256: Sha256
    roots: bool = False
    loaded: str | None = None
    bf16_agreement: float | None = None


def special_features(backbone: Row) -> list[str]:
    """Name what features are beyond the network's own, which its own library does not compute.

    Args:
        backbone: That part of a manifest.
    """
    levels = ["mean and maximum of all its levels, beside the usual ones"] if backbone["levels"] else []
    return levels + (["signed square roots, of unit length"] if backbone.get("roots") else [])


class Images(Struct):
    """How many files were found, and what became of them."""

    found: Count
    used: Count
    quarantined: Count = 0


class SplitCounts(Struct):
    """How many photos were learned from and evaluated on.

    Attributes:
        given: Whether the folder itself said which.
        train: Photos learned from.
        judged: Photos that the model was evaluated on.
    """

    given: bool
    train: Count
    judged: Count


class PenaltyPoint(Struct):
    """One strength of the head's penalty, cross-validated."""

    penalty: float
    log_loss: float
    num_right: Count
    n: Count


class HeadCurve(Struct):
    """The penalty that was chosen, and all that were tried."""

    penalty: float
    curve: list[PenaltyPoint] = []


class Provenance(Struct):
    """Where the model comes from.

    Attributes:
        mode: How it was trained.
        config: The settings of the training.
        data_sha256: Fingerprint of the photos.
        images: How many files were found.
        split: How many photos were learned from and evaluated on.
        versions: Of regraft, Python and libraries, and the machine.
        history: A row for each epoch.
        searched: A row for each kind of features tried.
        head: How the penalty of the head was chosen.
        first_layer: Name of the cache folder that holds the backbone before training; "" for none.
    """

    mode: Literal["frozen", "full", "scratch"]
    config: Row
    data_sha256: Sha256
    images: Images
    split: SplitCounts
    versions: dict[str, str | None]
    history: list[Row] = []
    searched: list[Row] = []
    head: HeadCurve | None = None
    first_layer: str = ""


class Manifest(Struct):
    """What `regraft.json` has to hold. Further keys are kept and not looked at."""

    classes: Annotated[list[str], Meta(min_length=2, max_length=2**20)]
    preprocessing: Input
    precision: Literal["f32", "bf16"]
    temperature: Annotated[float, Meta(gt=0, lt=1e6)]
    thresholds: Row
    heads: Annotated[dict[str, list[Annotated[int, Meta(ge=1, le=1)]]], Meta(min_length=1)]
    metrics: Row
    backbone: BackboneInfo
    provenance: Provenance
    sha256: dict[str, Sha256]


def seal_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the hash that shows a change to any of it."""
    return {**manifest, SEAL: manifest_sha256(manifest)}


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """Return a model's identity: the hash of its manifest, which holds those of the files, without the seal itself.

    It is the same whatever the order of keys and the white space in the file.
    """
    return sha256_json({key: value for key, value in manifest.items() if key != SEAL})


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Read a manifest that fits the schema and its seal.

    Args:
        data: Content of regraft.json.

    Returns:
        The manifest, with whatever else it holds.

    Raises:
        FormatError: It is of a version that this release does not read.
        ValueError: It is no manifest, or contradicts itself; the message says how.
    """
    try:
        manifest = json.loads(data.decode("utf-8"))
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise ValueError("it cannot be read as JSON of a bundle") from error
    version = manifest["format"]
    if type(version) is not int or version not in READABLE:
        raise FormatError(version)
    try:
        _check_schema(manifest)
        if version > 1 and manifest.get(SEAL) != manifest_sha256(manifest):
            raise ValueError("its seal does not match, so something in it was changed after it was written")
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return manifest


class FormatError(ValueError):
    """A manifest is of a version that this release does not read.

    Attributes:
        version: What the manifest says.
    """

    def __init__(self, version: object) -> None:
        super().__init__(f"its format is {str(version)[:40]!r}")
        self.version = version


def _check_schema(values: dict[str, Any]) -> None:
    """Raise ValueError for what does not fit, or where two parts do not say the same."""
    manifest = _converted(values, Manifest, "")
    if manifest.thresholds:
        _converted(manifest.thresholds, Thresholds, "thresholds")
    metrics = _converted(manifest.metrics, Metrics, "metrics") if manifest.metrics else None
    try:
        Preprocessing.from_json(values["preprocessing"])
    except ValueError as error:
        raise ValueError(f"its preprocessing is wrong: {error}") from error
    num_classes = len(manifest.classes)
    if len(set(manifest.classes)) != num_classes:
        raise ValueError("a class is named twice")
    if metrics and not _is_square(metrics.confusion, num_classes):
        raise ValueError(f"its metrics.confusion is not that of {num_classes} classes")
    if metrics and metrics.per_class and [row.name for row in metrics.per_class] != manifest.classes:
        raise ValueError("its metrics.per_class is not that of its classes")


def _converted(value: Any, schema: type[Part], where: str) -> Part:
    """Convert a part of the manifest by its schema; raise a ValueError that says where it does not fit."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        inner = path.rstrip("`").removeprefix(".")
        if text.startswith(MISSING):
            inner, text = ".".join(filter(None, (inner, text.removeprefix(MISSING).strip("`")))), "missing"
        raise ValueError(f"its {'.'.join(filter(None, (where, inner)))[:80]} is wrong: {text[:200]}") from error


def _is_square(matrix: list[list[int]], size: int) -> bool:
    """Return whether a matrix has so many rows and columns; an empty one stands for none."""
    return not matrix or (len(matrix) == size and all(len(row) == size for row in matrix))
