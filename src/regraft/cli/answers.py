"""What a model says of photos, and how good that is."""

from collections.abc import Iterable
from typing import Any

import click

from regraft.cli.failure import fail
from regraft.core.config import READING
from regraft.core.progress import Progress, printable, talk
from regraft.options import (
    with_answers,
    with_coverage,
    with_inference,
    with_json,
    with_network,
    with_settings,
)
from regraft.reporting import terminal


@click.command()
@click.argument("bundle", required=False, metavar="BUNDLE")
@click.argument("photos", nargs=-1, metavar="IMAGE_OR_DIR...")
@with_answers
@with_settings("follow_links", "every_s")
@with_inference
@with_coverage
@with_json
def predict(bundle: str | None, photos: tuple[str, ...], undo: str | None, as_json: bool, **options: Any) -> None:
    """Labels and probabilities of photos, of all photos below folders, and of frames of videos.

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
    regraft predict runs/pets clip.mp4 --every 1s --vote-by ".*mp4"
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
    progress, counts = Progress(), command.AnswerCounts()
    loaded = load(bundle, **{name: options.pop(name) for name in ("precision", "max_error", "coverage")})
    reading = {name: options.pop(name) for name in ("follow_links", "every_s")}
    options["format"] = options["format"] or ("jsonl" if as_json else None)
    asked = command.wanted(loaded, photos, **options)
    if asked.sort is not None:
        loaded = command.that_can_be_unsure(loaded, progress)
    answers = command.answer_records(loaded, photos, asked, counts, **reading, progress=progress)
    if asked.out is not None:
        print(f"answers  {printable(str(command.write_answers(loaded, answers, asked)))}")
    elif asked.format == "text":
        _print_answers(answers, photos, is_quiet=asked.sort is not None)
    else:
        terminal.print_lines(command.lines_of(loaded, answers, asked))
    if asked.sort is not None and (asked.format == "text" or asked.out is not None):
        terminal.print_sorted(asked.sort, counts.folders)
    if counts.num_failed:
        fail(f"error: {counts.num_failed} of the photos could not be read; the others are above.", 1)


def _print_answers(answers: Iterable[Any], photos: tuple[str, ...], *, is_quiet: bool) -> None:
    """Print answers as they come, and with bars that of a photo that was named alone; what failed goes to stderr."""
    for one in answers:
        if one.prediction is None:
            talk(one.answer.error)
        elif not is_quiet:
            terminal.print_answer(one.name, one.prediction, len(one.answer.files))
            if photos == (one.name,):
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


@click.command()
@click.argument("photos", nargs=-1, required=True, metavar="IMAGE_OR_DIR...")
@click.option("-o", "--out", required=True, metavar="FILE", help="features.npy, features.parquet or features.csv.")
@with_network
@with_settings("follow_links", "every_s", "offline")
@with_json
def embed(photos: tuple[str, ...], out: str, bundle: str | None, as_json: bool, **how: Any) -> None:
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
    reading = {name: how.pop(name) for name in ("follow_links", "every_s")}
    model, config = load(bundle) if bundle else None, TrainConfig(**how)
    embeddings = command.embed(photos, bundle=model, config=config, **reading, progress=Progress())
    files = command.write_embeddings(embeddings, Path(out))
    n, d = embeddings.x.shape
    if as_json:
        failed = [{"path": path, "error": reason} for path, reason in embeddings.failures]
        facts = {"photos": n, "features": d, "network": embeddings.network, "failed": failed}
        terminal.print_json({"files": [str(path) for path in files], **facts})
    else:
        print(printable(f"{n} photos, {d} features each, by {embeddings.network}: {', '.join(map(str, files))}"))
    for path, reason in embeddings.failures:
        talk(f"{path}: {reason}")
    if embeddings.failures:
        fail(f"error: {len(embeddings.failures)} of the photos could not be read; they have no row.", 1)


@click.command()
@click.argument("photo", metavar="PHOTO")
@click.argument("photos", nargs=-1, required=True, metavar="IN...")
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="How many photos.")
@click.option("--html", metavar="FILE", help="Also write a page with the pictures.")
@with_network
@with_settings("follow_links", "every_s", "offline")
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
    reading, progress = {name: how.pop(name) for name in ("follow_links", "every_s")}, Progress()
    model, config = load(bundle) if bundle else None, TrainConfig(**how)
    query = command.embed([photo], bundle=model, config=config, progress=progress)
    others = command.embed(photos, bundle=model, config=config, **reading, progress=progress)
    neighbours = command.similar(query, others, top)
    if as_json:
        terminal.print_json([one.to_json() for one in neighbours])
    for one in () if as_json else neighbours:
        same = "  the same file again" if one.is_same else ""
        print(printable(f"{one.similarity:.3f}  {terminal.bar(max(0.0, one.similarity))}  {one.path}{same}"))
    if html:
        talk(f"page     {command.write_similar(query, neighbours, Path(html))}")


@click.command()
@click.argument("bundle")
@click.argument("folder", metavar="DIR")
@with_settings("class_level", "follow_links", *READING)
@with_inference
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


@click.command()
@click.argument("bundle")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--out", help="The HTML file.  [default: report.html beside the bundle]")
@with_inference
@with_json
def report(bundle: str, folder: str | None, out: str | None, as_json: bool, **inference: Any) -> None:
    """Everything to look at in one HTML file: accuracy, confusions and their photos, heat maps, curves, calibration.

    On the photos in DIR, or on those that the training kept for judging. The file needs nothing else and can be sent.

    \b
    regraft report runs/pets
    regraft report runs/pets new_photos/ --out pets.html
    """
    from regraft.bundle.bundle import load
    from regraft.commands.report import report as write_report

    result = write_report(load(bundle, **inference), folder, out, progress=Progress())
    if as_json:
        terminal.print_json({"report": str(result.path), **result.evaluation.to_json()})
        return
    print(f"accuracy {result.evaluation.accuracy}")
    print(f"report   {printable(str(result.path))}")
