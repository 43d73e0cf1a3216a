"""A server that starts, runs and stops: sockets, TLS, signals, and the patience it has."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deploy.errors import UserError

_MOST_CONNECTIONS = 512
_MOST_HEAD_BYTES = 1 << 16
_STOPPING_S = 30
_KEEP_ALIVE_S = 30
_SWITCH_S = 5e-4
"""The thread that runs the model asks for the interpreter again after every run; with Python's own
5 ms it would wait that long while requests are read."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        UserError: if the address is not this machine's or is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error}); choose another"
        ) from error


def require_certificate(certificate: Path, key: Path) -> None:
    """Refuse files that TLS could not use.

    Raises:
        UserError: if one cannot be read, or they are no certificate and its key.
    """
    try:
        # A callback for the password: without one, OpenSSL would ask at the terminal and wait.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=str)
    except (OSError, ssl.SSLError, ValueError, TypeError) as error:
        raise UserError(
            f"--tls-cert {certificate} --tls-key {key}: must be a PEM certificate and its key "
            f"without a password ({error})"
        ) from error


def run(
    app: ASGIApp,
    listening: socket.socket,
    *,
    tls: tuple[Path, Path] | None = None,
    patience_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and return.

    A second SIGINT stops at once.

    Args:
        app: what answers.
        listening: where; closed in the end.
        tls: certificate and key.
        patience_s: how long the head of a request may take to arrive, a whole request twice that,
            and a client that does not read its answer once.
        on_ready: called when the first request would be answered.
    """

    class Protocol(_Patient):
        patience = patience_s

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        loop="auto",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOPPING_S,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    sys.setswitchinterval(_SWITCH_S)
    _Server(config, on_ready).run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's server, that says when it is ready and ends with exit code 0 when asked to stop."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while serving. uvicorn's own would raise them once more at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Patient(HttpToolsProtocol):
    """One connection, with an end to how long and how much it is waited for.

    uvicorn waits for ever for the head of a request and for a client to read, and takes a head of
    any size.
    """

    patience: float
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            self._say(b"503 Service Unavailable", "too many connections; try again later")
            return
        self._wait(self.patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._timer is None and self.timeout_keep_alive_task is None:
            self._wait(self.patience)  # bytes that begin nothing, as empty lines
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._say(b"431 Request Header Fields Too Large", "the headers are too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._wait(self.patience)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait(2 * self.patience)  # the application says 408 before that
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, in the protocol's form."""
        self._say(b"400 Bad Request", msg)

    def _say(self, status: bytes, why: str) -> None:
        body = b'{"error":"%s"}' % why.encode()
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, len(body), body)
        )
        self.transport.close()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self.transport.abort()
