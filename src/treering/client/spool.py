"""Where records wait until the server has them: a SQLite file of this process, or memory.

The file is durable (WAL, synchronous=FULL) and held by a lock while its process lives; one whose lock is free was left
behind, and whoever comes next on this host takes its records over. Like capture's spool, but for bytes alone: that one
knows Arrow, which an agent's process shouldn't have to load.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from treering.errors import StoreError

__all__ = ["Entry", "Spool", "spool_directory"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, corpus TEXT NOT NULL, rows INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_corpus ON entries (corpus, seq);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """Records of one corpus that came at once, as lines of JSON."""

    seq: int
    corpus: str
    rows: int
    payload: bytes


def spool_directory(url: str, given: str | os.PathLike[str] | None) -> Path:
    """Where the spools for a server lie: below `given`, else below TREERING_STATE_DIR, else in the user's state directory."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    if given is not None:
        return Path(given) / name
    state = os.environ.get("TREERING_STATE_DIR")  # as the store's own spools (store.location), which needs Arrow
    if state:
        return Path(state).expanduser().absolute() / "client" / name
    import platformdirs

    return platformdirs.user_state_path("treering", appauthor=False) / "client" / name


class Spool:
    """Entries in order. Thread-safe."""

    def __init__(self, directory: Path | None) -> None:
        """In a file of its own in `directory`; None: in memory. Raises StoreError."""
        self._directory = directory
        self._lock = threading.Lock()
        self._held: FileLock | None = None
        self._released: set[Path] = set()  # what this one adopted, and can't send
        self._adopted: set[int] = set()
        self.path: Path | None = None
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                self.path = directory / f"{os.getpid()}-{secrets.token_hex(6)}.sqlite"
                self._held = FileLock(self.path.with_suffix(".lock"), timeout=0, thread_local=False)
                self._held.acquire()  # before the file is there to be taken for one that was left behind
            with _translated(self.path):
                self._connection = _connect(self.path)
        except OSError as exc:
            raise StoreError(
                f"can't make a spool in {directory}: {exc.strerror or exc}", code="spool",
                hint="Client(…, spool=DIRECTORY), or spool=False to keep records in memory alone",
            ) from exc  # fmt: skip

    def append(self, entries: Sequence[Entry]) -> None:
        """Store entries, all or none; they are on disk when this returns. Raises StoreError."""
        with self._lock, _translated(self.path), _transaction(self._connection):
            self._connection.executemany(
                "INSERT INTO entries (seq, corpus, rows, payload) VALUES (?, ?, ?, ?)",
                [(one.seq, one.corpus, one.rows, one.payload) for one in entries],
            )

    def read(self, corpus: str, most_rows: int, most_bytes: int) -> list[Entry]:
        """The oldest entries of a corpus: one at least if there is any, then as many as the limits allow."""
        found: list[Entry] = []
        rows = size = 0
        with self._lock, _translated(self.path):
            query = "SELECT seq, corpus, rows, payload FROM entries WHERE corpus = ? ORDER BY seq"
            cursor = self._connection.execute(query, (corpus,))
            for seq, name, count, payload in cursor:
                if found and (rows + count > most_rows or size + len(payload) > most_bytes):
                    break
                found.append(Entry(seq, name, count, payload))
                rows, size = rows + count, size + len(payload)
            cursor.close()
        return found

    def remove(self, entries: Sequence[Entry]) -> None:
        """Forget entries: the server has them. Raises StoreError."""
        with self._lock, _translated(self.path), _transaction(self._connection):
            self._connection.executemany("DELETE FROM entries WHERE seq = ?", [(one.seq,) for one in entries])
        self._adopted.difference_update(one.seq for one in entries)

    def replace(self, old: Entry, new: Sequence[Entry]) -> None:
        """Put others in an entry's place, all at once. Raises StoreError."""
        with self._lock, _translated(self.path), _transaction(self._connection):
            self._connection.execute("DELETE FROM entries WHERE seq = ?", (old.seq,))
            self._connection.executemany(
                "INSERT INTO entries (seq, corpus, rows, payload) VALUES (?, ?, ?, ?)",
                [(one.seq, one.corpus, one.rows, one.payload) for one in new],
            )

    def corpora(self) -> list[str]:
        """Those that entries wait for."""
        with self._lock, _translated(self.path):
            return [name for (name,) in self._connection.execute("SELECT DISTINCT corpus FROM entries")]

    def waits(self, corpus: str | None, up_to: int) -> bool:
        """Whether entries up to a number are here, of a corpus or of any."""
        with self._lock, _translated(self.path):
            query = "SELECT EXISTS (SELECT 1 FROM entries WHERE seq <= ? AND (? IS NULL OR corpus = ?))"
            return bool(self._connection.execute(query, (up_to, corpus, corpus)).fetchone()[0])

    def totals(self) -> tuple[int, int]:
        """Records and bytes that wait."""
        with self._lock, _translated(self.path):
            query = "SELECT coalesce(sum(rows), 0), coalesce(sum(length(payload)), 0) FROM entries"
            rows, size = self._connection.execute(query).fetchone()
            return int(rows), int(size)

    def adopt(self, number: Iterator[int]) -> list[Entry]:
        """Take over what processes that are gone left here; what was taken. Raises StoreError.

        A file is removed once its records are in ours: a kill in between sends them twice, and ids make that once.
        """
        taken: list[Entry] = []
        for path in sorted(self._directory.glob("*.sqlite")) if self._directory is not None else []:
            if path == self.path or path in self._released:
                continue
            lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                if not path.exists():
                    continue
                with _translated(path):
                    theirs = _connect(path)
                    try:
                        rows = theirs.execute("SELECT corpus, rows, payload FROM entries ORDER BY seq").fetchall()
                    finally:
                        theirs.close()
                found = [Entry(next(number), *row) for row in rows]
                self.append(found)
                self._adopted.update(one.seq for one in found)
                taken += found
                _remove(path)
            except StoreError as exc:
                if not isinstance(exc.__cause__, sqlite3.DatabaseError) or isinstance(
                    exc.__cause__, sqlite3.OperationalError
                ):
                    raise
                path.rename(path.with_suffix(".damaged"))  # kept for who wants to look
            finally:
                lock.release()
                with suppress(OSError):
                    path.with_suffix(".lock").unlink()
        return taken

    def release(self, corpus: str) -> list[Entry]:
        """Put what was taken over for a corpus back into a file of its own, for a client whose key is good for it.

        This one doesn't take it over again. A kill in between leaves it in both, and ids make that once. Raises StoreError.
        """
        if self._directory is None or not self._adopted:
            return []
        found = [one for one in self._all(corpus) if one.seq in self._adopted]
        if not found:
            return []
        other = Spool(self._directory)
        assert other.path is not None
        self._released.add(other.path)
        other.append([Entry(n, one.corpus, one.rows, one.payload) for n, one in enumerate(found, 1)])
        self.remove(found)
        other.close()
        return found

    def _all(self, corpus: str) -> list[Entry]:
        with self._lock, _translated(self.path):
            query = "SELECT seq, corpus, rows, payload FROM entries WHERE corpus = ? ORDER BY seq"
            return [Entry(*row) for row in self._connection.execute(query, (corpus,))]

    def close(self) -> None:
        """Let go of it; an empty one is removed, another one waits for whoever comes next."""
        with self._lock:
            try:
                with _translated(self.path):
                    left = self._connection.execute("SELECT EXISTS (SELECT 1 FROM entries)").fetchone()[0]
                    self._connection.close()
                if self.path is not None and not left:
                    _remove(self.path)
            finally:
                if self._held is not None and self.path is not None:
                    self._held.release()
                    if not self.path.exists():
                        with suppress(OSError):
                            self.path.with_suffix(".lock").unlink()


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=30)
    if path is not None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    connection.executescript(_SCHEMA)
    return connection


def _remove(path: Path) -> None:
    for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
        path.with_suffix(suffix).unlink(missing_ok=True)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _translated(path: Path | None) -> Iterator[None]:
    """SQLite's errors become ours."""
    try:
        yield
    except (sqlite3.Error, OverflowError) as exc:
        raise StoreError(f"the spool {path or 'in memory'} can't be written or read: {exc}", code="spool") from exc
