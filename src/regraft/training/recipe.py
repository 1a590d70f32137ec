"""How to fine-tune: every number of it, decided from the data, printed, and saved with the result.

There is one loop, and a recipe holds its settings. `decide` chooses for the user; `tutorial` is PyTorch's well-known
transfer-learning notebook, the yardstick beside which all other numbers stand: to the letter, but that frozen layers
keep BatchNorm's statistics.
"""

import functools
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from regraft.core.errors import ConfigError, nearest

MIN_STEPS = 50  # fewer teach a small set too little
FAST = 1e-3  # rate of a backbone
BETWEEN = 0.8  # of the way from the first to the learned weights, where photos from elsewhere are to be answered


@dataclass(frozen=True)
class Recipe:
    """Settings of the loop. Rates are the highest ones of their schedule."""

    epochs: int = 10
    """Passes over the training photos."""

    batch_size: int = 32
    """Photos a step, over all devices together."""

    val_batch_size: int = 32
    """Photos at once when judging; changes nothing but memory."""

    microbatch_size: int = 16
    """Photos that go through the network at once, BatchNorm's statistics theirs; gradients add up. 0 for the batch."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW leaves biases and norms undecayed; SGD is the notebook's, plain, decay on everything."""

    learning_rate: float = 1e-3
    """Rate of the backbone."""

    head_learning_rate: float = 1e-3
    """Rate of the head."""

    layer_decay: float = 1.0
    """Factor by which each stage learns slower than the one after it."""

    momentum: float = 0.0
    """Of SGD."""

    weight_decay: float = 0.01
    """Pull of the weights towards zero."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """How rates go after the warm-up: down to zero along half a cosine, or not at all."""

    warmup: float = 0.1
    """Share of all steps in which rates rise from zero."""

    clip: float = 0.0
    """Largest norm of a step's gradient; 0 for no limit."""

    head_start: Literal["solved", "softened", "zero", "random"] = "zero"
    """Where the head begins: solved on frozen features, solved and scaled down so that it is less sure of the training
    photos and the backbone has something to learn, near zero, or as torch draws a linear layer."""

    batchnorm: Literal["eval", "train"] = "train"
    """Whether BatchNorm keeps its pretrained statistics or takes those of each batch, which spoils a solved head."""

    unfreeze: int = 0
    """How many of the last stages learn, the head not counted. 0 for all, -1 for none."""

    views: int = 0
    """With unfreeze: versions of each photo that the other stages run on, once; they come again in turn. 0 for none."""

    small_epochs: int = 0
    """How many epochs, the first ones, learn from photos of 0.7 times the input's side; where time is short it is
    chosen so that more epochs fit (M. Tan, Q. Le, EfficientNetV2, ICML 2021)."""

    min_crop: float = 0.35
    """Smallest share of a photo that a random crop shows."""

    flip: bool = True
    """Mirror half of the photos, left to right."""

    augment: Literal["crop", "color", "trivial"] = "color"
    """Random crops alone, with changed colours, or with TrivialAugment (Mueller and Hutter, ICCV 2021)."""

    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Blend pairs of photos (Zhang et al., ICLR 2018) or paste parts (Yun et al., ICCV 2019)."""

    label_smoothing: float = 0.1
    """Share of the label that is spread over all classes."""

    class_weights: bool = False
    """Whether rare classes count as much as frequent ones."""

    ema: float = 0.0
    """Decay a step of a running average of the weights, which is then what is delivered. 0 for none."""

    interpolation: float = 1.0
    """Share of the way from the first weights to the learned ones at which the delivered ones lie; needs BatchNorm in
    eval. Short of 1, photos from elsewhere are answered better (M. Wortsman et al., WiSE-FT, CVPR 2022)."""

    keep: Literal["last", "best"] = "last"
    """Which epoch is delivered. "best" by loss on photos set apart from training, never those that are judged."""

    patience: int = 0
    """With keep "best": stop after so many epochs without a lower loss. 0 for never."""

    compile: bool = False
    """Whether torch.compile builds the training step, on a GPU."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if problem := _problem(field.name, getattr(self, field.name)):
                raise ConfigError(problem)
        if self.patience and self.keep != "best":
            raise ConfigError("--patience needs --keep best: without it no epoch is better than another.")
        if self.interpolation < 1 and self.batchnorm == "train":
            raise ConfigError(
                "--interpolation below 1 needs --batchnorm eval: statistics of other weights do not fit those between."
            )
        if self.views and self.small_epochs:
            raise ConfigError("--small-epochs and --views exclude each other: what frozen stages made has one size.")
        if self.views and self.unfreeze < 1:
            raise ConfigError(
                "--views needs --unfreeze 1 or more: stages that all learn, or none, have nothing to keep."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as stored in manifests and checkpoints."""
        return asdict(self)

    def __str__(self) -> str:
        rates = f"rate {self.learning_rate:g}, head {self.head_learning_rate:g}"
        parts = [
            f"{self.epochs} epochs of batches of {self.batch_size}",
            f"{self.optimizer} {rates}, {self.schedule}",
            f"head from {self.head_start}",
            f"BatchNorm in {self.batchnorm}",
            f"crops from {100 * self.min_crop:g} %{_WITH[self.augment]}",
        ]
        usual = Recipe()
        named = {"epochs", "batch_size", "val_batch_size", "optimizer", "learning_rate", "head_learning_rate"}
        named |= {"schedule", "head_start", "batchnorm", "min_crop", "augment"}
        others = [f for f in fields(self) if f.name not in named and getattr(self, f.name) != getattr(usual, f.name)]
        return "; ".join(parts + [f"{f.name} {getattr(self, f.name)}" for f in others])


def tutorial(mode: str) -> Recipe:
    """Return the notebook's recipe for mode "frozen", "full" or "scratch"."""
    return Recipe(
        epochs=10 if mode == "full" else 20,
        batch_size=64,
        val_batch_size=8,
        microbatch_size=0,
        optimizer="sgd",
        learning_rate=1e-2,
        head_learning_rate=1e-2,
        weight_decay=1e-4,
        schedule="constant",
        warmup=0.0,
        head_start="random",
        augment="crop",
        unfreeze=-1 if mode == "frozen" else 0,
        min_crop=0.08,
        label_smoothing=0.0,
    )


def decide(mode: str, num_train: int, *, from_solved: bool = False, is_far: bool = False) -> Recipe:
    """Choose regraft's recipe, as the study in LOG.md found it.

    Args:
        mode: "scratch" for random weights; all other modes are alike here.
        num_train: Photos to learn from.
        from_solved: Whether training begins from a head that was solved on frozen features. It is softened, the
            statistics of BatchNorm, on which it rests, are kept, long gradients are cut, and all moves half as fast:
            without BatchNorm's help, some networks do not survive more. Otherwise BatchNorm learns.
        is_far: Whether photos from elsewhere are to be answered. Then weights between the first and the learned ones
            are delivered; on photos like those learned from, that would be a loss.
    """
    steps_an_epoch = -(-num_train // Recipe.batch_size)
    enough = -(-MIN_STEPS // steps_an_epoch)
    if mode == "scratch":
        rate = 2 * FAST
        return Recipe(max(20, enough), learning_rate=rate, head_learning_rate=rate, head_start="random")
    if from_solved:
        slower = Recipe(max(10, enough), learning_rate=FAST / 2, head_learning_rate=FAST / 2, clip=1.0)
        share = BETWEEN if is_far else 1.0
        return replace(slower, head_start="softened", batchnorm="eval", interpolation=share)
    return Recipe(max(10, enough))


def choose_recipe(name: str, recipe: Recipe, mode: str, fixed: dict[str, Any]) -> Recipe:
    """Return the tutorial's recipe or the one that was decided, with what the user fixed.

    Args:
        name: "tutorial", or another for the one that was decided.
        recipe: The one that was decided.
        mode: "frozen", "full" or "scratch".
        fixed: Settings that the user gave, by name.

    Raises:
        ConfigError: A setting is of the wrong kind or out of range, or two do not go together.
    """
    if fixed.get("batchnorm") == "train":
        recipe = replace(recipe, interpolation=1.0)
    return replace(tutorial(mode) if name == "tutorial" else recipe, **fixed)


def check_names(settings: dict[str, Any]) -> None:
    """Check that a recipe has all of these settings.

    Raises:
        ConfigError: A setting is one that no recipe has.
    """
    known = [field.name for field in fields(Recipe)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"Unknown setting {name!r}.{nearest(name, known)}")


_WITH = {"crop": "", "color": " in changed colours", "trivial": " and TrivialAugment"}
_BOUNDS = {
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "val_batch_size": (1, 1_000_000),
    "microbatch_size": (0, 1_000_000),
    "learning_rate": (0.0, 100.0),
    "head_learning_rate": (0.0, 100.0),
    "layer_decay": (1e-6, 1.0),
    "momentum": (0.0, 0.9999),
    "weight_decay": (0.0, 100.0),
    "warmup": (0.0, 1.0),
    "clip": (0.0, 1e9),
    "unfreeze": (-1, 10_000),
    "views": (0, 100_000),
    "small_epochs": (0, 100_000),
    "min_crop": (0.001, 1.0),
    "label_smoothing": (0.0, 0.999),
    "ema": (0.0, 0.999999),
    "interpolation": (0.0, 1.0),
    "patience": (0, 100_000),
}


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    """Return the words that each setting takes which takes no others."""
    return {name: words for name, hint in get_type_hints(Recipe).items() if (words := get_args(hint))}


def _problem(name: str, value: Any) -> str | None:
    kind = type(getattr(Recipe, name))
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        return (
            f"--{name.replace('_', '-')} {value!r} is of the wrong kind. Expected one like {getattr(Recipe, name)!r}."
        )
    if name in _BOUNDS and not _BOUNDS[name][0] <= value <= _BOUNDS[name][1]:
        low, high = _BOUNDS[name]
        return f"--{name.replace('_', '-')} {value} is out of range. Expected {low:g} to {high:g}."
    choices = _choices().get(name)
    if choices and value not in choices:
        return f"--{name.replace('_', '-')} {value!r} is unknown. Expected {', '.join(choices)}."
    return None
