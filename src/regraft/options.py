"""Options of the command line that several commands share, and the words their values are given in."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from regraft.training.recipe import recipe_fields

Command = TypeVar("Command", bound=Callable[..., Any])


def with_json(command: Command) -> Command:
    """`--json`: what there is to say, as data."""
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON to stdout.")(command)


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """`90`, `90s`, `3m` or `1h` in seconds."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is no time. Expected one like 90s, 10m or 1h.")
    return seconds


def _part(_: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`2%` or `0.02` as a share, between 0 and 1."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise click.BadParameter(f"{text!r} is no share between 0 and 1. Expected one like 2% or 0.02.")
    return share


_PROMISES = (
    click.option("--precision", type=click.Choice(["f32", "bf16"]), help="Arithmetic.  [default: as trained]"),
    click.option("--max-error", callback=_part, metavar="SHARE",
                 help="Say 'unsure' so often that no more than so many of the other answers are wrong, such as 2%."),
)  # fmt: skip


def with_coverage(command: Command) -> Command:
    """`--coverage`, of what answers photo by photo."""
    text = "Name as many classes as it takes for the right one to be among them so often, such as 95%."
    return click.option("--coverage", callback=_part, metavar="SHARE", help=text)(command)


def with_promises(command: Command) -> Command:
    """Options of what answers through a bundle."""
    for option in reversed(_PROMISES):
        command = option(command)
    return command


_FOLLOW_LINKS = click.option("--follow-links", is_flag=True,
                             help="Follow links to photos and folders, wherever they lead.")  # fmt: skip
_FOLDERS = (
    click.option("--class-level", type=click.Choice(["top", "leaf", "path"]),
                 help="Which folder names the class where class folders hold folders: the outer one, the one that "
                 "holds the photos, or all."),
    _FOLLOW_LINKS,
)  # fmt: skip


def with_follow_links(command: Command) -> Command:
    """`--follow-links`, of what reads photos without labels."""
    return _FOLLOW_LINKS(command)


def with_folder_options(command: Command) -> Command:
    """Options of what reads folders of labelled photos."""
    for option in reversed(_FOLDERS):
        command = option(command)
    return command


_TRAINING = (
    click.option("--recipe", type=click.Choice(["regraft", "tutorial"]), default="regraft", show_default=True,
                 help="How gradients are followed: decided from the data, or as PyTorch's tutorial does."),
    click.option("--time", "time_s", callback=_seconds, help="Longest time, such as 90s or 3m.  [auto: 10m]"),
    click.option("--search/--no-search", default=None,
                 help="Also try a larger input and all levels of the frozen network.  [auto: yes]"),
    click.option("--backbone", default="tf_efficientnet_lite0", show_default=True,
                 help="Network; see `regraft backbones`."),
    click.option("--weights", help="A .safetensors, .pth or .pth.tar file, or 'random'."),
    click.option("--out", help="Folder for the run.  [default: in runs/]"),
    click.option("--seed", default=0, show_default=True, help="Decides the split and everything random."),
    click.option("--val-fraction", default=0.2, show_default=True,
                 help="Share of each class to judge on, where the folder has no val or test."),
    click.option("--num-folds", default=5, show_default=True, help="Folds of every cross-validation."),
    click.option("--group-by", metavar="PATTERN",
                 help="What in a photo's path, such as 'patient[0-9]+', keeps photos on one side of a split."),
    *_FOLDERS,
    click.option("--also", multiple=True, metavar="DIR", help="A further folder of photos; may be given again."),
    click.option("--relabel", multiple=True, metavar="FILE",
                 help="A CSV or JSON-lines list of path and label: labels put right; may be given again."),
    click.option("--drop", help="Kinds of findings of `regraft scan` to leave out, separated by commas, or 'all'."),
    click.option("--strict", is_flag=True, help="Refuse when a file cannot be used, instead of leaving it out."),
    click.option("--report/--no-report", default=True, help="Also write report.html.  [default: yes]"),
    click.option("--track", multiple=True, type=click.Choice(["tensorboard", "mlflow", "wandb", "trackio"]),
                 help="Also tell a tracker of every epoch; may be given again."),
    click.option("--workers", default=-1, help="Processes that augment photos.  [default: decided]"),
    click.option("--offline", is_flag=True, help="Never download anything."),
    click.option("--quiet", is_flag=True, help="No progress."),
)  # fmt: skip


def with_training_options(command: Command) -> Command:
    """Options of `train` and `compare`; those of the recipe are made from its fields."""
    for option in (*reversed(_recipe_options()), *reversed(_TRAINING)):
        command = option(command)
    return command


def _recipe_options() -> list[Callable[[Command], Command]]:
    made = []
    for name, kind, text in recipe_fields():
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            made.append(click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text))
        else:
            made.append(click.option(flag, type=click.Choice(kind) if isinstance(kind, tuple) else kind, help=text))
    return made
