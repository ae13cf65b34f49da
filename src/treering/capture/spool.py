"""The spool: where a record lies between its acknowledgement and the table.

One SQLite file a recorder (WAL, synchronous=FULL), one BLOB a batch: durable, self-repairing after a torn write, and as
fast as a bare log. Its lock file is held while its process lives; a spool whose lock is free is an orphan.
Knows bytes and sequence numbers, not records.
"""

from __future__ import annotations

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

from filelock import FileLock, Timeout

from treering.errors import StoreError, UsageError
from treering.store.durable import make_directory, sync_directory

__all__ = ["Entry", "Spool", "Write", "orphans", "scrub_file"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (seq INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS refused (seq INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, payload BLOB NOT NULL);
"""


#: Bytes a page. Large blobs are written and deleted twice as fast as with SQLite's 4 KiB; one small record costs 0.04 ms
#: more.
_PAGE = 32_768


#: Seconds after which a lock file without a spool is nobody's.
_LONE_LOCK_S = 60.0


#: Rows, and their bytes.
Payload = tuple[int, bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored batch: its number, its rows, its bytes."""

    seq: int
    rows: int
    payload: bytes


class Write:
    """One caller's batches on their way to the disk."""

    __slots__ = ("accepted", "outcome", "refused")

    def __init__(self, accepted: Sequence[Payload], refused: Sequence[Payload]) -> None:
        self.accepted, self.refused = accepted, refused
        # A SimpleQueue and not a Future: its `get` is one step, which an interrupt can't leave half done.
        self.outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def wait(self) -> None:
        """Return once it is on disk; call it once. Raises StoreError when it can't be stored."""
        failure = self.outcome.get()
        if failure is not None:
            raise failure


class Spool:
    """A durable queue of batches. Thread-safe; threads that write at once share one sync.

    A thread of its own does the writing: an interrupt hits the main thread only, so it can't leave a write half done.
    With `sync_every_s` a write is done once the system has it, and synced at most that much later: a kill loses nothing
    of it, a power cut may.
    """

    def __init__(self, path: Path, lock: FileLock, *, sync_every_s: float | None = None) -> None:
        self.path = path
        self._sync_every_s = sync_every_s
        self._lock = lock
        self._gate = threading.Lock()
        self._closed = False
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        with _translated(path):
            # Writing and reading have a connection each, so that draining never holds up an acknowledgement.
            self._writer = self._connect()
            self._writer.executescript(_SCHEMA)
            self._reader = self._connect()
        self._reading = threading.Lock()
        sync_directory(path.parent)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute(f"PRAGMA page_size={_PAGE}")  # counts for a new file only
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
        return cls(path, lock, sync_every_s=sync_every_s)

    def append(self, accepted: Sequence[Payload], refused: Sequence[Payload] = ()) -> Write:
        """Begin to store (rows, payload) batches, all or none; they are on disk once `wait` on the result returns.

        Raises UsageError once the spool is closed.
        """
        write = Write(accepted, refused)
        with self._gate:
            if self._closed:
                raise UsageError("this recorder is closed", code="closed", hint="call capture() again")
            if self._thread is None:
                arguments = (self.path, self._writer, self._queue, self._sync_every_s)
                self._thread = threading.Thread(target=_write, args=arguments, name="treering-spool", daemon=True)
                self._thread.start()
            self._queue.put(write)
        return write

    def last(self, table: str) -> int:
        """Sequence number of the newest entry; 0 when there is none."""
        with self._reading, _translated(self.path):
            return int(self._reader.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchone()[0])  # noqa: S608

    def read(self, table: str, up_to: int, max_rows: int, max_bytes: int) -> list[Entry]:
        """The oldest entries of `batches` or `refused` up to a number: at least one, then as many as the limits allow."""
        with self._reading, _translated(self.path):
            query = f"SELECT seq, rows, length(payload) FROM {table} WHERE seq <= ? ORDER BY seq"  # noqa: S608
            chosen, rows, size = 0, 0, 0
            for number, more_rows, more in self._reader.execute(query, (up_to,)):
                if chosen and (rows + more_rows > max_rows or size + more > max_bytes):
                    break
                chosen, rows, size = number, rows + more_rows, size + more
            query = f"SELECT seq, rows, payload FROM {table} WHERE seq <= ? ORDER BY seq"  # noqa: S608
            return [Entry(*row) for row in self._reader.execute(query, (chosen,))]

    def trim(self, table: str, up_to: int) -> None:
        """Forget entries up to a sequence number: they are durable elsewhere."""
        with self._reading, _translated(self.path):
            self._reader.execute(f"DELETE FROM {table} WHERE seq <= ?", (up_to,))  # noqa: S608

    def scrub(self) -> None:
        """Overwrite what was trimmed: SQLite leaves deleted bytes in its files until it needs their place."""
        with self._reading, _translated(self.path):
            _scrub(self._reader)

    def backlog(self) -> tuple[int, int]:
        """Accepted (rows, bytes) that are still here."""
        with self._reading, _translated(self.path):
            found = self._reader.execute(
                "SELECT coalesce(sum(rows), 0), coalesce(sum(length(payload)), 0) FROM batches"
            )
            rows, size = found.fetchone()
            return int(rows), int(size)

    def shut(self) -> None:
        """Take nothing more; what was being written is on disk when this returns."""
        with self._gate:
            self._closed = True
            if self._thread is not None:
                self._queue.put(None)
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
                    for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
                        self.path.with_suffix(suffix).unlink(missing_ok=True)
        finally:
            self._lock.release()
        if empty:
            with suppress(OSError):
                self.path.with_suffix(".lock").unlink(missing_ok=True)


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


def _write(
    path: Path,
    connection: sqlite3.Connection,
    waiting: queue.SimpleQueue[Write | None],
    sync_every_s: float | None,
) -> None:
    """The writer thread: everything that waits goes into one transaction, so it shares one sync.

    With `sync_every_s` the log is synced when its oldest unsynced write is that old, and at the end. Once that fails it
    takes nothing more: a second sync would succeed and mean nothing. What it holds still reaches the table, synced there.
    """
    open_ = True
    due: float | None = None  # when the log must be synced; None while it is
    failure: StoreError | None = None
    while open_:
        if due is not None and failure is None and time.monotonic() >= due:
            failure = _sync_log(path)
            due = None
        try:
            wait = None if due is None else max(0.0, due - time.monotonic())
            group = [waiting.get(timeout=wait)]
        except queue.Empty:
            continue
        with suppress(queue.Empty):
            while group[-1] is not None:
                group.append(waiting.get_nowait())
        open_ = group[-1] is not None
        writes = [write for write in group if write is not None]
        if failure is not None:
            for write in writes:
                write.outcome.put(failure)
            continue
        if sync_every_s is not None and due is None and writes:
            due = time.monotonic() + sync_every_s
        try:
            _insert(path, connection, writes)
        except Exception:
            # One that can't be stored (too large, say) must not take its neighbours along.
            for write in writes:
                try:
                    _insert(path, connection, [write])
                except Exception as exc:
                    write.outcome.put(exc)
                else:
                    write.outcome.put(None)
        else:
            for write in writes:
                write.outcome.put(None)
    if sync_every_s is not None:
        _sync_log(path)


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


def _insert(path: Path, connection: sqlite3.Connection, writes: Sequence[Write]) -> None:
    with _translated(path):
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in writes:
                connection.executemany("INSERT INTO batches (rows, payload) VALUES (?, ?)", write.accepted)
                connection.executemany("INSERT INTO refused (rows, payload) VALUES (?, ?)", write.refused)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
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
            full = "disk is full" in str(exc)
            raise StoreError(
                f"the spool {self._path} can't be written or read: {exc}",
                code="spool",
                hint="free some space, then send the record again" if full else None,
            ) from exc
