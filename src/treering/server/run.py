"""Running the server: addresses, connections that are slow or say too much, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import httptools
import uvicorn
from filelock import FileLock, Timeout
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from treering.errors import ConflictError, StoreError, TreeringError, UsageError
from treering.server.app import create_app
from treering.server.keys import has_keys
from treering.server.limits import Limits
from treering.server.service import Service, is_loopback

if TYPE_CHECKING:
    from treering.front import Store

__all__ = ["Prepared", "prepare", "serve"]

logger = logging.getLogger("treering.server")

#: How long, once it was told to stop, requests that aren't complete may still be sent.
_LAST_WORDS_S = 2.0
#: For so long new requests hear that it is stopping, even if nothing is under way: balancers notice.
_NOTICE_S = 0.3
#: A body's time is up for its connection so long after it is for who reads it, and answers that it is late.
_GRACE_S = 2.0


@dataclass(frozen=True)
class Prepared:
    """A server that listens and isn't running yet."""

    url: str
    service: Service
    _server: _Server
    _listener: socket.socket
    _alone: FileLock

    def run(self) -> None:
        """Serve until told to stop, then commit what was accepted. Raises StoreError when that can't be done now."""
        try:
            self._server.run(sockets=[self._listener])
        finally:
            try:
                self.service.close()
            except TreeringError as exc:
                raise StoreError(
                    f"what was acknowledged is on disk, but not in the table yet: {exc.message}",
                    code="not-committed",
                    hint="it is committed when the store is next written to from this machine",
                ) from exc
            finally:
                self._alone.release()

    def stop(self) -> None:
        """As SIGTERM does; from any thread, and from a signal handler."""
        self._server.handle_exit(signal.SIGTERM, None)


def serve(
    store: Store,
    host: str = "127.0.0.1",
    port: int = 8321,
    *,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a store until SIGTERM or SIGINT; then end what was accepted, commit it, and return.

    `port` 0 takes a free one; `ready` is called with the URL. Raises UsageError for an address beyond loopback while the
    store has no key, or one that can't be had, ConflictError when this host serves the store already, StoreError when what was acknowledged couldn't be committed: it is on disk
    and waits for the next opener.
    """
    prepared = prepare(store, host, port, limits=limits)
    if ready is not None:
        ready(prepared.url)
    prepared.run()


def prepare(store: Store, host: str = "127.0.0.1", port: int = 8321, *, limits: Limits | None = None) -> Prepared:
    """Listen, so that requests may come, and leave it to the caller to `run`. Raises as `serve` does."""
    bounds = limits or Limits()
    if not is_loopback(host) and not has_keys(store):
        raise UsageError(
            f"without keys anybody who reaches {host} could write and read",
            code="no-keys",
            hint="treering keys create --corpus NAME, or --host 127.0.0.1",
        )
    listener = _listen(host, port)
    _allow_files(bounds.max_connections)
    try:
        alone = _alone(store, listener)
    except BaseException:
        listener.close()
        raise
    try:
        app = create_app(store, limits=bounds, needs_keys=not is_loopback(host))
    except BaseException:
        listener.close()
        alone.release()
        raise
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who a proxy says that it speaks for changes nothing here
        http=_protocol(bounds),
        ws="none",
        loop="auto",
        lifespan="off",  # `run` closes the service, where an error is still ours to raise
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    return Prepared(url, service, _Server(config, service, bounds), listener, alone)


def _alone(store: Store, listener: socket.socket) -> FileLock:
    """Hold this host's right to serve the store: two servers would settle, and remove, each other's conversations.

    The kernel frees it when the process dies. Raises ConflictError, StoreError.
    """
    path = store.host_dir / "server.lock"
    who = store.host_dir / "server.txt"  # beside it: whoever tries the lock empties its file
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        who.write_text(f"process {os.getpid()} at port {listener.getsockname()[1]}")
    except Timeout:
        found = who.read_text() if who.exists() else "another process"
        raise ConflictError(
            f"{store.uri} is served on this host already, by {found}", code="served", hint="end that one first"
        ) from None
    except OSError as exc:
        lock.release()
        raise StoreError(f"can't lock {path}: {exc.strerror}", code="write-failed") from exc
    return lock


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2_048)
    except (OSError, OverflowError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise UsageError(
            f"can't listen on {host}:{port}: {reason}", code="bad-address", hint="--port 0 takes a free port"
        ) from exc
    return listener


def _allow_files(connections: int) -> None:
    """Each connection is a file; the soft limit is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 1_024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    """Stops in order: what was accepted is answered, what comes then hears 503, and the process ends with our exit code."""

    def __init__(self, config: uvicorn.Config, service: Service, limits: Limits) -> None:
        super().__init__(config)
        self._service = service
        self._limits = limits
        self._told: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal begin to stop, on the second one don't wait any longer."""
        # uvicorn's own would raise the signal again in the end: a stop that was asked for is no failure.
        if self._told is not None:
            self.should_exit = True
            return
        self._told = time.monotonic()
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to stop."""
        if self._told is not None and self._is_done(time.monotonic() - self._told):
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_done(self, since: float) -> bool:
        service = self._service
        if since < _NOTICE_S:
            return False
        if service.under_way == 0 or since > self._limits.drain_s:
            return True
        return since > _LAST_WORDS_S and service.budget.requests == 0


def _protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """Uvicorn's HTTP/1.1 with limits that it has none for: size and time of a header, number of connections."""

    class Protocol(HttpToolsProtocol):
        _header_bytes = 0  # since the last message, a body's first bytes among them
        _named_bytes = 0  # of names and values
        _in_header = True
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_header()
            if len(self.connections) > limits.max_connections:
                self._turn_away(b"503 Service Unavailable", "full", "too many connections", b"retry-after: 1\r\n")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_header:
                if self._deadline is None:
                    self._expect_header()
                self._header_bytes += len(data)
                if self._header_bytes > limits.max_header and self._is_all_header(data):
                    self._turn_away(b"431 Request Header Fields Too Large", "too-large", "the header is too long")
                    return
            if self.parser is not None:
                super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._named_bytes = 0

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._named_bytes += len(name) + len(value) + 4
            if self._named_bytes + len(self.url) > limits.max_header:
                raise httptools.HttpParserError("the header is too long")

        def on_headers_complete(self) -> None:
            self._in_header = False
            self._stop_waiting()
            # Who reads the body says that it is late; of one that nobody reads, after a refusal say, only we can know.
            self._deadline = self.loop.call_later(limits.body_s + _GRACE_S, self._never_ended)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._stop_waiting()
            super().on_message_complete()
            self._in_header, self._header_bytes = True, 0

        def _is_all_header(self, data: bytes) -> bool:
            """Whether these bytes can't hold the header's end and a body after it."""
            return b"\r\n\r\n" not in data

        def _expect_header(self) -> None:
            self._deadline = self.loop.call_later(limits.header_s, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _never_ended(self) -> None:
            self._deadline = None
            self.transport.close()

        def _too_slow(self) -> None:
            self._deadline = None
            if self._in_header and not self.transport.is_closing():
                if self._header_bytes:
                    self._turn_away(b"408 Request Timeout", "too-slow", "the header didn't come in time")
                else:
                    self.transport.close()

        def _turn_away(self, status: bytes, code: str, message: str, more: bytes = b"") -> None:
            body = f'{{"error":{{"code":"{code}","message":"{message}","hint":null}}}}'.encode()
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
            self.transport.write(head % (status, len(body), more) + body)
            self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self._turn_away(b"400 Bad Request", "bad-request", "this isn't an HTTP/1.1 request that can be read")

    return Protocol
