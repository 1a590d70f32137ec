"""The command line: one short function for each command. stdout is data, stderr is talk.

Commands import what they need when they run, so that `regraft --help` answers at once.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from regraft.core import signals, streams
from regraft.core.config import READING
from regraft.core.errors import RegraftError
from regraft.core.memory import is_lack_of_memory, too_little
from regraft.core.progress import Progress, printable, talk
from regraft.core.version import __version__
from regraft.options import (
    with_answers,
    with_coverage,
    with_json,
    with_keeping,
    with_network,
    with_promises,
    with_settings,
    with_training_options,
)
from regraft.reporting import terminal


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 an error that the user can mend, 2 wrong usage, 128 + n for signal n."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    streams.open_streams()
    signals.install()
    _leave_a_lost_folder()
    sys.exit(streams.flushed(_run("--debug" in sys.argv or bool(os.environ.get("REGRAFT_DEBUG")))))


def _run(debug: bool) -> int:
    """Run the command, say in one line what has gone wrong, and return the exit code."""
    try:
        return cli.main(standalone_mode=False) or 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except RegraftError as error:
        if debug:
            raise
        return _told(f"error: {error}", 1)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        signum = getattr(error, "signum", getattr(error.__cause__, "signum", 2))
        return _told("interrupted: the same command goes on from here", 128 + signum)
    except Exception as error:
        if isinstance(error, OSError) and streams.is_of_stdout(error):
            return streams.lost(error)
        if debug or not is_lack_of_memory(error):
            raise
        return _told(f"error: {too_little(f'This cannot be done ({type(error).__name__})')}", 1)


def _told(message: str, code: int) -> int:
    talk(message)
    return code


def _leave_a_lost_folder() -> None:
    """Leave a working folder that has been deleted: there MKL, among others, does not start."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        import tempfile

        os.chdir(tempfile.mkdtemp(prefix="regraft-"))
        print(f"the working folder is gone; relative paths begin in {os.getcwd()}", file=sys.stderr)  # noqa: PTH109


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


@cli.command()
@click.option("--out", default="regraft-demo", show_default=True, help="Folder for photos, pictures and the model.")
@click.option(
    "--data",
    type=click.Choice(["orchard", "hymenoptera"]),
    default="orchard",
    show_default=True,
    help="Drawn photos that come with regraft, or the tutorial's ants and bees, fetched once.",
)
@with_json
def demo(out: str, data: str, as_json: bool) -> None:
    """The main job on photos that need no download: unpack, look, train, predict.

    \b
    regraft demo
    regraft demo --data hymenoptera
    """
    from regraft.commands import demo as demo_command

    result = demo_command.demo(out, data=data)
    if as_json:
        terminal.print_json(result.run.summary)
        return
    terminal.print_summary(result.run.summary)
    print(f"\nthe photos     {result.grid}\nsix predicted  {result.predictions}")
    print("\nNow your own photos, one folder for each class:\n\n    regraft train photos/")


@cli.command()
@click.argument("folder", metavar="DIR")
@click.option("--out", help="Folder for pictures of the photos and of each kind of finding, and for scan.json.")
@click.option("--fix", metavar="DIR2", help="Write a copy without what --drop names, by links; DIR is not touched.")
@click.option(
    "--drop",
    default="leaks,conflicts,duplicates",
    show_default=True,
    help="Kinds of findings that the copy leaves out, separated by commas; all, or none.",
)
@click.option("--strict", is_flag=True, help="Exit 1 if any file cannot be used.")
@click.option(
    "--deep/--fast",
    default=None,
    help="Whether to doubt labels and look for outliers, by a pass through the "
    "backbone.  [default: unless it takes long]",
)
@click.option("--backbone", default="tf_efficientnet_lite0", show_default=True, help="Network that doubts labels.")
@click.option("--weights", help="A .safetensors, .pth or .pth.tar file.")
@with_settings("fit", "class_level", "follow_links", *READING)
@click.option("--offline", is_flag=True, help="Never download anything.")
@with_json
def scan(
    folder: str,
    out: str | None,
    fix: str | None,
    drop: str,
    strict: bool,
    deep: bool | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """What is there, and what may be wrong with it.

    Classes, counts, files that cannot be used; copies, also across splits and under two labels; doubtful labels;
    photos unlike all others; blurred, dark, blank, tiny and odd-shaped ones; classes that file format, size or camera
    alone would tell. DIR is DIR/<class>/<image>, DIR/train/<class>/<image> with val and optionally test, an archive of
    these, a list, or whatever else holds photos with classes (docs/photos.md).

    \b
    regraft scan photos/
    regraft scan photos/ --out findings/
    regraft scan photos/ --fix cleaned/ --drop leaks,duplicates,blurred
    """
    from pathlib import Path

    from regraft.commands import scan as scan_command
    from regraft.core.config import TrainConfig

    kinds = scan_command.chosen_kinds(drop)
    scan_command.check_places(Path(folder), Path(out) if out else None, Path(fix) if fix else None)
    config = TrainConfig(**settings)
    found = scan_command.examine(folder, config, with_features=deep, progress=Progress())
    if out:
        scan_command.write_examination(found, Path(out))
    left_out = scan_command.write_fixed(found, Path(fix), kinds, config.folder_options) if fix else {}
    if as_json:
        terminal.print_json(found.to_json())
    else:
        terminal.print_photos(found.dataset)
        lines = scan_command.in_words(found)
        print("\n" + "\n".join(map(printable, lines)) if lines else "nothing suspicious was found")
        print(f"\npictures in {out}" if out else "\nsee them with --out FOLDER; leave them out with --fix FOLDER")
        if fix:
            kept = f"{found.dataset.num_found - len(left_out)} photos are in {fix}"
            print(printable(f"{kept}; {len(left_out)} are not, and listed in {fix}.left-out.csv"))
    if strict and found.dataset.quarantine:
        _fail(f"error: {len(found.dataset.quarantine)} files cannot be used; --strict refuses that.", 1)


@cli.command()
@click.argument("folder", metavar="PHOTOS")
@click.option("--to", required=True, metavar="PLACE", help="A folder, or a file: pets.zip, pets.parquet, pets.tar.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["folder", "zip", "parquet", "webdataset"]),
    help="How photos are written.  [default: what the name of PLACE says; else class folders]",
)
@click.option("--split", "with_split", is_flag=True, help="Split photos that are not, as a training would.")
@with_settings("val_fraction", "seed", "class_level", "follow_links", *READING)
@with_json
def data(folder: str, to: str, kind: Any, with_split: bool, as_json: bool, **settings: Any) -> None:
    """Write photos as they were read, with classes and splits, for other programs, and for regraft.

    Class folders by hard links, or copies; a zip archive of them; Parquet as the library `datasets` has it; WebDataset.
    What was written is read back: unless every photo has its class and split again, nothing is kept. Files that cannot
    be used are told and left out.

    \b
    regraft data photos/ --to photos.zip
    regraft data photos/ --to photos.parquet
    regraft data photos/ --to split_photos/ --split
    regraft data split_photos/ --to shards/ --format webdataset
    regraft data labels.csv --to hub/ --format parquet
    """
    from regraft.commands import data as command
    from regraft.core.config import TrainConfig

    config = TrainConfig(**settings)
    done = command.write_data(folder, to, kind=kind, with_split=with_split, config=config, progress=Progress())
    if as_json:
        terminal.print_json(done.to_json())
        return
    terminal.print_photos(done.dataset)
    print(f"written  {printable(str(done.place))}, and read back the same")
    print(f"\nNext:\n\n    regraft train {printable(shlex.quote(str(done.read_as)))}")


@cli.command()
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


@cli.command()
@click.argument("photos", metavar="DIR")
@click.option("--out", metavar="RUN", help="Folder for the labels and the model.  [default: in runs/]")
@click.option("--classes", default="", metavar="NAMES", help="Names of the classes, separated by commas.")
@click.option(
    "--from", "start", metavar="RUN", help="Go on from a run: its photos, labels and model, and these photos."
)
@click.option("--sort", metavar="DIR2", help="Also put the photos into a folder for each class, by links or copies.")
@click.option("--page/--no-page", "with_page", default=True, help="Without a page: train on the labels that are there.")
@with_settings("backbone", "weights", "follow_links", "offline")
@click.option("--mode", type=click.Choice(["frozen", "auto"]), default="frozen", show_default=True, help="What learns.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the page.")
@click.option("--port", default=8010, show_default=True, help="0 for any that is free.")
@with_json
def label(
    photos: str,
    out: str | None,
    classes: str,
    start: str | None,
    sort: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Label a heap of photos on a page that learns meanwhile, and train on the labels.

    DIR is a heap, a tree, or partly sorted: photos in folders that --classes names are labelled already. The page is
    for this machine alone. Every answer is on disk at once; the same command goes on where the last one ended. DIR
    itself is only read.

    \b
    regraft label photos/
    regraft label photos/ --classes ant,bee --sort sorted/
    regraft label new_photos/ --from runs/photos
    """
    from pathlib import Path

    from regraft.commands import label as label_command
    from regraft.commands import train as train_command

    with_page, host, port = (settings.pop(name) for name in ("with_page", "host", "port"))

    def show(sitting: Any) -> None:
        from regraft.labelling.server import serve_sitting

        serve_sitting(sitting, host=host, port=port, on_address=lambda url: talk(f"label at {url}   (Ctrl-C ends it)"))

    options = label_command.SittingOptions(
        tuple(name.strip() for name in classes.split(",") if name.strip()),
        Path(start) if start else None,
        Path(sort) if sort else None,
        train_command.configure(**{name: value for name, value in settings.items() if value is not None}),
    )
    done = label_command.label(photos, out, options=options, show=show if with_page else None, progress=Progress())
    if as_json:
        terminal.print_json(done.to_json())
        return
    print(f"labelled {done.num_labelled} of {done.num_photos} photos, {done.num_set_aside} set aside")
    print(printable(f"labels   {done.labels}"))
    if done.num_sorted is not None:
        print(printable(f"sorted   {done.num_sorted} photos in {sort}"))
    if done.summary is not None:
        terminal.print_summary(done.summary)


@cli.command()
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


@cli.command()
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


@cli.command()
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


@cli.command()
@click.argument("bundle", required=False, metavar="BUNDLE")
@click.argument("photos", nargs=-1, metavar="IMAGE_OR_DIR...")
@with_answers
@with_settings("follow_links")
@with_promises
@with_coverage
@with_json
def predict(
    bundle: str | None, photos: tuple[str, ...], undo: str | None, follow_links: bool, as_json: bool, **options: Any
) -> None:
    """Labels and probabilities of photos, and of all photos below folders.

    A photo far from all that were learned from is said to look new: its label means little. With --json, which is
    --format jsonl, one object a line, in input order; a photo that cannot be read has an "error", and the exit code
    is 1.

    \b
    regraft predict runs/pets cat.jpg
    regraft predict runs/pets new_photos/ --json > answers.jsonl
    regraft predict runs/pets new_photos/ --max-error 2%
    regraft predict runs/pets new_photos/ --out answers.csv
    regraft predict runs/pets new_photos/ --columns id,label --out submission.csv
    regraft predict runs/pets new_photos/ --vote-by "animal[0-9]+"
    regraft predict runs/pets new_photos/ --sort sorted/
    regraft predict --undo sorted/
    """
    from regraft.bundle.bundle import load
    from regraft.commands import predict as command

    if undo is not None:
        _print_undone(undo, as_json)
        return
    if bundle is None or not photos:
        raise click.UsageError("Missing a model and photos: expected regraft predict BUNDLE IMAGE_OR_DIR...")
    progress, tally = Progress(), command.Tally()
    loaded = load(bundle, **{name: options.pop(name) for name in ("precision", "max_error", "coverage")})
    options["format"] = options["format"] or ("jsonl" if as_json else None)
    asked = command.wanted(loaded, photos, **options)
    if asked.sort is not None:
        loaded = command.that_can_be_unsure(loaded, progress)
    found = command.judged(loaded, photos, asked, tally, follow_links=follow_links, progress=progress)
    if asked.out is not None:
        print(f"answers  {printable(str(command.write_answers(loaded, found, asked)))}")
    elif asked.format == "text":
        _print_answers(found, photos, is_quiet=asked.sort is not None)
    else:
        terminal.print_lines(command.lines_of(loaded, found, asked))
    if asked.sort is not None and (asked.format == "text" or asked.out is not None):
        terminal.print_sorted(asked.sort, tally.folders)
    if tally.num_failed:
        _fail(f"error: {tally.num_failed} of the photos could not be read; the others are above.", 1)


def _print_answers(found: Iterable[Any], photos: tuple[str, ...], *, is_quiet: bool) -> None:
    """Print answers as they come, and with bars that of a photo that was named alone; what failed goes to stderr."""
    for one in found:
        if one.prediction is None:
            talk(one.answer.error)
        elif not is_quiet:
            terminal.print_answer(one.name, one.prediction, len(one.answer.paths))
            if photos == one.answer.paths:
                terminal.print_bars(one.prediction)


def _print_undone(folder: str, as_json: bool) -> None:
    from pathlib import Path

    from regraft.data.sorting import undo

    undone = undo(Path(folder))
    if as_json:
        terminal.print_json({"removed": undone.num_removed, "kept": [str(path) for path in undone.kept]})
        return
    print(f"{undone.num_removed} sorted photos removed from {printable(folder)}")
    for path in undone.kept:
        print(printable(f"stays, as it or its photo has changed: {path}"))


@cli.command()
@click.argument("photos", nargs=-1, required=True, metavar="IMAGE_OR_DIR...")
@click.option("-o", "--out", required=True, metavar="FILE", help="features.npy, features.parquet or features.csv.")
@with_network
@with_settings("follow_links", "offline")
@with_json
def embed(photos: tuple[str, ...], out: str, bundle: str | None, follow_links: bool, as_json: bool, **how: Any) -> None:
    """Features of photos, for programs of your own: a row of numbers for each, close together for what looks alike.

    They are those of the default backbone, or of a model. A .npy file has one array, float32, and a list of the paths
    beside it; Parquet and CSV have the paths in their first column. A photo that cannot be read is told, has no row,
    and the exit code is 1.

    \b
    regraft embed photos/ -o features.npy
    regraft embed photos/ -o features.parquet --bundle runs/pets
    """
    from pathlib import Path

    from regraft.bundle.bundle import load
    from regraft.commands import embed as command
    from regraft.core.config import TrainConfig

    command.check_output(Path(out))
    model, config = load(bundle) if bundle else None, TrainConfig(**how)
    found = command.embed(photos, bundle=model, config=config, follow_links=follow_links, progress=Progress())
    files = command.write_embeddings(found, Path(out))
    n, d = found.x.shape
    if as_json:
        failed = [{"path": path, "error": reason} for path, reason in found.failures]
        facts = {"photos": n, "features": d, "network": found.network, "failed": failed}
        terminal.print_json({"files": [str(path) for path in files], **facts})
    else:
        print(printable(f"{n} photos, {d} features each, by {found.network}: {', '.join(map(str, files))}"))
    for path, reason in found.failures:
        talk(f"{path}: {reason}")
    if found.failures:
        _fail(f"error: {len(found.failures)} of the photos could not be read; they have no row.", 1)


@cli.command()
@click.argument("photo", metavar="PHOTO")
@click.argument("photos", nargs=-1, required=True, metavar="IN...")
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="How many photos.")
@click.option("--html", metavar="FILE", help="Also write a page with the pictures.")
@with_network
@with_settings("follow_links", "offline")
@with_json
def similar(
    photo: str, photos: tuple[str, ...], top: int, html: str | None, bundle: str | None, as_json: bool, **how: Any
) -> None:
    """The photos in IN that look most like PHOTO, with the cosine similarity of their features.

    Features are kept in the cache: asking again about the same photos takes a moment.

    \b
    regraft similar cat.jpg photos/
    regraft similar cat.jpg photos/ --top 24 --html similar.html
    """
    from pathlib import Path

    from regraft.bundle.bundle import load
    from regraft.commands import embed as command
    from regraft.core.config import TrainConfig
    from regraft.core.ownership import refuse_foreign

    if html:
        refuse_foreign(Path(html))
    follow_links, progress = how.pop("follow_links"), Progress()
    model, config = load(bundle) if bundle else None, TrainConfig(**how)
    own = command.embed([photo], bundle=model, config=config, progress=progress)
    others = command.embed(photos, bundle=model, config=config, follow_links=follow_links, progress=progress)
    found = command.similar(own, others, top)
    if as_json:
        terminal.print_json([vars(one) for one in found])
    for one in () if as_json else found:
        same = "  the same file again" if one.is_same else ""
        print(printable(f"{one.similarity:.3f}  {terminal.bar(max(0.0, one.similarity))}  {one.path}{same}"))
    if html:
        talk(f"page     {command.write_similar(photo, found, Path(html), own.network)}")


@cli.command()
@click.argument("bundle")
@click.argument("folder", metavar="DIR")
@with_settings("class_level", "follow_links", *READING)
@with_promises
@with_json
def evaluate(bundle: str, folder: str, as_json: bool, precision: Any, max_error: float | None, **reading: Any) -> None:
    """How good a model is on labelled photos: accuracy with interval, per class, and what it confuses.

    \b
    regraft evaluate runs/pets new_photos/
    regraft evaluate runs/pets new_photos/ --max-error 5%
    """
    from regraft.bundle.bundle import load
    from regraft.evaluation.evaluate import evaluate as evaluate_folder

    loaded, progress = load(bundle, precision=precision, max_error=max_error), Progress()
    result = evaluate_folder(loaded, folder, progress=progress, **reading)
    if as_json:
        terminal.print_json(result.to_json())
        return
    print(f"accuracy {result.accuracy}")
    terminal.print_evaluation(result)


@cli.command()
@click.argument("bundle")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--out", help="The HTML file.  [default: report.html beside the bundle]")
@with_promises
@with_json
def report(bundle: str, folder: str | None, out: str | None, as_json: bool, **promises: Any) -> None:
    """Everything to look at in one HTML file: accuracy, confusions and their photos, heat maps, curves, calibration.

    On the photos in DIR, or on those that the training kept for judging. The file needs nothing else and can be sent.

    \b
    regraft report runs/pets
    regraft report runs/pets new_photos/ --out pets.html
    """
    from regraft.bundle.bundle import load
    from regraft.commands.report import report as write_report

    result = write_report(load(bundle, **promises), folder, out, progress=Progress())
    if as_json:
        terminal.print_json({"report": str(result.path), **result.evaluation.to_json()})
        return
    print(f"accuracy {result.evaluation.accuracy}")
    print(f"report   {printable(str(result.path))}")


@cli.command()
@click.argument("bundle")
@click.option("--format", "kind", type=click.Choice(["onnx", "openvino", "torch"]), default="onnx", show_default=True)
@click.option("--out", required=True, help="The model's file; a program that feeds it gets the same name with .py.")
@click.option("--photos", metavar="DIR", help="Photos to prove it on.  [default: those kept for judging]")
@click.option("--int8", is_flag=True, help="In whole numbers of eight bits: smaller and faster, nearly the same.")
@with_json
def export(bundle: str, kind: Any, out: str, photos: str | None, int8: bool, as_json: bool) -> None:
    """A model for another runtime, which proves first that it says what the bundle says.

    It takes photos as uint8 of the network's size and gives probabilities; the program beside it, which needs numpy,
    Pillow and the runtime, makes that of a photo's file. Nothing is written unless both agree with the bundle, from
    file bytes to probabilities.

    \b
    regraft export runs/pets --out pets.onnx
    regraft export runs/pets --format openvino --out pets.xml --photos new_photos/
    regraft export runs/pets --int8 --out small.onnx
    python pets.py cat.jpg
    """
    from regraft.bundle.bundle import load
    from regraft.commands.export import export as export_bundle

    result = export_bundle(load(bundle), out, format=kind, photos=photos, int8=int8, progress=Progress())
    if as_json:
        terminal.print_json(result.to_json())
        return
    print(result)
    for path in result.files:
        print(printable(f"  {path}   ({path.stat().st_size / 2**20:.1f} MB)"))


@cli.command()
@click.argument("bundle")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="0 for any that is free.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A further name it may be called by.")
@click.option("--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="A site whose pages may ask it.")
@click.option("--token", help="What requests have to bear; better in REGRAFT_TOKEN.")
@click.option("--workers", default=-1, help="Processes.  [default: cores + 1]")
@with_keeping
@with_promises
@with_coverage
def serve(
    bundle: str,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    token: str | None,
    workers: int,
    **more: Any,
) -> None:
    """An HTTP API and a page to drop photos on, until Ctrl-C.

    The page is at http://127.0.0.1:8000/, the API at /v1/predict, its description at /openapi.json. Only this machine
    reaches it unless --host says otherwise; then give a --token too. After `kill -HUP` it answers with what the folder
    then holds; until then with the model that it began with. Photos are not kept, unless --keep says where.

    \b
    regraft serve runs/pets
    regraft serve runs/pets --keep kept/ --keep-bytes 500MB
    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/predict
    curl -F photo=@cat.jpg -F photo=@dog.jpg 'http://127.0.0.1:8000/v1/predict?top=3&heatmap=1'
    """
    from pathlib import Path

    from regraft.bundle.bundle import load
    from regraft.serving.access import Access
    from regraft.serving.keeping import KINDS, Keep
    from regraft.serving.limits import Limits
    from regraft.serving.server import LOCAL
    from regraft.serving.server import serve as serve_bundle

    def say(sentence: str) -> None:
        with suppress(OSError, ValueError):  # nobody may be listening
            print(printable(sentence), file=sys.stderr, flush=True)

    def ready(address: str) -> None:
        say(f"serving {bundle} at {address}   (Ctrl-C ends it)")
        if host not in LOCAL and token is None:
            say("anyone who reaches this address can use it: --token asks for one")
        if keep is not None:
            say(f"photos are kept in {keep.folder}: {', '.join(KINDS)}, {keep.max_bytes / 1e6:.4g} MB at most")

    folder, num_bytes = more.pop("keep"), more.pop("keep_bytes")
    keep = Keep(Path(folder), num_bytes) if folder else None
    token = os.environ.get("REGRAFT_TOKEN") if token is None else token
    loaded = load(bundle, **more)
    access, limits = Access(hosts, origins, token), Limits(workers=workers)
    serve_bundle(loaded, host=host, port=port, access=access, limits=limits, keep=keep, on_ready=ready, on_reload=say)


@cli.command()
@click.argument("pattern", default="")
@click.option("--rank", metavar="DIR", help="Try every network on this machine on the photos in DIR.")
@with_settings("fit")
@with_json
def backbones(pattern: str, rank: str | None, fit: Any, as_json: bool) -> None:
    """Networks that can be used, and whether their weights are on this machine.

    Without PATTERN a short list; with it, every network of torchvision and timm whose name contains it. With --rank,
    those whose weights are here, at their own input size and a larger one, each cross-validated on your photos.

    \b
    regraft backbones
    regraft backbones resnet
    regraft backbones --rank photos/
    """
    if rank is not None:
        _rank(rank, fit, as_json)
        return
    from regraft.backbones import catalog

    rows = list(catalog.entries(pattern))
    if as_json:
        terminal.print_json([vars(row) for row in rows])
        return
    where = {True: "on this machine", False: "to be fetched"} | dict.fromkeys(catalog.OWN, "give --weights")
    terminal.print_table(
        ("backbone", "parameters", "input", "licence", "weights"),
        [
            (
                r.name,
                f"{r.num_params / 1e6:.1f} M",
                r.input_size,
                r.licence,
                where.get(r.name, where[r.on_this_machine]),
            )
            for r in rows
        ],
    )
    if not pattern:
        print(f"{len(rows)} of {catalog.num_known()} shown; more with: regraft backbones PATTERN")


@cli.command()
@with_json
def doctor(as_json: bool) -> None:
    """What this machine has for regraft: versions, processor, memory, cache, weights. Exit 1 where something is wrong.

    \b
    regraft doctor
    """
    from regraft.commands.doctor import check_machine

    checks = check_machine()
    if as_json:
        terminal.print_json([one.to_json() for one in checks])
    else:
        width = max(len(one.name) for one in checks)
        for one in checks:
            problem = f"   <- {one.problem}" if one.problem else ""
            print(printable(f"{one.name:{width}}  {one.value}{problem}"))
    if any(one.problem for one in checks):
        _fail("error: some of it needs a look; see the arrows above.", 1)


def _rank(folder: str, fit: Any, as_json: bool) -> None:
    from regraft.commands.backbones import rank
    from regraft.core.config import TrainConfig

    rows = [row.to_json() for row in rank(folder, TrainConfig(fit=fit), Progress())]
    if as_json:
        terminal.print_json(rows)
        return
    terminal.print_ranked(rows)
    if rows:
        print("the best of several is a little worse on photos that had no part in the choice")


@cli.command()
@click.argument("bundle")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="Let everyone see it.  [default: its owner alone]")
@click.option("--revision", metavar="BRANCH", help="Branch, made where it is missing.  [default: the main one]")
@with_json
def push(bundle: str, repository: str, public: bool, revision: str | None, as_json: bool) -> None:
    """Upload a model to the Hugging Face Hub, in one commit, with its card.

    The token is that of `hf auth login`, or in HF_TOKEN; HF_ENDPOINT names another hub.

    \b
    regraft push runs/pets me/pets
    regraft push runs/pets me/pets --public
    """
    from regraft.commands import hub

    url = hub.push(bundle, repository, private=not public, revision=revision, progress=Progress())
    if as_json:
        terminal.print_json({"repository": repository, "revision": revision, "url": url})
        return
    print(f"model    {printable(url)}\n\nNext:\n\n    regraft pull {repository}")


@cli.command()
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--out", metavar="DIR", help="Folder for the model.  [default: NAME]")
@click.option("--revision", help="Branch, tag or commit.  [default: the main branch]")
@with_json
def pull(repository: str, out: str | None, revision: str | None, as_json: bool) -> None:
    """Download a model that `regraft push` has uploaded; it is verified, or not there.

    A private one needs the token of `hf auth login`, or in HF_TOKEN; HF_ENDPOINT names another hub.

    \b
    regraft pull me/pets
    regraft pull me/pets --out models/pets --revision v2
    """
    from regraft.commands import hub

    bundle = hub.pull(repository, out, revision=revision, progress=Progress())
    if as_json:
        terminal.print_json({"bundle": str(bundle.folder), "classes": list(bundle.classes)})
        return
    where = printable(str(bundle.folder))
    print(f"model    {where}, {len(bundle.classes)} classes\n\nNext:\n\n    regraft predict {where} PHOTO...")


def _fail(message: str, code: int) -> NoReturn:
    talk(message)
    sys.exit(code)
