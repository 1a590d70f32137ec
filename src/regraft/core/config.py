"""What can be chosen about a training run: one dataclass, saved with the result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, get_args

from regraft.core.errors import ConfigError

Mode = Literal["auto", "frozen", "full", "scratch"]
RecipeName = Literal["regraft", "tutorial"]
TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
ClassLevel = Literal["top", "leaf", "path"]
Fit = Literal["crop", "pad", "squash"]
AUTO_SECONDS = 600.0


@dataclass(frozen=True)
class FolderOptions:
    """How folders of photos are read, where there is more than one way.

    Attributes:
        class_level: Where class folders hold folders: "top" for the outer one as the class, "leaf" for the one that
            holds the photos, "path" for both, as `birds/owl`. None to refuse what could be meant in two ways.
        follow_links: Whether links to files and folders are followed, wherever they lead.
        known_classes: Names that are expected, such as those of a model, where they decide how a name is read.
        path_column: The column of a list that names the photos; None to find it.
        label_column: The column of a list that names their classes; None to find it.
        label_by: What in a photo's path is its class, as a regular expression; None for its folder.
        every_s: Seconds from frame to frame of a video that are read; None to read no videos.
        margin: What is added around boxes on each side, as a share of the longer side.
    """

    class_level: ClassLevel | None = None
    follow_links: bool = False
    known_classes: tuple[str, ...] = ()
    path_column: str | None = None
    label_column: str | None = None
    label_by: str | None = None
    margin: float = 0.0
    every_s: float | None = None

    @classmethod
    def recorded(cls, config: Mapping[str, Any]) -> "FolderOptions":
        """Return the options that a model was trained with.

        Args:
            config: As `TrainConfig.to_json` gives it, perhaps written by an older version.
        """
        level = config.get("class_level")
        return cls(level if level in get_args(ClassLevel) else None, config.get("follow_links") is True)


AS_FOUND = FolderOptions()
READING = ("path_column", "label_column", "label_by", "margin", "every_s")
"""Fields of TrainConfig that say how lists and names of photos are read, and no more: no model depends on them."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `regraft train`.

    Raises:
        ConfigError: A value is unknown or out of range, or weights are named for mode "scratch".
    """

    mode: Mode = "auto"
    """What learns: "frozen" solves the head on the backbone's features; "full" trains all layers; "scratch" all from
    random weights; "auto" goes up from frozen over the last stages to full, while time allows and it pays."""

    recipe: RecipeName = "regraft"
    """How gradients are followed: regraft's own way, decided from the data, or as PyTorch's tutorial does."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe that are fixed by the user, such as epochs."""

    search: bool | None = None
    """Also try other features of the frozen network: a larger input, whole photos padded or squashed, all levels,
    square roots. Not set: in mode auto."""

    time_s: float | None = None
    """Longest time of the whole run, such as 90s or 3m; in Python, seconds. Not set: 10 minutes for mode auto, no limit
    for the others."""

    backbone: str = "tf_efficientnet_lite0"
    """Pretrained network, as listed by `regraft backbones`."""

    weights: str | None = None
    """A .safetensors, .pth or .pth.tar file, or "random". Not set: the backbone's pretrained weights."""

    fit: Fit | None = None
    """How photos that are not square become the network's input: cut to the middle, padded with its mean colour, or
    squashed. Not set: as the network was trained; a search of features tries all of them."""

    val_fraction: float = 0.2
    """Share of each class to judge on, where the folder has no val or test of its own."""

    num_folds: int = 5
    """Folds of every cross-validation."""

    class_level: ClassLevel | None = None
    """Which folder names the class where class folders hold folders: the outer one, the one that holds the photos, or
    all. Not set: what could be meant in two ways is refused."""

    follow_links: bool = False
    """Follow links to photos and folders, wherever they lead."""

    path_column: str | None = None
    """Column of a list that names the photos. Not set: found where one reading is possible, and said."""

    label_column: str | None = None
    """Column of a list that names their classes. Not set: found where one reading is possible, and said."""

    label_by: str | None = None
    """What in a photo's path is its class, such as "([a-z]+)[.][0-9]+[.]jpg" for cat.123.jpg: the first bracket, or all
    that is found. Folders then name no classes."""

    margin: float = 0.0
    """Around boxes of annotation programs, what is added on each side, as a share of the box's longer side."""

    every_s: float | None = None
    """How far the frames of a video that are read are apart, such as 1s. Not set: videos are not read."""

    group_by: str | None = None
    """What in a photo's path, such as "patient[0-9]+", keeps photos together: those of one group stay on one side of
    every split."""

    also: tuple[str, ...] = ()
    """A further folder of photos; may be given again."""

    relabel: tuple[str, ...] = ()
    """A CSV or JSON-lines list of path and label: labels put right; may be given again. The last one that names a photo
    counts."""

    drop: str = ""
    """Kinds of findings of `regraft scan` whose photos are left out, separated by commas, or "all"."""

    strict: bool = False
    """Refuse to train when a file cannot be used, instead of leaving it out."""

    seed: int = 0
    """Decides which photos are kept for judging, the folds, the order of photos, augmentation and random weights."""

    report: bool = True
    """Write report.html: what the model can do, with pictures."""

    track: tuple[TrackerName, ...] = ()
    """A tracker that is told of every epoch; may be given again."""

    workers: int = -1
    """Processes that augment photos; -1 decides. Changes no result."""

    restart: bool = False
    """Begin anew where an unfinished training lies."""

    force: bool = False
    """Continue an unfinished training although settings of its recipe have changed."""

    offline: bool = False
    """Never download anything."""

    def __post_init__(self) -> None:
        levels = (None, *get_args(ClassLevel))
        fits = (None, *get_args(Fit))
        choices = {"mode": get_args(Mode), "recipe": get_args(RecipeName), "class_level": levels, "fit": fits}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"Unknown {name} {getattr(self, name)!r}. Expected one of: {', '.join(map(str, known))}."
                )
        if not 0 < self.val_fraction < 1 or self.num_folds < 2 or not (self.time_s is None or self.time_s > 0):
            raise ConfigError("Expected val_fraction between 0 and 1, two folds or more, and a time above 0.")
        if self.mode == "scratch" and self.weights not in (None, "random"):
            raise ConfigError(
                "--mode scratch begins with random weights, so --weights and --from have no use in it. "
                "Leave them out, or choose --mode full."
            )
        if not 0 <= self.margin <= 10:
            raise ConfigError(f"--margin {self.margin:g} is no share of a box. Expected 0 to 10.")
        if self.every_s is not None and not self.every_s > 0:
            raise ConfigError(f"--every {self.every_s:g} is no time between frames. Expected one above 0, such as 1s.")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed} is negative. Expected 0 or more.")

    @property
    def limit_s(self) -> float | None:
        """Seconds that the run may take; None for no limit."""
        return AUTO_SECONDS if self.time_s is None and self.mode == "auto" else self.time_s

    @property
    def is_searching(self) -> bool:
        """Whether better features are looked for: as `search` says, or where that is not set, in mode auto."""
        return self.mode == "auto" if self.search is None else self.search

    @property
    def is_solved(self) -> bool:
        """Whether a head is fitted first: not in mode "scratch", and not with the recipe "tutorial"."""
        return self.mode != "scratch" and self.recipe == "regraft"

    @property
    def folder_options(self) -> FolderOptions:
        """How the run's folders of photos are read."""
        given = {name: getattr(self, name) for name in READING}
        return FolderOptions(self.class_level, self.follow_links, **given)

    def located(self) -> "TrainConfig":
        """Return the same settings with absolute paths of files and folders, which are found from any folder."""
        return replace(
            self,
            weights=_located(self.weights),
            relabel=tuple(str(Path(file).resolve()) for file in self.relabel),
            also=tuple(folder if ":/" in folder else str(Path(folder).resolve()) for folder in self.also),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as they are stored in the record of a run."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def portable(self) -> dict[str, Any]:
        """Return the settings as they are stored in manifests.

        Folders and files of this machine are left out, or named without their folder, and so is how lists and names
        were read; the record of the run has them.
        """
        weights = self.weights and PureWindowsPath(self.weights).name
        values = {name: value for name, value in self.to_json().items() if name not in ("also", "relabel", *READING)}
        return {**values, "weights": weights}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "TrainConfig":
        """Return the settings that `to_json` stored, without those that are not known.

        Raises:
            ConfigError: A value is unknown or out of range.
        """
        known = {one.name for one in fields(TrainConfig)}
        chosen = {name: value for name, value in values.items() if name in known}
        return TrainConfig(**chosen | {name: tuple(chosen.get(name, ())) for name in ("also", "relabel", "track")})


def _located(file: str | None) -> str | None:
    return str(Path(file).resolve()) if file and Path(file).is_file() else file
