"""How much one client, and all of them together, may ask of a server."""

from dataclasses import dataclass

from regraft.data.decode import MAX_PIXELS

MEGA = 2**20


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    max_bytes: of a request's body.  max_photos: of one request.  max_pixels: of a photo, as it is decoded.
    buffered: of all bodies that are being received or waiting.  waiting: photos of all requests that wait for a worker.
    header_s, body_s: until a request's headers, and its body, must have come.  photo_s: for one photo, then its worker
    is ended.  request_s: for all photos of a request.  worker_bytes: of memory that a worker may take beside its model.
    drain_s: for requests under way when the server is to stop.  workers: processes, -1 for cores + 1.
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
