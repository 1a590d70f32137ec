"""Many photos through a bundle, in order, on all cores. A photo that cannot be read does not stop the others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.bundle.bundle import Bundle, Prediction
from regraft.core.errors import DataError
from regraft.core.progress import QUIET, Progress
from regraft.data.decode import Unreadable
from regraft.data.folder_entries import is_junk, natural_key
from regraft.data.links import identity_of, note_on_links
from regraft.data.remote import fetched, named
from regraft.data.scan import map_photos
from regraft.data.sources import is_photo_file, is_source, members, refused
from regraft.data.video_frames import frames_of, is_video

MAX_NAMED = 20  # members of an archive that are not read, and named


@dataclass(frozen=True)
class Answer:
    """What came of one photo: either a prediction, or the reason why there is none.

    Attributes:
        path: As given or found; of what lies at an address, by that address.
        prediction: What the model says; None where the photo cannot be read.
        error: Why it cannot be read; None where there is a prediction.
        file: Where it was read.
    """

    path: str
    prediction: Prediction | None
    error: str | None
    file: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The photo, as the only one that the answer is about."""
        return (self.file,)

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft predict --json` prints."""
        if self.prediction is None:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, **self.prediction.to_json()}


def predict(
    bundle: Bundle,
    sources: Iterable[str | Path],
    *,
    follow_links: bool = False,
    every_s: float | None = None,
    progress: Progress = QUIET,
) -> Iterator[Answer]:
    """Predict photos, and all photos below folders.

    Args:
        bundle: The model.
        sources: Photos, videos and folders.
        follow_links: Whether links to folders, in the folders named, are followed.
        every_s: Seconds from frame to frame of videos, each of which is a photo; None to read no videos.
        progress: Is told what is done.

    Yields:
        An Answer for each photo: of each source that is a folder, for every file below it.

    Raises:
        DataError: A source does not exist, or there is no photo at all; before anything is predicted.
        MissingExtra: There are videos to read, and PyAV is not installed.
    """
    sources = list(sources)
    paths = list(find_photos(sources, follow_links=follow_links, every_s=every_s, progress=progress))
    if not paths:
        raise DataError(
            f"There are no photos in {', '.join(map(str, sources)) or 'nothing'}. Expected files in a folder."
        )
    _ = bundle.engine  # compiled once, before the threads start

    def answer(index: int) -> Answer:
        file, name = paths[index], named(paths[index])
        try:
            return Answer(name, bundle.predict(file), None, file)
        except DataError as error:
            return Answer(name, None, str(error).replace(str(file), name), file)

    with progress.step("predict", total=len(paths)) as advance:
        yield from map_photos(answer, len(paths), advance)


def find_photos(
    sources: Iterable[str | Path],
    *,
    follow_links: bool = False,
    every_s: float | None = None,
    progress: Progress = QUIET,
) -> Iterator[Path]:
    """Find files named, and files below the folders named, in natural order, hidden and junk ones left out.

    Args:
        sources: Photos, videos, folders, archives and addresses.
        follow_links: Whether links to folders, in the folders named, are followed; each folder is read once.
        every_s: Seconds from frame to frame of videos, whose frames stand in their place; None to leave them as they
            are. A video that cannot be read stays too, which is told.
        progress: Is told of links that are not followed, pipes and the like, and folders without files.

    Yields:
        Paths of files, of members of archives and of frames.

    Raises:
        DataError: A source does not exist, a folder cannot be listed, or a video is named without `every_s`.
        MissingExtra: There are videos to read, and PyAV is not installed.
        ConfigError: Frames are too close to each other.
    """
    unread = 0
    for path in _files(list(map(Path, sources)), follow_links, every_s, progress):
        if not is_video(path):
            yield path
        elif every_s is None:
            unread += 1
            yield path
        else:
            try:
                yield from frames_of(path, every_s)
            except Unreadable as error:
                progress.say(f"not read: {path}: {error}")
                yield path
    if unread:
        progress.say(
            f"{unread} of the files are videos: predict, embed, label and train --every 1s read a frame a second"
        )


def _files(places: list[Path], follow_links: bool, every_s: float | None, progress: Progress) -> Iterator[Path]:
    for source in places:
        source = fetched(source, progress)
        if source.is_file() and is_video(source):
            if every_s is None:
                raise DataError(f"{source} is a video. Expected photos. Read a frame a second of it with --every 1s.")
            yield source
        elif source.is_file() and is_source(source):
            yield from (source / name for name in sorted(members(source), key=natural_key))
            for name, reason in list(refused(source).items())[:MAX_NAMED]:
                progress.say(f"not read: {name} in {source}: {reason}")
        elif source.is_dir():
            walk = _Walk(follow_links)
            walk.enters(source.resolve())
            yield from _below(source, walk)
            for note in walk.notes(source):
                progress.say(note)
            if not walk.num_files and len(places) > 1:
                progress.say(f"there are no photos in {source}")
        elif source.exists() or is_photo_file(source):
            yield source
        else:
            raise DataError(f"There is no photo or folder {source}. Check the path.")


@dataclass
class _Walk:
    """What has been met in one folder.

    Attributes:
        follow_links: Whether links to folders are followed.
        walked: Device and inode of the folders read.
        unfollowed: Links that were not followed.
        skipped: Things that are no files.
        num_files: Files found.
    """

    follow_links: bool
    walked: set[tuple[int, int]] = field(default_factory=set)
    unfollowed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    num_files: int = 0

    def enters(self, path: Path) -> bool:
        """Return whether a folder is to be read: links only where wanted, and no folder twice."""
        if path.is_symlink() and not self.follow_links:
            self.unfollowed.append(str(path))
            return False
        known, identity = len(self.walked), identity_of(path)
        self.walked.add(identity)
        return len(self.walked) > known

    def notes(self, folder: Path) -> list[str]:
        """Return what there is to say at the end."""
        notes = note_on_links(f"to folders are not followed in {folder}", self.unfollowed)
        if self.skipped:
            notes.append(f"skipped in {folder}: {len(self.skipped)} that are no files, such as {self.skipped[0]}")
        return notes


def _below(folder: Path, walk: _Walk) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
    except OSError as error:
        raise DataError(
            f"Cannot list {folder}: {(error.strerror or str(error)).lower()}. Check its permissions."
        ) from error
    for path in paths:
        if is_junk(path.name):
            continue
        if path.is_dir():
            if walk.enters(path):
                yield from _below(path, walk)
        elif path.is_file():
            walk.num_files += 1
            yield path
        else:
            walk.skipped.append(str(path))
