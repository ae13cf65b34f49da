"""Behind every recorder of a client: a thread that spools what was added, and one that sends what was spooled."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from treering.client.spool import Entry, Spool
from treering.errors import StoreError

if TYPE_CHECKING:
    import httpx

__all__ = ["Pending", "Sender", "Settings", "Tally"]

logger = logging.getLogger("treering.client")

_GZIP_FROM = 2_048
_KEPT_REFUSALS = 100
_ADOPT_EVERY_S = 30.0
#: Answers that say: later.
_PASSING = frozenset([408, 425, 429, 500, 502, 503, 504])
#: Codes of errors that are about the records: sent again they say the same.
_OF_RECORDS = frozenset(["bad-json", "bad-records", "invalid-record"])


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of a client. Sizes in bytes, times in seconds."""

    block_s: float
    memory_bytes: int
    spool_bytes: int
    batch_rows: int = 1_000
    batch_bytes: int = 4 << 20
    linger_s: float = 0.2  # a batch that isn't full waits so long for more
    first_pause_s: float = 0.1
    longest_pause_s: float = 30.0
    parked_s: float = 15.0  # until a key that was refused, or a corpus that wasn't there, is tried again


@dataclass
class Tally:
    """What became of one corpus' records. `refused` lie in quarantine on the server, each with its problems."""

    added: int = 0
    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    erased: int = 0
    dropped: int = 0
    refusals: deque[tuple[str | None, list[dict[str, Any]]]] = field(
        default_factory=lambda: deque(maxlen=_KEPT_REFUSALS)
    )


@dataclass(slots=True)
class Pending:
    """Records on their way into the spool."""

    entry: Entry
    written: threading.Event


@dataclass
class _Pace:
    """When a corpus may be sent to again."""

    failures: int = 0
    not_before: float = 0.0
    asked_for: float = 0.0  # the server's Retry-After: nobody's hurry shortens it
    error: str | None = None
    most_rows: int | None = None  # after the server found a batch too large


class Sender:
    """Spools and sends for one client. `put` never waits for disk, network or log: nobody uses them with the lock held."""

    def __init__(self, http: httpx.Client, spool: Spool, settings: Settings) -> None:
        self._http, self._spool, self._settings = http, spool, settings
        self._number = itertools.count(1)
        self.last = 0
        self.last_taken_over = 0
        self.tallies: dict[str, Tally] = {}
        self._pending: deque[Pending] = deque()
        self._pending_bytes = 0
        self._spooled_bytes = 0
        self._lock = threading.Lock()
        self._writable = threading.Condition(self._lock)  # something to spool
        self._sendable = threading.Condition(self._lock)  # something to send
        self._done = threading.Condition(self._lock)  # something left the spool
        self._hurry = 0  # who waits for everything to be sent
        self._oldest: float | None = None
        self._closing = False
        self.spool_error: StoreError | None = None  # of the last write: whoever waits for a full disk waits in vain
        self._paces: dict[str, _Pace] = {}
        self._writer = threading.Thread(target=self._write, name="treering-client-spool", daemon=True)
        self._sender = threading.Thread(target=self._send, name="treering-client-send", daemon=True)
        self._writer.start()
        self._sender.start()

    def tally(self, corpus: str) -> Tally:
        """Counts of a corpus."""
        return self.tallies.setdefault(corpus, Tally())

    def put(self, corpus: str, payload: bytes, rows: int) -> Pending | None:
        """Take records; None when there is no room for them, neither in memory nor in the spool."""
        settings = self._settings
        with self._lock:
            waiting = self._pending_bytes + len(payload)
            is_full = self._pending and waiting > settings.memory_bytes
            if is_full or self._spooled_bytes + waiting > settings.spool_bytes:
                self.tally(corpus).dropped += rows
                return None
            self.last = next(self._number)
            self.tally(corpus).added += rows
            made = Pending(Entry(self.last, corpus, rows, payload), threading.Event())
            self._pending.append(made)
            self._pending_bytes = waiting
            self._writable.notify()
            return made

    def wait(self, corpus: str | None, up_to: int, deadline: float) -> bool:
        """Wait until what was taken up to a number has left for good; whether it has. Sends at once meanwhile."""
        with self._lock:
            self._hurry += 1
            for pace in self._paces.values():
                pace.not_before = max(pace.asked_for, min(pace.not_before, time.monotonic() + 0.05))
            self._sendable.notify()
        try:
            while self._is_waiting(corpus, up_to):
                with self._lock:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._done.wait(min(left, 0.1))
            return True
        finally:
            with self._lock:
                self._hurry -= 1

    def _is_waiting(self, corpus: str | None, up_to: int) -> bool:
        with self._lock:
            pending = any(one.entry.seq <= up_to and corpus in (None, one.entry.corpus) for one in self._pending)
        return pending or self._spool.waits(corpus, up_to)

    def trouble(self, corpus: str | None) -> str | None:
        """What the last attempt said, if it failed: to spool them, which comes first, or to send them."""
        if (unspooled := self.unspooled(corpus)) is not None:
            return str(unspooled)
        with self._lock:
            errors = [pace.error for name, pace in self._paces.items() if corpus in (None, name) and pace.error]
        return errors[0] if errors else None

    def unspooled(self, corpus: str | None) -> StoreError | None:
        """Why records are in memory alone; None when all that wait are on disk, or on their way there."""
        with self._lock:
            is_waiting = any(corpus in (None, one.entry.corpus) for one in self._pending)
        return self.spool_error if is_waiting else None

    def advice(self, corpus: str | None) -> str:
        """What to do about records that wait."""
        if self.unspooled(corpus) is not None:
            return "they wait in memory, and are lost when this process ends before it can write them down: see to its disk"
        return "they wait on this host and are sent when it can be reached"

    def close(self) -> int:
        """Stop both threads, spool what is in memory; how many records wait for the next client.

        What couldn't be spooled has no other place: it counts as dropped, and the log says so.
        """
        with self._lock:
            self._closing = True
            self._writable.notify_all()
            self._sendable.notify_all()
        self._writer.join()
        self._sender.join()
        lost = Counter[str]()
        for one in self._pending:
            lost[one.entry.corpus] += one.entry.rows
        for corpus, rows in lost.items():
            tally = self.tally(corpus)
            tally.added -= rows
            tally.dropped += rows
            logger.error("%d records for %s are lost: %s", rows, corpus, self.spool_error)
        left = self._spool.totals()[0]
        self._spool.close()
        return left

    # --- into the spool ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        adopted = -_ADOPT_EVERY_S
        while True:
            is_due = time.monotonic() - adopted >= _ADOPT_EVERY_S
            with self._lock:
                if not self._pending and not self._closing and not is_due:
                    self._writable.wait(1.0)
                group = list(self._pending)
                closing = self._closing
            if is_due and not group and not closing:  # the agent's own come first
                adopted = time.monotonic()
                self._take_over()
            try:
                if group:
                    self._spool.append([one.entry for one in group])
            except StoreError as exc:
                # They stay in memory, which is bounded: `put` says so when there is no more room.
                if self.spool_error is None:
                    logger.warning("records wait in memory: %s", exc)
                self.spool_error = exc
                if closing:
                    return
                time.sleep(0.5)
                continue
            if group:
                self.spool_error = None
                size = sum(len(one.entry.payload) for one in group)
                with self._lock:
                    for _ in group:
                        self._pending.popleft()
                    self._pending_bytes -= size
                    self._spooled_bytes += size
                    if self._oldest is None:
                        self._oldest = time.monotonic()
                    self._sendable.notify()
                for one in group:
                    one.written.set()
            elif closing:
                return

    def _take_over(self) -> None:
        try:
            found = self._spool.adopt(self._number)
        except StoreError as exc:
            logger.warning("records of a process that is gone wait on: %s", exc)
            return
        if found:
            logger.info("took over %d records of a process that is gone", sum(one.rows for one in found))
            with self._lock:
                for one in found:
                    self.tally(one.corpus).added += one.rows
                    self._spooled_bytes += len(one.payload)
                self._oldest = self._oldest or time.monotonic()
                self.last_taken_over = found[-1].seq
                self._sendable.notify()

    # --- out of it -----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        while True:
            with self._lock:
                if self._closing:
                    return
                pause = self._pause()
                if pause > 0:
                    self._sendable.wait(pause)
                    continue
            try:
                pause = self._send_once()
            except StoreError as exc:
                logger.warning("%s", exc)
                pause = 0.5
            if pause:
                with self._lock:
                    if not self._closing:
                        self._sendable.wait(pause)

    def _pause(self) -> float:
        """Seconds until there may be something to send. Called with the lock held."""
        if self._oldest is None:
            return 0.5
        if self._hurry or self._spooled_bytes >= self._settings.batch_bytes:
            return 0.0
        return max(0.0, self._oldest + self._settings.linger_s - time.monotonic())

    def _send_once(self) -> float:
        """Send a batch of each corpus that may be sent to; seconds to wait before the next look."""
        corpora = self._spool.corpora()
        if not corpora:
            with self._lock:
                if self._spooled_bytes <= 0:
                    self._oldest = None
            return 0.05
        pause = 1.0
        for corpus in corpora:
            pace = self._paces.setdefault(corpus, _Pace())
            left = pace.not_before - time.monotonic()
            if left > 0 or self._closing:
                pause = min(pause, max(left, 0.01))
                continue
            pause = 0.0
            limits = self._settings
            entries = self._spool.read(corpus, pace.most_rows or limits.batch_rows, limits.batch_bytes)
            if entries:
                self._deliver(corpus, pace, entries)
        return pause

    def _deliver(self, corpus: str, pace: _Pace, entries: Sequence[Entry]) -> None:
        body = b"".join(one.payload for one in entries)
        rows = sum(one.rows for one in entries)
        headers = {"content-type": "application/x-ndjson"}
        if len(body) >= _GZIP_FROM:
            body = gzip.compress(body, compresslevel=1)
            headers["content-encoding"] = "gzip"
        try:
            answer = self._http.post(f"/v1/corpora/{corpus}/records", content=body, headers=headers)
        except Exception as exc:  # of httpx, and of whatever lies below it: none of them may end this thread
            self._later(corpus, pace, f"{type(exc).__name__}: {exc}", None)
            return
        status = answer.status_code
        if status in (200, 422) and (said := _outcomes(answer, rows)) is not None:
            self._settled(corpus, pace, entries, said)
        elif status == 413 or (status in (400, 422) and _code(answer) in _OF_RECORDS):
            self._too_much(corpus, pace, entries, _message(answer))
        elif status in _PASSING:
            self._later(corpus, pace, _message(answer), answer.headers.get("retry-after"))
        else:  # the key, the corpus: somebody has to do something
            if pace.error is None:
                logger.warning("records for %s wait on this host: %s", corpus, _message(answer))
            pace.error = _message(answer)
            pace.not_before = time.monotonic() + self._settings.parked_s
            if status in (401, 403):
                self._release(corpus)

    def _release(self, corpus: str) -> None:
        """Leave what was taken over to a client with another key: it may be good for it, and this one isn't."""
        found = self._spool.release(corpus)
        if found:
            rows = sum(one.rows for one in found)
            logger.info("left %d records for %s to a client whose key is good for them", rows, corpus)
            with self._lock:
                self.tally(corpus).added -= rows
                self._spooled_bytes -= sum(len(one.payload) for one in found)
                self._done.notify_all()

    def _settled(self, corpus: str, pace: _Pace, entries: Sequence[Entry], said: Mapping[str, Any]) -> None:
        refused = [one for one in said["records"] if one["status"] == "refused"]
        # Before the lock is taken: a log may be slow, and `put` takes that lock in the agent's thread. Their messages may quote
        # what was refused, which has no business in a log.
        for one in refused:
            where = [(".".join(map(str, found["loc"])), found["kind"]) for found in one.get("problems") or ()]
            logger.warning("%s refused %s: %s", corpus, one["id"], where)
        with self._lock:
            tally = self.tally(corpus)
            tally.stored += said["stored"]
            tally.duplicates += said["duplicates"]
            tally.refused += said["refused"]
            tally.erased += said["erased"]
            tally.refusals.extend((one["id"], one.get("problems") or []) for one in refused)
        pace.failures, pace.error, pace.not_before = 0, None, 0.0
        if pace.most_rows is not None:
            pace.most_rows = 2 * pace.most_rows if 2 * pace.most_rows < self._settings.batch_rows else None
        self._gone(entries)

    def _too_much(self, corpus: str, pace: _Pace, entries: Sequence[Entry], why: str) -> None:
        """A batch that the server won't take as a whole: in smaller ones, and what it won't take alone is given up."""
        rows = sum(one.rows for one in entries)
        if len(entries) > 1:
            pace.most_rows = max(1, rows // 2)
            return
        entry = entries[0]
        if entry.rows > 1:
            # Numbers below zero: they count as given before whatever somebody waits for.
            lines = [line + b"\n" for line in entry.payload.split(b"\n") if line]
            self._spool.replace(entry, [Entry(-next(self._number), corpus, 1, line) for line in lines])
            pace.most_rows = max(1, rows // 2)
            return
        with self._lock:
            tally = self.tally(corpus)
            tally.refused += 1
            record_id = json.loads(entry.payload).get("id")
            tally.refusals.append((record_id, [{"loc": [], "kind": "bad-value", "message": why}]))
        logger.warning("%s doesn't take %s: %s", corpus, record_id, why)
        pace.failures, pace.error, pace.most_rows = 0, None, None
        self._gone(entries)

    def _gone(self, entries: Sequence[Entry]) -> None:
        self._spool.remove(entries)
        with self._lock:
            self._spooled_bytes -= sum(len(one.payload) for one in entries)
            self._oldest = time.monotonic() if self._spooled_bytes > 0 else None
            self._done.notify_all()

    def _later(self, corpus: str, pace: _Pace, why: str, retry_after: str | None) -> None:
        """Exponential pauses with jitter, so that clients that lost their server don't come back all at once."""
        limits = self._settings
        pause = min(limits.longest_pause_s, limits.first_pause_s * 2 ** min(pace.failures, 16))
        pause *= random.uniform(0.5, 1.0)
        asked = 0.0
        if retry_after is not None and retry_after.isdecimal():
            asked = min(float(retry_after), 2 * limits.longest_pause_s) * random.uniform(1.0, 1.25)
        if pace.failures == 0:
            logger.warning("%s can't be reached, records wait on this host: %s", self._http.base_url, why)
        pace.failures += 1
        pace.error = why
        with self._lock:
            if self._hurry:  # somebody waits, and the server may be back
                pause = min(pause, 1.0)
            pace.asked_for = time.monotonic() + asked
            pace.not_before = max(pace.asked_for, time.monotonic() + pause)


def _outcomes(answer: httpx.Response, rows: int) -> Mapping[str, Any] | None:
    """What the server says of each record; None when it isn't about these records."""
    try:
        said = answer.json()
    except ValueError:
        return None
    is_ours = isinstance(said, dict) and isinstance(said.get("records"), list) and len(said["records"]) == rows
    return said if is_ours else None


def _code(answer: httpx.Response) -> str | None:
    """The code of treering's own errors; None of what a proxy says, or another server."""
    try:
        found = answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _message(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{answer.status_code} {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"
