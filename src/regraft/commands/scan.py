"""The command `regraft scan`: which photos there are, what may be wrong with them, and a copy without those."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backbones.backbone import configured
from regraft.backbones.features import Features, FeatureTable, extract, num_new
from regraft.core.config import AS_FOUND, FolderOptions, TrainConfig
from regraft.core.errors import ConfigError, OutputError, nearest
from regraft.core.files import csv_bytes, json_bytes, make_folder, published, write_atomic
from regraft.core.ownership import check, write_output
from regraft.core.progress import QUIET, Progress
from regraft.core.statistics import Accuracy, accuracy
from regraft.data import issues as finders
from regraft.data.folder_entries import is_manifest
from regraft.data.image_stats import ImageStats, look
from regraft.data.issues import BY_FEATURES, CERTAIN, KINDS, Issue, Kind, LabelIssue
from regraft.data.list_manifest import without_others
from regraft.data.scan import Dataset, list_photos, without_empty_classes
from regraft.data.sources import is_in_source, read_bytes
from regraft.data.splits import folds_of
from regraft.models.linear_head import Head, out_of_fold, solve
from regraft.training.shift import split_shift

WRITTEN = ("scan.json", "quarantine.csv", "suspects.csv", "photos.png")  # beside a picture for each kind of issue
SHOWN = 40  # issues of a kind on one contact sheet
QUICK = 1500  # photos that are run through the backbone without asking
RARE = 5.0  # how many times fewer photos than another a class may have before that is reported


@dataclass(frozen=True)
class ScanResult:
    """What `regraft scan` finds.

    Attributes:
        dataset: The photos that can be used.
        issues: The issues, most serious first.
        label_issues: All photos that a model which has not seen them gives to another class, the surest first.
        leak_cost: Accuracy on the photos kept for evaluation, with and without those that are in train too; None where
            there are none.
    """

    dataset: Dataset
    issues: tuple[Issue, ...]
    label_issues: tuple[LabelIssue, ...] = ()
    leak_cost: tuple[Accuracy, Accuracy] | None = None

    def of(self, kind: Kind) -> list[Issue]:
        """Return the issues of one kind."""
        return [one for one in self.issues if one.kind == kind]

    def __str__(self) -> str:
        return "\n".join(in_words(self)) or "nothing suspicious was found"

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft scan --json` prints."""
        d = self.dataset
        groups = [one for one in self.issues if one.kind in CERTAIN]
        return d.to_json() | {
            "duplicates": [[d.paths[i] for i in one.photos] for one in groups],
            "leaks": [_leak(d, one) for one in groups if len({d.splits[i] for i in one.photos}) > 1],
            "suspects": [
                {
                    "path": d.paths[s.photo],
                    "label": d.classes[d.labels[s.photo]],
                    "suggested": d.classes[s.suggested],
                    "probability": round(s.probability, 4),
                }
                for s in self.label_issues
            ],
            "findings": [one.to_json(d) for one in self.issues],
            "leak_cost": self.leak_cost
            and {n: a.to_json() for n, a in zip(("with", "without"), self.leak_cost, strict=True)},
        }


def find_issues(
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    with_features: bool | None = None,
    progress: Progress = QUIET,
) -> ScanResult:
    """Read a folder, try every file in it, and look for what may be wrong.

    Args:
        folder: The photos, laid out as for a training.
        config: Backbone, weights, how photos fit its input, seed, folds, and how the folder is read.
        with_features: Whether to look also for doubtful labels and for photos unlike all others. That takes one pass
            of each photo through the backbone, which later runs need not repeat. None to do so unless it takes long.
        progress: Where messages and progress bars go.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    config = config or TrainConfig()
    dataset, stats = _looked(list_photos(folder, options=config.folder_options, progress=progress), progress)
    features = None if with_features is False else _features(dataset, config, bool(with_features), progress)
    return _scanned(dataset, stats, features, config, progress)


def issues_of_training(
    dataset: Dataset, learned: Dataset, head: Head | None, table: FeatureTable | None = None
) -> tuple[Issue, ...]:
    """Look for issues in the photos of a training, with nothing but what the training has computed anyway.

    Args:
        dataset: All photos.
        learned: Those of them that `head` was solved on.
        head: None where none was solved.
        table: Features of all photos, None where there are none.

    Returns:
        Issues, the most serious first.
    """
    issues = finders.copies(dataset, finders.groups_of_copies(dataset))
    issues += split_shift(dataset, table.of(dataset), head) if table is not None else []
    if head is not None:
        place = {path: i for i, path in enumerate(dataset.paths)}
        for one in finders.confident_label_issues(learned, finders.label_issues(learned.labels, np.exp(head.held_out))):
            photos = tuple(place[learned.paths[i]] for i in one.photos)
            issues.append(replace(one, photos=photos, drop=photos))
    return _ordered(issues)


def counted(issues: Iterable[Issue]) -> str:
    """Say how many issues there are of each kind; "" for none."""
    return ", ".join(f"{kind}: {count}" for kind, count in Counter(one.kind for one in issues).items())


def drop_issues(dataset: Dataset, features: FeatureTable | None, config: TrainConfig, progress: Progress) -> Dataset:
    """Audit a data set and leave out the photos with issues of the kinds that `config.drop` names.

    Args:
        dataset: All photos.
        features: Of all photos; None where there are none, which leaves out kinds that are found by features.
        config: The kinds to drop, seed and folds.
        progress: Where messages and progress bars go.

    Returns:
        The data set without those photos, which are quarantined.

    Raises:
        RegraftError: What stands in the way, such as an unknown kind, or too few photos that would be left.
    """
    kinds = chosen_kinds(config.drop)
    if features is None and (blind := [kind for kind in kinds if kind in BY_FEATURES]):
        progress.say(f"without effect: --drop {','.join(blind)}; no pretrained backbone is here to find them")
    dataset, stats = _looked(dataset, progress)
    result = _scanned(dataset, stats, features, config, progress)
    return without_empty_classes(dataset.without(finders.left_out(result.issues, kinds)))


def _looked(dataset: Dataset, progress: Progress) -> tuple[Dataset, ImageStats]:
    stats, failures = look(dataset, progress=progress)
    return (without_empty_classes(dataset.without(failures)), stats.without(failures)) if failures else (dataset, stats)


def _features(dataset: Dataset, config: TrainConfig, in_any_case: bool, progress: Progress) -> FeatureTable | None:
    """Compute features of all photos; None where that would take long and nobody asked for it."""
    backbone = configured(config, progress)
    if not in_any_case and (new := num_new(backbone, dataset)) > QUICK:
        progress.say(f"{new} photos have not been through the backbone: labels are not doubted; --deep does that")
        return None
    return extract(backbone, dataset, progress=progress)[1].by_content


def _scanned(
    dataset: Dataset, stats: ImageStats, table: FeatureTable | None, config: TrainConfig, progress: Progress
) -> ScanResult:
    with progress.step("compare photos"):
        pairs = list(finders.alike(stats))
        issues = finders.copies(dataset, finders.groups_of_copies(dataset, pairs))
        issues += finders.odd_looks(stats) + finders.format_leak(dataset, stats)
    if table is None:
        return ScanResult(dataset, _ordered(issues))
    with progress.step("doubt labels"):
        features, folds = table.of(dataset), folds_of(dataset, config.num_folds, config.seed)
        unseen = out_of_fold(features, len(dataset.classes), folds)
        ranked = finders.label_issues(dataset.labels, np.exp(unseen))
        issues += _outliers(features, issues) + finders.confident_label_issues(dataset, ranked)
        issues += split_shift(dataset, features)
        cost = _leak_cost(dataset, features, [i for one in issues if one.kind == "leaks" for i in one.photos])
    return ScanResult(dataset, _ordered(issues), tuple(ranked), cost)


def chosen_kinds(text: str) -> tuple[Kind, ...]:
    """Parse a choice of kinds of issues.

    Args:
        text: Their names, separated by commas, with spaces or hyphens inside; or "all", or "none".

    Raises:
        ConfigError: There is no kind of such a name.
    """
    if text in ("all", "none"):
        return KINDS if text == "all" else ()
    kinds = tuple(part.strip().replace("-", " ") for part in text.split(",") if part.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"There are no findings of kind {kind!r}.{nearest(kind, KINDS)} Expected: {', '.join(KINDS)}."
            )
    return kinds  # type: ignore[return-value]


def check_places(photos: Path, out: Path | None = None, fix: Path | None = None) -> None:
    """Make sure, before anything long begins, that issues and a copy can be written where the user wants them.

    Args:
        photos: The folder or list of photos.
        out: Folder for the issues, None for none.
        fix: Folder for the cleaned copy, None for none.

    Raises:
        OutputError: A folder lies among the photos, or holds something that is not regraft's.
    """
    root = (photos.parent if photos.is_file() else photos).resolve()
    if out is not None and not photos.is_file() and out.resolve().is_relative_to(root):
        raise OutputError(
            f"{out} lies inside the photos' folder {photos}, where it would be taken for a class. "
            "Choose another place with --out."
        )
    if out is not None:
        check(out, (*WRITTEN, *(_picture_of(kind) for kind in KINDS)))
    if fix is None:
        return
    if fix.is_symlink() or (fix.exists() and any(fix.iterdir() if fix.is_dir() else [fix])):
        raise OutputError(f"{fix} is not empty. Expected a new folder for the cleaned copy. Choose another --fix.")
    if fix.resolve().is_relative_to(root):
        raise OutputError(f"{fix} lies inside {root}, whose copy it is to be. Choose another --fix.")
    check(fix.parent, [_list_of_left_out(fix).name])


def _list_of_left_out(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.left-out.csv")


def _picture_of(kind: Kind) -> str:
    return f"{kind.replace(' ', '-')}.png"


def write_fixed(
    result: ScanResult, folder: Path, kinds: Iterable[Kind] = CERTAIN, options: FolderOptions = AS_FOUND
) -> dict[str, str]:
    """Write a copy without the photos that have some kinds of issues.

    Photos are hard links where the file system has them: no byte is copied, and the original is not touched. Where a
    list named the photos, the copy has the list too, with the rows of its photos. Where shards or the like say what a
    photo is, the copy has a list `photos.csv`.

    Args:
        result: What `find_issues` has result.
        folder: The new folder.
        kinds: Kinds of the issues whose photos are left out.
        options: How the photos were read.

    Returns:
        Why each photo was left out, by path; also written to `<folder>.left-out.csv`.

    Raises:
        OutputError: The folder is not empty, lies among the photos, or cannot be written.
    """
    d, reasons = result.dataset, finders.left_out(result.issues, kinds)
    check_places(d.root, fix=folder)
    kept = d.without(reasons)
    with published(folder) as partial:
        for path in kept.paths:
            _link(d.root / path, make_folder((partial / path).parent) / Path(path).name)
        if d.list_file is not None and is_manifest(d.list_file):
            write_atomic(partial / d.list_file.name, without_others(d.list_file, frozenset(kept.paths), options))
        elif any(one.by == "list" for one in kept.labelled):
            write_atomic(partial / "photos.csv", _list_of(kept))
    write_output(_list_of_left_out(folder), kept.quarantine_csv())
    return {q.path: q.reason for q in kept.quarantine}


def write_scan(result: ScanResult, folder: Path) -> list[Path]:
    """Write scan.json, quarantine.csv, suspects.csv, a picture of the photos, and one for each kind of issue.

    Args:
        result: What `find_issues` has result.
        folder: Made where it is missing.

    Returns:
        Paths of the pictures.

    Raises:
        OutputError: Something of another's has one of these names, or they cannot be written.
    """
    from regraft.reporting.plots import contact_sheet, dataset_grid, save_picture

    check(folder, (*WRITTEN, *(_picture_of(kind) for kind in KINDS)))
    make_folder(folder, kind="output folder")
    write_output(folder / "scan.json", json_bytes(result.to_json()))
    write_output(folder / "quarantine.csv", result.dataset.quarantine_csv())
    write_output(folder / "suspects.csv", _label_issues_csv(result))
    pictures = [save_picture(dataset_grid(result.dataset), folder / "photos.png")]
    for kind in KINDS:
        of_kind = [one for one in result.of(kind) if one.photos]
        if of_kind:
            rows = [(one.photos, one.text) for one in of_kind[:SHOWN]]
            sheet = contact_sheet(result.dataset, f"{kind}: {len(of_kind)}", rows)
            pictures.append(save_picture(sheet, folder / _picture_of(kind)))
    return pictures


def _label_issues_csv(result: ScanResult) -> bytes:
    """Return the surest label issues as a table to be put right: `regraft relabel` takes its label column."""
    d = result.dataset
    sure = [s for s in result.label_issues if s.probability >= finders.CONFIDENT]
    rows = [
        (d.paths[s.photo], d.classes[d.labels[s.photo]], d.classes[s.suggested], f"{s.probability:.4f}") for s in sure
    ]
    return csv_bytes(("path", "label", "suggested", "probability"), rows)


def in_words(result: ScanResult) -> list[str]:
    """Describe what was found, in lines: each kind of issue with its first examples, leaks, and unbalanced classes."""
    lines, counts = [], Counter(one.kind for one in result.issues)
    for kind, count in counts.items():
        first = result.of(kind)[:3]
        lines.append(f"{kind}: {count}")
        for one in first:
            paths = ", ".join(result.dataset.paths[i] for i in one.photos[:3])
            paths += ", ..." if len(one.photos) > 3 else ""
            lines.append(f"  {paths}: {one.text}" if paths else f"  {one.text}")
        if count > len(first):
            lines.append(f"  and {count - len(first)} more")
    if result.leak_cost:
        with_them, without = result.leak_cost
        lines.append(f"what the leaks are worth: {with_them}; without them {without}")
    counted, size = result.dataset.counts.items(), itemgetter(1)
    most, least = max(counted, key=size), min(counted, key=size)
    if most[1] >= RARE * least[1]:
        sizes = f"{most[1]} photos of {most[0]!r}, {least[1]} of {least[0]!r}"
        lines.append(f"unbalanced: {sizes}; train with --class-weights to count classes alike")
    return lines


def _ordered(issues: list[Issue]) -> tuple[Issue, ...]:
    return tuple(sorted(issues, key=lambda one: KINDS.index(one.kind)))


def _leak(dataset: Dataset, finding: Issue) -> list[str]:
    """Return the photo to learn from first, then those kept for evaluation."""
    inside = [i for i in finding.photos if dataset.splits[i] == "train"] or list(finding.photos[:1])
    outside = [i for i in finding.photos if i not in inside]
    return [dataset.paths[inside[0]], *(dataset.paths[i] for i in outside)]


def _outliers(features: Features, issues: list[Issue]) -> list[Issue]:
    """Find outliers. Of copies one is looked at: a photo is not less of an outlier for having a copy."""
    again = set(finders.left_out(issues, CERTAIN))
    kept = [i for i in range(len(features.hashes)) if i not in again]
    far = finders.outliers(features.x[kept])
    places = [(kept[one.photos[0]],) for one in far]
    return [Issue(one.kind, place, one.text, place) for one, place in zip(far, places, strict=True)]


def _leak_cost(dataset: Dataset, features: Features, leaked: list[int]) -> tuple[Accuracy, Accuracy] | None:
    """Return the accuracy of a head solved on train: on all photos outside it, and on those that did not leak."""
    train = np.array([split == "train" for split in dataset.splits])
    evaluated = ~train
    clean = evaluated & ~np.isin(np.arange(len(dataset)), leaked)
    if not leaked or not train.any() or not clean.any():
        return None
    learned = dataset.subset(np.flatnonzero(train))
    head = solve(features.of(learned), len(dataset.classes), np.full(len(learned), -1))
    correct = head.logits(features.x).argmax(axis=1) == dataset.labels
    return accuracy(int(correct[evaluated].sum()), int(evaluated.sum()), "judged"), accuracy(
        int(correct[clean].sum()), int(clean.sum()), "judged, not in train"
    )


def _list_of(dataset: Dataset) -> bytes:
    """Write a list of photos with their classes, and splits where they have some."""
    names = ("path", "label", "split") if any(dataset.splits) else ("path", "label")
    labels = (dataset.classes[label] for label in dataset.labels)
    rows = zip(dataset.paths, labels, dataset.splits, strict=True)
    return csv_bytes(names, [row[: len(names)] for row in rows])


def _link(source: Path, place: Path) -> None:
    if is_in_source(source):
        return write_atomic(place, read_bytes(source))
    source = source.resolve()  # of a link, what it leads to
    try:
        os.link(source, place)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, place)
