"""What every route asks of its request: the service, what the key allows, the body while it is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Path, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from treering.server.limits import read_body
from treering.server.service import Access, Service

__all__ = ["ERRORS", "Allowed", "CorpusHeader", "Failed", "Name", "media_of", "parsed", "service_of", "taken"]

Found = TypeVar("Found")

#: Bodies from which parsing happens beside the event loop, which goes on with other requests meanwhile.
_LARGE = 256 << 10


class ErrorModel(BaseModel):
    """What an error says."""

    code: str
    message: str
    hint: str | None


class Failed(BaseModel):
    """An answer that isn't what was hoped for."""

    error: ErrorModel


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failed, "description": what}
    for status, what in {
        400: "The body can't be read.",
        401: "No key, or one that is good for nothing.",
        403: "The key isn't good for this.",
        404: "There is no such thing.",
        408: "The body came too slowly.",
        413: "Too large, or too many records.",
        415: "A content type or encoding that can't be read.",
        503: "No room or stopping: try again after Retry-After seconds. Nothing was stored, or ids make it count once.",
    }.items()
}


def service_of(request: Request) -> Service:
    """The service that the application was made with."""
    found: Service = request.app.state.service
    return found


#: How OpenAPI tells clients that they send a key; who may do what is decided by `Access`.
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", description="A token of `treering keys create`; none where no key was made."
)


async def _access(request: Request, _: Annotated[Any, Security(_BEARER)]) -> Access:
    return await service_of(request).access(request.headers.get("authorization"), datetime.now(UTC))


Allowed = Annotated[Access, Depends(_access)]
Name = Annotated[str, Path(description="A corpus.", max_length=200)]
CorpusHeader = Annotated[
    str | None, Header(alias="x-treering-corpus", max_length=200, description="Where it goes, unless the key says.")
]


@asynccontextmanager
async def taken(request: Request) -> AsyncIterator[bytes]:
    """The request's body, whole and decompressed; inside, it counts as one that waits to be stored. Raises Refusal."""
    service = service_of(request)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    declared = request.headers.get("content-length")
    body, held = await read_body(request.stream(), declared, encoding, service.limits, service.budget, service.beside)
    try:
        service.budget.take_request()
        try:
            yield body
        finally:
            service.budget.requests -= 1
    finally:
        service.budget.bytes -= held


async def parsed(service: Service, body: bytes, parse: Callable[[], Found]) -> Found:
    """What parsing a body gives; a large one is parsed beside the event loop."""
    return parse() if len(body) < _LARGE else await service.beside(parse)


def media_of(request: Request) -> str:
    """The media type of the body, without parameters; "" when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
