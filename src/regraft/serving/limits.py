"""How much one client, and all of them together, may ask of a server."""

from dataclasses import dataclass

from regraft.data.decode import MAX_PIXELS

MEGA = 2**20


@dataclass(frozen=True)
class Limits:
    """How much may be asked: sizes in bytes, times in seconds.

    Attributes:
        max_bytes: Of a request's body.
        max_photos: Of one request.
        max_pixels: Of a photo, as it is decoded.
        buffered: Bytes of all bodies that are being received or waiting.
        waiting: Photos of all requests that wait for a worker.
        header_s: Until a request's headers must have come.
        body_s: Until its body must have come.
        photo_s: For one photo; then its worker is ended.
        request_s: For all photos of a request.
        worker_bytes: Of memory that a worker may take beside its model.
        drain_s: For requests under way when the server is to stop.
        workers: Processes; -1 for one more than there are cores.
    """

    max_bytes: int = 32 * MEGA
    max_photos: int = 64
    max_pixels: int = MAX_PIXELS
    buffered: int = 256 * MEGA
    waiting: int = 128
    header_s: float = 10.0
    body_s: float = 30.0
    photo_s: float = 10.0
    request_s: float = 60.0
    worker_bytes: int = 1024 * MEGA
    drain_s: float = 8.0
    workers: int = -1
