"""A request to the photos in it, within the server's limits; what is refused says why."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from regraft.serving.limits import MEGA, Limits

RAW = ("application/octet-stream", "image/")
NUM_FIELDS = 16  # that are not files, in a form: none has a use
logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # a client's errors are told to the client
BOUNDARY = re.compile(rb"[\w'()+,./:=? -]{1,70}")  # RFC 2046


@dataclass
class Buffered:
    """Bytes of all requests that are in memory, and how many may be."""

    limit: int
    used: int = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request takes of them, given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.taken


@dataclass
class Share:
    """Bytes that one request has taken."""

    buffered: Buffered
    taken: int = field(default=0)

    def take(self, count: int) -> None:
        """Raises HTTPException 503 where there is no room."""
        if self.buffered.used + count > self.buffered.limit:
            raise HTTPException(503, "too much is being sent at once", {"Retry-After": "1"})
        self.buffered.used += count
        self.taken += count


@dataclass(frozen=True)
class Photo:
    """A file as it was sent. name: the client's, "" for none; it is shown and never opened."""

    name: str
    data: bytes


async def photos_of(request: Request, limits: Limits, share: Share) -> list[Photo]:
    """Files of a form, or the body itself. Raises HTTPException: 400, 408, 413, 415 or 503."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not is_form and not kind.startswith(RAW):
        raise HTTPException(415, "expected a form with files, or an image with a content type of image/*")
    body = await read_body(request, limits, share)
    if not is_form:
        if not body:
            raise HTTPException(400, "the body is empty: expected an image file")
        return [Photo("", body)]
    photos = await _files(request, body, limits)
    if not photos:
        raise HTTPException(400, "the form has no files: send each photo as a part with a file name")
    return photos


async def read_body(request: Request, limits: Limits, share: Share) -> bytes:
    """The body, no more and no later than is allowed. Raises HTTPException."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > limits.max_bytes:
        raise _too_large(limits)
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                share.take(len(part))
                if share.taken > limits.max_bytes:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {limits.body_s:g} s", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended within the body") from None
    return b"".join(parts)


async def _files(request: Request, body: bytes, limits: Limits) -> list[Photo]:
    """The files of a form, in memory alone."""
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary", b"")
    if not BOUNDARY.fullmatch(boundary):
        raise HTTPException(400, "the form has no boundary: expected multipart/form-data; boundary=...")

    async def stream() -> AsyncIterator[bytes]:
        yield body
        if not parser.is_whole:
            raise MultiPartException("the form is cut off: its last boundary is missing")

    parser = _Form(
        Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % boundary)]),  # and no charset but UTF-8
        stream(),  # type: ignore[arg-type]  # any asynchronous iterator does
        max_files=limits.max_photos,
        max_fields=NUM_FIELDS,
        max_part_size=limits.max_bytes,
    )
    parser.spool_max_size = limits.max_bytes + 1  # nothing is written to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    photos = [Photo(file.filename or "", file.file.read()) for file in files]
    await form.close()
    return photos


class _Form(MultiPartParser):
    """is_whole: whether its last boundary has come."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"more than {limits.max_bytes / MEGA:g} MB; send fewer or smaller photos")
