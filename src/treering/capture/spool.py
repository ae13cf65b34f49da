"""The spool: where a record lies between its acknowledgement and the table.

One SQLite file a recorder (WAL, synchronous=FULL), one BLOB a payload: durable, self-repairing after a torn write, and as
fast as a bare log. What is large lies in a file of its own beside it, synced before its row names it: through SQLite's log
its bytes would be copied and summed several times and written twice. The lock file is held while the process lives; a
spool whose lock is free is an orphan.
Knows bytes, Arrow streams and sequence numbers, not records.
"""

from __future__ import annotations

import errno
import os
import queue
import secrets
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout

from treering.errors import StoreError, UsageError
from treering.store.durable import make_directory, sync_directory

__all__ = ["Entry", "Spool", "Write", "orphans", "scrub_file"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY, rows INTEGER NOT NULL, size INTEGER NOT NULL, payload BLOB NOT NULL, file TEXT
);
CREATE TABLE IF NOT EXISTS refused (
    seq INTEGER PRIMARY KEY, rows INTEGER NOT NULL, size INTEGER NOT NULL, payload BLOB NOT NULL, file TEXT
);
"""
_INSERT_BATCH = "INSERT INTO batches (seq, rows, size, payload, file) VALUES (?, ?, ?, ?, ?)"
_INSERT_REFUSED = "INSERT INTO refused (seq, rows, size, payload, file) VALUES (?, ?, ?, ?, ?)"

#: Pages of 4 KiB after which SQLite moves what its log holds into the file and begins the log anew.
_LOG_PAGES = 256
#: Bytes from which Arrow data gets a file of its own: two syncs more, the file's and its name's.
LARGE = 256 << 10
#: Bytes that an Arrow stream has beside its schema and its batches: markers and padding.
_FRAME = 1_024

#: Seconds after which a lock file without a spool is nobody's.
_LONE_LOCK_S = 60.0


#: Rows, and their bytes.
Payload = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """What was stored at once: its number, its rows, its bytes."""

    seq: int
    rows: int
    payload: bytes | pa.Buffer


class Write:
    """One caller's payloads on their way to the disk."""

    __slots__ = ("accepted", "large", "outcome", "refused")

    def __init__(
        self, accepted: Sequence[Payload], large: Sequence[pa.RecordBatch], refused: Sequence[Payload]
    ) -> None:
        self.accepted, self.large, self.refused = accepted, large, refused
        # A SimpleQueue and not a Future: its `get` is one step, which an interrupt can't leave half done.
        self.outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def wait(self) -> None:
        """Return once it is on disk; call it once. Raises StoreError when it can't be stored."""
        failure = self.outcome.get()
        if failure is not None:
            raise failure


class _Log:
    """The writing half of a spool. Whoever writes has its turn; what comes meanwhile waits in the queue, for one sync.

    Apart from the spool, so that the thread that empties the queue doesn't keep a forgotten spool alive.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, sync_every_s: float | None) -> None:
        self.path, self.connection, self.sync_every_s = path, connection, sync_every_s
        self.turn = threading.Lock()
        self.waiting: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self.closed = False
        self.working = False  # the thread has something in hand
        self.unsynced = False  # with `sync_every_s`: the thread knows that there is something to sync
        self.failure: StoreError | None = None
        query = "SELECT max((SELECT coalesce(max(seq), 0) FROM batches), (SELECT coalesce(max(seq), 0) FROM refused))"
        self._last = int(connection.execute(query).fetchone()[0])

    def is_busy(self) -> bool:
        """Whether others write or wait: whoever passed them could go on doing so for ever."""
        return self.turn.locked() or self.working or not self.waiting.empty()

    def number(self) -> int:
        """The next sequence number, for who has the turn: none is ever used twice, so whoever waits for one can tell."""
        self._last += 1
        return self._last

    def insert_one(self, rows: int, payload: bytes) -> None:
        """Store a payload from the caller's own thread.

        One statement is one transaction and one step, which an interrupt can't leave half done. Raises StoreError,
        UsageError once the spool is closed.
        """
        with self.turn:
            if self.closed:
                raise _is_closed()
            if self.failure is not None:
                raise self.failure
            try:
                self.connection.execute(_INSERT_BATCH, (self.number(), rows, len(payload), payload, None))
            except (sqlite3.Error, OverflowError) as exc:
                raise _refused_by_sqlite(self.path, exc) from exc
        if self.sync_every_s is not None and not self.unsynced:
            self.unsynced = True
            self.waiting.put(Write((), (), ()))

    def write_file(self, batches: Sequence[pa.RecordBatch]) -> tuple[str, int]:
        """A new file beside the spool that holds an Arrow stream of the batches, on disk; its name and its bytes."""
        path = self.path.with_suffix(f".{secrets.token_hex(6)}.arrows")
        try:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            sync_directory(path.parent)
        except BaseException as exc:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                hint = "free some space, then send the records again" if exc.errno == errno.ENOSPC else None
                reason = exc.strerror or str(exc)
                raise StoreError(f"the spool {path} can't be written: {reason}", code="spool", hint=hint) from exc
            raise
        return path.name, size


class Spool:
    """A durable queue of payloads. Thread-safe; threads that write at once share one sync.

    A thread of its own writes what is more than one payload: an interrupt hits the main thread only, so it can't leave
    that half done. With `sync_every_s` a write is done once the system has it, and synced at most that much later: a kill
    loses nothing of it, a power cut may.
    """

    def __init__(self, path: Path, lock: FileLock, *, sync_every_s: float | None = None) -> None:
        self.path = path
        self._sync_every_s = sync_every_s
        self._lock = lock
        self._gate = threading.Lock()
        self._thread: threading.Thread | None = None
        with _translated(path):
            # Writing and reading have a connection each, so that draining never holds up an acknowledgement.
            self._writer = self._connect()
            self._writer.executescript(_SCHEMA)
            self._reader = self._connect()
            self._log = _Log(path, self._writer, sync_every_s)
        self._reading = threading.Lock()
        sync_directory(path.parent)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        # NORMAL syncs at checkpoints alone; what lies in the log until then is for `_write` to sync.
        connection.execute(f"PRAGMA synchronous={'FULL' if self._sync_every_s is None else 'NORMAL'}")
        return connection

    @classmethod
    def new(cls, directory: Path, *, sync_every_s: float | None = None) -> Spool:
        """A fresh spool of this process in `directory`."""
        try:
            make_directory(directory, below=directory.parents[1])
            path = directory / f"{os.getpid()}-{secrets.token_hex(6)}.sqlite"
            lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
            lock.acquire()  # before the file is there to be taken for an orphan
        except OSError as exc:
            raise StoreError(f"can't make a spool in {directory}: {exc.strerror}", code="spool") from exc
        spool = cls(path, lock, sync_every_s=sync_every_s)
        with _translated(path):
            _make_room(spool._writer)
        return spool

    def append(self, batches: Sequence[pa.RecordBatch], refused: Sequence[Payload] = ()) -> Write:
        """Begin to store batches of one schema and refused payloads, all or none; `wait` on the result: they are on disk.

        Raises UsageError once the spool is closed.
        """
        is_large = sum(batch.nbytes for batch in batches) >= LARGE
        rows = sum(map(len, batches))
        accepted = [(rows, _to_ipc(batches))] if batches and not is_large else []
        return self._hand_over(Write(accepted, batches if is_large else (), refused))

    def append_one(self, payload: bytes) -> None:
        """Store one record's payload; it is on disk when this returns. Raises StoreError, UsageError once closed."""
        if self._log.is_busy():  # then the next sync is for all who wait by then
            self._hand_over(Write([(1, payload)], (), ())).wait()
            return
        if self._thread is None:
            self._start()
        self._log.insert_one(1, payload)

    def _hand_over(self, write: Write) -> Write:
        self._start()
        with self._gate:
            if self._log.closed:
                raise _is_closed()
            self._log.waiting.put(write)
        return write

    def _start(self) -> None:
        if self._thread is None:
            with self._gate:
                if self._log.closed:
                    raise _is_closed()
                if self._thread is None:
                    thread = threading.Thread(target=_write, args=(self._log,), name="treering-spool", daemon=True)
                    thread.start()
                    self._thread = thread

    def last(self, table: str) -> int:
        """Sequence number of the newest entry; 0 when there is none."""
        with self._reading, _translated(self.path):
            return int(self._reader.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchone()[0])  # noqa: S608

    def read(self, table: str, up_to: int, max_rows: int, max_bytes: int) -> list[Entry]:
        """The oldest entries of `batches` or `refused` up to a number: at least one, then as many as the limits allow."""
        with self._reading, _translated(self.path):
            query = f"SELECT seq, rows, size FROM {table} WHERE seq <= ? ORDER BY seq"  # noqa: S608
            chosen, rows, size = 0, 0, 0
            for number, more_rows, more in self._reader.execute(query, (up_to,)):
                if chosen and (rows + more_rows > max_rows or size + more > max_bytes):
                    break
                chosen, rows, size = number, rows + more_rows, size + more
            query = f"SELECT seq, rows, payload, file FROM {table} WHERE seq <= ? ORDER BY seq"  # noqa: S608
            found = self._reader.execute(query, (chosen,)).fetchall()
        return [Entry(seq, rows, self._content(file) if file else data) for seq, rows, data, file in found]

    def _content(self, name: str) -> pa.Buffer:
        path = self.path.with_name(name)
        try:
            with pa.OSFile(str(path)) as file:
                return file.read_buffer()
        except OSError as exc:
            raise StoreError(f"the spool {path} can't be read: {exc.strerror or exc}", code="spool") from exc

    def trim(self, table: str, up_to: int) -> None:
        """Forget entries up to a sequence number: they are durable elsewhere."""
        # Having the turn keeps writers in the queue: SQLite would have them sleep.
        with self._reading, self._log.turn, _translated(self.path):
            query = f"SELECT file FROM {table} WHERE seq <= ? AND file IS NOT NULL"  # noqa: S608
            files = [name for (name,) in self._reader.execute(query, (up_to,)).fetchall()]
            self._reader.execute(f"DELETE FROM {table} WHERE seq <= ?", (up_to,))  # noqa: S608
        if files:
            # A row that comes back after a power cut must find its file.
            failure = None if self._sync_every_s is None else _sync_log(self.path)
            if failure is not None:
                raise failure
            for name in files:
                with suppress(OSError):  # tidying up: whoever closes or adopts the spool removes what no row names
                    self.path.with_name(name).unlink(missing_ok=True)

    def scrub(self) -> None:
        """Overwrite what was trimmed: SQLite leaves deleted bytes in its files until it needs their place."""
        with self._reading, self._log.turn, _translated(self.path):
            _scrub(self._reader)

    def backlog(self) -> tuple[int, int]:
        """Accepted (rows, bytes) that are still here."""
        with self._reading, _translated(self.path):
            found = self._reader.execute("SELECT coalesce(sum(rows), 0), coalesce(sum(size), 0) FROM batches")
            rows, size = found.fetchone()
            return int(rows), int(size)

    def shut(self) -> None:
        """Take nothing more; what was being written is on disk when this returns."""
        with self._gate, self._log.turn:
            self._log.closed = True
            if self._thread is not None:
                self._log.waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Let go of it; an empty one is removed, one that still holds batches waits for whoever adopts it."""
        self.shut()
        try:
            with self._reading, _translated(self.path):
                left = self._reader.execute("SELECT EXISTS (SELECT 1 FROM batches) OR EXISTS (SELECT 1 FROM refused)")
                empty = not left.fetchone()[0]
                self._reader.close()
                self._writer.close()
            if empty:
                with suppress(OSError):  # tidying up: whoever adopts an empty one removes it
                    for path in self.path.parent.glob(f"{self.path.stem}.*.arrows"):
                        path.unlink(missing_ok=True)
                    for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
                        self.path.with_suffix(suffix).unlink(missing_ok=True)
        finally:
            self._lock.release()
        if empty:
            with suppress(OSError):
                self.path.with_suffix(".lock").unlink(missing_ok=True)


def _make_room(connection: sqlite3.Connection) -> None:
    """Let SQLite's log have its full length from the start: writing over old pages takes a sync of data alone.

    A log that grows takes the file system's journal as well: an `add` 1.3 to 1.5 times as long.
    """
    connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
    connection.execute("CREATE TABLE room AS SELECT zeroblob(?) AS filling", (_LOG_PAGES * 4_096,))
    connection.execute("DROP TABLE room")
    connection.execute("PRAGMA wal_checkpoint(RESTART)")


def _scrub(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA temp_store=MEMORY")  # else what is copied could lie in another file for a moment
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def scrub_file(path: Path, *, wait_s: float) -> int:
    """Overwrite what was trimmed from a spool that may be another process's; how many batches it still holds.

    Raises StoreError when its owner doesn't let us in for that long, or it can't be read.
    """
    with _translated(path):
        connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=wait_s)
        try:
            _scrub(connection)
            query = "SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM refused)"
            return int(connection.execute(query).fetchone()[0])
        finally:
            connection.close()


def _is_closed() -> UsageError:
    return UsageError("this recorder is closed", code="closed", hint="call capture() again")


def _to_ipc(batches: Sequence[pa.RecordBatch]) -> bytes:
    """An Arrow stream of the batches."""
    room = sum(map(pa.ipc.get_record_batch_size, batches)) + len(batches[0].schema.serialize()) + _FRAME
    buffer = pa.allocate_buffer(room)
    sink = pa.FixedSizeBufferWriter(buffer)
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(memoryview(buffer)[: sink.tell()])


def _write(log: _Log) -> None:
    """The writer thread: everything that waits goes into one transaction, so it shares one sync.

    With `sync_every_s` the log is synced when its oldest unsynced write is that old, and at the end. Once that fails it
    takes nothing more: a second sync would succeed and mean nothing. What it holds still reaches the table, synced there.
    """
    open_ = True
    due: float | None = None  # when the log must be synced; None while it is
    while open_:
        if due is not None and log.failure is None and time.monotonic() >= due:
            log.unsynced = False  # first: what is written from now on asks for a sync of its own
            log.failure = _sync_log(log.path)
            due = None
        try:
            wait = None if due is None else max(0.0, due - time.monotonic())
            log.working = False
            group = [log.waiting.get(timeout=wait)]
        except queue.Empty:
            continue
        log.working = True
        with log.turn:  # what comes until it is free shares the sync
            pass
        with suppress(queue.Empty):
            while group[-1] is not None:
                group.append(log.waiting.get_nowait())
        open_ = group[-1] is not None
        writes = [write for write in group if write is not None]
        if log.failure is not None:
            for write in writes:
                write.outcome.put(log.failure)
            continue
        if log.sync_every_s is not None and due is None and writes:
            log.unsynced = True
            due = time.monotonic() + log.sync_every_s
        try:
            _insert(log, writes)
        except Exception:
            # One that can't be stored (too large, say) must not take its neighbours along.
            for write in writes:
                try:
                    _insert(log, [write])
                except Exception as exc:
                    write.outcome.put(exc)
                else:
                    write.outcome.put(None)
        else:
            for write in writes:
                write.outcome.put(None)
    if log.sync_every_s is not None:
        _sync_log(log.path)


def _sync_log(path: Path) -> StoreError | None:
    """Sync what has been written; the error instead of raising it."""
    try:
        descriptor = os.open(path.with_suffix(".sqlite-wal"), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(path.parent)  # the log's name, the first time
    except FileNotFoundError:
        return None  # nothing has been written yet
    except OSError as exc:
        return StoreError(f"the spool {path} can't be synced: {exc.strerror}", code="spool")
    except StoreError as exc:
        return exc
    return None


def _insert(log: _Log, writes: Sequence[Write]) -> None:
    """Store the writes, all or none; their files first."""
    large = []
    try:
        for write in writes:
            if write.large:
                large.append((sum(map(len, write.large)), *log.write_file(write.large)))  # noqa: PERF401  (one may fail)
        accepted = [payload for write in writes for payload in write.accepted]
        refused = [payload for write in writes for payload in write.refused]
        if not (accepted or refused or large):
            return
        connection = log.connection
        with log.turn, _translated(log.path):
            try:
                connection.execute("BEGIN IMMEDIATE")
                for statement, payloads in ((_INSERT_BATCH, accepted), (_INSERT_REFUSED, refused)):
                    rows = [(log.number(), n, len(data), data, None) for n, data in payloads]
                    connection.executemany(statement, rows)
                files = [(log.number(), n, size, b"", name) for n, name, size in large]
                connection.executemany(_INSERT_BATCH, files)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
    except StoreError as exc:
        if exc.hint is not None:  # a full disk: no row names the files. After a failed sync, one may after all
            for _, name, _ in large:
                with suppress(OSError):
                    log.path.with_name(name).unlink(missing_ok=True)
        raise


def orphans(directory: Path) -> Iterator[Spool]:
    """Spools whose process is gone, each held by this one while it is looked at.

    One that SQLite can't read is set aside as `*.damaged`, with a warning: it must not stop what comes after it.
    """
    _drop_lone_locks(directory)
    for path in sorted(directory.glob("*.sqlite")) if directory.is_dir() else []:
        lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        if not path.exists():  # its owner closed it between our look and our lock
            lock.release()
            path.with_suffix(".lock").unlink(missing_ok=True)
            continue
        try:
            spool = Spool(path, lock)
        except StoreError as exc:
            if isinstance(exc.__cause__, sqlite3.OperationalError) or not isinstance(
                exc.__cause__, sqlite3.DatabaseError
            ):
                lock.release()
                raise
            aside = path.with_suffix(".damaged")
            path.rename(aside)
            lock.release()
            warnings.warn(f"a spool of a process that is gone can't be read; it is kept as {aside}", stacklevel=2)
            continue
        yield spool


def _drop_lone_locks(directory: Path) -> None:
    """Remove lock files whose spool was never made, or is gone: their process died just then.

    Not young ones: a process that makes a spool takes the lock first.
    """
    for path in directory.glob("*.lock"):
        with suppress(OSError, Timeout):
            if time.time() - path.stat().st_mtime > _LONE_LOCK_S and not path.with_suffix(".sqlite").exists():
                with FileLock(path, timeout=0, thread_local=False):
                    path.unlink()


class _translated:  # noqa: N801  (reads as a verb where it stands)
    """SQLite's errors become ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, sqlite3.Error | OverflowError):
            raise _refused_by_sqlite(self._path, exc) from exc


def _refused_by_sqlite(path: Path, exc: Exception) -> StoreError:
    return StoreError(
        f"the spool {path} can't be written or read: {exc}",
        code="spool",
        hint="free some space, then send the record again" if "disk is full" in str(exc) else None,
    )
