"""Records out of the store, as files of other programs: what a ref names, or the batches of a mix lock, row by row.

Decides which rows, in which order; formats (formats.writers) make bytes of them and targets (target) put those in their
place. Holds a batch of records at a time. Imports no torch: a lock is read by the plan that loaders go by.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.engine import engine_of
from treering.engine.packed import pack, pack_batches, unpack, unpack_batches
from treering.errors import NotFoundError, Problem, UsageError
from treering.formats.writers import Exporter, WrittenFile, find_exporter
from treering.formats.writers.base import LeftOut
from treering.mixing.columns import arrow_kind, drop_rows
from treering.mixing.delivered import delivered_types
from treering.mixing.events import Course
from treering.mixing.lock import MixLock, column_names
from treering.mixing.reader import REF, BatchReader, Share
from treering.mixing.target import Target, target_of
from treering.store.base import reopened
from treering.store.source import segment_at
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.engine import Engine
    from treering.store.base import BaseStore
    from treering.store.source import Segment, Source

__all__ = ["ExportSummary", "Progress", "export"]

Split = Literal["all", "train", "heldout"]
Progress = Callable[[int, "int | None"], None]  # rows done, of how many (None: unknown)

_SHOWN = 20  # records that were left out, with their problems
_PIECE = 65_536  # rows, by row id, that one worker reads at a time
_AT_ONCE = 8_192  # rows handed to a format at a time, from batches of whatever size


@dataclass(frozen=True)
class ExportSummary:
    """What was written, and what wasn't. JSON-ready."""

    source: str  # the ref, or the refs that the lock mixes
    lock: str | None  # digest of the lock
    format: str
    rows: int  # records written
    paths: list[str]  # files in order; of a format that writes folders the folder; "-" for a stream
    files: list[WrittenFile]
    heldout: int  # held-out records among them
    excluded: int  # records of the ref that annotations exclude: not among them
    erased: int  # with erased="skip": rows of the lock that are gone
    #: What the format has no place for → in how many of the records it said something.
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: int = 0  # with skip_unfit: records that the format can't hold
    problems: list[LeftOut] = field(default_factory=list)  # the first of them


@dataclass
class _Rows:
    """The records of an export."""

    source: str
    schema: pa.Schema
    total: int | None
    batches: Iterator[pa.RecordBatch]
    segments: Sequence[Segment] = ()  # where they lie
    lock: str | None = None
    counts: Counter[str] = field(default_factory=Counter)  # heldout, excluded, erased; complete once all was read
    #: The same in parts that workers make; None where each depends on the one before.
    parts: Callable[[], Sequence[dict[str, Any]]] | None = None
    check: Callable[[], None] = lambda: None  # that nothing was erased while they were read

    def outcomes(self) -> dict[str, bool]:
        """Record id → the newest outcome, as far as it was said when the rows were pinned."""
        words: dict[str, str] = {}
        for segment in {(one.corpus, one.narrowing.annotations): one for one in self.segments}.values():
            words |= segment.said_under("outcome", segment.narrowing.annotations)
        return {name: word == "true" for name, word in words.items() if word in ("true", "false")}


def export(
    store: BaseStore,
    what: str | os.PathLike[str] | MixLock,
    to: str | os.PathLike[str] | IO[bytes],
    *,
    format: str = "records",  # noqa: A002  (as the command calls it)
    split: Split = "all",
    columns: Sequence[str] | None = None,
    shard_rows: int | None = None,
    with_ref: bool = False,
    epochs: int | Literal["as-locked"] = "as-locked",
    erased: Literal["refuse", "skip"] = "refuse",
    skip_unfit: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    engine: str | Engine | None = None,
) -> ExportSummary:
    """Write the records of a ref, or the rows of a mix lock, to a file; see `Store.export`."""
    with engine_of(engine, *([] if engine is None else [store.uri])) as workers:
        return _export(
            store,
            what,
            to,
            format,
            split,
            columns,
            shard_rows,
            with_ref=with_ref,
            epochs=epochs,
            erased=erased,
            skip_unfit=skip_unfit,
            force=force,
            progress=progress,
            engine=workers,
        )


def _export(
    store: BaseStore,
    what: str | os.PathLike[str] | MixLock,
    to: str | os.PathLike[str] | IO[bytes],
    format: str,  # noqa: A002
    split: Split,
    columns: Sequence[str] | None,
    shard_rows: int | None,
    *,
    with_ref: bool,
    epochs: int | Literal["as-locked"],
    erased: Literal["refuse", "skip"],
    skip_unfit: bool,
    force: bool,
    progress: Progress | None,
    engine: Engine | None,
) -> ExportSummary:
    exporter = find_exporter(format)
    _check(split, shard_rows, epochs)
    lock = _lock(what)
    if lock is None:
        for name, given, default in (
            ("epochs", epochs, "as-locked"),
            ("erased", erased, "refuse"),
            ("with_ref", with_ref, False),
        ):
            if given != default:
                raise UsageError(f"{name} is about a lock, and {what} is a ref", code="bad-argument")
        rows = _of_ref(store, str(what), split, columns)
    else:
        if split != "all":
            raise UsageError("a lock has no held-out rows to choose from", code="bad-split", hint="leave out split")
        rows = _of_lock(store, lock, columns, with_ref=with_ref, epochs=epochs, erased=erased)
    first = exporter(rows.schema, skip=skip_unfit)
    if with_ref and REF not in first.holds:
        raise UsageError(
            f"{format} has no place for {REF}", code="bad-argument", hint="records, parquet and hf have one"
        )
    if first.has_outcomes:
        first.outcomes = rows.outcomes()
    with target_of(
        to, exporter.suffix, folder=exporter.folder, packed=exporter.packed, sharded=shard_rows is not None, force=force
    ) as target:
        if engine is not None and rows.parts is None:
            raise UsageError(
                f"what comes next in {rows.source} depends on what came before: there are no parts to be made side by side",
                code="bad-engine",
                hint="leave out engine (--engine)",
            )
        writer = _Writer(first, target, shard_rows, progress, rows.total)
        if engine is None:
            for batch in rows.batches:
                writer.add(batch)
        else:
            _from_workers(rows, writer, engine, format)
        done = writer.finish()
        paths = target.commit(first.beside(done.files))
    return ExportSummary(
        source=rows.source,
        lock=rows.lock,
        format=format,
        rows=sum(file.rows for file in done.files),
        paths=paths,
        files=done.files,
        heldout=rows.counts["heldout"],
        excluded=rows.counts["excluded"],
        erased=rows.counts["erased"],
        dropped=dict(sorted(done.dropped.items())),
        left_out=done.left_out,
        problems=done.problems,
    )


@dataclass
class _Done:
    files: list[WrittenFile]
    dropped: Counter[str]
    left_out: int
    problems: list[LeftOut]


class _Writer:
    """Writes rows in order, a new file after each `shard_rows`; at least one file."""

    def __init__(
        self,
        exporter: Exporter,
        target: Target,
        shard_rows: int | None,
        progress: Progress | None,
        total: int | None,
    ) -> None:
        self._target = target
        self._shard_rows = shard_rows
        self._progress = progress
        self._total = total
        self._exporter, self._sink = exporter, target.begin()
        self._made = [(self._exporter, self._sink)]
        self._read = self._left_out = 0
        self._problems: list[LeftOut] = []

    @property
    def exporter(self) -> Exporter:
        """That of the file at hand."""
        return self._exporter

    def add(self, batch: pa.RecordBatch) -> None:
        """Write the next records."""
        low = 0
        while low < len(batch):
            room = self._room()
            self._sink.write(self._exporter.encode(batch.slice(low, room)))
            low += room
        self._done(len(batch))

    def add_made(self, data: memoryview, ends: Any, fits: Any, left_out: list[LeftOut], dropped: Counter[str]) -> None:
        """Write the next records as a worker made them: `ends` (n,) in `data`, and whether each is held: `fits` (n,)."""
        low = start = 0
        while low < len(ends):
            room = min(self._room(), len(ends) - low)
            end = int(ends[low + room - 1])
            self._sink.write(bytes(data[start:end]))
            self._exporter.rows += int(fits[low : low + room].sum())
            low, start = low + room, end
        self._exporter.left_out += left_out
        self._exporter.dropped += dropped
        self._done(len(ends))

    def finish(self) -> _Done:
        """End the last file."""
        self._end_file()
        files = [
            sink.written(self._target.name(n, len(self._made)), exporter.rows)
            for n, (exporter, sink) in enumerate(self._made)
        ]
        dropped = sum((exporter.dropped for exporter, _ in self._made), Counter[str]())
        return _Done(files, dropped, self._left_out, self._problems)

    def _room(self) -> int:
        """How many records may be written next, to a new file if the last one is full."""
        if self._shard_rows is None:
            return _AT_ONCE
        if self._exporter.rows >= self._shard_rows:
            self._end_file()
            last = self._exporter
            self._exporter, self._sink = type(last)(last.schema, skip=last.skip), self._target.begin()
            self._exporter.outcomes = last.outcomes
            self._made.append((self._exporter, self._sink))
        return min(_AT_ONCE, self._shard_rows - self._exporter.rows)

    def _end_file(self) -> None:
        exporter = self._exporter
        self._sink.write(exporter.finish())
        self._sink.close()
        self._left_out += len(exporter.left_out)
        self._problems.extend(exporter.left_out[: _SHOWN - len(self._problems)])
        exporter.left_out.clear()

    def _done(self, rows: int) -> None:
        self._read += rows
        if self._progress is not None:
            self._progress(self._read, self._total)


# --- workers ---------------------------------------------------------------------------------------------------------


def _from_workers(rows: _Rows, writer: _Writer, engine: Engine, format: str) -> None:  # noqa: A002
    """Have the parts made side by side, and write them in order.

    Where a file is its records' bytes one after the other, workers make those; else they read, and the file is made here.
    """
    assert rows.parts is not None
    exporter = writer.exporter
    how = {"format": format if exporter.by_record else None, "skip": exporter.skip}
    for result in engine.map("treering.mixing.export:part", [{"part": part, **how} for part in rows.parts()]):
        if exporter.by_record:
            said, parts = unpack(result)
            left_out = [LeftOut(name, tuple(_problem(one) for one in found)) for name, found in said["left_out"]]
            ends, fits = np.frombuffer(parts["ends"], "<i8"), np.frombuffer(parts["fits"], bool)
            writer.add_made(parts["data"], ends, fits, left_out, Counter(said["dropped"]))
        else:
            _, batches, said = unpack_batches(result)
            for batch in batches:
                writer.add(batch)
        rows.counts.update(said["counts"])
    rows.check()


def part(part: Mapping[str, Any], format: str | None, skip: bool) -> bytes:  # noqa: A002
    """In a worker: the rows of one part, as the format has them, or as Arrow batches without one."""
    rows = _lock_part(part) if "lock" in part else _ref_part(part)
    if format is None:
        batches = list(rows.batches)
        return pack_batches(rows.schema, batches, {"counts": rows.counts})
    exporter = find_exporter(format)(rows.schema, skip=skip)
    if exporter.has_outcomes:
        exporter.outcomes = rows.outcomes()
    made = [one for batch in rows.batches for one in exporter.each(batch)]
    ends = np.cumsum([0 if one is None else len(one) for one in made], dtype="<i8")
    fits = np.array([one is not None for one in made], bool)
    left_out = [(one.id, [[list(p.loc), p.kind, p.message] for p in one.problems]) for one in exporter.left_out]
    return pack(
        {"counts": rows.counts, "dropped": exporter.dropped, "left_out": left_out},
        data=b"".join([one for one in made if one is not None]),
        ends=ends.tobytes(),
        fits=fits.tobytes(),
    )


def _problem(said: Sequence[Any]) -> Problem:
    loc, kind, message = said
    return Problem(tuple(loc), kind, message)


def _check(split: str, shard_rows: Any, epochs: Any) -> None:
    if split not in ("all", "train", "heldout"):
        raise UsageError(f"split is {split!r}; it is all, train or heldout", code="bad-split")
    for name, value in (("shard_rows", shard_rows), ("epochs", None if epochs == "as-locked" else epochs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{name} is {value!r}; it is a whole number ≥ 1", code=f"bad-{name.replace('_', '-')}")


def _lock(what: str | os.PathLike[str] | MixLock) -> MixLock | None:
    """The lock that is meant; None for a ref. A path is told from a ref by its file, or by its ending."""
    if isinstance(what, MixLock):
        return what
    if not isinstance(what, str | os.PathLike):
        raise UsageError(f"{what!r} is neither a ref nor a mix lock", code="bad-ref")
    if isinstance(what, os.PathLike) or what.endswith(".json") or Path(what).is_file():
        return MixLock.load(what)
    return None


# --- a ref -----------------------------------------------------------------------------------------------------------


def _of_ref(store: BaseStore, ref: str, split: Split, columns: Sequence[str] | None) -> _Rows:
    source = store.heldout(ref) if split == "heldout" else store.load(ref)
    names = list(source.schema.names) if columns is None else list(dict.fromkeys(column_names(columns)))
    unknown = [name for name in names if name not in source.schema.names]
    if unknown:
        raise NotFoundError(
            f"{source.ref} has no column {unknown[0]!r}",
            code="no-column",
            hint="columns here: " + ", ".join(source.schema.names),
        )
    schema = pa.schema([source.schema.field(name) for name in names])
    counts: Counter[str] = Counter(excluded=sum(len(_excluded(segment)) for segment in source.segments))
    if split == "all":
        total = len(source) - counts["excluded"]
    else:
        total = sum(int(segment.runs(split)[:, 1].sum()) for segment in source.segments)

    def parts() -> list[dict[str, Any]]:
        pieces = [piece for segment in source.segments for piece in _pieces(segment)]
        return [{"segment": piece.address, "columns": names, "split": split} for piece in pieces]

    def check() -> None:
        for segment in source.segments:
            segment.check_whole()

    return _Rows(
        source.ref,
        schema,
        total,
        _scanned(source, schema, split, counts),
        source.segments,
        counts=counts,
        parts=parts,
        check=check,
    )


def _pieces(segment: Segment) -> Iterator[Segment]:
    """The segment in parts of about `_PIECE` rows, by row id: what is read doesn't depend on who reads it."""
    low, high = segment.row_ids
    for start in range(low, high, _PIECE):
        yield segment.piece(start, min(start + _PIECE, high))


def _ref_part(part: Mapping[str, Any]) -> _Rows:
    segment = segment_at(part["segment"])
    schema = pa.schema([segment.schema.field(name) for name in part["columns"]])
    counts: Counter[str] = Counter()
    return _Rows("", schema, None, _read(segment, schema, part["split"], counts), [segment], counts=counts)


def _excluded(segment: Segment) -> Any:
    """Row ids of the segment's records that annotations exclude; of a selection, those that it chose."""
    excluded, chosen = segment.excluded(), segment.narrowing.rows
    return excluded if chosen is None else np.intersect1d(excluded, chosen)


def _scanned(source: Source, schema: pa.Schema, split: Split, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The records as loaders deliver them, with what was corrected and without what was excluded, in record order."""
    for segment in source.segments:
        segment.check_whole()
        for piece in _pieces(segment):
            yield from _read(piece, schema, split, counts)
        segment.check_whole()  # what was erased while it was read is missing from some point on


def _read(segment: Segment, schema: pa.Schema, split: Split, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    reads = [*schema.names, *(name for name in ("split", ROW_ID) if name not in schema.names)]
    dropped = segment.excluded()
    for batch in segment.scan(reads, None if split == "all" else split):
        if split == "all" and len(dropped):
            ids = np.asarray(batch.column(ROW_ID)).astype(np.int64)
            batch = batch.filter(pa.array(~np.isin(ids, dropped)))
        counts["heldout"] += pc.sum(pc.equal(batch.column("split"), "heldout")).as_py() or 0
        yield batch.select(schema.names).cast(schema)


# --- a lock ----------------------------------------------------------------------------------------------------------


def _of_lock(
    store: BaseStore,
    lock: MixLock,
    columns: Sequence[str] | None,
    *,
    with_ref: bool,
    epochs: int | Literal["as-locked"],
    erased: Literal["refuse", "skip"],
) -> _Rows:
    if erased not in ("refuse", "skip"):
        raise UsageError(f"erased is {erased!r}; it is 'refuse' or 'skip'", code="bad-erased")
    # The lock's own columns are what its loader hands to a trainer: often too few to say what a record is.
    changed: dict[str, Any] = {"columns": None if columns is None else column_names(columns)}
    if epochs != "as-locked":
        changed["epochs"] = epochs
    lock = MixLock.checked(**{**dict(lock), **changed})
    if lock.epochs is None:
        raise UsageError(
            "the lock is of an endless run, and a file has an end",
            code="endless-lock",
            hint="say how many passes: --epochs 1 (epochs=1)",
        )
    course = Course(lock, lock.resolve(store, erased=erased))
    rows = _course_rows(course, with_ref=with_ref)
    if course.total is not None and not course.adaptive:
        rows.total = sum(course.plan.taken_before(course.total))
        end, step = course.total, max(1, _PIECE // lock.batch_size)

        def parts() -> list[dict[str, Any]]:
            # What was erased may be more at the next export, and workers keep what they looked up: `call` tells one from another.
            shared: dict[str, Any] = {
                "call": uuid4().hex,
                "store": store.address,
                "lock": lock.to_json(),
                "erased": erased,
            }
            shared["with_ref"] = with_ref
            return [{**shared, "batches": (low, min(low + step, end))} for low in range(0, end, step)]

        rows.parts = parts
    return rows


def _course_rows(course: Course, *, with_ref: bool, share: Share | None = None) -> _Rows:
    types = delivered_types(course.lock, course.sources)
    fields = [_field(name, kind, course.sources) for name, kind in types.items()]
    schema = pa.schema([*fields, *([pa.field(REF, pa.string(), nullable=False)] if with_ref else [])])
    counts: Counter[str] = Counter()
    segments = [segment for source in course.sources for segment in getattr(source, "segments", ())]
    batches = _drawn(course, types, schema, counts, share or Share(stop=course.stretch.stop))
    return _Rows(", ".join(course.lock.refs), schema, None, batches, segments, course.lock.digest, counts)


def _lock_part(part: Mapping[str, Any]) -> _Rows:
    first, stop = part["batches"]
    course = _course(part["call"], json.dumps(part["store"], sort_keys=True), part["lock"], part["erased"])
    return _course_rows(course, with_ref=part["with_ref"], share=Share(start=first, stop=stop))


@lru_cache(1)
def _course(call: str, store: str, lock: str, erased: Literal["refuse", "skip"]) -> Course:
    """What all parts of one export (`call`) of a lock have in common: its sources are looked up and compared once a worker."""
    found = MixLock.from_json(lock)
    return Course(found, found.resolve(reopened(json.loads(store)), erased=erased))


def _field(name: str, kind: Any, sources: Sequence[Any]) -> pa.Field:
    """A column as its sources have it: null where any may be, with the metadata of the first."""
    found = [source.schema.field(name) for source in sources if name in source.schema.names]
    return pa.field(name, kind, any(one.nullable for one in found), found[0].metadata)


def _drawn(
    course: Course, types: dict[str, Any], schema: pa.Schema, counts: Counter[str], share: Share
) -> Iterator[pa.RecordBatch]:
    """The batches that a loader of the lock hands out, one after the other, events settled as it settles them."""
    refs = pa.array(course.lock.refs, pa.string())
    kinds = [arrow_kind(name, kind) for name, kind in types.items()]
    stretch = course.stretch
    stop = share.stop
    with BatchReader(stretch.plan, stretch.rows, kinds, share) as reader:
        batch = share.start
        while stop is None or batch < stop:
            events = len(course.lock.events)
            if course.adaptive and course.settle(batch, None, leads=True):
                stretch = course.stretch
                stop = stretch.stop
                if len(course.lock.events) != events:
                    reader.replan(stretch.plan, stretch.rows, share=Share(stop=stop))
                if stop is not None and batch >= stop:
                    return
            made, _ = reader.read(batch)
            gone = reader.gone(batch)
            if gone is not None and gone.any():
                counts["erased"] += int(gone.sum())
                made = drop_rows(made, gone)
            arrays = [refs.take(pa.array(made[REF])) if name == REF else made[name].arrow for name in schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            batch += 1
