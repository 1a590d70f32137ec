"""The command `regraft label`: a heap of photos to labels and a model in one sitting, on a page of this machine.

Labels are kept in the run's folder::

    sitting/journal.jsonl   everything that was said, in order
    labels.csv              the labels that count, written when the sitting ends and whenever a model is trained
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from regraft.backbones.backbone import configured
from regraft.bundle.predict import find_photos
from regraft.commands.report import NAME as REPORT
from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError, OutputError, RegraftError
from regraft.core.files import exclusive
from regraft.core.progress import QUIET, Progress
from regraft.core.statistics import Accuracy
from regraft.data.folder_layout import Quarantined
from regraft.data.sources import is_photo_file
from regraft.labelling.heap import Contents, Heap, heap_of
from regraft.labelling.journal import Journal
from regraft.labelling.labels import checked_name
from regraft.labelling.outputs import LabelRow, labelled_dataset, write_csv
from regraft.labelling.sitting import FOLDER, Say, Sitting
from regraft.labelling.stream import look_closer, stream_features
from regraft.models.feature_search import larger
from regraft.run_dir import RunRecord, read_record
from regraft.run_location import place

SITTING, JOURNAL, LABELS = "sitting", "journal.jsonl", "labels.csv"


@dataclass(frozen=True)
class SittingOptions:
    """How a sitting is held.

    Attributes:
        classes: Names of the classes, as far as they are known.
        start: A run whose photos and labels count, and whose model learns from the new ones too; None for none.
        sort: Folder that photos are put into, a folder for each class; None to leave that out.
        config: How a model is trained on the labels.
    """

    classes: tuple[str, ...] = ()
    start: Path | None = None
    sort: Path | None = None
    config: TrainConfig = field(default_factory=partial(TrainConfig, mode="frozen"))


@dataclass(frozen=True)
class LabelSummary:
    """What a sitting has come to.

    Attributes:
        out: The run's folder.
        labels: The CSV file of the labels.
        num_photos: Photos in the heap.
        num_labelled: Those with a label.
        num_set_aside: Those that are no photos of the task.
        num_sorted: Photos in the class folders; None where none were made.
        summary: Of the model that was trained without a page; None where none was.
    """

    out: Path
    labels: Path
    num_photos: int
    num_labelled: int
    num_set_aside: int
    num_sorted: int | None = None
    summary: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft label --json` prints."""
        return {
            "out": str(self.out),
            "labels": str(self.labels),
            "photos": self.num_photos,
            "labelled": self.num_labelled,
            "set_aside": self.num_set_aside,
            "sorted": self.num_sorted,
            "model": self.summary,
        }


def label(
    photos: str | Path,
    out: str | Path | None = None,
    *,
    options: SittingOptions,
    show: Callable[[Sitting], None] | None,
    progress: Progress = QUIET,
) -> LabelSummary:
    """Hold a sitting on a heap of photos.

    Args:
        photos: A folder; photos that lie in folders named like classes have these labels already. Of videos in it,
            frames are labelled where `options.config.every_s` is set.
        out: Folder of the run; None for one below `runs`, or for the run that is gone on from.
        options: How it is held.
        show: Shows the page until the sitting ends; None to train on the labels that are there and end.
        progress: Where messages go.

    Returns:
        How far the labels are.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    root = Path(photos).expanduser()
    start, sort, config = options.start, options.sort, options.config
    record = None if start is None else read_record(start, "Expected the folder of a run, with its result.json")
    if record is not None:
        config = replace(record.config, mode="frozen", track=(), every_s=config.every_s or record.config.every_s)
    out = place(root, out or start, progress=progress)
    _check_places(root, sort)
    heap = _listed(root, options.classes, record, config, progress)
    is_shown = show is not None
    with exclusive(out / SITTING), _opened(heap, out, sort, config, record, progress, is_shown) as sitting:
        summary = None
        if show is None:
            _wait_for_all(sitting)
            summary = _trained(sitting, sitting.rows(), out, config, record, progress)
        else:
            show(sitting)
        rows = sitting.rows()
        write_csv(rows, out / LABELS)
        num_sorted = None if sort is None else sitting.sort()
        status = sitting.status()
    return LabelSummary(
        out, out / LABELS, status.num_photos, status.num_labelled, status.num_set_aside, num_sorted, summary
    )


def _check_places(root: Path, sort: Path | None) -> None:
    """Refuse what is no folder of photos, and to sort photos into it. Raises DataError or OutputError."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Expected a folder that holds photos. Check the path.")
    if sort is not None and sort.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{sort} lies inside the photos' folder {root}. Choose another place with --sort.")


def _listed(
    root: Path, classes: Sequence[str], record: RunRecord | None, config: TrainConfig, progress: Progress
) -> Heap:
    """List the photos, and those of the run that is gone on from. Raises DataError."""
    names: list[str] = list(record.dataset(()).classes) if record else []
    for name in classes:
        if name not in names:
            names.append(checked_name(name, names))
    files = list(find_photos([root], follow_links=config.follow_links, every_s=config.every_s, progress=progress))
    if not files:
        raise DataError(f"There are no photos in {root}. Expected files below it.")
    heap = heap_of(root, files, names)
    if labelled := sorted(set(heap.given) - {""}):
        count = sum(bool(name) for name in heap.given)
        progress.say(f"{count} of {len(heap)} photos are labelled by their folders: {', '.join(labelled)}")
    return heap if record is None else _with_earlier(heap, record)


def _with_earlier(heap: Heap, record: RunRecord) -> Heap:
    """Add the photos of a run, as it has them, to a heap."""
    known = {(record.root / photo.path).resolve(): photo.labels[0] for photo in record.photos}
    heap_paths = [(heap.root / path).resolve() for path in heap.paths]
    listed = set(heap_paths)
    earlier = [path for path in known if path not in listed and is_photo_file(path)]
    root = Path(os.path.commonpath([heap.root.resolve(), record.root.resolve()]))
    given = tuple(known.get(path, name) for path, name in zip(heap_paths, heap.given, strict=True))
    paths = tuple(path.relative_to(root).as_posix() for path in (*heap_paths, *earlier))
    return Heap(root, paths, given + tuple(known[path] for path in earlier), heap.classes)


@contextmanager
def _opened(
    heap: Heap,
    out: Path,
    sort: Path | None,
    config: TrainConfig,
    record: RunRecord | None,
    progress: Progress,
    is_shown: bool,
) -> Iterator[Sitting]:
    """Open a sitting, whose features stream in on a thread of their own until it ends; doubts are for who sees them."""
    backbone, contents, stop = configured(config, progress), Contents(len(heap)), threading.Event()

    def trainer(rows: list[LabelRow], say: Say) -> None:
        summary = _trained(sitting, rows, out, config, record, _ForwardedProgress(say))
        say(f"the model is in {summary['bundle']}: {Accuracy(**summary['accuracy'])}")

    with Journal(out / SITTING / JOURNAL) as journal:
        sitting = Sitting(heap, journal, contents, trainer, sort_folder=sort, report=out / REPORT)

        def stream() -> None:
            try:
                stream_features(heap, contents, backbone, sitting.features_arrived, stop)
            except RegraftError as error:
                progress.say(f"no more features: {error}")
            if is_shown and not stop.is_set():
                with suppress(RegraftError):  # doubts are found without it too
                    closer = larger(backbone, config, QUIET)
                    if closer is not None:
                        look_closer(heap, contents, closer, sitting.features_arrived, stop)

        thread = threading.Thread(target=stream, name="regraft-features", daemon=True)
        thread.start()
        try:
            yield sitting
        finally:
            stop.set()
            thread.join()
            sitting.close()


def _trained(
    sitting: Sitting,
    rows: list[LabelRow],
    out: Path,
    config: TrainConfig,
    record: RunRecord | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train a model on the labels; return what `regraft train --json` prints."""
    write_csv(rows, out / LABELS)
    unreadable = [Quarantined(sitting.heap.paths[i], why) for i, why in sitting.contents.unreadable.items()]
    dataset = labelled_dataset(rows, sitting.heap.root, unreadable)
    if record is not None:
        known = {photo.sha256: photo.labelled for photo in record.photos}
        origins = tuple(
            known.get(content, one) if one.by == FOLDER else one
            for content, one in zip(dataset.hashes, dataset.labelled, strict=True)
        )
        sides = tuple(record.sides.get(content, "") for content in dataset.hashes)
        dataset = replace(dataset, labelled=origins, splits=sides)
    folder = sitting.heap.root if record is None else record.folder
    return train_run(folder, out, config, progress, earlier=record, labelled=dataset).summary


def _wait_for_all(sitting: Sitting) -> None:
    """Wait until every photo was looked at."""
    arrived = threading.Event()
    while sitting.contents.num_known < len(sitting.heap):
        arrived.wait(0.05)


class _ForwardedProgress(Progress):
    """Progress whose lines are handed to somebody instead of being printed."""

    def __init__(self, say: Say) -> None:
        super().__init__(quiet=True)
        self._say = say

    def say(self, message: str) -> None:
        """Hand on a line."""
        self._say(message)
