"""The snapshot cache: decoded columns of snapshots as memory-mapped files beside the store.

A snapshot never changes, so a column of its training rows can be decoded once and gathered from for ever: a full shuffle
at the speed of memory, and worker processes that never open Lance. One file a column, named by what it was made of
(snapshot, digest, column and type as delivered, format), put in place whole, with a small JSON document beside it that is
the commit point. Dropping any of it, at any time, costs speed and nothing else. Live is never cached.

`worth_building` decides what pays (pure); `SnapshotCache` keeps the files of one directory; `LoaderCache` is what one
loader uses: it opens what is there and builds, in one thread beside the training step, what will pay.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.engine import engine_of
from treering.engine.packed import pack_batches, unpack_batches
from treering.errors import NotFoundError, StoreError, TreeringError, UsageError
from treering.mixing.columnfile import ColumnWriter, column_in, stored_type
from treering.mixing.permute import Int64Array
from treering.mixing.sources import SegmentLike, SourceLike

if TYPE_CHECKING:
    from treering.engine import Engine

__all__ = ["CacheEntry", "CachedSegment", "Job", "LoaderCache", "SnapshotCache", "worth_building"]

FORMAT = 1  # a file of another format has another name, so it is simply not found
LIMIT_VARIABLE = "TREERING_CACHE_LIMIT"
MOST_BYTES = 20 << 30
_BLOCK_ROWS = 4_096  # rows that building holds at once; at 16,384 the engine kept 80 MB more for itself
_WORKER_ROWS = 65_536  # rows that a worker decodes at a time
_CHECK_AT_ONCE = (
    1 << 30
)  # bytes whose checksums may keep a first batch waiting (22 GB/s); the rest waits for the thread
_ABANDONED_S = 3600.0  # temporary files that nobody touched for so long are of a process that died
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: Files whose bytes this process has compared with their checksum: path → (inode, size, time of last change).
_SOUND: dict[str, tuple[int, int, int]] = {}


@runtime_checkable
class CachedSegment(Protocol):
    """What a segment must offer for its columns to be cached; the segments of a store do, those in memory don't."""

    name: str

    @property
    def ref(self) -> str:
        """`support@v1`."""

    @property
    def digest(self) -> str | None:
        """Content digest; None for live."""

    @property
    def incarnation(self) -> str:
        """Which corpus of that name."""

    @property
    def schema(self) -> Any:
        """The `pa.Schema` of what `take` delivers."""

    @property
    def cache_dir(self) -> Path:
        """Where its columns may lie."""

    def certified_runs(self) -> Int64Array | None:
        """int64 (k, 2): first row id and length of each run of the snapshot's training rows; None for live."""

    def column_fingerprint(self, name: str) -> str:
        """Another text whenever other bytes may be delivered."""

    def as_sealed(self) -> Any:
        """The same snapshot without what was corrected later."""

    def check_files(self) -> None:
        """Raise StoreError unless the snapshot's files are those that were certified."""

    def take(self, row_ids: Int64Array, columns: Sequence[str]) -> Any:
        """The `pa.Table` of these rows."""


class CacheEntry(BaseModel):
    """The document beside a cached column."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: int
    ref: str = Field(description="the snapshot, as in support@v1")
    incarnation: str
    digest: str = Field(description="content digest of the snapshot")
    column: str
    fingerprint: str = Field(description="the column and its type as delivered")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    checksum: str = Field(description="XXH3 (64 bit, hex) of the file")
    file: str


def worth_building(draws: int | None, rows: int, size: int, room: int) -> bool:
    """Whether to cache columns of `rows` rows and `size` bytes for a run that draws `draws` of them (None: endless).

    Yes when the run passes over them at least once, so that building, itself a pass, can pay, and they fit into `room`.
    """
    return rows > 0 and size <= room and (draws is None or draws >= rows)


def cache_limit(folder: Path, used: int = 0) -> int:
    """The most bytes a cache in `folder` may take: TREERING_CACHE_LIMIT (`5G`, `500M`, bytes), else 20 GiB or half of
    what would be free on that disk without it, whichever is less. Raises UsageError for a limit that can't be read.
    """  # noqa: D205
    text = os.environ.get(LIMIT_VARIABLE)
    if text is not None:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
        if found is None:
            raise UsageError(
                f"{LIMIT_VARIABLE} is {text!r}, not a size", code="bad-cache-limit", hint="write 5G, 500M or 0"
            )
        return int(float(found[1]) * _UNITS[found[2].upper()])
    return min(MOST_BYTES, (shutil.disk_usage(folder).free + used) // 2)


class SnapshotCache:
    """The cached columns in one directory. Safe beside other processes; nothing in it is ever changed in place."""

    def __init__(self, directory: str | os.PathLike[str], *, limit: int | None = None) -> None:
        self.folder = Path(directory) / "columns"
        self._limit = limit
        self.dropped = 0  # entries that were damaged, or not what they should have been

    @property
    def limit(self) -> int:
        """The most bytes it may take."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return cache_limit(self.folder, self.size) if self._limit is None else self._limit

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return sum(entry.bytes for _, entry in self._entries())

    def entries(self) -> list[CacheEntry]:
        """What is cached, by snapshot and column."""
        return sorted((entry for _, entry in self._entries()), key=_by_name)

    def drop(self, keep: Callable[[CacheEntry], bool] | None = None) -> list[CacheEntry]:
        """Remove the entries, or those that `keep` says no to. Processes that use them go on: only the names go."""
        gone = [(path, entry) for path, entry in self._entries() if keep is None or not keep(entry)]
        for path, entry in gone:
            self._remove(path, entry.file)
        if keep is None:
            shutil.rmtree(self.folder, ignore_errors=True)  # what isn't an entry too: it may be damaged, or half made
        return sorted((entry for _, entry in gone), key=_by_name)

    def holds(self, segment: CachedSegment, column: str) -> bool:
        """Whether there is a file for the column. Says nothing about its soundness."""
        return self._path(segment, column).exists()

    def open(self, segment: CachedSegment, column: str, *, at_most: int | None = None) -> Any | None:
        """The column of the snapshot's training rows, in the order of `certified_runs`, memory-mapped: a `pa.Array`.

        None when it isn't there, or isn't sound: then it is dropped and counted. The bytes are compared with their
        checksum once in each process; with `at_most`, a file larger than that which wasn't compared yet isn't opened.
        """
        path = self._path(segment, column)
        runs = segment.certified_runs()
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            entry = CacheEntry.model_validate_json(data)
            file = self.folder / entry.file
            if "/" in entry.file or entry.format != FORMAT or runs is None or entry.rows != runs[:, 1].sum():
                raise ValueError("another snapshot's")
            with file.open("rb") as opened:
                found = os.fstat(opened.fileno())
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                sound = _SOUND.get(str(file)) == stamp
                if at_most is not None and not sound and found.st_size > at_most:
                    return None
                if found.st_size != entry.bytes:
                    raise ValueError("of another size")
                buffer = pa.memory_map(str(file)).read_buffer()
            if not sound and xxhash.xxh3_64_hexdigest(buffer) != entry.checksum:
                raise ValueError("damaged")
            array = column_in(buffer)
            if len(array) != entry.rows:
                raise ValueError("of another length")
        except FileNotFoundError:
            return None  # another process made room
        except (ValidationError, ValueError, OSError, pa.ArrowException):
            self.dropped += 1
            self._remove(path, None)
            return None
        _SOUND[str(file)] = stamp
        with contextlib.suppress(OSError):
            os.utime(path)  # least recently used goes first
        return array

    def build(
        self,
        source: SourceLike | CachedSegment,
        columns: Sequence[str],
        *,
        stop: Event | None = None,
        engine: str | Engine | None = None,
    ) -> list[CacheEntry]:
        """Make the columns of the training rows of a snapshot, or of all snapshots of a source, that aren't there yet.

        Each snapshot is read once. Returns what was made: less than was asked for where there is no room.
        engine: who reads and decodes, this process by default; "local" (worker processes), "ray", or an engine at hand. This
        process writes the files, and they are the same.

        Raises StoreError when the snapshot's files aren't those that were certified, or hold other rows, and when the
        disk is full; nothing is cached then. UsageError for live, and for a column that can't be cached. Ends early,
        with nothing, once `stop` is set.
        """
        segments: list[Any] = list(source.segments) if isinstance(source, SourceLike) else [source]
        for segment in segments:
            _check_cacheable(segment, columns)
        where = [] if engine is None else [one.address["store"]["uri"] for one in segments]
        with engine_of(engine, *where) as workers:
            return [entry for one in segments for entry in self._build(one, columns, stop, workers)]

    def _build(
        self, segment: Any, columns: Sequence[str], stop: Event | None, engine: Engine | None
    ) -> list[CacheEntry]:
        columns = [name for name in columns if self.open(segment, name) is None]
        if not columns:
            return []
        runs, digest = segment.certified_runs(), segment.digest
        assert runs is not None  # live was refused
        assert digest is not None
        rows = int(runs[:, 1].sum())
        # A damaged file must not become a sound-looking column: Lance itself has no checksums.
        segment.check_files()
        sealed = segment.as_sealed()  # corrections are laid over what is cached: it serves every reader
        self._tidy()
        with self._writing(segment):
            writers: dict[str, ColumnWriter] = {}
            scratch = self.folder / f".{secrets.token_hex(8)}.tmp"
            try:
                for number, name in enumerate(columns):
                    kind = segment.schema.field(name).type
                    writers[name] = ColumnWriter(name, kind, scratch / str(number))
                for batch in _taken(sealed, runs, columns, engine):
                    if stop is not None and stop.is_set():
                        return []
                    for name, writer in writers.items():
                        writer.add(batch.column(name))
                made = []
                for number, (name, writer) in enumerate(writers.items()):
                    if writer.rows != rows:
                        raise StoreError(
                            f"{segment.ref} gave {writer.rows} training rows, its certificate says {rows}",
                            code="snapshot-damaged",
                            hint="restore the store's files from a backup",
                        )
                    path = scratch / f"{number}.arrow"
                    writer.finish(path)
                    writer.close()
                    entry = self._commit(segment, digest, name, rows, path)
                    made += [entry] if entry is not None else []
                return made
            finally:
                for writer in writers.values():
                    writer.close()
                shutil.rmtree(scratch, ignore_errors=True)

    def make_room(self, size: int, *, keep: Sequence[str] = ()) -> bool:
        """Remove the least recently used files until `size` more bytes fit; those named in `keep` stay.

        False, and nothing removed, when that isn't enough.
        """
        entries = self._entries()
        over = sum(entry.bytes for _, entry in entries) + size - self.limit
        candidates = sorted(((p, e) for p, e in entries if e.file not in keep), key=lambda pair: _used(pair[0]))
        if over > sum(entry.bytes for _, entry in candidates):
            return False
        for path, entry in candidates:
            if over <= 0:
                break
            self._remove(path, entry.file)
            over -= entry.bytes
        return True

    def _commit(self, segment: CachedSegment, digest: str, name: str, rows: int, made: Path) -> CacheEntry | None:
        size = made.stat().st_size
        if not self.make_room(size):
            return None
        path = self._path(segment, name)
        checksum = xxhash.xxh3_64_hexdigest(pa.memory_map(str(made)).read_buffer())
        entry = CacheEntry(
            format=FORMAT,
            ref=segment.ref,
            incarnation=segment.incarnation,
            digest=digest,
            column=name,
            fingerprint=segment.column_fingerprint(name),
            rows=rows,
            bytes=size,
            checksum=checksum,
            file=f"{path.stem}.{checksum}.arrow",  # by its bytes: no document can ever name another one's data
        )
        made.rename(self.folder / entry.file)
        document = made.with_suffix(".json")
        document.write_text(entry.model_dump_json(indent=2), encoding="utf-8")
        try:
            os.link(document, path)
        except FileExistsError:  # another process built the same meanwhile, and was first
            kept = self._read(path)
            if kept is not None and kept.file != entry.file:
                (self.folder / entry.file).unlink(missing_ok=True)
        return entry

    @contextlib.contextmanager
    def _writing(self, segment: CachedSegment) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as exc:
            raise StoreError(
                f"can't cache {segment.ref} in {self.folder}: {exc.strerror or exc}",
                code="write-failed",
                hint=f"free some space, or set {LIMIT_VARIABLE}",
            ) from exc

    def _path(self, segment: CachedSegment, column: str) -> Path:
        runs = segment.certified_runs()
        # The runs too: two snapshots of one content may number their rows differently.
        text = json.dumps(
            [
                FORMAT,
                segment.incarnation,
                segment.name,
                segment.digest,
                segment.column_fingerprint(column),
                None if runs is None else hashlib.sha256(runs.tobytes()).hexdigest(),
            ]
        )
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def _entries(self) -> list[tuple[Path, CacheEntry]]:
        found = [(path, self._read(path)) for path in self.folder.glob("*.json")]
        return [(path, entry) for path, entry in found if entry is not None]

    def _read(self, path: Path) -> CacheEntry | None:
        try:
            return CacheEntry.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def _remove(self, path: Path, file: str | None) -> None:
        """The document first: what it no longer names, nobody opens any more."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            for data in [self.folder / file] if file is not None else list(self.folder.glob(f"{path.stem}.*.arrow")):
                data.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove what processes that died have left."""
        named = {entry.file for _, entry in self._entries()}
        before = time.time() - _ABANDONED_S
        for path in self.folder.glob("*.arrow"):
            with contextlib.suppress(OSError):
                if path.name not in named and path.stat().st_mtime < before:
                    path.unlink()
        for path in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if max(one.stat().st_mtime for one in [path, *path.rglob("*")]) < before:
                    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Job:
    """A segment of a run's sources, and how many rows the run draws from it; None: without end."""

    segment: SegmentLike
    draws: int | None


class LoaderCache:
    """What one loader uses of the caches of its sources' stores. Goes to worker processes, which only open."""

    def __init__(self, *, limit: int | None = None) -> None:
        self._limit = limit
        self._caches: dict[Path, SnapshotCache] = {}
        self._open: dict[tuple[int, str], Any] = {}
        self._facts: dict[int, _Facts] = {}
        self._at_once = _CHECK_AT_ONCE
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None
        self._here = True
        self._built = 0  # columns
        self._skipped: str | None = None  # why something that would have paid wasn't built
        self._damage: TreeringError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self._limit, "sound": dict(_SOUND)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(limit=state["limit"])  # type: ignore[misc]
        self._here = False
        _SOUND.update(state["sound"])

    def stats(self) -> dict[str, Any]:
        """JSON-ready: `columns` in use, those `built`, damaged files `dropped`, and why one wasn't built, or null."""
        return {
            "columns": len(self._open),
            "built": self._built,
            "dropped": sum(cache.dropped for cache in self._caches.values()),
            "skipped": self._skipped,
        }

    def columns(self, segment: SegmentLike, names: Sequence[str]) -> list[Any] | None:
        """The memory-mapped columns of the segment's certified rows; None unless all of them are there."""
        facts = self._facts_of(segment)
        if facts is None:
            return None
        with self._lock:
            found = []
            for name in names:
                array = self._open.get((id(segment), name))
                if array is None:
                    array = facts.cache.open(facts, name, at_most=self._at_once if self._here else None)
                    if array is None:
                        return None
                    self._at_once -= array.nbytes
                    self._open[id(segment), name] = array
                found.append(array)
            return found

    def start(self, jobs: Sequence[Job], names: Sequence[str], *, build: bool = True) -> None:
        """Open what lies there; in a thread, check what is large and, with `build`, build what will pay.

        Once: while the thread runs, and after it ended, later calls only open.
        """
        wanted = [(facts, job.draws) for job in jobs if (facts := self._facts_of(job.segment)) is not None]
        missing = [job for job in jobs if self._facts_of(job.segment) and self.columns(job.segment, names) is None]
        if names and missing and self._thread is None and not self._stop.is_set():
            arguments = (wanted, tuple(names), build)
            self._thread = Thread(target=self._prepare, args=arguments, name="treering-cache", daemon=True)
            atexit.register(self.close)  # a thread that the interpreter's end cuts short would leave its files behind
            self._thread.start()

    def check(self) -> None:
        """Raise the StoreError that the thread came upon: a snapshot that isn't what was certified."""
        if self._damage is not None:
            raise self._damage

    def let_go(self) -> None:
        """Tell the thread to end; doesn't wait."""
        self._stop.set()

    def close(self) -> None:
        """End the thread, leaving no temporary file, and let go of the columns."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._open.clear()
            self._facts.clear()

    def _facts_of(self, segment: SegmentLike) -> _Facts | None:
        facts = self._facts.get(id(segment))
        if facts is None:
            if not isinstance(segment, CachedSegment) or segment.name == "live":
                return None  # live stays live, also when what was pinned has been sealed since
            runs = segment.certified_runs()
            if runs is None or segment.digest is None:
                return None
            folder = segment.cache_dir
            cache = self._caches.get(folder)
            if cache is None:
                cache = self._caches[folder] = SnapshotCache(folder, limit=self._limit)
            facts = self._facts[id(segment)] = _Facts(segment, runs, segment.digest, cache)
        return facts

    def _prepare(self, wanted: Sequence[tuple[_Facts, int | None]], names: Sequence[str], build: bool) -> None:
        kept: list[str] = []
        try:
            for facts, draws in wanted:
                cache = facts.cache
                missing = []
                for name in names:  # no limit here: it is this thread that may take its time to compare checksums
                    if self._stop.is_set():
                        return
                    if cache.open(facts, name) is None:
                        missing.append(name)
                kept += [cache._path(facts, name).stem for name in names if name not in missing]
                if (
                    not build
                    or not missing
                    or any(stored_type(facts.schema.field(name).type) is None for name in missing)
                ):
                    continue
                rows = int(facts.runs[:, 1].sum())
                size = _estimate(facts, missing, rows)
                used = sum(entry.bytes for entry in cache.entries() if entry.file.split(".")[0] in kept)
                if not worth_building(draws, rows, size, cache.limit - used):
                    if draws is None or draws >= rows:
                        self._skipped = f"{facts.ref}: {size >> 20} MiB don't fit into the cache's limit"
                    continue
                keep = [entry.file for entry in cache.entries() if entry.file.split(".")[0] in kept]
                cache.make_room(size, keep=keep)
                for entry in cache.build(facts, missing, stop=self._stop):
                    cache.open(facts, entry.column)  # compares the checksum here, so that the reader needn't
                    self._built += 1
                kept += [cache._path(facts, name).stem for name in missing]
        except TreeringError as exc:
            if exc.code == "snapshot-damaged":
                self._damage = exc
            self._skipped = exc.message  # a full disk, a directory that was dropped: the run goes on without
        except Exception as exc:
            self._skipped = f"{type(exc).__name__}: {exc}"
        finally:
            atexit.unregister(self.close)


class _Facts:
    """A segment with what takes documents to know, known."""

    def __init__(self, segment: CachedSegment, runs: Int64Array, digest: str, cache: SnapshotCache) -> None:
        self.segment = segment
        self.runs = runs
        self.digest: str | None = digest
        self.cache = cache
        self.name = segment.name
        self.ref = segment.ref
        self.incarnation = segment.incarnation
        self.schema = segment.schema
        self.cache_dir = segment.cache_dir
        self.column_fingerprint = segment.column_fingerprint
        self.check_files = segment.check_files
        self.as_sealed = segment.as_sealed
        self.take = segment.take

    def certified_runs(self) -> Int64Array | None:
        return self.runs


def _check_cacheable(segment: Any, columns: Sequence[str]) -> None:
    if not isinstance(segment, CachedSegment) or segment.name == "live":
        ref = getattr(segment, "ref", segment)
        raise UsageError(
            f"{ref} isn't a snapshot of a store: live is never cached", code="not-a-snapshot", hint="seal it first"
        )
    for name in columns:
        if name not in segment.schema.names:
            raise NotFoundError(
                f"{segment.ref} has no column {name!r}",
                code="no-column",
                hint=f"columns here: {', '.join(segment.schema.names)}",
            )
        kind = segment.schema.field(name).type
        if stored_type(kind) is None:
            raise UsageError(f"column {name!r} can't be cached: it is {kind}", code="not-cacheable")


def _taken(segment: Any, runs: Int64Array, columns: Sequence[str], engine: Engine | None) -> Iterator[pa.RecordBatch]:
    """The columns of a snapshot's rows, in the order of the runs."""
    if engine is None:
        for row_ids in _blocks(runs):
            yield from segment.take(row_ids, columns).to_batches()
        return
    rows = int(runs[:, 1].sum())
    shared = {"segment": segment.address, "columns": list(columns)}
    each = [{**shared, "runs": cut_runs(runs, low, _WORKER_ROWS).tolist()} for low in range(0, rows, _WORKER_ROWS)]
    for result in engine.map("treering.mixing.cache:take_rows", each):
        yield from unpack_batches(result)[1]


def take_rows(segment: Mapping[str, Any], runs: Sequence[Sequence[int]], columns: Sequence[str]) -> bytes:
    """In a worker: the columns of these rows."""
    from treering.store.source import segment_at

    found = segment_at(segment)
    tables = [found.take(ids, columns) for ids in _blocks(np.array(runs, np.int64).reshape(-1, 2))]
    return pack_batches(tables[0].schema, [batch for table in tables for batch in table.to_batches()])


def cut_runs(runs: Int64Array, low: int, count: int) -> Int64Array:
    """Of the rows that runs name, in order, `count` from the `low`-th on, as runs."""
    start = np.cumsum(runs[:, 1]) - runs[:, 1]
    first = np.maximum(start, low)
    length = np.minimum(start + runs[:, 1], low + count) - first
    kept = length > 0
    return np.stack([runs[kept, 0] + (first - start)[kept], length[kept]], axis=1)


def _blocks(runs: Int64Array) -> Iterator[Int64Array]:
    """The row ids of all runs, some thousand at a time."""
    start = np.cumsum(runs[:, 1]) - runs[:, 1]
    rows = int(runs[:, 1].sum())
    for low in range(0, rows, _BLOCK_ROWS):
        at = np.arange(low, min(low + _BLOCK_ROWS, rows), dtype=np.int64)
        run = np.searchsorted(start, at, side="right") - 1
        yield runs[run, 0] + at - start[run]


def _estimate(segment: _Facts, columns: Sequence[str], rows: int) -> int:
    """Bytes of these columns, from a few rows spread over the snapshot."""
    start = np.cumsum(segment.runs[:, 1]) - segment.runs[:, 1]
    at = np.unique(np.linspace(0, rows - 1, min(rows, 256)).astype(np.int64))
    run = np.searchsorted(start, at, side="right") - 1
    sample = segment.take(segment.runs[run, 0] + at - start[run], columns)
    return int(sample.nbytes / len(at) * rows) + 4_096 * len(columns)


def _by_name(entry: CacheEntry) -> tuple[str, str]:
    return (entry.ref, entry.column)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
