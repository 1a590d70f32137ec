"""Data as text in a terminal: tables and summaries on stdout. Rich is imported when a table is drawn."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.core.progress import printable
from regraft.core.statistics import Accuracy

if TYPE_CHECKING:
    from regraft.bundle.bundle import Prediction
    from regraft.data.scan import Dataset
    from regraft.evaluation.evaluate import Evaluation

WORDS = ("class", "backbone", "features", "licence", "weights", "mode", "found")  # columns that are not of numbers
BAR = 20  # blocks
MISTAKEN = 5  # confusions named
WIDE = 200  # columns where nobody's terminal is as wide as that


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print one JSON value. What could drive a terminal, or end a line, is escaped.

    Args:
        value: What JSON can hold.
        indent: Spaces a level; None for one line.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text), flush=True)


def print_table(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Print rows below a header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what came of a training, as `train --json` has it."""
    print(f"\nmode     {summary['mode']}")
    print(f"accuracy {Accuracy(**summary['accuracy'])}")
    if summary["cross_validated"]:
        print(f"         {Accuracy(**summary['cross_validated'])}")
    if summary["decision"]:
        print(f"chosen   {printable(summary['decision'])}")
    print(f"model    {printable(summary['bundle'])}   ({summary['seconds']['total']:.1f} s)")


def print_evaluation(result: "Evaluation") -> None:
    """Print figures with their intervals, then a line for each class with a bar for its recall."""
    for name, label in (("macro_f1", "macro F1"), ("log_loss", "log loss")):
        low, high = result.intervals[name]
        print(f"{label} {getattr(result, name):.3f} ({low:.3f} to {high:.3f})")
    print(f"calibration error {result.ece:.3f}, without temperature {result.uncalibrated['ece']:.3f}")
    if answered := result.selective:
        text, error = f"answered {answered['answered']} of {result.accuracy.n}", answered["error"]
        most = f" ({100 * error['high']:.1f} % at most, 95 % interval)" if error else ""
        print(f"{text}, {answered['wrong']} of those wrong{most}")
    rows = [
        (r["class"], r["n"], *(f"{r[name]:.3f}" for name in ("precision", "recall", "f1")), bar(r["recall"]))
        for r in result.per_class
    ]
    print_table(("class", "photos", "precision", "recall", "F1", "found"), rows)
    for count, i, j in result.mistaken[:MISTAKEN]:
        names = (printable(result.dataset.classes[number]) for number in (i, j))
        print(f"{' taken for '.join(names)}: {count} of {result.per_class[i]['n']}")


def bar(share: float) -> str:
    """Draw a share, 0..1, as a bar of blocks."""
    return "█" * round(BAR * share) + "░" * (BAR - round(BAR * share))


def answer_text(prediction: "Prediction") -> str:
    """Say a model's answer in words."""
    sure = f"{prediction.label}  {100 * prediction.probability:.1f} %"
    text = f"unsure ({sure})" if prediction.unsure else sure
    if prediction.labels is not None:
        text += f"  one of: {', '.join(prediction.labels)}"
    return text + ("  (looks like nothing it has learned from)" if prediction.looks_new else "")


def print_bars(prediction: "Prediction", count: int = 5) -> None:
    """Print the most probable classes, a line with a bar for each.

    Args:
        prediction: Of one photo.
        count: Classes at most.
    """
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:count]
    width = max(len(printable(name)) for name, _ in ranked)
    for name, share in ranked:
        print(f"  {printable(name):{width}}  {bar(share)}  {100 * share:5.1f} %")


def print_answer(name: str, prediction: "Prediction", num_photos: int) -> None:
    """Print what a model says of a photo, or of a group of photos, in a line."""
    counted = f"  ({num_photos} photos)" if num_photos > 1 else ""
    print(printable(f"{name}  {answer_text(prediction)}{counted}"))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, which end themselves, as they come."""
    for line in lines:
        print(line, end="", flush=True)


def print_sorted(place: Path, folders: Mapping[str, int]) -> None:
    """Print how many photos went into which folder, and how that is undone."""
    width = max((len(printable(name)) for name in folders), default=0)
    for name, count in sorted(folders.items()):
        print(f"  {printable(name):{width}}  {count} photos")
    where = printable(shlex.quote(str(place)))
    print(f"sorted   {sum(folders.values())} photos into {where}\n\nundo     regraft predict --undo {where}")


def print_modes(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Print trainings in several modes, one below the other.

    Args:
        summaries: By mode, as `train --json` has them.
    """
    rows = []
    for mode, summary in summaries.items():
        a = summary["accuracy"]
        rows.append((mode, *_with_interval(a), a["n"], f"{summary['seconds']['total']:.1f}"))
    print_table(("mode", "accuracy", "95 % interval", "photos", "seconds"), rows)


def print_ranked(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print networks and kinds of features taken from them, as `backbones --rank --json` has them."""
    cells = []
    for row in rows:
        figures = f"{row['log_loss']:.3f}", *_with_interval(row["accuracy"]), f"{row['photos_per_s']:.0f}"
        cells.append((row["backbone"], row["features"], *figures))
    print_table(("backbone", "features", "log loss", "right", "95 % interval", "photos/s"), cells)


def print_photos(dataset: "Dataset") -> None:
    """Print classes and counts, what was noticed, and files that are not used."""
    splits: list[str] = [name for name in ("train", "val", "test") if name in dataset.splits]
    parts = [dataset.subset(i for i, s in enumerate(dataset.splits) if s == name).counts for name in splits]
    rows = [(name, *(part[name] for part in parts or [dataset.counts])) for name in dataset.classes]
    print_table(("class", *(splits or ["photos"])), rows)
    print(f"{len(dataset)} photos used of {dataset.num_found} found")
    for line in (*dataset.notes, *(f"left out: {q.path}: {q.reason}" for q in dataset.quarantine)):
        print(printable(line))


def _with_interval(a: Mapping[str, Any]) -> tuple[str, str]:
    """Write an accuracy and its interval in per cent."""
    return f"{100 * a['value']:.1f} %", f"{100 * a['low']:.1f} to {100 * a['high']:.1f}"
