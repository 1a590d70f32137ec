"""A request to the photos in it, within the server's limits; what is refused says why."""

import asyncio
import base64
import binascii
import json
import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from regraft.serving.limits import MEGA, Limits

RAW = ("application/octet-stream", "binary/octet-stream", "image/")
FORM, JSON = "multipart/form-data", "application/json"
INFLATED = MEGA  # bytes that are decompressed before others have their turn
DATA_URI = re.compile(r"data:[\w/+.;=-]{0,100};base64,")
NUM_FIELDS = 16  # that are not files, in a form: none has a use
logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # a client's errors are told to the client
BOUNDARY = re.compile(rb"[\w'()+,./:=? -]{1,70}")  # RFC 2046


@dataclass
class Buffered:
    """Bytes of all requests that are in memory, and how many may be.

    Attributes:
        limit: How many may be.
        used: How many are.
    """

    limit: int
    used: int = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Give one request its share of them, taken back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.taken


@dataclass
class Share:
    """Bytes that one request has taken.

    Attributes:
        buffered: Of which they are a part.
        taken: How many.
    """

    buffered: Buffered
    taken: int = field(default=0)

    def take(self, count: int) -> None:
        """Take more bytes.

        Raises:
            HTTPException: 503 where there is no room.
        """
        if self.buffered.used + count > self.buffered.limit:
            raise HTTPException(503, "too much is being sent at once", {"Retry-After": "1"})
        self.buffered.used += count
        self.taken += count


@dataclass(frozen=True)
class Photo:
    """A file as it was sent.

    Attributes:
        name: The client's, "" for none; it is shown and never opened.
        data: Its bytes.
    """

    name: str
    data: bytes


async def photos_of_request(request: Request, limits: Limits, share: Share) -> list[Photo]:
    """Return the photos that a request brings: files of a form, images of a JSON object, or the body itself.

    Args:
        request: To predict.
        limits: How much may be asked.
        share: Is charged with the bytes that the request takes in memory.

    Raises:
        HTTPException: 400, 408, 413, 415 or 503.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (FORM, JSON) and not kind.startswith(RAW):
        raise HTTPException(415, "expected a form with files, JSON, or an image with a content type of image/*")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        raise HTTPException(415, "expected a body that is not compressed, or with gzip", {"Accept-Encoding": "gzip"})
    body = await read_body(request, limits, share)
    if coding != "identity":
        body = await decompressed(body, limits, share)
    if kind == FORM:
        return await _files(request, body, limits)
    if kind == JSON:
        return _images(body, limits, share)
    if not body:
        raise HTTPException(400, "the body is empty: expected an image file")
    return [Photo("", body)]


async def decompressed(body: bytes, limits: Limits, share: Share) -> bytes:
    """Decompress a body from gzip, to no more than a body may have.

    Raises:
        HTTPException: 400, 413 or 503.
    """
    inflater, parts, size = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), [], 0
    while not inflater.eof:
        try:
            part = await asyncio.to_thread(inflater.decompress, body, INFLATED)
        except zlib.error:
            raise HTTPException(400, "the body is damaged: it is no gzip") from None
        size += len(part)
        if size > limits.max_bytes:
            raise _too_large(limits)
        share.take(len(part))
        parts.append(part)
        body = inflater.unconsumed_tail
        if not body and not part and not inflater.eof:
            raise HTTPException(400, "the body is cut off: its gzip does not end")
    if inflater.unused_data:
        raise HTTPException(400, "the body is damaged: something follows its gzip")
    return b"".join(parts)


def _images(body: bytes, limits: Limits, share: Share) -> list[Photo]:
    """Read {"image": base64} or {"images": [base64, ...]}; a data URI will do for each."""
    expected = 'expected {"image": "<base64>"} or {"images": ["<base64>", ...]}'
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > 4 * limits.max_photos + 16:  # base64 has none of these
        raise HTTPException(400, f"the JSON has more than {limits.max_photos} images, or something else: {expected}")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body is no JSON: {expected}") from None
    images = _listed(content)
    if images is None:
        raise HTTPException(400, f"the JSON has other content: {expected}")
    if len(images) > limits.max_photos:
        raise HTTPException(400, f"{len(images)} images; at most {limits.max_photos} are taken at once")
    return [Photo("", _decoded(number, text, share)) for number, text in enumerate(images)]


def _listed(values: Any) -> list[str] | None:
    """Return the texts of a JSON object's images; None for any other value."""
    if not isinstance(values, dict) or len(values) != 1:
        return None
    images = [values["image"]] if "image" in values else values.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(one, str) for one in images):
        return None
    return images


def _decoded(number: int, text: str, share: Share) -> bytes:
    start = DATA_URI.match(text)
    share.take(3 * len(text) // 4)
    try:
        data = base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, f"image {number} is no base64") from None
    if not data:
        raise HTTPException(400, f"image {number} is empty")
    return data


async def read_body(request: Request, limits: Limits, share: Share) -> bytes:
    """Read the body, no more and no later than is allowed.

    Raises:
        HTTPException: 400, 408, 413 or 503.
    """
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
    """Read the files of a form, in memory alone."""
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
    if not photos:
        raise HTTPException(400, "the form has no files: send each photo as a part with a file name")
    return photos


class _Form(MultiPartParser):
    """A parser that notes, as `is_whole`, whether the form's last boundary has come."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"more than {limits.max_bytes / MEGA:g} MB; send fewer or smaller photos")
