"""Options of the command line that several commands share, and the words their values are given in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from regraft.core.config import TrainConfig
from regraft.core.settings import Setting, settings_of
from regraft.training.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])


def with_json(command: Command) -> Command:
    """Add `--json`, which prints the result as data."""
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON to stdout.")(command)


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Convert `90`, `90s`, `3m` or `1h` to seconds."""
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
    """Convert `2%` or `0.02` to a share between 0 and 1."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise click.BadParameter(f"{text!r} is no share between 0 and 1. Expected one like 2% or 0.02.")
    return share


_INFERENCE = (
    click.option("--precision", type=click.Choice(["f32", "bf16"]), help="Arithmetic.  [default: as trained]"),
    click.option("--max-error", callback=_part, metavar="SHARE",
                 help="Say 'unsure' so often that no more than so many of the other answers are wrong, such as 2%."),
)  # fmt: skip


def with_coverage(command: Command) -> Command:
    """Add `--coverage`, for commands that answer photo by photo."""
    text = "Name as many classes as it takes for the right one to be among them so often, such as 95%."
    return click.option("--coverage", callback=_part, metavar="SHARE", help=text)(command)


def with_inference(command: Command) -> Command:
    """Add the options of commands that answer through a bundle: `--precision` and `--max-error`."""
    for option in reversed(_INFERENCE):
        command = option(command)
    return command


_ANSWERS = (
    click.option("--format", type=click.Choice(["text", "csv", "jsonl", "parquet"]),
                 help="Of the answers.  [default: what the name of --out says; csv with --columns; else text]"),
    click.option("--out", metavar="FILE", help="Write the answers to a file, such as answers.csv or answers.parquet."),
    click.option("--columns", metavar="NAMES",
                 help="Of a table, such as id,label or image=id,probabilities: path, id (name without extension), "
                 "name, label, probability, p_CLASS, probabilities (one for each class), unsure, looks_new, novelty."),
    click.option("--vote-by", metavar="PATTERN",
                 help='What in the path, such as "animal[0-9]+", makes photos a group that gets one answer: '
                 "the mean of the logarithms of their probabilities."),
    click.option("--sort", metavar="DIR",
                 help="Put photos into class folders in DIR, unsure/ and new/, by links or copies."),
    click.option("--undo", metavar="DIR", help="Remove what --sort has put into DIR, and nothing else."),
)  # fmt: skip


def with_answers(command: Command) -> Command:
    """Add the options of what becomes of answers: tables, votes, sorted photos."""
    for option in reversed(_ANSWERS):
        command = option(command)
    return command


def _bytes(_: click.Context, __: click.Parameter, text: str) -> int:
    """Convert `500MB`, `2GB` or a number of bytes to bytes."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, unit = (text[:-2], units[text[-2:].upper()]) if text[-2:].upper() in units else (text, 1)
    try:
        count = float(number) * unit
    except ValueError:
        count = 0.0
    if not 1 <= count < 2**63:
        raise click.BadParameter(f"{text!r} is no number of bytes. Expected one like 500MB or 2GB.")
    return int(count)


def with_keeping(command: Command) -> Command:
    """Add the options of a server that keeps photos."""
    text = "Keep unsure and new photos, and one of a hundred others, in DIR.  [default: none]"
    size = "How many bytes there may be in DIR; then nothing more is kept."
    option = click.option("--keep-bytes", default="1GB", show_default=True, callback=_bytes, metavar="BYTES", help=size)
    return click.option("--keep", metavar="DIR", help=text)(option(command))


def with_network(command: Command) -> Command:
    """Add the options that name what computes features: `--bundle`, or `--backbone` and `--weights`."""
    text = "A model whose features are wanted.  [default: the backbone's]"
    return click.option("--bundle", metavar="BUNDLE", help=text)(with_settings("backbone", "weights")(command))


_METAVARS = {
    "group_by": "PATTERN",
    "label_by": "PATTERN",
    "path_column": "NAME",
    "label_column": "NAME",
    "also": "DIR",
    "relabel": "FILE",
    "weights": "FILE",
    "drop": "KINDS",
}
_NOT_SHARED = ("mode", "settings", "restart", "force")  # of `train` alone, or no option


def with_training_options(command: Command) -> Command:
    """Add the options of `train` and `compare`, made from the fields of TrainConfig and of Recipe."""
    run = [_option(one) for one in settings_of(TrainConfig) if one.name not in _NOT_SHARED]
    places = [
        click.option("--out", metavar="DIR", help="Folder for the run.  [default: in runs/]"),
        click.option("--quiet", is_flag=True, help="No progress."),
    ]
    recipe = [_option(replace(one, default=None)) for one in settings_of(Recipe)]
    for option in reversed([*run, *places, *recipe]):
        command = option(command)
    return command


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Return a decorator that adds options made from some fields of TrainConfig.

    Args:
        names: Names of the fields.
    """

    def decorate(command: Command) -> Command:
        known = {one.name: one for one in settings_of(TrainConfig)}
        for name in reversed(names):
            command = _option(known[name])(command)
        return command

    return decorate


def _option(one: Setting) -> Callable[[Command], Command]:
    """Make the option of a setting: its name with dashes, its text as help."""
    flag = "--" + one.name.removesuffix("_s").replace("_", "-")
    if one.kind is bool:
        words = flag if one.default is False else f"{flag}/--no-{flag[2:]}"
        return click.option(words, one.name, default=one.default, is_flag=True, help=one.text)
    shown = None if one.is_several or one.default in (None, "", -1) else one.default
    return click.option(
        flag,
        one.name,
        type=click.Choice(one.kind) if isinstance(one.kind, tuple) else str if one.name.endswith("_s") else one.kind,
        default=None if one.is_several else one.default,
        show_default=shown is not None,
        multiple=one.is_several,
        callback=_seconds if one.name.endswith("_s") else None,
        metavar="TIME" if one.name.endswith("_s") else _METAVARS.get(one.name),
        help=one.text,
    )
