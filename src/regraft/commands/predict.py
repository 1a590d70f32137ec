"""The command `regraft predict`: answers as lines, tables and files, and photos sorted into folders by them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.bundle.bundle import Bundle, Prediction
from regraft.bundle.doubt import usual_doubt
from regraft.bundle.predict import Answer, predict
from regraft.bundle.voting import GroupAnswer, compiled, vote
from regraft.core.errors import ConfigError, OutputError
from regraft.core.ownership import refuse_foreign, write_output
from regraft.core.progress import Progress
from regraft.data.sorting import sort_photos
from regraft.reporting.answer_table import (
    Columns,
    Format,
    check_parquet,
    columns_of,
    csv_lines,
    json_lines,
    parquet_bytes,
)

SUFFIXES: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class Wanted:
    """What is asked of `regraft predict` beside a model and photos.

    Attributes:
        format: How answers are written.
        out: The file; None for stdout.
        columns: Of a table; None for all there is.
        vote_by: A regular expression that groups photos for one answer each; None for an answer for each photo.
        sort: The folder that photos are sorted into; None for none.
    """

    format: Format = "text"
    out: Path | None = None
    columns: str | None = None
    vote_by: str | None = None
    sort: Path | None = None


@dataclass(frozen=True)
class AnswerRecord:
    """An answer, and the folder that its photos belong into.

    Attributes:
        answer: About a photo or a group of photos.
        folder: Name below the folder of sorted photos; None where nothing is sorted, or no photo could be read.
    """

    answer: Answer | GroupAnswer
    folder: str | None = None

    @property
    def prediction(self) -> Prediction | None:
        """What the model says; None where nothing can be read."""
        return self.answer.prediction

    @property
    def name(self) -> str:
        """Path of the photo, or name of the group."""
        return self.answer.path if isinstance(self.answer, Answer) else self.answer.group

    @property
    def num_failed(self) -> int:
        """Number of photos that could not be read."""
        return int(self.prediction is None) if isinstance(self.answer, Answer) else self.answer.num_failed

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.answer.to_json() | ({"sorted_into": self.folder} if self.folder is not None else {})


@dataclass
class AnswerCounts:
    """What came of all photos.

    Attributes:
        num_failed: Photos that could not be read.
        folders: Photos in each folder, by its name.
    """

    num_failed: int = 0
    folders: Counter[str] = field(default_factory=Counter)


def wanted(
    bundle: Bundle,
    photos: Sequence[str],
    *,
    format: Format | None = None,  # noqa: A002
    out: str | None = None,
    columns: str | None = None,
    vote_by: str | None = None,
    sort: str | None = None,
) -> Wanted:
    """Make sure that all can be done that is asked for, before anything is predicted.

    Args:
        bundle: The model.
        photos: Photos and folders.
        format: Of the answers; None for the one that the name of the file says, a table where columns are named, and
            else text.
        out: The file for the answers.
        columns: See `answer_table.columns_of`.
        vote_by: See `voting.vote`.
        sort: The folder for sorted photos.

    Raises:
        ConfigError: Options contradict each other, or are none.
        OutputError: The file is not regraft's, or the folder lies among the photos.
        MissingExtra: Parquet is asked for, and pyarrow is not installed.
    """
    kind = format or (SUFFIXES.get(Path(out).suffix.lower(), "csv") if out else "csv" if columns else "text")
    if kind == "text" and columns:
        raise ConfigError("--columns is for tables: expected --format csv, jsonl or parquet with it.")
    if kind == "parquet":
        check_parquet()
        if out is None:
            raise ConfigError("--format parquet needs a file. Name one with --out answers.parquet.")
    if vote_by is not None:
        compiled(vote_by)
    if out is not None:
        refuse_foreign(Path(out))
    for one in photos if sort is not None else ():
        if Path(sort or "").resolve().is_relative_to(Path(one).resolve()):
            raise OutputError(f"{sort} lies in {one}, among the photos to be sorted. Choose a folder beside it.")
    asked = Wanted(kind, Path(out) if out else None, columns, vote_by, Path(sort) if sort is not None else None)
    _ = columns_for(bundle, asked)
    return asked


def that_can_be_unsure(bundle: Bundle, progress: Progress) -> Bundle:
    """Return a model that says when it is unsure, as `doubt.usual_doubt` does.

    Args:
        bundle: The model.
        progress: Is told what was chosen.
    """
    doubting = usual_doubt(bundle)
    if doubting.max_error is None:
        progress.say("this model cannot tell when it is unsure: no photo is sorted as unsure")
    elif bundle.max_error is None:
        share = f"at most {100 * doubting.max_error:.3g} %"
        progress.say(f"unsure is what it takes for {share} of the others to be wrong (--max-error)")
    return doubting


def columns_for(bundle: Bundle, asked: Wanted) -> Columns:
    """Return the columns of the table that is asked for. Raises ConfigError."""
    return columns_of(
        asked.columns,
        bundle.classes,
        is_group=asked.vote_by is not None,
        is_sorted=asked.sort is not None,
        has_labels=bundle.coverage is not None,
    )


def answer_records(
    bundle: Bundle,
    photos: Sequence[str],
    asked: Wanted,
    counts: AnswerCounts,
    *,
    follow_links: bool = False,
    every_s: float | None = None,
    progress: Progress,
) -> Iterator[AnswerRecord]:
    """Predict photos, let groups vote, and sort the photos once all are predicted.

    Args:
        bundle: The model.
        photos: Photos and folders.
        asked: What is to be done.
        counts: Is filled.
        follow_links: Whether links to folders are followed.
        every_s: Seconds from frame to frame of videos; None to read no videos.
        progress: Is told what is done.

    Yields:
        An answer for each photo, or for each group.

    Raises:
        DataError: There is no photo.
        ConfigError: No photo belongs to a group.
        OutputError: The photos cannot be sorted.
    """
    single = predict(bundle, photos, follow_links=follow_links, every_s=every_s, progress=progress)
    answers = single if asked.vote_by is None else vote(bundle, single, asked.vote_by)
    assignments = []
    unsure, new = folder_names(bundle.classes)
    for answer in answers:
        prediction, folder = answer.prediction, None
        if asked.sort is not None and prediction is not None:
            folder = new if prediction.looks_new else unsure if prediction.unsure else prediction.label
        one = AnswerRecord(answer, folder)
        counts.num_failed += one.num_failed
        if folder is not None:
            assignments += [(file, folder) for file in answer.files]
            counts.folders[folder] += len(answer.files)
        yield one
    if asked.sort is not None:
        with progress.step("sort photos"):
            sort_photos(assignments, asked.sort)


def folder_names(classes: Sequence[str]) -> tuple[str, str]:
    """Return names, which no class has, for the photos that a model is unsure of, and for those that look new."""
    taken = {name.casefold().split("/")[0] for name in classes}
    return tuple(  # type: ignore[return-value]
        next(one for one in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if one not in taken)
        for name in ("unsure", "new")
    )


def lines_of(bundle: Bundle, answers: Iterable[AnswerRecord], asked: Wanted) -> Iterator[str]:
    """Yield the lines of a table or of JSON."""
    records = (one.to_json() for one in answers)
    if asked.format == "csv":
        return csv_lines(records, columns_for(bundle, asked))
    return json_lines(records, columns_for(bundle, asked) if asked.columns else None)


def write_answers(bundle: Bundle, answers: Iterable[AnswerRecord], asked: Wanted) -> Path:
    """Write answers to the file that is asked for, whole or not at all.

    Raises:
        OutputError: The file cannot be written, or is not regraft's.
    """
    assert asked.out is not None
    if asked.format == "parquet":
        data = parquet_bytes((one.to_json() for one in answers), columns_for(bundle, asked))
    else:
        data = "".join(lines_of(bundle, answers, asked)).encode(errors="backslashreplace")
    write_output(asked.out, data)
    return asked.out
