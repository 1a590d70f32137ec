"""A run's folder, and the record in it: the only way back from a model to the photos that it was made of.

What is in the folder::

    bundle/         the model; nothing in it names a place on this machine
    result.json     what `regraft train --json` prints; its "record" says how the run was made, and names its bundle
    photos.jsonl    every photo: place, labels and who gave them, split, group and content; and every file left out
    quarantine.csv  files that are not used, and why
    history.jsonl   one line for each epoch, where there were epochs
    checkpoints/    what an unfinished training continues from
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from regraft.bundle.format import MANIFEST, manifest_sha256, parse_manifest
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError, DataError
from regraft.core.files import json_bytes, sha256_bytes
from regraft.core.ownership import write_output
from regraft.core.progress import QUIET, Progress
from regraft.data.decode import Unreadable
from regraft.data.folder_entries import natural_key
from regraft.data.folder_layout import Quarantined
from regraft.data.remote import fetched
from regraft.data.scan import Dataset, Labelling, map_photos
from regraft.data.sources import is_there, read_bytes
from regraft.data.splits import Splits

RESULT, PHOTOS, QUARANTINE = "result.json", "photos.jsonl", "quarantine.csv"
VERSION = 1
SPLITS = ("train", "val", "test")
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError)


@dataclass(frozen=True, slots=True)
class PhotoRecord:
    """One photo of a run.

    Attributes:
        path: Relative to the folder that all photos of the run lie in, as `regraft scan` prints it.
        labels: Names of its classes.
        labelled: Who gave them, and when.
        split: "train", "val" or "test".
        sha256: Hash of the file's content, hexadecimal.
        group: What it belongs with and is never parted from; "" for a photo that stands for itself.
    """

    path: str
    labels: tuple[str, ...]
    labelled: Labelling
    split: str
    sha256: str
    group: str = ""

    def to_json(self, root: Path) -> dict[str, Any]:
        """Return the photo's line of photos.jsonl.

        Args:
            root: The folder that `path` is relative to.
        """
        return {
            "path": self.path,
            "file": str(root / self.path),
            "label": self.labels[0],
            "labels": list(self.labels),
            "by": self.labelled.by,
            "at": self.labelled.at,
            **({"guess": self.labelled.guess} if self.labelled.guess else {}),
            "split": self.split,
            **({"group": self.group} if self.group else {}),
            "sha256": self.sha256,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "PhotoRecord":
        """Read a line of photos.jsonl as `to_json` gives it.

        Raises:
            ValueError: A value is not of the type, split or form that is expected; for a line that lacks something, or
                is otherwise damaged, another of `DAMAGED`.
        """
        labels, texts = tuple(row["labels"]), [row[name] for name in ("path", "by", "at", "sha256")]
        if not labels or not all(
            isinstance(text, str) for text in (*labels, *texts, row.get("group", ""), row.get("guess", ""))
        ):
            raise ValueError("expected text")
        if row["split"] not in SPLITS or len(bytes.fromhex(row["sha256"])) != 32:
            raise ValueError("expected a split and a hash")
        labelled = Labelling(row["by"], row["at"], row.get("guess", ""))
        return PhotoRecord(row["path"], labels, labelled, row["split"], row["sha256"], row.get("group", ""))


@dataclass(frozen=True)
class Step:
    """What was done to a run.

    Attributes:
        command: "train", "add", "relabel" or "label".
        of: The folder or list that it was done with.
        at: When, in ISO 8601, UTC.
    """

    command: str
    of: str
    at: str


@dataclass(frozen=True)
class RunRecord:
    """All that is known of a run.

    Attributes:
        run: The run's folder.
        folder: The photos that the user named first: a folder or a list.
        root: The folder that the paths of all photos begin at.
        roots: Folders that were named, relative to `root`.
        config: How it was trained.
        photos: Every photo used.
        quarantine: Every file found and not used.
        split_given: Whether the photos' owner has split them.
        steps: What made the run what it is, in order.
        decision: Which model was chosen, and why.
        bundle_sha256: Hash of the manifest of the bundle that all this is about.
    """

    run: Path
    folder: Path
    root: Path
    roots: tuple[str, ...]
    config: TrainConfig
    photos: tuple[PhotoRecord, ...] = field(repr=False)
    quarantine: tuple[Quarantined, ...] = field(repr=False)
    split_given: bool
    steps: tuple[Step, ...]
    decision: str = ""
    bundle_sha256: str = ""

    @property
    def sides(self) -> dict[str, str]:
        """The split of each content hash; "train" for content that was learned from under any name."""
        split_of = {photo.sha256: photo.split for photo in self.photos}
        return split_of | {photo.sha256: "train" for photo in self.photos if photo.split == "train"}

    @property
    def eval_split(self) -> str:
        """Name of the split that the model was evaluated on."""
        return "test" if any(photo.split == "test" for photo in self.photos) else "val"

    def dataset(self, names: Sequence[str] = SPLITS) -> Dataset:
        """Return the photos of some splits as a data set, with the classes of all photos."""
        classes = tuple(sorted({label for photo in self.photos for label in photo.labels}, key=natural_key))
        number = {name: i for i, name in enumerate(classes)}
        chosen = [photo for photo in self.photos if photo.split in names]
        return Dataset(
            root=self.root,
            paths=tuple(photo.path for photo in chosen),
            labels=np.array([number[photo.labels[0]] for photo in chosen], np.int64),
            classes=classes,
            splits=tuple(photo.split for photo in chosen),
            hashes=tuple(photo.sha256 for photo in chosen),
            quarantine=self.quarantine,
            groups=tuple(p.group or p.sha256 for p in chosen) if any(p.group for p in self.photos) else (),
            labelled=tuple(photo.labelled for photo in chosen),
        )

    def write(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record into the run's folder, result.json last.

        Args:
            summary: What result.json says beside the record.

        Returns:
            What result.json says now.

        Raises:
            OutputError: It cannot be written.
        """
        rows = [photo.to_json(self.root) for photo in self.photos]
        rows += [{"path": q.path, "quarantined": q.reason} for q in self.quarantine]
        listed = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()
        write_output(self.run / PHOTOS, listed)
        write_output(self.run / QUARANTINE, self.dataset(()).quarantine_csv())
        whole = {**summary, "record": self._header(sha256_bytes(listed))}
        write_output(self.run / RESULT, json_bytes(whole))
        return whole

    def _header(self, photos_sha256: str) -> dict[str, Any]:
        return {
            "version": VERSION,
            "root": str(self.root),
            "root_from_run": os.path.relpath(self.root, self.run.resolve()),
            "folders": list(self.roots),
            "config": self.config.to_json(),
            "split_given": self.split_given,
            "steps": [vars(step) for step in self.steps],
            "bundle_sha256": self.bundle_sha256,
            "photos_sha256": photos_sha256,
        }


def photo_records(splits: Splits, at: str) -> tuple[PhotoRecord, ...]:
    """List the photos of a data set that was split.

    Args:
        splits: The data set.
        at: The time that labels get which no run has recorded yet, in ISO 8601.
    """
    records = []
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if part is not None:
            origins = part.labelled or (Labelling("folder"),) * len(part)
            groups = part.groups or ("",) * len(part)
            for i, (path, content) in enumerate(zip(part.paths, part.hashes, strict=True)):
                origin = replace(origins[i], at=origins[i].at or at)
                label = part.classes[part.labels[i]]
                group = "" if groups[i] == content else groups[i]
                records.append(PhotoRecord(path, (label,), origin, name, content, group))
    return tuple(records)


def read_record(run: Path, cure: str) -> RunRecord:
    """Read the record of a run.

    Args:
        run: Its folder.
        cure: What to do without a record, for the message of an error: a sentence that lacks its full stop.

    Raises:
        DataError: There is none, it is damaged, or it is about another bundle than the one beside it.
    """
    try:
        summary = json.loads((run / RESULT).read_text(encoding="utf-8"))
        header, listed = summary["record"], (run / PHOTOS).read_bytes()
        if header["version"] != VERSION or header["photos_sha256"] != sha256_bytes(listed):
            raise ValueError(f"{PHOTOS} is not the one that {RESULT} speaks of")
        if header["bundle_sha256"] != manifest_sha256(parse_manifest((run / "bundle" / MANIFEST).read_bytes())):
            raise ValueError(f"{RESULT} speaks of another bundle")
        return _parsed(run, summary, [json.loads(line) for line in listed.decode().splitlines()])
    except (*DAMAGED, ConfigError) as error:
        reason = f" ({str(error).removesuffix('.')})" if type(error) in (ValueError, ConfigError) else ""
        trackers = f"{run} does not say which photos its model was made of and judged on{reason}. {cure}."
        raise DataError(trackers) from error


def _parsed(run: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> RunRecord:
    header = summary["record"]
    return RunRecord(
        run=run,
        folder=Path(summary["photos"]),
        root=_root(run, header),
        roots=tuple(map(str, header["folders"])),
        config=TrainConfig.from_json(header["config"]),
        photos=tuple(PhotoRecord.from_json(row) for row in rows if "quarantined" not in row),
        quarantine=tuple(
            Quarantined(str(row["path"]), str(row["quarantined"])) for row in rows if "quarantined" in row
        ),
        split_given=bool(header["split_given"]),
        steps=tuple(Step(str(one["command"]), str(one["of"]), str(one["at"])) for one in header["steps"]),
        decision=str(summary["decision"]),
        bundle_sha256=header["bundle_sha256"],
    )


def _root(run: Path, header: Mapping[str, Any]) -> Path:
    """Find the photos: in their recorded folder, or where that is now if it has moved together with the run."""
    recorded, beside = Path(header["root"]), run / header["root_from_run"]
    return recorded if is_there(recorded) or not is_there(beside) else beside.resolve()


def unchanged(dataset: Dataset, progress: Progress = QUIET) -> Dataset:
    """Return the data set without photos that are gone, or no longer what they were; those are quarantined."""
    with progress.step("hash photos", total=len(dataset)) as advance:
        reasons = dict(enumerate(map_photos(lambda i: _why_other(dataset, i), len(dataset), advance)))
    return dataset.without({i: reason for i, reason in reasons.items() if reason})


def photos_of_run(record: RunRecord, names: Sequence[str], cure: str, progress: Progress = QUIET) -> Dataset:
    """Return the photos of some splits of a run, once it is known that they are as they were.

    Args:
        record: Of the run.
        names: Of the splits.
        cure: What to do without the photos, for the message of an error: a sentence that lacks its full stop.
        progress: Where messages and progress bars go.

    Raises:
        DataError: Some are gone, or have changed, or there never were any.
    """
    wanted = record.dataset(names)
    if not len(wanted):
        raise DataError(f"{record.run} does not say which photos its model was made of and judged on. {cure}.")
    if not is_there(record.root):
        fetched(record.folder, progress)
    if not is_there(record.root):
        raise DataError(f"{record.root}, the photos of {record.run}, is gone. {cure}.")
    dataset = unchanged(wanted, progress)
    if missing := len(wanted) - len(dataset):
        what = f"{missing} of the {len(wanted)} photos that {record.run} has as {' and '.join(names)}"
        raise DataError(f"{what} are no longer in {record.root}, or have changed. {cure}.")
    return dataset


def _why_other(dataset: Dataset, index: int) -> str | None:
    try:
        data = read_bytes(dataset.root / dataset.paths[index])
    except Unreadable as error:
        return f"was learned from, and is gone: {error}"
    return None if sha256_bytes(data) == dataset.hashes[index] else "has changed since it was learned from"


def read_summary(run: Path) -> dict[str, Any]:
    """Read what can be shown of a run's result.json; {} where it is missing or damaged.

    Returns:
        "photos" and "decision" if they are there, "seconds" and "findings"; only values of the expected types, so that
        nothing in the file can do harm.
    """
    try:
        summary = json.loads((run / RESULT).read_text(encoding="utf-8"))
        known = {name: summary[name] for name in ("photos", "decision") if isinstance(summary.get(name), str)}
        seconds = {name: value for name, value in summary.get("seconds", {}).items() if isinstance(value, int | float)}
        findings = [one for one in summary.get("findings", []) if _is_finding(one)]
    except DAMAGED:
        return {}
    return {**known, "seconds": seconds, "findings": findings}


def _is_finding(one: Any) -> bool:
    """Return whether it is of the form that `Issue.to_json` gives."""
    if not isinstance(one, dict) or not isinstance(one.get("kind"), str) or not isinstance(one.get("text"), str):
        return False
    paths = one.get("paths")
    return isinstance(paths, list) and all(isinstance(path, str) for path in paths)


def now() -> str:
    """Return the time now, to the second, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
