"""The page of a sitting over HTTP: what is shown, and what a person answers. It keeps nothing itself."""

import getpass
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regraft.core.errors import RegraftError
from regraft.data.decode import Unreadable
from regraft.labelling.cards import KINDS, PAGE_SIZE, Annotation, Conflict
from regraft.labelling.entrance import ENTER, Entrance
from regraft.labelling.sitting import Sitting
from regraft.labelling.thumbnails import EDGES, Thumbnails
from regraft.serving.app import HEADERS, Json

FILES = {
    "/": ("index.html", "text/html"),
    "/label.css": ("label.css", "text/css"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript")
        for name in ("main", "api", "classes", "dom", "grid", "photos", "progress", "single")
    },
}
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'"
MOST_ON_A_PAGE = 96
MOST_BYTES = 2**20  # of a request
TAB = re.compile(r"[a-z0-9]{8,32}")

T = TypeVar("T")


class PhotoAnnotation(msgspec.Struct, forbid_unknown_fields=True):
    """What a person says of one photo."""

    photo: int
    label: str | None = None
    set_aside: bool = False


class Annotations(msgspec.Struct, forbid_unknown_fields=True):
    """What a person says with one key."""

    answers: list[PhotoAnnotation]
    version: int
    is_audit: bool = False


class ClassName(msgspec.Struct, forbid_unknown_fields=True):
    """A new class, or a new name of one."""

    name: str
    old: str | None = None


def create_app(sitting: Sitting, thumbnails: Thumbnails, entrance: Entrance) -> ASGIApp:
    """Make the application.

    Args:
        sitting: What is labelled.
        thumbnails: Of its photos.
        entrance: Who may ask.
    """

    async def enter(request: Request) -> Response:
        if request.method != "GET":  # a look at where a link leads must not use its token up
            raise HTTPException(405, "expected GET")
        token = request.query_params.get("token", "")
        cookie = None if entrance.is_known(request.scope) else entrance.exchange(token)
        return RedirectResponse("/", 303, {"Set-Cookie": cookie} if cookie else None)

    routes = [
        Route(ENTER, enter, methods=["GET"]),
        *_routes_that_show(sitting, thumbnails),
        *_routes_that_change(sitting),
        *(Route(path, _file(name, kind)) for path, (name, kind) in FILES.items()),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    app.router.redirect_slashes = False  # it would redirect to whatever Host the request names
    return _guarded(app, entrance)


def _routes_that_show(sitting: Sitting, thumbnails: Thumbnails) -> list[Route]:
    """Make the routes that only read."""

    async def status(_: Request) -> Response:
        return Json(await run_in_threadpool(_status, sitting))

    async def page(request: Request) -> Response:
        kind, size = _kind(request), _size(request)
        class_name, without = request.query_params.get("class") or None, _photos(request, "without")
        shown = await _called(sitting.page, kind, size, class_name, without=frozenset(without))
        return Json(asdict(shown))

    async def cards(request: Request) -> Response:
        shown = await _called(sitting.cards, _photos(request, "photos"))
        return Json({"cards": [asdict(card) for card in shown]})

    async def photo(request: Request) -> Response:
        index, size = request.path_params["index"], request.query_params.get("size", "thumb")
        if index >= len(sitting.heap) or size not in EDGES:
            raise HTTPException(404, "there is no such photo")
        try:
            data = await run_in_threadpool(thumbnails.get, index, size)
        except Unreadable as error:
            raise HTTPException(422, f"this photo cannot be shown: {error}") from None
        return Response(data, media_type="image/jpeg")

    async def report(_: Request) -> Response:
        content = await _called(_report, sitting)
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    return [
        Route("/api/status", status),
        Route("/api/page", page),
        Route("/api/cards", cards),
        Route("/photo/{index:int}", photo),
        Route("/report", report),
    ]


def _routes_that_change(sitting: Sitting) -> list[Route]:
    """Make the routes that change what is labelled, or begin something."""

    async def answers(request: Request) -> Response:
        body = await _body(request, Annotations)
        given = [Annotation(one.photo, one.label, one.set_aside, body.is_audit) for one in body.answers]
        person = _person(request)
        version = await _called(sitting.answer, given, person=person, seen_version=body.version)
        return Json({"version": version, "status": await run_in_threadpool(_status, sitting)})

    async def undo(request: Request) -> Response:
        undone = await _called(sitting.undo, person=_person(request))
        taken_back = await _called(sitting.cards, undone.photos)
        return Json({"version": undone.version, "cards": [asdict(card) for card in taken_back]})

    async def classes(request: Request) -> Response:
        body = await _body(request, ClassName)
        if body.old is None:
            await _called(sitting.add_class, body.name)
        else:
            await _called(sitting.rename_class, body.old, body.name)
        status = sitting.status()
        return Json({"classes": status.classes, "version": status.version})

    async def train(_: Request) -> Response:
        await _called(sitting.train)
        return Json({}, 202)

    async def sort(_: Request) -> Response:
        return Json({"num_photos": await _called(sitting.sort)})

    return [
        Route("/api/answers", answers, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        Route("/api/classes", classes, methods=["POST"]),
        Route("/api/train", train, methods=["POST"]),
        Route("/api/sort", sort, methods=["POST"]),
    ]


def _guarded(app: ASGIApp, entrance: Entrance) -> ASGIApp:
    """Let only those requests through that may be made, and add headers to every answer."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = ((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
                message["headers"] = [*message["headers"], *(one for one in added if one[0] not in present)]
            await send(message)

        refused = entrance.refusal(scope, is_open=scope["path"] in (*FILES, ENTER))
        answer = Json({"error": refused.why}, refused.status, refused.headers) if refused else app
        await answer(scope, receive, with_headers)

    return guarded


async def _called(function: Callable[..., T], *values: Any, **named: Any) -> T:
    """Call what waits for a disk or a lock, off the loop; what a person can mend is told as it is."""
    try:
        return await run_in_threadpool(partial(function, *values, **named))
    except Conflict as error:
        raise HTTPException(409, {"error": str(error), "photos": list(error.photos)}) from None  # type: ignore[arg-type]
    except RegraftError as error:
        raise HTTPException(400, str(error)) from None


def _status(sitting: Sitting) -> dict[str, Any]:
    status = sitting.status()
    return {
        **asdict(status),
        "folder": sitting.heap.root.name,
        "has_report": sitting.report is not None,
        "sort_folder": str(sitting.sort_folder) if sitting.sort_folder else None,
    }


def _report(sitting: Sitting) -> bytes:
    if sitting.report is None:
        raise HTTPException(404, "there is no report yet: train first")
    return sitting.report.read_bytes()


async def _body(request: Request, kind: type[T]) -> T:
    """Read a request's JSON. Raises HTTPException for what is no such thing."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected Content-Type: application/json")
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"expected at most {MOST_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the request is not what was expected: {error}") from None


def _person(request: Request) -> str:
    """Return who answers: this machine's user, and the tab, each of which undoes its own answers."""
    tab = request.headers.get("x-tab", "")
    if not TAB.fullmatch(tab):
        raise HTTPException(400, "expected X-Tab: 8 to 32 small letters and digits that name this tab")
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in containers
        name = "user"
    return f"{name}/{tab}"


def _kind(request: Request) -> str:
    kind = request.query_params.get("kind", "")
    if kind not in KINDS:
        raise HTTPException(400, f"kind={kind[:40]!r} is no kind of page: expected one of {', '.join(KINDS)}")
    return kind


def _size(request: Request) -> int:
    text = request.query_params.get("size", str(PAGE_SIZE))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_ON_A_PAGE:
        raise HTTPException(400, f"size={text[:40]!r}: expected 1 to {MOST_ON_A_PAGE}")
    return int(text)


def _photos(request: Request, name: str) -> list[int]:
    """Return indices of photos, such as `3,17`."""
    text = request.query_params.get(name, "")
    parts = text.split(",") if text else []
    if not all(re.fullmatch(r"\d{1,9}", part, re.ASCII) for part in parts):
        raise HTTPException(400, f"{name}={text[:40]!r}: expected numbers with commas between them")
    return [int(part) for part in parts]


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Answer with a file of the page, read once."""
    content = (resources.files("regraft.labelling") / "page" / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail: Any = error.detail
    content = detail if isinstance(detail, dict) else {"error": detail}
    return Json(content, error.status_code, dict(error.headers or {}))


async def _failed(_: Request, error: Exception) -> Response:
    return Json({"error": "something went wrong here; the terminal says what"}, 500)
