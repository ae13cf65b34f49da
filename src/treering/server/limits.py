"""What a request may cost: bytes, records, seconds. And reading a body within that.

Whoever is slow holds its own connection and the bytes that it sent, nothing that others wait for.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Budget", "Limits", "Refusal", "read_body", "unzip"]

_MIB = 1 << 20
#: Compressed data is read in pieces of this size: what a member leaves over of one is copied.
_PIECE = 64 << 10
#: Members of gzip data. Writers make one, or one for each time they flush.
_MEMBERS = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a server. Sizes in bytes, times in seconds."""

    max_body: int = 16 * _MIB  # of one request, as it is sent
    max_decoded: int = 64 * _MIB  # of one request, decompressed
    max_records: int = 100_000  # in one request
    max_header: int = 32 << 10  # request line and header fields together
    max_connections: int = 4_096
    header_s: float = 10.0  # from connecting, or the last answer, to the end of the header
    body_s: float = 30.0  # from the end of the header to the end of the body
    answer_s: float = 60.0  # until what was sent is on disk
    drain_s: float = 30.0  # for requests under way when the server is told to stop
    queue_bytes: int = 256 * _MIB  # of bodies that are being read or wait to be stored
    queue_requests: int = 1_024  # that wait to be stored
    max_reads: int = 32  # GET requests that look into the store at once, or wait to
    hold_s: float = 30.0  # a conversation that comes piece by piece is stored when nothing came for so long
    hold_bytes: int = 256 * _MIB  # of conversations that aren't complete


class Refusal(Exception):  # noqa: N818  (it isn't one here: an answer that isn't what was hoped for)
    """A request that is answered with an error: status, code, what is wrong and what to do."""

    def __init__(
        self, status: int, code: str, message: str, hint: str | None = None, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint, self.retry_after_s = status, code, message, hint, retry_after_s


class Budget:
    """Bytes and requests that are under way. Used by the event loop's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes = 0
        self.requests = 0

    def take_bytes(self, count: int) -> None:
        """Count bytes that came. Raises Refusal when that is more than may be held."""
        if self.bytes + count > self._limits.queue_bytes:
            raise self.full("bytes")
        self.bytes += count

    def take_request(self) -> None:
        """Count a request that is complete and waits to be stored. Raises Refusal when there are too many."""
        if self.requests >= self._limits.queue_requests:
            raise self.full("requests")
        self.requests += 1

    @staticmethod
    def full(of: str) -> Refusal:
        """The answer when there is no room."""
        return Refusal(
            503, "full", f"too many {of} wait to be stored", "send it again in a while; ids make it count once",
            retry_after_s=1,
        )  # fmt: skip


async def read_body(
    stream: AsyncIterable[bytes],
    declared: str | None,
    encoding: str,
    limits: Limits,
    budget: Budget,
    beside: Callable[[Callable[[], bytes]], Awaitable[bytes]],
) -> tuple[bytes, int]:
    """A request's body, decompressed, and the bytes that `budget` counts for it: the caller gives them back.

    `declared`: its Content-Length; `encoding`: its Content-Encoding; `beside` does what takes long. Raises Refusal; nothing stays counted then.
    """
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise Refusal(415, "bad-encoding", f"can't read the content encoding {encoding[:40]!r}", "send gzip, or none")
    if declared is not None and declared.isdecimal() and int(declared) > limits.max_body:
        raise _too_large(int(declared), limits.max_body)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for piece in stream:
                if size + len(piece) > limits.max_body:
                    raise _too_large(size + len(piece), limits.max_body)
                budget.take_bytes(len(piece))
                size += len(piece)
                pieces.append(piece)
        body = b"".join(pieces)
        if encoding in ("gzip", "x-gzip"):
            packed = body
            body = await beside(lambda: unzip(packed, limits.max_decoded))
            budget.take_bytes(len(body) - size if len(body) > size else 0)
            size = max(size, len(body))
        return body, size
    except TimeoutError:
        budget.bytes -= size
        raise Refusal(
            408, "too-slow", f"the body didn't come within {limits.body_s:g} s", "send smaller batches"
        ) from None
    except BaseException:
        budget.bytes -= size
        raise


def unzip(data: bytes, most: int) -> bytes:
    """Gzip data, decompressed; never holds more than `most` bytes of it. Raises Refusal for a bomb and for what isn't gzip."""
    found: list[bytes] = []
    size = members = 0
    member: Any = None
    try:
        for start in range(0, len(data), _PIECE):
            rest = data[start : start + _PIECE]
            while rest:
                if member is None:
                    member, members = zlib.decompressobj(wbits=31), members + 1
                    if members > _MEMBERS:
                        raise Refusal(400, "bad-gzip", f"the gzip data has more than {_MEMBERS:,} members", "send one")
                piece = member.decompress(rest, most - size + 1)
                size += len(piece)
                if size > most:
                    raise Refusal(
                        413, "too-large", f"the body is more than {most:,} bytes when decompressed",
                        "send smaller batches",
                    )  # fmt: skip
                found.append(piece)
                rest = member.unused_data
                if member.eof:
                    member = None
        if member is not None:
            raise Refusal(400, "bad-gzip", "the gzip data ends too early", "send it again, whole")
    except zlib.error as exc:
        raise Refusal(400, "bad-gzip", f"the body isn't gzip data: {exc}", "leave Content-Encoding out") from exc
    return b"".join(found)


def _too_large(size: int, most: int) -> Refusal:
    return Refusal(413, "too-large", f"{size:,} bytes or more; a request may have {most:,}", "send smaller batches")
