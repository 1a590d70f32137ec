"""Videos among photos: a frame every so often in the place of each, all of them one group."""

from dataclasses import replace
from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import ConfigError
from regraft.data.decode import Unreadable
from regraft.data.folder_layout import Listing, Quarantined
from regraft.data.video import ENDINGS, duration_s

MAX_FRAMES = 100_000  # of one video


def with_frames(listing: Listing, options: FolderOptions) -> Listing:
    """Return a listing with frames in the place of videos.

    Args:
        listing: Files of any kind.
        options: How far frames are apart, in seconds; where that is not set, nothing changes.

    Raises:
        MissingExtra: There are videos, and PyAV is not installed.
        ConfigError: Frames are too close to each other.
    """
    videos = [one for one in listing.files if is_video(Path(one.path))]
    if options.every_s is None or not videos:
        return listing
    files, quarantine = [one for one in listing.files if one not in set(videos)], list(listing.quarantine)
    for one in videos:
        try:
            frames = frames_of(listing.root / one.path, options.every_s)
            paths = (frame.relative_to(listing.root).as_posix() for frame in frames)
            files += [replace(one, path=path, group=group_of(path)) for path in paths]
        except Unreadable as error:
            quarantine.append(Quarantined(one.path, str(error)))
    note = (
        f"{len(videos)} videos are read as frames, one every {options.every_s:g} s, which stay on one side of a split"
    )
    return replace(listing, files=files, quarantine=quarantine, notes=[*listing.notes, note])


def frames_of(video: Path, every_s: float) -> list[Path]:
    """List the frames of a video by their paths, which `sources.read_bytes` reads.

    Args:
        video: Its file.
        every_s: Seconds from frame to frame.

    Raises:
        Unreadable: It is no video that can be read.
        MissingExtra: PyAV is not installed.
        ConfigError: Frames are too close to each other.
    """
    if not video.is_file():
        raise Unreadable("a video in an archive; unpack it first")
    length_s = duration_s(video)
    if length_s / every_s > MAX_FRAMES:
        raise ConfigError(f"{video} has more than {MAX_FRAMES} frames every {every_s:g} s. Give a longer --every.")
    times = [number * every_s for number in range(int(length_s / every_s) + 1) if number * every_s < length_s]
    return [video / f"{round(1000 * time):010d}.ppm" for time in times]


def group_of(path: str) -> str:
    """Return the name of the group of a frame, its video; "" for another photo.

    Args:
        path: With "/" between names.
    """
    video, _, _ = path.rpartition("/")
    return f"={video}" if is_video(Path(video)) else ""


def is_video(file: Path) -> bool:
    """Return whether a file may be a video, by its name."""
    return file.name.lower().endswith(ENDINGS)
