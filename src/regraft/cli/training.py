"""What makes a model, or another one of it."""

from typing import Any

import click
from click.core import ParameterSource

from regraft.core.progress import Progress, printable
from regraft.options import (
    with_json,
    with_settings,
    with_training_options,
)
from regraft.reporting import terminal


@click.command()
@click.argument("folder", metavar="DIR")
@with_settings("mode")
@click.option("--from", "start", metavar="BUNDLE", help="Begin with the weights of a bundle.")
@with_settings("restart", "force")
@with_training_options
@with_json
def train(folder: str, out: str | None, start: str | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Train on a folder of photos; the model is in OUT/bundle.

    DIR is DIR/<class>/<image> (regraft keeps a fifth for judging), or DIR/train/<class>/<image> with val and
    optionally test; or an archive, a list, shards, a Parquet file, annotations or an address (docs/photos.md).
    Interrupted, the same command continues. Options from --epochs on are decided from the data when they are not
    given, printed, and saved with the model.

    \b
    regraft train photos/
    regraft train photos.zip
    regraft train photos/ --time 3m
    regraft train photos/ --mode frozen --backbone resnet50 --out runs/pets
    regraft train photos/ --mode full --epochs 20 --augment trivial
    regraft train photos/ --mode full --recipe tutorial
    torchrun --nproc-per-node 2 -m regraft train photos/ --mode full
    """
    from regraft.commands import train as train_command

    if start is not None:
        given = click.get_current_context().get_parameter_source
        if settings["weights"] is not None or given("backbone") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--from names the backbone and its weights: leave out --backbone and --weights.")
        settings |= train_command.start_of(start)
    config = train_command.configure(**{name: value for name, value in settings.items() if value is not None})
    run = train_command.train_run(folder, out, config, Progress(quiet))
    if not run.summary:
        return  # one of several processes, and not the one that talks
    if as_json:
        terminal.print_json(run.summary)
        return
    terminal.print_summary(run.summary)
    if config.report:
        print(f"report   {printable(str(run.out / 'report.html'))}")
    command = printable(f"regraft predict {run.out} PHOTO...")
    print(f"\nNext:\n\n    {command}")


@click.command()
@click.argument("run")
@click.argument("folder", metavar="DIR")
@click.option("--out", help="Folder for the new run.  [default: RUN itself]")
@with_json
def add(run: str, folder: str, out: str | None, as_json: bool) -> None:
    """Grow a model by the photos in DIR: more of its classes, or new ones. Only they go through the backbone.

    DIR is laid out like the folder that RUN was trained on. The head is solved again on all photos; every photo of RUN
    keeps its label, and those that were learned from never judge. Says what it did to the classes that were there.

    \b
    regraft add runs/fruit kiwis/
    """
    from regraft.commands import update

    _print_grown(update.add(run, folder, out, progress=Progress()), as_json)


@click.command()
@click.argument("run")
@click.argument("file", metavar="LIST")
@click.option("--out", help="Folder for the new run.  [default: RUN itself]")
@with_json
def relabel(run: str, file: str, out: str | None, as_json: bool) -> None:
    """Train the model of RUN again with labels put right, in seconds.

    LIST is a CSV or JSON-lines file with path and label, such as the suspects.csv that `regraft scan --out` writes,
    after you have looked at it and changed its labels.

    \b
    regraft scan photos/ --out findings/
    regraft relabel runs/photos findings/suspects.csv
    """
    from regraft.commands import update

    _print_grown(update.relabel(run, file, out, progress=Progress()), as_json)


def _print_grown(updated: Any, as_json: bool) -> None:
    if as_json:
        terminal.print_json(updated.to_json())
        return
    terminal.print_summary(updated.run.summary)
    print(f"before   {updated.before}")
    print(f"after    {updated.after}")
    print(f"         {updated.pair.verdict}")
    if updated.added:
        print(printable(f"new      {', '.join(updated.added)}"))


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--modes", default="frozen,full,scratch", show_default=True, help="Which, separated by commas.")
@click.option("--backbones", default="", help="Several networks, separated by commas, each in every mode.")
@with_training_options
@with_json
def compare(
    folder: str, out: str | None, modes: str, backbones: str, quiet: bool, as_json: bool, **settings: Any
) -> None:
    """Train in several modes on the same split, side by side, and say which really differ.

    OUT/compare.html shows them on one page.

    \b
    regraft compare photos/
    regraft compare photos/ --recipe tutorial
    regraft compare photos/ --modes frozen,full --json
    regraft compare photos/ --modes frozen --backbones tf_efficientnet_lite0,resnet50
    """
    from regraft.commands import compare as compare_command
    from regraft.commands import train as train_command

    config = train_command.configure(**{name: value for name, value in settings.items() if value is not None})
    wanted = tuple(mode.strip() for mode in modes.split(","))
    networks = tuple(name.strip() for name in backbones.split(",") if name.strip())
    result = compare_command.compare(
        folder, out, modes=wanted, backbones=networks, config=config, progress=Progress(quiet)
    )
    if as_json:
        terminal.print_json(result.to_json())
        return
    terminal.print_modes({mode: run.summary for mode, run in result.runs.items() if run.summary})
    for one in result.pairs:
        print(f"{one.verdict} (p = {one.corrected:.2g})")
    if result.page is not None:
        print(f"report   {printable(str(result.page))}")
