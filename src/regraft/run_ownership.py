"""What a training may replace and remove in a run's folder: what regraft wrote there, and nothing else."""

import json
import os
from pathlib import Path

from regraft.bundle.bundle import load
from regraft.bundle.format import FILES, MANIFEST
from regraft.core.errors import BundleError
from regraft.core.files import MARKER, sha256_file
from regraft.core.ownership import check, record, remove_made
from regraft.core.progress import QUIET, Progress

SCRATCH = ("checkpoints", "folds", "stages", "refit")  # folders of what an unfinished training continues from
NAMES = ("bundle", "result.json", "photos.jsonl", "quarantine.csv", "history.jsonl", "report.html", *SCRATCH)


def check_run(out: Path) -> None:
    """Make sure that a training may write to a folder. Changes nothing.

    Raises:
        OutputError: Something there has the name of what a training writes, but is not regraft's.
    """
    if not is_of_earlier_version(out):
        check(out, NAMES)


def claim_run(out: Path, progress: Progress = QUIET) -> None:
    """Put regraft's marker into a run's folder; where an earlier version wrote the run, note its files as regraft's.

    Args:
        out: The run's folder, made where it is missing.
        progress: Where it is said that an earlier version wrote the run.

    Raises:
        OutputError: As for `check_run`, or the marker cannot be written.
    """
    known = {}
    if is_of_earlier_version(out):
        progress.say(f"{out} was written by an earlier version of regraft: what it holds is now marked as regraft's")
        known = {path.relative_to(out).as_posix(): [sha256_file(path)] for path in _files(out)}
    record(out, known)
    check(out, NAMES)


def remove_unfinished(out: Path) -> None:
    """Remove what an unfinished training would continue from."""
    for name in SCRATCH:
        remove_made(out / name)


def _files(out: Path) -> list[Path]:
    """List the plain files that bear the names of what a training writes, none of them behind a link."""
    files = [out / name for name in NAMES if not (out / name).is_dir()]
    folders = [out / name for name in NAMES if (out / name).is_dir() and not (out / name).is_symlink()]
    files += [path for folder in folders for path in folder.rglob("*")]
    return [path for path in files if path.is_file() and not path.is_symlink()]


def is_of_earlier_version(out: Path) -> bool:
    """Return whether a folder has no marker, but a bundle that verifies and a result.json that fits it.

    Such a run was written by a version of regraft that put no marker into its folders.
    """
    if os.path.lexists(out / MARKER) or not (out / "bundle" / MANIFEST).is_file():
        return False
    try:
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        bundle = load(out / "bundle")
        others = {path.name for path in bundle.folder.iterdir()} - {MANIFEST, *FILES}
        return not others and result["classes"] == list(bundle.classes) and "accuracy" in result
    except (OSError, ValueError, KeyError, TypeError, RecursionError, BundleError):
        return False
