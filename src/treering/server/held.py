"""Conversations that come piece by piece: on disk at once, a record when nothing came for a while.

Each span of a model call repeats what was said before it, and a hook tells one step. So what comes is kept as it came, in a
SQLite file beside the spools, and an importer makes records of a whole conversation. Its ids are functions of what came:
what is settled twice, after a kill say, is stored once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treering.errors import StoreError
from treering.store.durable import make_directory, sync_directory

__all__ = ["Held", "Piece", "unpacked"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, format TEXT NOT NULL, conversation TEXT NOT NULL, trace TEXT NOT NULL,
    at REAL NOT NULL, size INTEGER NOT NULL, payload TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_conversation ON pieces (format, conversation);
CREATE INDEX IF NOT EXISTS by_trace ON pieces (trace) WHERE conversation = '';
CREATE TABLE IF NOT EXISTS settled (piece BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""
#: Scores that came before, or long after, the call they are about wait so long for it.
_WORDS_WAIT_S = 3_600.0
#: So long it is remembered which calls were stored: exporters send again what they got no answer for.
_REMEMBERED_S = 6 * 3_600.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a conversation. Of a score, which names no conversation, that is "", and `trace` says what it is about."""

    format: str
    conversation: str
    trace: str
    value: Any


class Held:
    """The pieces of one corpus. For one thread."""

    def __init__(self, path: Path, *, in_memory: bool = False) -> None:
        """In the file at `path`, or in memory: then a kill loses them. Raises StoreError."""
        self.path = path
        self.in_memory = in_memory
        with _translated(path):
            if not in_memory:
                make_directory(path.parent, below=path.parents[1])
            where = ":memory:" if in_memory else path
            self._connection = sqlite3.connect(where, isolation_level=None, timeout=30, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA secure_delete=ON")
            self._connection.executescript(_SCHEMA)
            if not in_memory:
                sync_directory(path.parent)

    def add(self, pieces: Iterable[Piece]) -> int:
        """Keep pieces, all or none; they are on disk when this returns. Raises StoreError.

        How many there were that are stored already: calls of a model that were sent once more.
        """
        rows = []
        again = 0
        for one in pieces:
            text = _packed(one.value)
            if one.conversation and one.format == "otlp" and self._was_settled(text):
                again += 1
                continue
            rows.append((one.format, one.conversation, one.trace, time.time(), len(text), text))
        with _translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT INTO pieces (format, conversation, trace, at, size, payload) VALUES (?, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        return again

    def _was_settled(self, text: str) -> bool:
        with _translated(self.path):
            found = self._connection.execute("SELECT 1 FROM settled WHERE piece = ?", (_hashed(text),)).fetchone()
        return found is not None

    def due(self, idle_s: Mapping[str, float], most_bytes: int) -> list[tuple[str, str]]:
        """(format, conversation) of those that nothing came for so long (by format), and the oldest while all are too large.

        Scores come last, so that they go with their call when that is due, too.
        """
        now = time.time()
        with _translated(self.path):
            found = self._connection.execute(
                "SELECT format, conversation, max(at), sum(size) FROM pieces GROUP BY 1, 2 ORDER BY 3"
            ).fetchall()
        total = sum(size for *_, size in found)
        chosen = []
        for kind, conversation, newest, size in sorted(found, key=lambda one: not one[1]):
            wait = idle_s[kind] if conversation else _WORDS_WAIT_S  # of scores: whatever stops, their call may come yet
            if now - newest >= wait or newest > now + 60 or total > most_bytes:
                chosen.append((kind, conversation))
                total -= size
        return chosen

    def pieces(self, kind: str, conversation: str) -> tuple[list[int], list[tuple[str, int]]]:
        """Numbers and (text, size) of a conversation's pieces in the order they came, scores about it among them.

        What a text says, `unpacked` tells.
        """
        with _translated(self.path):
            rows = self._connection.execute(
                "SELECT seq, payload, size, trace FROM pieces WHERE format = ? AND conversation = ? ORDER BY seq",
                (kind, conversation),
            ).fetchall()
            if conversation:
                for trace in sorted({trace for *_, trace in rows if trace}):
                    rows += self._connection.execute(
                        "SELECT seq, payload, size, trace FROM pieces WHERE format = ? AND conversation = '' AND trace = ?",
                        (kind, trace),
                    ).fetchall()
        return [row[0] for row in rows], [(row[1], row[2]) for row in rows]

    def forget(self, numbers: Sequence[int]) -> None:
        """Let go of pieces: what they say is stored. Nothing of them is left in the file, nor in its log."""
        now = time.time()
        with _translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for one in numbers:
                    query = "SELECT payload FROM pieces WHERE seq = ? AND format = 'otlp' AND conversation <> ''"
                    for (text,) in self._connection.execute(query, (one,)).fetchall():
                        self._connection.execute("INSERT OR REPLACE INTO settled VALUES (?, ?)", (_hashed(text), now))
                self._connection.execute("DELETE FROM settled WHERE at < ?", (now - _REMEMBERED_S,))
                self._connection.executemany("DELETE FROM pieces WHERE seq = ?", [(one,) for one in numbers])
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def conversations(self) -> list[tuple[str, str]]:
        """(format, conversation) of all."""
        with _translated(self.path):
            return self._connection.execute("SELECT DISTINCT format, conversation FROM pieces").fetchall()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, nor remembered."""
        query = "SELECT EXISTS (SELECT 1 FROM pieces) OR EXISTS (SELECT 1 FROM settled WHERE at >= ?)"
        with _translated(self.path):
            return not self._connection.execute(query, (time.time() - _REMEMBERED_S,)).fetchone()[0]

    def close(self) -> None:
        """Let go of it; an empty one is removed."""
        empty = self.is_empty
        self._connection.close()
        if empty and not self.in_memory:
            for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
                with suppress(OSError):
                    self.path.with_suffix(suffix).unlink(missing_ok=True)


#: A dict of this one member stands for bytes. One that somebody sent has a "_" more, or it would be taken for ours.
_BYTES = "__bytes__"


def _hashed(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _packed(value: Any) -> str:
    return json.dumps(_tagged(value), ensure_ascii=False, separators=(",", ":"))


def unpacked(text: str) -> Any:
    """The value of a piece. Raises ValueError when it isn't one."""
    return json.loads(text, object_hook=_untagged)


def _tagged(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, dict):
        tagged = {key: _tagged(one) for key, one in value.items()}
        if len(tagged) == 1 and next(iter(tagged)).startswith(_BYTES):
            return {f"{key}_": one for key, one in tagged.items()}
        return tagged
    return [_tagged(one) for one in value] if isinstance(value, list | tuple) else value


def _untagged(value: dict[str, Any]) -> Any:
    if len(value) == 1 and (key := next(iter(value))).startswith(_BYTES):
        if key == _BYTES:
            return base64.b64decode(value[key], validate=True)
        return {key[:-1]: value[key]}
    return value


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise StoreError(f"{path} can't be written or read: {exc}", code="spool") from exc
