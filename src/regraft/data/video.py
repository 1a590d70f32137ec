"""Frames of a video as photos: the member `0000012000.ppm` of a video is the frame that is seen after 12 seconds.

All frames of a video are one group. A frame's bytes are those of a PPM file, so that it is the same content everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from regraft.core.errors import MissingExtra
from regraft.data.decode import MAX_PIXELS, Unreadable

ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
TOLERANCE_S = 1e-4  # by which a frame may begin later than it is asked for: times of frames are rounded


@dataclass(frozen=True)
class VideoSource:
    """A video. Which of its frames are read is for the caller to say.

    Attributes:
        file: The video.
        refused: Nothing.
    """

    file: Path
    refused: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return nothing: a frame has the name of its time."""
        return []

    def read(self, name: str) -> bytes:
        """Read a frame.

        Args:
            name: Its time in milliseconds, with the ending `.ppm`.

        Returns:
            The content of a PPM file.

        Raises:
            Unreadable: The video is damaged, or has ended by then.
            KeyError: This is no name of a frame.
            MissingExtra: PyAV is not installed.
        """
        stem, _, ending = name.partition(".")
        if not stem.isdecimal() or ending != "ppm":
            raise KeyError(name)
        av = _pyav()
        try:
            with av.open(str(self.file)) as container:
                return _content(_frame_at(container, int(stem) / 1000))
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise Unreadable(f"damaged: {error}") from error


def duration_s(file: Path) -> float:
    """Return the seconds from the first frame of a video to the end of the last one.

    Raises:
        Unreadable: It is no video, or its frames are too large.
        MissingExtra: PyAV is not installed.
    """
    av = _pyav()
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise Unreadable(f"frames of {stream.width}x{stream.height} pixels; at most {MAX_PIXELS} are read")
            if stream.duration is not None and stream.time_base is not None:
                return float(stream.duration * stream.time_base)
            if container.duration is None:
                raise Unreadable("it does not say how long it is")
            return float(container.duration / av.time_base)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise Unreadable(f"no video that can be read: {error}") from error


def _frame_at(container: Any, time_s: float) -> Any:
    """Return the first frame at or after a time, counted from the first frame. Raises Unreadable."""
    stream = container.streams.video[0]
    start = stream.start_time or 0
    container.seek(start + int(time_s / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is not None and float((frame.pts - start) * stream.time_base) >= time_s - TOLERANCE_S:
            return frame
    raise Unreadable(f"the video ends before {time_s:g} s")


def _content(frame: Any) -> bytes:
    image: Image.Image = frame.to_image()
    if turn := getattr(frame, "rotation", 0):
        image = image.rotate(turn, expand=True)
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def _pyav() -> Any:
    """Raises MissingExtra."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video") from error
    return av
