"""Videos among photos: a frame every so often in the place of each, all of them one group."""

from dataclasses import replace
from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import ConfigError
from regraft.data.decode import Unreadable
from regraft.data.folder_layout import Labelled, Listing, Quarantined
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
    videos = [one for one in listing.files if one.path.lower().endswith(ENDINGS)]
    if options.every_s is None or not videos:
        return listing
    files, quarantine = [one for one in listing.files if one not in set(videos)], list(listing.quarantine)
    for one in videos:
        try:
            files += _frames(listing.root, one, options.every_s)
        except Unreadable as error:
            quarantine.append(Quarantined(one.path, str(error)))
    note = (
        f"{len(videos)} videos are read as frames, one every {options.every_s:g} s, which stay on one side of a split"
    )
    return replace(listing, files=files, quarantine=quarantine, notes=[*listing.notes, note])


def _frames(root: Path, video: Labelled, every_s: float) -> list[Labelled]:
    """List the frames of a video. Raises Unreadable or ConfigError."""
    if not (root / video.path).is_file():
        raise Unreadable("a video in an archive; unpack it first")
    length_s = duration_s(root / video.path)
    if length_s / every_s > MAX_FRAMES:
        raise ConfigError(f"{video.path} has more than {MAX_FRAMES} frames every {every_s:g} s. Give a longer --every.")
    times = [number * every_s for number in range(int(length_s / every_s) + 1) if number * every_s < length_s]
    paths = (f"{video.path}/{round(1000 * time):010d}.ppm" for time in times)
    return [replace(video, path=path, group=f"={video.path}") for path in paths]
