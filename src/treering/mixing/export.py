"""Records out of the store, as files of other programs: what a ref names, or the batches of a mix lock, row by row.

Decides which rows, in which order; formats (formats.writers) make bytes of them and targets (target) put those in their
place. Holds a batch of records at a time. Imports no torch: a lock is read by the plan that loaders go by.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import NotFoundError, UsageError
from treering.formats.writers import Exporter, WrittenFile, find_exporter
from treering.formats.writers.base import LeftOut
from treering.mixing.columns import arrow_kind, drop_rows
from treering.mixing.delivered import delivered_types
from treering.mixing.events import Course
from treering.mixing.lock import MixLock, column_names
from treering.mixing.reader import REF, BatchReader, Share
from treering.mixing.target import Target, target_of
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.source import Segment, Source

__all__ = ["ExportSummary", "Progress", "export"]

Split = Literal["all", "train", "heldout"]
Progress = Callable[[int, "int | None"], None]  # rows done, of how many (None: unknown)

_SHOWN = 20  # records that were left out, with their problems
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
) -> ExportSummary:
    """Write the records of a ref, or the rows of a mix lock, to a file; see `Store.export`."""
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
        done = _write(rows, first, target, shard_rows, progress)
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


def _write(rows: _Rows, exporter: Exporter, target: Target, shard_rows: int | None, progress: Progress | None) -> _Done:
    """Write all rows, a new file after each `shard_rows`; at least one file."""
    sink = target.begin()
    made = [(exporter, sink)]
    read = left_out = 0
    problems: list[LeftOut] = []

    def finish() -> None:
        nonlocal left_out
        sink.write(exporter.finish())
        sink.close()
        left_out += len(exporter.left_out)
        problems.extend(exporter.left_out[: _SHOWN - len(problems)])
        exporter.left_out.clear()

    for batch in rows.batches:
        low = 0
        while low < len(batch):
            if shard_rows is not None and exporter.rows >= shard_rows:
                finish()
                outcomes = exporter.outcomes
                exporter, sink = type(exporter)(exporter.schema, skip=exporter.skip), target.begin()
                exporter.outcomes = outcomes
                made.append((exporter, sink))
            room = _AT_ONCE if shard_rows is None else min(_AT_ONCE, shard_rows - exporter.rows)
            sink.write(exporter.encode(batch.slice(low, room)))
            low += room
        read += len(batch)
        if progress is not None:
            progress(read, rows.total)
    finish()
    files = [one_sink.written(target.name(n, len(made)), one.rows) for n, (one, one_sink) in enumerate(made)]
    return _Done(files, sum((one.dropped for one, _ in made), Counter()), left_out, problems)


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
    return _Rows(source.ref, schema, total, _scanned(source, schema, split, counts), source.segments, counts=counts)


def _excluded(segment: Segment) -> Any:
    """Row ids of the segment's records that annotations exclude; of a selection, those that it chose."""
    excluded, chosen = segment.excluded(), segment.narrowing.rows
    return excluded if chosen is None else np.intersect1d(excluded, chosen)


def _scanned(source: Source, schema: pa.Schema, split: Split, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The records as loaders deliver them, with what was corrected and without what was excluded, in record order."""
    for segment in source.segments:
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
    sources = lock.resolve(store, erased=erased)
    types = delivered_types(lock, sources)
    fields = [_field(name, kind, sources) for name, kind in types.items()]
    schema = pa.schema([*fields, *([pa.field(REF, pa.string(), nullable=False)] if with_ref else [])])
    course = Course(lock, sources)
    counts: Counter[str] = Counter()
    total = None
    if course.total is not None and not course.adaptive:
        total = sum(course.plan.taken_before(course.total))
    batches = _drawn(course, types, schema, counts)
    segments = [segment for source in sources for segment in getattr(source, "segments", ())]
    return _Rows(", ".join(lock.refs), schema, total, batches, segments, lock.digest, counts)


def _field(name: str, kind: Any, sources: Sequence[Any]) -> pa.Field:
    """A column as its sources have it: null where any may be, with the metadata of the first."""
    found = [source.schema.field(name) for source in sources if name in source.schema.names]
    return pa.field(name, kind, any(one.nullable for one in found), found[0].metadata)


def _drawn(course: Course, types: dict[str, Any], schema: pa.Schema, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The batches that a loader of the lock hands out, one after the other, events settled as it settles them."""
    refs = pa.array(course.lock.refs, pa.string())
    kinds = [arrow_kind(name, kind) for name, kind in types.items()]
    stretch = course.stretch
    with BatchReader(stretch.plan, stretch.rows, kinds, Share(stop=stretch.stop)) as reader:
        batch = 0
        while stretch.stop is None or batch < stretch.stop:
            events = len(course.lock.events)
            if course.adaptive and course.settle(batch, None, leads=True):
                stretch = course.stretch
                if len(course.lock.events) != events:
                    reader.replan(stretch.plan, stretch.rows, share=Share(stop=stretch.stop))
                if stretch.stop is not None and batch >= stretch.stop:
                    return
            made, _ = reader.read(batch)
            gone = reader.gone(batch)
            if gone is not None and gone.any():
                counts["erased"] += int(gone.sum())
                made = drop_rows(made, gone)
            arrays = [refs.take(pa.array(made[REF])) if name == REF else made[name].arrow for name in schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            batch += 1
