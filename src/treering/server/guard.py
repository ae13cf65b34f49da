"""What stands around every route: who may reach it, counting, headers, and an answer whatever happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from treering.server.service import is_loopback

if TYPE_CHECKING:
    from treering.server.service import Service

__all__ = ["Guard", "error_response"]

logger = logging.getLogger("treering.server")

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
#: Answered while the server stops, too.
_ALWAYS = ("/health", "/metrics")


def error_response(
    scope: Scope,
    status: int,
    code: str,
    message: str,
    hint: str | None,
    *,
    retry_after_s: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as the API says it: JSON; to OTLP's exporters a `google.rpc.Status` in the form that they sent."""
    scope["treering.code"] = code
    more = dict(headers or {})
    if retry_after_s is not None:
        more["retry-after"] = str(retry_after_s)
    if status == 401:
        more["www-authenticate"] = "Bearer"
    text = f"{message} ({hint})" if hint else message
    if scope["path"] in ("/v1/traces", "/v1/logs"):
        sent = next((v for k, v in scope["headers"] if k == b"content-type"), b"")
        if sent.startswith(b"application/x-protobuf"):
            return Response(_status_message(text), status, more, "application/x-protobuf")
        return Response(to_json({"message": text}), status, more, "application/json")  # no code: 0 would be OK
    body = to_json({"error": {"code": code, "message": message, "hint": hint}})
    return Response(body, status, more, "application/json")


def _status_message(text: str) -> bytes:
    """`google.rpc.Status` with a message alone: field 2, length-delimited."""
    data = text.encode("utf-8", "replace")
    size, length = len(data), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x12" + bytes(length) + bytes([size]) + data


class Guard:
    """ASGI middleware. A page in a browser on this machine must not be able to write here, nor to read what it wrote."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        service = self._service
        began = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
                if service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        service.under_way += 1
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Exception:
            logger.exception("%s %s", scope["method"], scope["path"])
            if status == 0:
                failed = error_response(scope, 500, "unexpected", "this is a defect of the server", "its log says more")
                await failed(scope, receive, sending)
        finally:
            service.under_way -= 1
            route = getattr(scope.get("route"), "path", "other")
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.seconds.labels(route).observe(time.monotonic() - began)
            if status >= 400:
                service.metrics.errors.labels(scope.get("treering.code", "other")).inc()

    def _refusal(self, scope: Scope) -> Response | None:
        service = self._service
        if service.draining and scope["path"] not in _ALWAYS:
            return error_response(scope, 503, "stopping", "the server is stopping", "send it again", retry_after_s=2)
        headers: dict[bytes, Any] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not service.needs_keys and not is_loopback(_without_port(host)):
            # Else a page whose name was made to mean this machine (DNS rebinding) could read and write.
            return error_response(
                scope, 403, "bad-host", f"without keys this server is for this machine alone, not for {host[:80]!r}",
                "treering keys create --corpus NAME",
            )  # fmt: skip
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            return error_response(scope, 403, "bad-origin", f"a page of {origin[:80]!r} has no business here", None)
        return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
