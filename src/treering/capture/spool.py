"""The spool: where a record lies between its acknowledgement and the table.

One SQLite file a recorder (WAL, synchronous=FULL), one BLOB a batch: durable, self-repairing after a torn write, and as
fast as a bare log. Its lock file is held while its process lives; a spool whose lock is free is an orphan.
Knows bytes and sequence numbers, not records.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from treering.errors import StoreError
from treering.store.durable import sync_directory

__all__ = ["Entry", "Spool", "orphans"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (seq INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS refused (seq INTEGER PRIMARY KEY AUTOINCREMENT, rows INTEGER NOT NULL, payload BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored batch: its number, its rows, its bytes."""

    seq: int
    rows: int
    payload: bytes


class _Write:
    """One caller's batches on their way to the disk."""

    __slots__ = ("accepted", "done", "error", "refused")

    def __init__(self, accepted: Sequence[tuple[int, bytes]], refused: Sequence[tuple[int, bytes]]) -> None:
        self.accepted, self.refused = accepted, refused
        self.done = False
        self.error: BaseException | None = None


class Spool:
    """A durable queue of batches. Thread-safe; threads that write at once share one sync."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self._turn = threading.Condition()
        self._queue: list[_Write] = []
        self._leading = False
        with _translated(path):
            # Writing and reading have a connection each, so that draining never holds up an acknowledgement.
            self._writer = self._connect()
            self._writer.executescript(_SCHEMA)
            self._reader = self._connect()
        self._reading = threading.Lock()
        sync_directory(path.parent)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    @classmethod
    def new(cls, directory: Path) -> Spool:
        """A fresh spool of this process in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)
        path = directory / f"{os.getpid()}-{secrets.token_hex(6)}.sqlite"
        lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
        lock.acquire()  # before the file is there to be taken for an orphan
        return cls(path, lock)

    def append(self, accepted: Sequence[tuple[int, bytes]], refused: Sequence[tuple[int, bytes]] = ()) -> None:
        """Store (rows, payload) batches, all or none; they are on disk when this returns. Raises StoreError."""
        mine = _Write(accepted, refused)
        with self._turn:
            self._queue.append(mine)
            while self._leading and not mine.done:
                self._turn.wait()
            if mine.done:
                if mine.error is not None:
                    raise mine.error
                return
            self._leading = True
            group, self._queue = self._queue, []
        error: BaseException | None = None
        try:
            with _translated(self.path):
                self._insert(group)
        except BaseException as exc:
            error = exc
            raise
        finally:
            with self._turn:
                for write in group:
                    write.done, write.error = True, error
                self._leading = False
                self._turn.notify_all()

    def _insert(self, group: Sequence[_Write]) -> None:
        cursor = self._writer.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            for write in group:
                cursor.executemany("INSERT INTO batches (rows, payload) VALUES (?, ?)", write.accepted)
                cursor.executemany("INSERT INTO refused (rows, payload) VALUES (?, ?)", write.refused)
            cursor.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                cursor.execute("ROLLBACK")
            raise

    def read(self, table: str, max_rows: int) -> list[Entry]:
        """The oldest entries of `batches` or `refused`: at least one, and no more than `max_rows` rows beyond it."""
        entries: list[Entry] = []
        total = 0
        with self._reading, _translated(self.path):
            for seq, rows, payload in self._reader.execute(f"SELECT seq, rows, payload FROM {table} ORDER BY seq"):  # noqa: S608
                if entries and total + rows > max_rows:
                    break
                entries.append(Entry(seq, rows, payload))
                total += rows
        return entries

    def trim(self, table: str, up_to: int) -> None:
        """Forget entries up to a sequence number: they are durable elsewhere."""
        with self._reading, _translated(self.path):
            self._reader.execute(f"DELETE FROM {table} WHERE seq <= ?", (up_to,))  # noqa: S608

    def backlog(self) -> int:
        """Accepted rows that are still here."""
        with self._reading, _translated(self.path):
            return int(self._reader.execute("SELECT coalesce(sum(rows), 0) FROM batches").fetchone()[0])

    def close(self) -> None:
        """Let go of it; an empty one is removed, one that still holds batches waits for whoever adopts it."""
        with self._reading, _translated(self.path):
            left = self._reader.execute("SELECT EXISTS (SELECT 1 FROM batches) OR EXISTS (SELECT 1 FROM refused)")
            empty = not left.fetchone()[0]
            self._reader.close()
            self._writer.close()
        if empty:
            for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
                self.path.with_suffix(suffix).unlink(missing_ok=True)
        self._lock.release()
        if empty:
            self.path.with_suffix(".lock").unlink(missing_ok=True)


def orphans(directory: Path) -> list[Spool]:
    """Spools whose process is gone, each now held by this one."""
    found = []
    for path in sorted(directory.glob("*.sqlite")) if directory.is_dir() else []:
        lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        if path.exists():
            found.append(Spool(path, lock))
        else:  # its owner closed it between our look and our lock
            lock.release()
            path.with_suffix(".lock").unlink(missing_ok=True)
    return found


class _translated:  # noqa: N801  (reads as a verb where it stands)
    """SQLite's errors become ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, sqlite3.Error):
            full = "disk is full" in str(exc)
            raise StoreError(
                f"the spool {self._path.name} can't be written or read: {exc}",
                code="spool",
                hint="free some space, then send the record again" if full else None,
            ) from exc
