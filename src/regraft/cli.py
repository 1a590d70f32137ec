"""The command line: one short function for each command. stdout is data, stderr is talk.

Commands import what they need when they run, so that `regraft --help` answers at once.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from regraft import __version__
from regraft.ground.errors import RegraftError
from regraft.ground.progress import Progress, printable

Command = TypeVar("Command", bound=Callable[..., Any])


def main() -> NoReturn:
    """Entry point. Exit 0 done, 1 an error that the user can mend, 2 wrong usage, 130 interrupted."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that are not UTF-8
    debug = "--debug" in sys.argv or bool(os.environ.get("REGRAFT_DEBUG"))
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except RegraftError as error:
        if debug:
            raise
        _fail(f"error: {error}", 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="regraft")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Transfer learning for image classification: a folder of photos in, a model that predicts out.

    \b
    regraft demo                          see it work, offline
    regraft train photos/                 photos/<class>/<image>
    regraft predict runs/photos cat.jpg
    """


def _with_json(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON to stdout.")(command)


@cli.command()
@click.option("--out", default="regraft-demo", show_default=True, help="Folder for photos, pictures and the model.")
@click.option(
    "--data",
    type=click.Choice(["orchard", "hymenoptera"]),
    default="orchard",
    show_default=True,
    help="Photos that regraft draws itself, or the tutorial's ants and bees, fetched once.",
)
@_with_json
def demo(out: str, data: str, as_json: bool) -> None:
    """The main job on photos that need no download: draw, look, train, predict.

    \b
    regraft demo
    regraft demo --data hymenoptera
    """
    from regraft import api

    result = api.demo(out, data=data)
    if as_json:
        _print_json(result.run.summary)
        return
    _print_summary(result.run.summary)
    print(f"\nthe photos     {result.grid}\nsix predicted  {result.predictions}")
    print("\nNow your own photos, one folder for each class:\n\n    regraft train photos/")


@cli.command()
@click.argument("folder", metavar="DIR")
@_with_json
def scan(folder: str, as_json: bool) -> None:
    """What is there: classes, counts, and files that cannot be used.

    DIR is DIR/<class>/<image>, or DIR/train/<class>/<image> with val and optionally test.

    \b
    regraft scan photos/
    """
    from regraft.data.scan import scan as scan_folder

    dataset = scan_folder(folder, progress=Progress())
    if as_json:
        _print_json(dataset.to_json())
        return
    splits: list[str] = [name for name in ("train", "val", "test") if name in dataset.splits]
    _print_table(("class", *(splits or ["photos"])), _class_rows(dataset, splits))
    print(f"{len(dataset)} photos used of {dataset.num_found} found")
    for line in (*dataset.notes, *(f"left out: {q.path}: {q.reason}" for q in dataset.quarantine)):
        print(printable(line))


@cli.command()
@click.argument("folder", metavar="DIR")
@click.option("--mode", type=click.Choice(["frozen"]), default="frozen", show_default=True, help="What learns.")
@click.option(
    "--backbone", default="tf_efficientnet_lite0", show_default=True, help="Network; see `regraft backbones`."
)
@click.option("--weights", help="A .safetensors, .pth or .pth.tar file, or 'random'.")
@click.option("--out", help="Folder for the run.  [default: runs/<name of DIR>]")
@click.option("--seed", default=0, show_default=True, help="Decides which photos are kept for judging.")
@click.option("--offline", is_flag=True, help="Never download anything.")
@click.option("--quiet", is_flag=True, help="No progress.")
@_with_json
def train(folder: str, out: str | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Train on a folder of photos; the model is in OUT/bundle.

    DIR is DIR/<class>/<image> (regraft keeps a fifth for judging), or DIR/train/<class>/<image> with val and
    optionally test.

    \b
    regraft train photos/
    regraft train photos/ --backbone resnet50 --out runs/pets
    regraft train photos/ --backbone resnet50 --weights model_best.pth.tar
    """
    from regraft import api
    from regraft.ground.config import TrainConfig

    run = api.train_run(folder, out, TrainConfig(**settings), Progress(quiet))
    if as_json:
        _print_json(run.summary)
        return
    _print_summary(run.summary)
    print(f"\nNext:\n\n    regraft predict {run.out} PHOTO...")


@cli.command()
@click.argument("bundle")
@click.argument("photos", nargs=-1, required=True, metavar="IMAGE_OR_DIR...")
@click.option("--precision", type=click.Choice(["f32", "bf16"]), help="Arithmetic.  [default: as trained]")
@_with_json
def predict(bundle: str, photos: tuple[str, ...], precision: Any, as_json: bool) -> None:
    """Labels and probabilities of photos, and of all photos below folders.

    With --json one object a line, in input order; a photo that cannot be read has an "error", and the exit code is 1.

    \b
    regraft predict runs/pets cat.jpg
    regraft predict runs/pets new_photos/ --json > answers.jsonl
    """
    from regraft.deliver.bundle import load
    from regraft.deliver.predict import predict as predict_photos

    failed = 0
    for answer in predict_photos(load(bundle, precision=precision), photos, progress=Progress()):
        failed += answer.prediction is None
        if as_json:
            print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)
        elif answer.prediction is None:
            print(printable(answer.error or ""), file=sys.stderr)
        else:
            chosen = answer.prediction
            print(printable(f"{answer.path}  {chosen.label}  {100 * chosen.probability:.1f} %"))
    if failed:
        _fail(f"error: {failed} of the photos could not be read; the others are above.", 1)


@cli.command()
@click.argument("bundle")
@click.argument("folder", metavar="DIR")
@click.option("--precision", type=click.Choice(["f32", "bf16"]), help="Arithmetic.  [default: as trained]")
@_with_json
def evaluate(bundle: str, folder: str, precision: Any, as_json: bool) -> None:
    """How good a model is on labelled photos: accuracy with interval, per class, and what it confuses.

    \b
    regraft evaluate runs/pets new_photos/
    """
    from regraft.deliver.bundle import load
    from regraft.deliver.evaluate import evaluate as evaluate_folder

    result = evaluate_folder(load(bundle, precision=precision), folder, progress=Progress())
    if as_json:
        _print_json(result.to_json())
        return
    print(f"accuracy {result.accuracy}")
    print(f"macro F1 {result.macro_f1:.3f}, log loss {result.log_loss:.3f}, calibration error {result.ece:.3f}")
    rows = [
        (r["class"], r["n"], f"{r['precision']:.3f}", f"{r['recall']:.3f}", f"{r['f1']:.3f}") for r in result.per_class
    ]
    _print_table(("class", "photos", "precision", "recall", "F1"), rows)


@cli.command()
@click.argument("pattern", default="")
@_with_json
def backbones(pattern: str, as_json: bool) -> None:
    """Networks that can be used, and whether their weights are on this machine.

    Without PATTERN a short list; with it, every network of torchvision and timm whose name contains it.

    \b
    regraft backbones
    regraft backbones resnet
    """
    from regraft.backbones import catalog

    rows = list(catalog.entries(pattern))
    if as_json:
        _print_json([vars(row) for row in rows])
        return
    where = {True: "on this machine", False: "to be fetched"}
    _print_table(
        ("backbone", "parameters", "input", "licence", "weights"),
        [(r.name, f"{r.num_params / 1e6:.1f} M", r.input_size, r.licence, where[r.on_this_machine]) for r in rows],
    )
    if not pattern:
        print(f"{len(rows)} of {catalog.num_known()} shown; more with: regraft backbones PATTERN")


def _class_rows(dataset: Any, splits: list[str]) -> list[tuple[Any, ...]]:
    if not splits:
        return list(dataset.counts.items())
    parts = [dataset.subset(i for i, s in enumerate(dataset.splits) if s == name).counts for name in splits]
    return [(name, *(part[name] for part in parts)) for name in dataset.classes]


def _print_summary(summary: dict[str, Any]) -> None:
    from regraft.ground.statistics import Accuracy

    print(f"\naccuracy {Accuracy(**summary['accuracy'])}")
    if summary["cross_validated"]:
        print(f"         {Accuracy(**summary['cross_validated'])}")
    print(f"model    {printable(summary['bundle'])}   ({summary['seconds']['total']:.1f} s)")


def _print_table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in ("class", "backbone", "licence", "weights") else "right")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    Console(highlight=False).print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _fail(message: str, code: int) -> NoReturn:
    print(printable(message), file=sys.stderr)
    sys.exit(code)
