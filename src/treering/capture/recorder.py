"""The recorder: live data in. Validate, put in the spool (that is the acknowledgement), commit in the background.

Does not judge duplicates (commit.py) or keep refused records (quarantine.py).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from treering.capture import quarantine
from treering.capture.commit import (
    GIVEN,
    Committed,
    comparable,
    drain,
    encode_row,
    look_up,
    same_content,
    spool_schema,
)
from treering.capture.redact import Redactor, redaction_kinds
from treering.capture.spool import Spool, Write, orphans, scrub_file
from treering.errors import ConflictError, InvalidRecordError, Problem, StoreError, TreeringError, UsageError
from treering.schema import Validated
from treering.store.corpus import BaseCorpus
from treering.store.denylist import denylist
from treering.store.documents import CorpusRecord
from treering.store.erase import note, noted
from treering.store.memory import give_back
from treering.store.table import RECENT_VERSIONS, TARGET_ROWS_PER_FRAGMENT

__all__ = ["Receipt", "Receipts", "Recorder", "adopt_orphans", "assign_splits", "flush_spools"]

#: Records validated at a time: few enough that Python's garbage collector stays out of the way.
_CHUNK = 1_000
#: Rows, or bytes, that `extend` spools at a time: a sync costs up to 4 ms, whatever its size.
_SPOOL_ROWS = 8_192
_SPOOL_BYTES = 16 << 20
#: A commit waits for this many rows (of 12k, 24k, 40k and 64k it let 100,000 records reach the table soonest) …
FLUSH_ROWS = 24_576
#: … or for this long, whichever comes first: this bounds how late a record becomes visible to readers.
FLUSH_AFTER_S = 2.0
FLUSH_BYTES = 64 << 20
#: The same of a paced recorder, whose source may have stopped giving anything.
PACED_AFTER_S = 30.0
#: Rows that a paced recorder commits at a time: the engine merges so many as one, and of more it takes now these first, now those.
PACED_ROWS = 8_192
#: Bytes from which a commit is worth giving back the memory that it took.
_LARGE_COMMIT = 8 << 20
#: How much a power cut may take of what was acknowledged with durability="batch".
SYNC_EVERY_S = 0.1
#: Capture pauses while this many bytes wait for their commit, so that a fast producer can't fill the disk with spool.
MAX_BACKLOG_BYTES = 512 << 20
#: Live is compacted in tiers: as soon as there are so many fragments between one tier and the next, they become one. So a
#: record is rewritten once a tier, and few fragments lie about, however small the commits.
_FRAGMENTS_A_TIER = 8
_TIERS = (0, 8, 64, 512, 4_096, TARGET_ROWS_PER_FRAGMENT)
#: Ids remembered, to tell a resent record at once.
_REMEMBERED = 200_000

#: A refused record, its problems, and where it came from.
_Refused = tuple[Any, tuple[Problem, ...], str | None]

_open: weakref.WeakSet[Recorder] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a record that was given. `duplicate`: this very record was known already. `erased`: it, or whom it
    is about, was erased from the corpus before; it was dropped.
    """  # noqa: D205

    id: str
    status: Literal["stored", "duplicate", "erased"]


@dataclass(frozen=True, slots=True)
class Receipts:
    """What became of the records of one `extend`.

    `acknowledged` are on disk; `refused` are in quarantine, as (position, problems). Which of the acknowledged ones turn
    out to be duplicates is known after the next `flush`: see `Recorder.counts`.
    """

    acknowledged: int = 0
    refused: list[tuple[int, tuple[Problem, ...]]] = field(default_factory=list)
    erased: int = 0  # dropped, because they were erased before


@dataclass
class Counts:
    """What a recorder has done so far; `stored`, `duplicates`, `conflicts` and `erased` grow as the spool is committed."""

    acknowledged: int = 0
    refused: int = 0
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    erased: int = 0  # dropped, because they were erased before


@dataclass(frozen=True, slots=True)
class _Writing:
    """Rows, refused records and bytes that are on their way to the disk."""

    write: Write
    rows: int
    refused: int
    size: int


class Recorder:
    """Captures records into a corpus. A context manager; thread-safe; not to be used across a fork.

    It keeps the record type that its corpus had when it was opened: after the corpus evolved, open another one for the
    new columns. Both may run side by side.

    A record is acknowledged when `add` or `extend` returns: it is on disk then (`durability="disk"`), or in the table
    (`durability="store"`, for hosts that may vanish for good). With `durability="batch"` it has been handed to the system,
    and is synced within `sync_every_s`: a killed process loses nothing, a power cut what was acknowledged in the last
    `sync_every_s` seconds and the one sync that was under way. Readers see it after the next commit: within about two
    seconds, or after `flush` or `close`, both of which also put it on disk.
    """

    def __init__(
        self,
        corpus: BaseCorpus,
        *,
        durability: Literal["disk", "batch", "store"] = "disk",
        sync_every_s: float = SYNC_EVERY_S,
        redact: bool | Sequence[str] | None = None,
        paced: bool = False,
    ) -> None:
        """A `paced` one is for imports by one thread: commits are cut by what was given, not by the clock.

        So the same records given in the same portions lie in the same order, however long each step takes (within a commit they
        lie by split).
        """
        if durability not in ("disk", "batch", "store"):
            raise UsageError(f"durability is 'disk', 'batch' or 'store', not {durability!r}", code="bad-durability")
        if isinstance(sync_every_s, bool) or not isinstance(sync_every_s, int | float) or not 0 < sync_every_s <= 60:
            raise UsageError(f"sync_every_s is more than 0 and at most 60, not {sync_every_s!r}", code="bad-durability")
        kinds = redaction_kinds(corpus.record.redact if redact is None else redact)
        self._redactor = Redactor(kinds) if kinds else None
        self.redacted: Counter[str] = Counter()  # marker → how often it was put in
        # What a process that is gone left behind may wait; that its disk is full, say, must not stop this one.
        with suppress(TreeringError):
            adopt_orphans(corpus)
        self.corpus = corpus
        # The corpus may evolve, in this process or another: a recorder goes on as it began, and so do its callers.
        self._record_type, self._version = corpus.record_type, corpus.versions[-1]
        self.counts = Counts()
        self.conflicts: list[str] = []  # ids that were taken by other content
        self._durability = durability
        self._pid = os.getpid()
        every = sync_every_s if durability == "batch" else None
        self._spool = Spool.new(spool_directory(corpus), sync_every_s=every)
        self._denied = denylist(corpus)
        self._denies = bool(self._denied)
        self._group_by, self._is_heldout = corpus.record.group_by, _draw(corpus.record)
        self._known: dict[str, None] = {}
        self._unread: deque[pa.Array] = deque()  # ids that came with many others: read only when somebody asks
        self._draining = threading.Lock()
        # Entering a Condition is Python code: an interrupt can hit between its acquiring and the block, and the lock is
        # never let go. Entering a Lock can't be split so. Hence callers' threads enter the lock itself.
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._backlog = (0, 0)  # rows, bytes
        self._oldest: float | None = None
        self._paced = paced
        self._cuts: deque[int] = deque()  # entries of the spool that commits end with, when paced
        self._uncut = (0, 0)  # rows and bytes since the last of them
        self._closing = False
        self._closed = False
        self._error: Exception | None = None
        self._flusher = threading.Thread(target=_flush_in_background, args=(weakref.ref(self), self._wake), daemon=True)
        self._flusher.start()
        _open.add(self)

    # --- in ------------------------------------------------------------------------------------------------------

    def add(self, record: Mapping[str, Any] | BaseModel) -> Receipt:
        """Capture one record; it is on disk when this returns.

        Raises InvalidRecordError, with every problem, when it breaks the schema or its id is taken by other content (it
        is in quarantine then), StoreError when it can't be made durable.
        """
        self._check_usable()
        if self._redactor is None and (receipt := self._add_row(record)) is not None:
            return receipt
        checked = self._without_secrets(self._record_type.validate([record]))
        if self._denied and self._allowed(checked, lambda _: record)[1]:
            return Receipt(_given_id(record), "erased")
        if checked.refused:
            problems = checked.refused[0][1]
            self._refuse([(record, problems, None)])
            raise InvalidRecordError(
                f"the record was refused: {'; '.join(map(str, problems))}", problems, hint="it waits in quarantine"
            )
        given = checked.batch.column("id")[0].as_py()
        if given is not None and self._remembers(given) and self._is_duplicate(given, checked.batch):
            return Receipt(given, "duplicate")
        batch = self._filled(checked.batch)
        self._spool_batches([batch], [])
        return Receipt(batch.column("id")[0].as_py(), "stored")

    def _add_row(self, record: Any) -> Receipt | None:
        """`add`, for a record that breaks no rule and that JSON can hold; None when it has to go the longer way.

        Few steps: after each sync the processor's caches are cold.
        """
        row = self._record_type.row(record)
        if row is None:
            return None
        record_id: str = row.get("id") or os.urandom(16).hex()
        if is_named := row.get("id") is not None:
            if self._remembers(record_id):
                return None
        else:
            row["id"] = record_id
        if self._denies and self._denied.denies_record(record_id, row.get("subject")):
            return None
        row["_ts_given"] = row.get("ts") is not None
        if not row["_ts_given"]:
            row["ts"] = time.time_ns() // 1_000
        row["_split_given"] = row.get("split") is not None
        if not row["_split_given"]:
            group = row.get(self._group_by)
            row["split"] = "heldout" if self._is_heldout(record_id if group is None else group) else "train"
        try:
            payload = encode_row(self._version.number, row)
        except ValueError:
            return None
        self._spool.append_one(payload)
        if is_named:
            self._known[record_id] = None
        self._settle(1, 0, len(payload))
        return Receipt(record_id, "stored")

    def extend(
        self,
        records: Iterable[Mapping[str, Any] | BaseModel] | pa.Table | pa.RecordBatch,
        *,
        sources: Sequence[str] | None = None,
    ) -> Receipts:
        """Capture many records, or an Arrow table; the acknowledged ones are on disk when this returns.

        Refused records go to quarantine and never block the rest. `sources` says where each comes from (`FILE:LINE`).
        Raises InvalidRecordError when an Arrow table's columns don't fit at all, StoreError.
        """
        self._check_usable()
        acknowledged, offset, rows, size, erased = 0, 0, 0, 0, 0
        refused: list[tuple[int, tuple[Problem, ...]]] = []
        batches: list[pa.RecordBatch] = []
        aside: list[_Refused] = []
        writing: _Writing | None = None  # reaches the disk while the next records are being checked
        try:
            for chunk, checked in self._checked(records):
                given = len(checked.batch) + len(checked.refused)
                checked = self._without_secrets(checked)
                if self._denied:
                    checked, dropped = self._allowed(checked, chunk)
                    erased += dropped
                if len(checked.batch):
                    batches.append(self._filled(checked.batch))
                    size += batches[-1].nbytes
                for position, problems in checked.refused:
                    aside.append((chunk(position), problems, sources[offset + position] if sources else None))
                    refused.append((offset + position, problems))
                offset += given
                rows += len(checked.batch) + len(checked.refused)
                if rows >= _SPOOL_ROWS or size >= _SPOOL_BYTES:
                    before, writing = writing, self._begin(batches, aside)
                    batches, aside, rows, size = [], [], 0, 0
                    if before is not None:
                        acknowledged += self._acknowledge(before)
            if rows:
                before, writing = writing, self._begin(batches, aside)
                if before is not None:
                    acknowledged += self._acknowledge(before)
        finally:
            if writing is not None:
                acknowledged += self._acknowledge(writing)
        return Receipts(acknowledged, refused, erased)

    def _allowed(self, checked: Validated, raw: Callable[[int], Any]) -> tuple[Validated, int]:
        """A validation without what was erased before, and how many records that is."""
        hit = self._denied.denies(checked.batch.column("id"), checked.batch.column("subject"))
        refused = [one for one in checked.refused if not self._denied.mentions(quarantine.plain(raw(one[0])))]
        dropped = int(hit.sum()) + len(checked.refused) - len(refused)
        if dropped:
            accepted = [position for position, gone in zip(checked.accepted, hit.tolist(), strict=True) if not gone]
            checked = Validated(checked.batch.filter(pa.array(~hit)), accepted, refused)
            with self._lock:
                self.counts.erased += dropped
        return checked, dropped

    def _checked(self, records: Any) -> Iterator[tuple[Callable[[int], Any], Validated]]:
        """(a way to get at the raw records, their validation), some thousand at a time."""
        if isinstance(records, pa.Table):
            yield from self._checked_table(records)
            return
        if isinstance(records, pa.RecordBatch):
            records = [records]
        if isinstance(records, Mapping | str | bytes | BaseModel) or not isinstance(records, Iterable):
            raise UsageError(
                f"extend takes records or Arrow data, not a {type(records).__name__}",
                code="bad-records",
                hint="use add for a single record",
            )
        iterator = iter(records)
        while chunk := list(islice(iterator, _CHUNK)):
            if isinstance(chunk[0], pa.RecordBatch):  # a reader, or a list of batches
                yield from self._checked_table(pa.Table.from_batches([*chunk, *iterator]))
                return
            yield chunk.__getitem__, self._record_type.validate(chunk)

    def _checked_table(self, table: pa.Table) -> Iterator[tuple[Callable[[int], Any], Validated]]:
        record_type = self._record_type
        record_type.check_columns(table)
        for start in range(0, len(table), 16 * _CHUNK):
            part = table.slice(start, 16 * _CHUNK)
            yield partial(_raw_row, part), record_type.validate_arrow(part)

    def fitting(self, records: Sequence[Any]) -> list[int]:
        """Positions of the records that would be accepted now; nothing is captured or put aside."""
        return list(self._record_type.validate(records).accepted) if records else []

    def refuse(self, record: Any, problems: Sequence[Problem], source: str | None = None) -> bool:
        """Put aside, durably, what an importer couldn't even read as a record; False when it names what was erased."""
        return bool(self.refuse_all([(record, tuple(problems), source)]))

    def refuse_all(self, refused: Sequence[_Refused]) -> list[int]:
        """As `refuse`, for many (record, problems, source) at once; the positions of those that were put aside."""
        return self.take([], refused)

    def take(self, batches: Sequence[pa.RecordBatch], refused: Sequence[_Refused]) -> list[int]:
        """Capture records that this record type has checked elsewhere, under its schema; put aside what it refused there.

        All of it is on disk when this returns. Gives the positions of the refused ones that were put aside: those that name
        what was erased before are dropped, as records are. Raises StoreError.
        """
        self._check_usable()
        filled = []
        for batch in batches:
            checked = self._without_secrets(Validated(batch, range(len(batch)), []))
            if self._denied:
                checked, _ = self._allowed(checked, batch.slice)
            if len(checked.batch):
                filled.append(self._filled(checked.batch))
        kept = list(range(len(refused)))
        if self._denied:
            kept = [at for at in kept if not self._denied.mentions(quarantine.plain(refused[at][0]))]
            with self._lock:
                self.counts.erased += len(refused) - len(kept)
        if self._paced:
            for batch in filled:
                for low in range(0, len(batch), PACED_ROWS):
                    piece = batch.slice(low, PACED_ROWS)
                    with self._lock:
                        if self._uncut[0] and self._uncut[0] + len(piece) > PACED_ROWS:
                            self._cut()
                    self._spool_batches([piece], [])
            filled = []
        if filled or kept:
            self._spool_batches(filled, [refused[at] for at in kept])
        return kept

    def without_secrets(self, said: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """What an importer says about records, redacted as they are; their ids stay."""
        if self._redactor is None:
            return said
        found: Counter[str] = Counter()
        said = [{**self._redactor.value(one, found), "id": one["id"]} for one in said]
        with self._lock:
            self.redacted.update(found)
        return said

    def presentable(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """What is wrong with a record, redacted as the record is: it quotes the record, and goes to terminals and logs."""
        if self._redactor is None:
            return tuple(problems)
        counted: Counter[str] = Counter()  # with the record itself
        return tuple(
            Problem(
                tuple(self._redactor.text(part, counted) if isinstance(part, str) else part for part in one.loc),
                one.kind,
                self._redactor.text(one.message, counted),
            )
            for one in problems
        )

    def _refuse(self, refused: Sequence[_Refused]) -> None:
        self._spool_batches([], refused)

    def _is_duplicate(self, record_id: str, batch: pa.RecordBatch) -> bool:
        """Whether the known record of this id says the same. Raises InvalidRecordError when it says something else."""
        self.flush()
        history = self.corpus.known_versions()
        known = look_up(self.corpus, history, record_id)
        if known is None:
            return False
        row = batch.to_pylist()[0]
        captured = pa.Table.from_batches([batch])
        for name, given in GIVEN.items():
            captured = captured.append_column(given, pc.is_valid(captured.column(name)))
        if same_content(comparable(history, self._version, captured)[0], known, history):
            self.counts.duplicates += 1
            return True
        problem = Problem(("id",), "id-conflict", "expected the record stored under this id, got other content")
        self._refuse([(row, (problem,), None)])
        raise InvalidRecordError(
            f"the id {record_id!r} is taken by other content", [problem], hint="it waits in quarantine; use another id"
        )

    def _without_secrets(self, checked: Validated) -> Validated:
        """A validation whose accepted records are redacted; refused ones are when they are put aside."""
        if self._redactor is None or not len(checked.batch):
            return checked
        found: Counter[str] = Counter()
        batch = self._redactor.batch(checked.batch, found)
        with self._lock:
            self.redacted.update(found)
        return Validated(batch, checked.accepted, checked.refused)

    def _entry(self, record: Any, problems: Sequence[Problem], source: str | None) -> quarantine.Quarantined:
        if self._redactor is None:
            return quarantine.entry(record, problems, source)
        found: Counter[str] = Counter()
        kept = self._redactor.value(quarantine.plain(record), found)
        problems = [Problem(p.loc, p.kind, self._redactor.text(p.message, found)) for p in problems]
        with self._lock:
            self.redacted.update(found)
        return quarantine.entry(kept, problems, source)

    def _filled(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with id, ts and split filled in, and a note on which of them were given."""
        ids, ts = batch.column("id"), batch.column("ts")
        self._remember(ids)
        if ids.null_count:
            raw = os.urandom(16 * len(ids)).hex()
            ids = pc.coalesce(ids, pa.array([raw[i : i + 32] for i in range(0, len(raw), 32)], pa.string()))
        given = [pc.is_valid(batch.column(name)) for name in GIVEN]
        if ts.null_count:
            ts = pc.fill_null(ts, pa.scalar(datetime.now(UTC), ts.type))
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns.update(id=ids, ts=ts)
        columns["split"] = assign_splits(self.corpus.record, columns)
        return pa.RecordBatch.from_arrays([*columns.values(), *given], schema=spool_schema(self._version))

    def _spool_batches(self, batches: Sequence[pa.RecordBatch], refused: Sequence[_Refused]) -> None:
        """Make them durable: this is the acknowledgement."""
        self._acknowledge(self._begin(batches, refused))

    def _begin(self, batches: Sequence[pa.RecordBatch], refused: Sequence[_Refused]) -> _Writing:
        """Hand batches and refused records to the spool."""
        aside = []
        if refused:
            entries = [self._entry(record, problems, source) for record, problems, source in refused]
            aside = [(len(entries), quarantine.encode(entries))]
        size = sum(batch.nbytes for batch in batches)
        return _Writing(self._spool.append(batches, aside), sum(map(len, batches)), len(refused), size)

    def _acknowledge(self, writing: _Writing) -> int:
        """Wait until they are on disk, and while too much waits for its commit. Returns the rows."""
        writing.write.wait()
        self._settle(writing.rows, writing.refused, writing.size)
        return writing.rows

    def _settle(self, rows: int, refused: int, size: int) -> None:
        """Count what is on disk now; wait while too much waits for its commit."""
        with self._lock:
            self.counts.acknowledged += rows
            self.counts.refused += refused
            self._backlog = self._backlog[0] + rows, self._backlog[1] + size
            if self._oldest is None:
                self._oldest = time.monotonic()
            if self._paced:
                self._uncut = self._uncut[0] + rows, self._uncut[1] + size
                if self._uncut[0] >= PACED_ROWS or self._uncut[1] >= FLUSH_BYTES:
                    self._cut()
            if self._is_full():
                self._wake.notify_all()
        while self._backlog[1] > MAX_BACKLOG_BYTES and self._error is None and not self._closing:
            time.sleep(0.02)
        if self._durability == "store":
            self.flush()

    def _remember(self, ids: pa.Array) -> None:
        """Remember the newest given ids."""
        ids = ids.filter(pc.is_valid(ids))  # a copy: what is kept must not keep the caller's data
        if not len(ids):
            return
        with self._lock:
            self._unread.append(ids)
            while sum(map(len, self._unread)) - len(self._unread[0]) >= _REMEMBERED:
                self._unread.popleft()

    def _remembers(self, record_id: str) -> bool:
        """Whether a record of this id was acknowledged lately."""
        if self._unread or len(self._known) > 2 * _REMEMBERED:
            with self._lock:
                while self._unread:
                    self._known.update(dict.fromkeys(self._unread.popleft().to_pylist()))
                for old in list(islice(self._known, max(0, len(self._known) - _REMEMBERED))):
                    del self._known[old]
        return record_id in self._known

    # --- out -----------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Have a commit end with what was spooled last. Called with the lock held."""
        self._cuts.append(self._spool.last("batches"))
        self._uncut = (0, 0)
        self._wake.notify_all()

    @property
    def is_at_cut(self) -> bool:
        """Whether a flush now cuts no commit short that a paced recorder would have made otherwise."""
        return self._uncut == (0, 0)

    def flush(self) -> Counts:
        """Commit everything acknowledged so far; afterwards every reader sees it. Raises StoreError, ConflictError."""
        self._check_usable()
        self._drain()
        return self.counts

    def _drain(self, *, whole: bool = True) -> int:
        """Commit what the spool holds; how many records were dropped because they had been erased.

        In the portions that were cut; not `whole`: only the next of them, if there is one.
        """
        done = Committed()
        with self._draining:
            if self._closed:  # meanwhile; closing committed everything
                return 0
            with self._lock:
                ends: list[int | None] = [*self._cuts, None]
                if self._paced and not whole:
                    waited = 0.0 if self._oldest is None else time.monotonic() - self._oldest
                    if not self._cuts and waited < PACED_AFTER_S:
                        return 0  # a flush was here first: what came since isn't to be cut yet
                    ends = ends[:1]
                self._oldest = None
                large = self._backlog[1] >= _LARGE_COMMIT
            try:
                for end in ends:
                    waits = self._spool.backlog()[0] > 0
                    drain(self.corpus, self._spool, done, up_to=end)
                    if end is None:
                        self._uncut = (0, 0)
                    else:
                        self._cuts.popleft()
                    # After each commit, whoever makes it: fragments come to lie as in any other run.
                    if self._paced and waits:
                        with suppress(TreeringError):  # tidying up; every record is in
                            self._compact_if_due()
            except BaseException:
                with self._lock:
                    self._oldest = time.monotonic()  # what is left is due again
                raise
            finally:
                self.counts.stored += done.stored
                self.counts.duplicates += done.duplicates
                self.counts.conflicts += len(done.conflicts)
                self.counts.refused += done.refused
                self.counts.erased += done.erased
                self.conflicts += done.conflicts
                self._take_denylist()
                if large:
                    give_back()
            with self._lock:
                self._backlog = self._spool.backlog()
                if self._backlog[0] and self._oldest is None:
                    self._oldest = time.monotonic()  # came in meanwhile
                self._error = None
                self._wake.notify_all()
        return done.erased

    def _take_denylist(self) -> None:
        """Know from now on what was erased by now; and keep no trimmed byte of it."""
        with suppress(TreeringError):  # the next time: what is committed is looked at in any case
            denied = denylist(self.corpus, look=False)  # each commit has looked
            if denied.known != self._denied.known:
                self._spool.scrub()
                self._denied, self._denies = denied, bool(denied)

    def close(self) -> None:
        """Commit what is left and let go. Records that can't be committed now stay in the spool for the next opener.

        Raises StoreError, ConflictError when they can't.
        """
        if self._closed or self._pid != os.getpid():
            return
        with self._lock:
            self._closing = True
            self._wake.notify_all()
        self._flusher.join()
        self._spool.shut()  # whoever is in `add` right now is acknowledged first, or refused
        try:
            self._drain()
            if not self._paced:
                with suppress(TreeringError):  # tidying up; every record is in
                    self._compact_if_due()
        finally:
            with self._draining:
                self._closed = True
                _open.discard(self)
                self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                "this recorder belongs to the process that made it", code="forked", hint="call capture() after the fork"
            )
        if self._closing:
            raise UsageError("this recorder is closed", code="closed", hint="call capture() again")

    def _is_full(self) -> bool:
        if self._paced:
            return bool(self._cuts)
        return self._backlog[0] >= FLUSH_ROWS or self._backlog[1] >= FLUSH_BYTES

    def _due_in(self) -> float | None:
        """Seconds until the next commit is due; None when nothing waits. Called with `_wake` held."""
        if self._is_full():
            return 0.0
        after = PACED_AFTER_S if self._paced else FLUSH_AFTER_S
        return None if self._oldest is None else max(0.0, self._oldest + after - time.monotonic())

    def _compact_if_due(self) -> None:
        """Bound the fragments of live, however records arrive. Somebody else at it is as good."""
        for lower, tier in pairwise(_TIERS):
            sizes = self.corpus.table.fragment_rows(self.corpus.table.head())
            if sum(lower <= rows < tier for rows in sizes) < _FRAGMENTS_A_TIER:
                continue
            with suppress(ConflictError):
                self.corpus.compact(rows_per_fragment=tier, wait_s=0.0)
                self.corpus.clean_up(keep_versions=RECENT_VERSIONS, wait_s=0.0)


def _flush_in_background(recorder_ref: weakref.ref[Recorder], wake: threading.Condition) -> None:
    """The flusher thread. Holds the recorder only while it works, so that a forgotten one can be collected."""
    while True:
        recorder = recorder_ref()
        if recorder is None:
            return
        with wake:
            due = recorder._due_in()
            if recorder._closing:
                return
            if due is None or due > 0:
                del recorder
                wake.wait(0.5 if due is None else min(due, 0.5))
                continue
        try:
            recorder._drain(whole=False)
            if not recorder._paced:  # what is appended while fragments are joined comes to lie before them
                recorder._compact_if_due()
        except Exception as exc:
            # The records are safe in the spool. Keep trying; flush() and close() say what is wrong.
            with wake:
                recorder._error = exc
                recorder._oldest = time.monotonic()
                wake.notify_all()
                wake.wait(0.5)


def assign_splits(record: CorpusRecord, columns: Mapping[str, Any]) -> pa.Array:
    """The `split` column: as given, else by a keyed hash of the record's group.

    A group is held out when blake2b(key, group), read as a fraction of 2⁶⁴, lies below the corpus's share. So a
    conversation doesn't straddle unless its records name their splits themselves, and the same records are split alike
    everywhere.
    """
    split = columns["split"]
    if split.null_count == 0:
        return split
    groups = pc.coalesce(columns[record.group_by], columns["id"]).dictionary_encode()
    drawn = np.fromiter(map(_draw(record), groups.dictionary.to_pylist()), bool, len(groups.dictionary))
    heldout = pa.array(drawn[np.asarray(groups.indices)])
    return pc.coalesce(split, pc.if_else(heldout, "heldout", "train"))


def _draw(record: CorpusRecord) -> Callable[[str], bool]:
    """Whether a group is held out; see `assign_splits`."""
    return _drawing(record.split_key, record.heldout)


@lru_cache(maxsize=64)
def _drawing(split_key: str, share: float) -> Callable[[str], bool]:
    key = hashlib.blake2b(split_key.encode(), digest_size=32).digest()
    keyed = hashlib.blake2b(digest_size=8, key=key)
    limit = int(share * 2**64).to_bytes(8, "big")

    def is_heldout(group: str) -> bool:
        one = keyed.copy()  # half the time of taking in the key anew
        one.update(group.encode())
        return one.digest() < limit

    return is_heldout


def _given_id(record: Any) -> str:
    found = record.get("id") if isinstance(record, Mapping) else getattr(record, "id", None)
    return found if isinstance(found, str) else ""


def _raw_row(table: pa.Table, position: int) -> Any:
    """A row as it came, for quarantine."""
    try:
        return table.slice(position, 1).to_pylist()[0]
    except (ArithmeticError, ValueError):
        return table.slice(position, 1).to_string()


def spool_directory(corpus: BaseCorpus) -> Path:
    """Where the spools of a corpus lie on this host."""
    return corpus.store.host_dir / "spool" / corpus.record.table


def adopt_orphans(corpus: BaseCorpus) -> int:
    """Commit what processes that are gone have left in their spools; how many records had been erased meanwhile.

    Raises StoreError, ConflictError.
    """
    done = Committed()
    for spool in orphans(spool_directory(corpus)):
        try:
            drain(corpus, spool, done)
        finally:
            spool.close()
    scrub_spools(corpus)
    return done.erased


def scrub_spools(corpus: BaseCorpus, *, wait_s: float = 1.0, again: bool = False) -> list[str]:
    """Overwrite what this host's spools have let go of, once for each erasure; names of those that didn't let us in.

    An open recorder does so itself with its next commit. This is for one that commits nothing more.
    """
    newest = denylist(corpus).newest
    marker = corpus.store.host_dir / "erased" / f"{corpus.record.table}.spools"
    if not newest or (not again and noted(marker) >= newest):
        return []
    left = []
    directory = spool_directory(corpus)
    for path in sorted(directory.glob("*.sqlite")) if directory.is_dir() else []:
        try:
            scrub_file(path, wait_s=wait_s)
        except StoreError:
            if path.exists():  # else its owner has closed it, and it is gone
                left.append(path.name)
    if not left:
        with suppress(OSError):
            note(marker, newest)
    return left


def flush_spools(corpus: BaseCorpus) -> int:
    """Commit what this process and gone ones have acknowledged: step 0 of a seal.

    Gives how many records were dropped because they had been erased. Raises StoreError, ConflictError.
    """
    erased = 0
    for recorder in list(_open):
        mine = recorder._pid == os.getpid() and not recorder._closing
        # By the directory of their spools: a URI alone doesn't tell stores of the same name at two endpoints apart.
        if mine and spool_directory(recorder.corpus) == spool_directory(corpus):
            erased += recorder._drain()
    return erased + adopt_orphans(corpus)
