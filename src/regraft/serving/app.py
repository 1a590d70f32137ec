"""The application: what is answered at which address. State is handed to it; it opens nothing and writes nothing."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regraft.bundle.bundle import Bundle
from regraft.core.version import __version__
from regraft.serving.access import OPEN_PATHS, Access, with_cors
from regraft.serving.keeping import Keeper
from regraft.serving.limits import Limits
from regraft.serving.messages import WorkerAnswer
from regraft.serving.openapi import document
from regraft.serving.pool import Busy
from regraft.serving.request_parsing import Buffered, photos_of_request

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # s


class Answering(Protocol):
    """Workers that answer, such as `pool.Pool`."""

    @property
    def is_healthy(self) -> bool:
        """Whether every worker is there and ready."""
        ...

    @property
    def num_waiting(self) -> int:
        """Number of photos that wait for a worker."""
        ...

    async def answers(self, photos: list[bytes], with_heat: bool) -> list[WorkerAnswer]:
        """Return what the model says of each photo."""
        ...


@dataclass(frozen=True)
class Served:
    """A model and what answers with it.

    Attributes:
        pool: Its workers.
        about: What /v1/model answers.
        sha256: The model's identity.
        least_sure: Probability below which an answer is worth keeping its photo.
    """

    pool: Answering
    about: dict[str, Any]
    sha256: str
    least_sure: float = 0.0


class Json(JSONResponse):
    """JSON of whatever text: what is not Unicode, such as bytes of a file's name, is written as an escape."""

    def render(self, content: Any) -> bytes:
        """Return the content as UTF-8."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class ServerMetrics:
    """What /metrics tells.

    Attributes:
        registry: Holds all of them, and what is counted elsewhere.
        requests: By path and status.
        photos: By outcome.
        seconds: That predict requests took.
    """

    registry: CollectorRegistry
    requests: Counter
    photos: Counter
    seconds: Histogram


def meters(current: Callable[[], Served], buffered: Buffered) -> ServerMetrics:
    """Make counters from zero, in a registry of their own.

    Args:
        current: The model that answers now, whose waiting photos are counted.
        buffered: Bytes of bodies in memory.
    """
    registry = CollectorRegistry()
    waiting = Gauge("regraft_photos_waiting", "Photos that wait for a worker.", registry=registry)
    waiting.set_function(lambda: current().pool.num_waiting)
    used = Gauge("regraft_buffered_bytes", "Bytes of bodies in memory.", registry=registry)
    used.set_function(lambda: buffered.used)
    return ServerMetrics(
        registry,
        Counter("regraft_requests", "Requests by path and status.", ["path", "status"], registry=registry),
        Counter("regraft_photos", "Photos by outcome.", ["outcome"], registry=registry),
        Histogram("regraft_predict_seconds", "Seconds of a predict request.", registry=registry, buckets=LATENCIES),
    )


def create_app(current: Callable[[], Served], limits: Limits, access: Access, keeper: Keeper | None = None) -> ASGIApp:
    """Make the application.

    Args:
        current: The model that answers now; asked once for each request, so that none is answered by two.
        limits: How much may be asked.
        access: Who may ask.
        keeper: Keeps photos; None for nothing that does.
    """
    buffered = Buffered(limits.buffered)
    meter = meters(current, buffered)

    async def predict(request: Request) -> Response:
        began = time.perf_counter()
        top, with_heat = _top(request), _flag(request, "heatmap")
        with buffered.share() as share:
            photos = await photos_of_request(request, limits, share)
            served = current()  # and its pool has the photos before anything else happens
            answers = await _answers(served.pool, [photo.data for photo in photos], with_heat)
            if keeper is not None:
                await keeper.consider([photo.data for photo in photos], answers, served.least_sure)
        rows = [{"name": photo.name, **_shortened(one, top)} for photo, one in zip(photos, answers, strict=True)]
        failed = sum("error" in row for row in rows)
        meter.photos.labels("failed").inc(failed)
        meter.photos.labels("answered").inc(len(rows) - failed)
        meter.seconds.observe(time.perf_counter() - began)
        return Json({"predictions": rows}, 400 if failed == len(rows) else 200, _bearing(served))

    async def model(_: Request) -> Response:
        served = current()
        return Json(served.about, 200, _bearing(served))

    async def health(_: Request) -> Response:
        is_well = current().pool.is_healthy
        return Json({"status": "ok" if is_well else "a worker is being started"}, 200 if is_well else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(meter.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(_: Request) -> Response:
        return Json(document(__version__, limits, needs_token=access.token is not None))

    routes = [
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", model),
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *(Route(path, _file(name, kind)) for path, (name, kind) in PAGE.items()),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    app.router.redirect_slashes = False  # it would redirect to whatever Host the request names
    open_paths = {*PAGE, *OPEN_PATHS}
    checked = _checked(app, lambda scope: _refusal(access, scope, open_paths))
    return _guarded(with_cors(checked, access.origins), {route.path for route in routes}, meter)


async def _answers(pool: Answering, photos: list[bytes], with_heat: bool) -> list[WorkerAnswer]:
    try:
        return await pool.answers(photos, with_heat)
    except Busy as busy:
        raise HTTPException(503, "too many photos are waiting", {"Retry-After": str(busy.retry_s)}) from None
    except TimeoutError:
        raise HTTPException(503, "it took too long", {"Retry-After": "5"}) from None


def _bearing(served: Served) -> dict[str, str]:
    """Return the header that tells which model answered."""
    return {"X-Model": served.sha256[:12]}


def _refusal(access: Access, scope: Scope, open_paths: set[str]) -> Response | None:
    """Return the answer to a request that may not be made; None for one that may."""
    refused = access.refusal(scope, is_open=scope["path"] in open_paths)
    return Json({"error": refused.why}, refused.status, refused.headers) if refused else None


def _checked(app: ASGIApp, refusal: Callable[[Scope], Response | None]) -> ASGIApp:
    """Let only those requests reach the application that may be made."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        await ((scope["type"] == "http" and refusal(scope)) or app)(scope, receive, send)

    return checked


def _guarded(app: ASGIApp, paths: set[str], meter: ServerMetrics) -> ASGIApp:
    """Add headers to every answer, and count all; a path may end in a slash."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path, has_begun = scope["path"], False
        if path.removesuffix("/") in paths:
            path = path.removesuffix("/")
            scope = {**scope, "path": path}

        async def counted(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                meter.requests.labels(path if path in paths else "other", str(message["status"])).inc()
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        try:
            await app(scope, receive, counted)
        except asyncio.CancelledError:  # the server is to stop, and has waited as long as it may
            if has_begun:
                raise
            late = Json({"error": "the server is being stopped"}, 503, {"Retry-After": "10"})
            await late(scope, receive, counted)

    return guarded


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Answer with a file of the page, read once."""
    content = (resources.files("regraft.serving") / "page" / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _shortened(answer: dict[str, Any], top: int | None) -> dict[str, Any]:
    """Return the answer with its `top` most probable classes alone, in order; with all for None."""
    if "error" in answer:
        return answer
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    return {**answer, "probabilities": dict(ranked[:top])}


def _top(request: Request) -> int | None:
    text = request.query_params.get("top")
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise HTTPException(400, f"top={text[:40]!r} is no count: expected a whole number from 1 on")
    return int(text)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "0").lower()
    if text not in ("0", "1", "true", "false"):
        raise HTTPException(400, f"{name}={text[:40]!r} is no switch: expected 0 or 1")
    return text in ("1", "true")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _failed(_: Request, error: Exception) -> Response:
    return Json({"error": "something went wrong here; the server's log says what"}, 500)


def about_model(bundle: Bundle, limits: Limits) -> dict[str, Any]:
    """Return what /v1/model answers."""
    manifest = bundle.manifest
    backbone, metrics = manifest["backbone"], manifest["metrics"]
    return {
        "classes": manifest["classes"],
        "backbone": backbone["name"],
        "licence": backbone["licence"],
        "num_params": backbone["num_params"],
        "mode": manifest["provenance"]["mode"],
        "num_photos": manifest["provenance"]["images"]["used"],
        "input": {name: manifest["preprocessing"][name] for name in ("height", "width")},
        "accuracy": metrics.get("accuracy"),
        "cross_validated": metrics.get("cross_validated"),
        "per_class": metrics.get("per_class", []),
        "limits": {name: getattr(limits, name) for name in ("max_bytes", "max_photos", "max_pixels")},
        "version": __version__,
        "sha256": manifest["sha256"]["model.onnx"],
        "model": bundle.sha256,
    }
