"""The application: what is answered at which address. State is handed to it; it opens nothing and writes nothing."""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regraft.core.version import __version__
from regraft.serving.limits import Limits
from regraft.serving.openapi import document
from regraft.serving.pool import Busy, Pool
from regraft.serving.request_parsing import Buffered, photos_of

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
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")  # name, and port
OPEN = {*PAGE, "/healthz"}  # without the token
LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # s


@dataclass(frozen=True)
class Metrics:
    """What /metrics tells."""

    registry: CollectorRegistry
    requests: Counter
    photos: Counter
    seconds: Histogram


def meters(pool: Pool, buffered: Buffered) -> Metrics:
    """Counters from zero, in a registry of their own."""
    registry = CollectorRegistry()
    waiting = Gauge("regraft_photos_waiting", "Photos that wait for a worker.", registry=registry)
    waiting.set_function(lambda: pool.num_waiting)
    used = Gauge("regraft_buffered_bytes", "Bytes of bodies in memory.", registry=registry)
    used.set_function(lambda: buffered.used)
    return Metrics(
        registry,
        Counter("regraft_requests", "Requests by path and status.", ["path", "status"], registry=registry),
        Counter("regraft_photos", "Photos by outcome.", ["outcome"], registry=registry),
        Histogram("regraft_predict_seconds", "Seconds of a predict request.", registry=registry, buckets=LATENCIES),
    )


def create_app(
    pool: Pool, about: dict[str, Any], limits: Limits, hosts: tuple[str, ...], token: str | None = None
) -> ASGIApp:
    """The application. about: what /v1/model answers.  hosts: names under which it may be called.  token: wanted."""
    buffered = Buffered(limits.buffered)
    meter = meters(pool, buffered)

    async def predict(request: Request) -> Response:
        began = time.perf_counter()
        top, with_heat = _top(request, len(about["classes"])), _flag(request, "heatmap")
        with buffered.share() as share:
            photos = await photos_of(request, limits, share)
            try:
                answers = await pool.answers([photo.data for photo in photos], with_heat)
            except Busy as busy:
                raise HTTPException(503, "too many photos are waiting", {"Retry-After": str(busy.retry_s)}) from None
            except TimeoutError:
                raise HTTPException(503, "it took too long", {"Retry-After": "5"}) from None
        rows = [{"name": photo.name, **_shortened(one, top)} for photo, one in zip(photos, answers, strict=True)]
        failed = sum("error" in row for row in rows)
        meter.photos.labels("failed").inc(failed)
        meter.photos.labels("answered").inc(len(rows) - failed)
        meter.seconds.observe(time.perf_counter() - began)
        return JSONResponse({"predictions": rows}, 400 if failed == len(rows) else 200)

    async def model(_: Request) -> Response:
        return JSONResponse(about)

    async def health(_: Request) -> Response:
        is_well = pool.is_healthy
        return JSONResponse({"status": "ok" if is_well else "a worker is being started"}, 200 if is_well else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(meter.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(_: Request) -> Response:
        return JSONResponse(document(__version__, limits, needs_token=token is not None))

    routes = [
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/model", model),
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *(Route(path, _file(name, kind)) for path, (name, kind) in PAGE.items()),
    ]
    paths = {route.path for route in routes}
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    known = {name.lower() for name in hosts}

    def refusal(scope: Scope) -> Response | None:
        if not _is_called(scope, known):
            said = "it is called by a name that it does not know; --allow-host NAME adds one"
            return JSONResponse({"error": said}, 400)
        if token is not None and scope["path"] not in OPEN and not _has_token(scope, token):
            said = "expected Authorization: Bearer TOKEN"
            return JSONResponse({"error": said}, 401, {"WWW-Authenticate": "Bearer"})
        return None

    return _guarded(app, refusal, paths, meter)


def _guarded(app: ASGIApp, refusal: Callable[[Scope], Response | None], paths: set[str], meter: Metrics) -> ASGIApp:
    """Headers on every answer, a look at every question, and a count of both."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path, has_begun = scope["path"], False

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
            await (refusal(scope) or app)(scope, receive, counted)
        except asyncio.CancelledError:  # the server is to stop, and has waited as long as it may
            if has_begun:
                raise
            late = JSONResponse({"error": "the server is being stopped"}, 503, {"Retry-After": "10"})
            await late(scope, receive, counted)

    return guarded


def _is_called(scope: Scope, names: set[str]) -> bool:
    """Whether the request's Host is one of the names: another is a page elsewhere that had its own name lead here."""
    host = HOST.fullmatch(dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower())
    return host is not None and host[1] in names


def _has_token(scope: Scope, token: str) -> bool:
    sent = dict(scope["headers"]).get(b"authorization", b"")
    return hmac.compare_digest(sent, b"Bearer " + token.encode())


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """A file of the page, read once."""
    content = (resources.files("regraft.serving") / "page" / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _shortened(answer: dict[str, Any], top: int) -> dict[str, Any]:
    """The answer with its most probable classes alone, in order."""
    if "error" in answer:
        return answer
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    return {**answer, "probabilities": dict(ranked[:top])}


def _top(request: Request, num_classes: int) -> int:
    text = request.query_params.get("top", str(num_classes))
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
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)


def about_model(manifest: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """What /v1/model answers, from a bundle's manifest."""
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
    }
