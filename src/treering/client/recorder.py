"""A recorder on the far side of a network: the same calls as `Corpus.capture()`, and none of them waits for the server."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from treering.errors import StoreError, UsageError

if TYPE_CHECKING:
    from treering.client.sender import Sender

__all__ = ["CaptureWarning", "Counts", "Receipt", "Receipts", "RemoteRecorder"]

#: Records that `extend` puts together as one entry of the spool.
_TOGETHER = 500
_TOGETHER_BYTES = 1 << 20


class CaptureWarning(UserWarning):
    """Records were dropped, or couldn't be delivered in time."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a record so far. `spooled`: it is on this host's disk, and will be stored once. `queued`: in memory,
    since the disk took longer than `block_s` or is full, or there is no spool. `dropped`: there was no room.
    """  # noqa: D205

    id: str
    status: Literal["spooled", "queued", "dropped"]


@dataclass(frozen=True, slots=True)
class Receipts:
    """What became of the records of one `extend`: `acknowledged` are spooled or queued, `dropped` found no room."""

    acknowledged: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a corpus' records in this client. `waiting` are on their way, the rest is what the server said."""

    added: int
    stored: int
    duplicates: int
    refused: int
    erased: int
    dropped: int
    waiting: int


class RemoteRecorder:
    """Captures records into a corpus of a server. A context manager; thread-safe; not to be used across a fork.

    `add` and `extend` fix ids and times, make JSON of what they are given, and wait for this host's spool, `block_s` seconds a
    call at most, whatever happens to disk and network. Records are sent in batches by a thread; what can't be sent waits, and is
    sent by the next client of this host at the latest. A record sent twice is stored once.
    """

    def __init__(self, sender: Sender, corpus: str, *, block_s: float, close_s: float, is_durable: bool) -> None:
        self.corpus = corpus
        self._sender = sender
        self._block_s, self._close_s, self._is_durable = block_s, close_s, is_durable
        self._pid = os.getpid()
        self._closed = False
        self._warned = 0

    def add(self, record: Mapping[str, Any] | Any) -> Receipt:
        """Capture one record: a dict, or a pydantic model. Its id and time are fixed now.

        Raises UsageError for what JSON can't hold, and after `close`. What breaks the corpus' schema is found by the server,
        which puts it into quarantine: see `refusals`.
        """
        self._check_usable()
        record_id, line = _line(record)
        receipt = self._put(line, 1, time.monotonic() + self._block_s)
        self._warn_if_dropped()
        return Receipt(record_id, receipt)

    def extend(self, records: Iterable[Mapping[str, Any] | Any]) -> Receipts:
        """Capture many records. Waits no longer than `add` does. Raises UsageError; what came before the bad one is captured."""
        self._check_usable()
        if isinstance(records, Mapping | str | bytes):
            raise UsageError("extend takes many records; use add for one", code="bad-records")
        deadline = time.monotonic() + self._block_s
        taken = dropped = 0
        lines: list[bytes] = []
        size = 0

        def put() -> None:
            nonlocal taken, dropped, lines, size
            status = self._put(b"".join(lines), len(lines), deadline)
            taken, dropped = (taken, dropped + len(lines)) if status == "dropped" else (taken + len(lines), dropped)
            lines, size = [], 0

        try:
            for record in records:
                _, line = _line(record)
                lines.append(line)
                size += len(line)
                if len(lines) >= _TOGETHER or size >= _TOGETHER_BYTES:
                    put()
        finally:
            if lines:
                put()
        self._warn_if_dropped()
        return Receipts(taken, dropped)

    def _put(self, payload: bytes, rows: int, deadline: float) -> Literal["spooled", "queued", "dropped"]:
        pending = self._sender.put(self.corpus, payload, rows)
        if pending is None:
            return "dropped"
        if not self._is_durable or self._sender.spool_error is not None:
            return "queued"
        return "spooled" if pending.written.wait(max(0.0, deadline - time.monotonic())) else "queued"

    def flush(self, timeout: float = 30.0) -> Counts:
        """Wait until the server has everything that was added so far, `timeout` seconds at most; how it stands then.

        Raises StoreError when it hasn't: the records wait on, and are sent when the server is back.
        """
        self._check_usable()
        if not self._sender.wait(self.corpus, self._sender.last, time.monotonic() + timeout):
            raise StoreError(
                f"{self.counts.waiting:,} records for {self.corpus} aren't at the server yet: "
                f"{self._sender.trouble(self.corpus) or 'it takes its time'}",
                code="not-delivered",
                hint=self._sender.advice(self.corpus),
            )
        return self.counts

    @property
    def counts(self) -> Counts:
        """How it stands with the records of this corpus, whichever recorder of the client they came by."""
        tally = self._sender.tally(self.corpus)
        done = tally.stored + tally.duplicates + tally.refused + tally.erased
        return Counts(
            added=tally.added,
            stored=tally.stored,
            duplicates=tally.duplicates,
            refused=tally.refused,
            erased=tally.erased,
            dropped=tally.dropped,
            waiting=max(0, tally.added - done),
        )

    @property
    def refusals(self) -> list[tuple[str | None, list[dict[str, Any]]]]:
        """The last records that the server refused, as (id, problems); they lie in its quarantine."""
        return list(self._sender.tally(self.corpus).refusals)

    def close(self, timeout: float | None = None) -> None:
        """Send what is left, for so many seconds at most. Warns when something stays behind; it waits on this host."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        allowed = self._close_s if timeout is None else timeout
        if not self._sender.wait(self.corpus, self._sender.last, time.monotonic() + allowed):
            is_kept = self._is_durable and self._sender.unspooled(self.corpus) is None
            kept = "they wait on this host" if is_kept else "they are lost when this process ends"
            warnings.warn(
                f"{self.counts.waiting:,} records for {self.corpus} aren't at the server after {allowed:g} s "
                f"({self._sender.trouble(self.corpus) or 'it takes its time'}); {kept}",
                CaptureWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _warn_if_dropped(self) -> None:
        """Say so at the first drop, and each time they have doubled since."""
        dropped = self._sender.tally(self.corpus).dropped
        if dropped and dropped >= 2 * self._warned:
            self._warned = dropped
            warnings.warn(
                f"{dropped:,} records for {self.corpus} were dropped: the spool is full "
                f"({self._sender.trouble(self.corpus) or 'the server takes its time'})",
                CaptureWarning,
                stacklevel=3,
            )

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                "this recorder belongs to the process that made it", code="forked", hint="make a Client after the fork"
            )
        if self._closed:
            raise UsageError("this recorder is closed", code="closed", hint="call capture() again")


def _line(record: Any) -> tuple[str, bytes]:
    """A record's id and its line of JSON, with id and time fixed. Raises UsageError."""
    if not isinstance(record, Mapping):
        dump = getattr(record, "model_dump", None)
        if dump is None:
            raise UsageError(f"a record is a dict or a model, not a {type(record).__name__}", code="bad-records")
        record = dump(exclude_none=True)
    fields = dict(record)
    if fields.get("id") is None:
        fields["id"] = os.urandom(16).hex()
    if fields.get("ts") is None:
        fields["ts"] = datetime.now(UTC)  # when it happened, not when it arrives
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return str(fields["id"]), text.encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as exc:
        raise UsageError(
            f"JSON can't hold this record: {exc}", code="bad-records", hint="give plain values, lists and dicts"
        ) from exc


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(exclude_none=True)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} isn't a JSON value")
