"""The addresses of the server: the protocol, its metrics, and pages for people."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib.metadata
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.record import Record
from deploy.serve.batcher import Batcher
from deploy.serve.metrics import CONTENT_TYPE, Metrics, ModelMetrics
from deploy.serve.openapi import describe
from deploy.serve.refused import RefusedError
from deploy.serve.served import Models, Served

EXTENSIONS = ("binary_tensor_data",)
_PAGES = Path(__file__).with_name("pages")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_PUBLIC = frozenset({"/v2/health/live", "/v2/health/ready", "/", "/docs", "/try.js", "/docs.js", "/page.css"})  # fmt: skip
# The pages run their own script and speak to their own server, nothing else.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_BODIES_HELD = 8
_LARGE_BYTES = 1 << 16
"""JSON above this is read and written in a thread: others are served meanwhile."""

Header = tuple[bytes, bytes]


class Limits(Record, frozen=True):
    """What a server allows."""

    most_waiting: Annotated[int, Meta(ge=1)] = 64
    """Requests of a model that are accepted and not answered yet; the next is refused."""
    deadline_ms: Annotated[float, Meta(gt=0)] = 1000.0
    """Longest time in the queue before a run begins."""
    max_batch: Annotated[int, Meta(ge=1)] = 64
    """Samples of one run that may come from several requests."""
    max_body_bytes: Annotated[int, Meta(ge=1)] = 1 << 24
    body_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """Longest time for a request to arrive."""


class Running:
    """The models with their queues, while the server runs."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.metrics = Metrics()
        self.held_bytes = 0
        self.batchers: dict[Served, Batcher] = {}
        self.counts = {
            model: ModelMetrics(self.metrics, model.name, model.version) for model in models
        }

    def start(self) -> None:
        """Start a batcher for each model, in the running event loop."""
        for model in self.models:
            counts = self.counts[model]
            batcher = Batcher(
                model.runtime.predict,
                max_batch=model.max_batch,
                most_waiting=self.limits.most_waiting,
                observe=counts.observe_run,
            )
            counts.watch(batcher)
            self.batchers[model] = batcher

    async def stop(self) -> None:
        """Answer what was accepted and end the threads."""
        batchers = list(self.batchers.values())
        await asyncio.gather(*(batcher.close() for batcher in batchers))


def build_app(models: Models, limits: Limits = Limits(), *, keys: Iterable[str] = ()) -> ASGIApp:
    """Return the ASGI application.

    Args:
        models: what it serves.
        limits: what it allows.
        keys: one of them has to come with every request but those for health and for the pages;
            without keys, everyone is answered.
    """
    server = Running(models, limits)
    digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
    described = msgspec.json.encode(describe(models, needs_key=bool(digests)))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.start()
        yield
        await server.stop()

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        return _json({"ready": True})

    async def about_server(_: Request) -> Response:
        version = importlib.metadata.version("lightship")
        return _json({"name": "lightship", "version": version, "extensions": EXTENSIONS})

    async def about_model(request: Request) -> Response:
        model = _model(server, request.path_params)
        return _json(model.metadata(models.versions(model.name)))

    async def model_ready(request: Request) -> Response:
        return _json({"name": _model(server, request.path_params).name, "ready": True})

    async def index(_: Request) -> Response:
        return _json(
            [
                {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
                for model in models
            ]
        )

    async def metrics(_: Request) -> Response:
        return Response(server.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(_: Request) -> Response:
        return Response(described, media_type="application/json")

    infer = _Infer(server)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    app = Starlette(
        routes=[
            Route(model + "/infer", infer, methods=["POST"]),
            Route(version + "/infer", infer, methods=["POST"]),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2", about_server),
            Route(model + "/ready", model_ready),
            Route(version + "/ready", model_ready),
            Route(model, about_model),
            Route(version, about_model),
            Route("/v2/repository/index", index, methods=["POST"]),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/", _page("try.html")),
            Route("/docs", _page("docs.html")),
            *(Route(f"/{name}", _page(name)) for name in ("try.js", "docs.js", "page.css")),
        ],
        exception_handlers={
            RefusedError: _say_refused,
            HTTPException: _say_http,
            Exception: _say_failed,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return _KeyNeeded(app, digests) if digests else app


class _KeyNeeded:
    """Lets nobody in without one of the keys, but for health and for the empty pages."""

    def __init__(self, app: ASGIApp, digests: tuple[bytes, ...]) -> None:
        self._app, self._digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PUBLIC and not self._has_key(scope):
            refused = RefusedError(
                401, "needs an API key, as Authorization: Bearer KEY or X-API-Key: KEY"
            )
            await _send(send, *_refusal(refused))
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = _header(scope, b"x-api-key")
        if given is None:
            scheme, _, rest = (_header(scope, b"authorization") or b"").partition(b" ")
            given = rest.strip() if scheme.lower() == b"bearer" else b""
        digest = hashlib.sha256(given).digest()
        # Every key is compared, in constant time: how long it takes says nothing.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


class _Infer:
    """``POST …/infer``. Plain ASGI, since this is the road that has to be short."""

    def __init__(self, server: Running) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        counts: ModelMetrics | None = None
        try:
            model = _model(self._server, scope["path_params"])
            counts = self._server.counts[model]
            status, headers, body = await self._answer(model, scope, receive)
        except RefusedError as refused:
            status, headers, body = _refusal(refused)
        except _GoneError:
            return
        if counts is not None:
            counts.count(status, time.perf_counter() - start)
        await _send(send, status, headers, body)

    async def _answer(
        self, model: Served, scope: Scope, receive: Receive
    ) -> tuple[int, list[Header], bytes]:
        server, batcher = self._server, self._server.batchers[model]
        json_bytes = _count_in(scope, b"inference-header-content-length")
        if (_header(scope, b"content-encoding") or b"identity") != b"identity":
            raise RefusedError(415, "Content-Encoding: a compressed body is not read")
        batcher.require_room()  # before the body is read: refusing has to be cheap
        held = _Held(server)
        try:
            body = await _body(scope, receive, server.limits, held)
            size = len(body) if json_bytes is None else json_bytes
            asked = await _in_turn(size, model.reader.read, body, json_bytes)
            deadline_s = server.limits.deadline_ms / 1e3
            if asked.timeout_s is not None:
                deadline_s = min(deadline_s, asked.timeout_s)
            found = await batcher.submit(asked.samples, deadline_s=deadline_s)
            size = sum(found.scores.nbytes for _ in asked.outputs)
            answer, json_end = await _in_turn(size, model.answer, asked, found)
        finally:
            held.release()
        if json_end is None:
            return 200, [(b"content-type", b"application/json")], answer
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"inference-header-content-length", str(json_end).encode()),
        ]
        return 200, headers, answer


class _GoneError(Exception):
    """The client has closed the connection."""


class _Held:
    """The memory that one body takes of what all bodies may take together."""

    def __init__(self, server: Running) -> None:
        self._server, self._bytes = server, 0

    def add(self, size_bytes: int) -> None:
        """Count more.

        Raises:
            RefusedError: 503, if all bodies together would be too large.
        """
        server = self._server
        if server.held_bytes + size_bytes > _BODIES_HELD * server.limits.max_body_bytes:
            raise RefusedError(503, "too many large requests at once; try again later")
        server.held_bytes += size_bytes
        self._bytes += size_bytes

    def release(self) -> None:
        """Give it back."""
        self._server.held_bytes -= self._bytes
        self._bytes = 0


async def _body(scope: Scope, receive: Receive, limits: Limits, held: _Held) -> bytes:
    """Read a body.

    Raises:
        RefusedError: 413 if it is too large, 408 if it takes too long, 503 if all are too large.
        _GoneError: if the client closes the connection.
    """
    most = limits.max_body_bytes
    said = _count_in(scope, b"content-length")
    too_large = RefusedError(413, f"the body may have {most} bytes")
    if said is not None and said > most:
        raise too_large
    task, late = asyncio.current_task(), False

    def stop() -> None:
        nonlocal late
        late = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(limits.body_timeout_s, stop)
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise too_large
            held.add(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                break
    except asyncio.CancelledError:
        if not late:
            raise
        why = f"the body did not arrive within {limits.body_timeout_s:g} s"
        raise RefusedError(408, why, closes=True) from None
    finally:
        timer.cancel()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _in_turn(size_bytes: int, work: Any, *given: Any) -> Any:
    """Do small work at once and large work in a thread."""
    if size_bytes <= _LARGE_BYTES:
        return work(*given)
    return await asyncio.to_thread(work, *given)


def _model(server: Running, params: dict[str, str]) -> Served:
    return server.models.find(params["name"], params.get("version"))


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _count_in(scope: Scope, name: bytes) -> int | None:
    value = _header(scope, name)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:
        raise RefusedError(400, f"{name.decode()}: must be a number of bytes")
    return int(value)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _refusal(refused: RefusedError) -> tuple[int, list[Header], bytes]:
    headers = [(b"content-type", b"application/json")]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    if refused.closes:
        headers.append((b"connection", b"close"))
    return refused.status, headers, msgspec.json.encode({"error": str(refused)})


async def _send(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _say_refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, RefusedError):
        raise error
    status, headers, body = _refusal(error)
    return Response(body, status, headers={key.decode(): value.decode() for key, value in headers})


async def _say_http(request: Request, error: Exception) -> Response:
    """Say in the protocol's form what the router refuses: an unknown address or method."""
    if not isinstance(error, HTTPException):
        raise error
    words = {404: f"there is nothing at {request.url.path[:200]}", 405: "no such method here"}
    said = msgspec.json.encode({"error": words.get(error.status_code, error.detail)})
    return Response(said, error.status_code, error.headers, media_type="application/json")


async def _say_failed(_: Request, __: Exception) -> Response:
    """Say that it is the server's fault; what went wrong goes to its log, not to the client."""
    return Response(b'{"error":"the server failed"}', 500, media_type="application/json")


def _page(name: str) -> Any:
    content = (_PAGES / name).read_bytes()
    headers = {
        "content-type": f"{_TYPES[Path(name).suffix]}; charset=utf-8",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def page(_: Request) -> Response:
        return Response(content, headers=headers)

    return page
