"""Erasing, with what only this side of the store knows: the spools of this host, and what is still on its way.

`store.erase` does the tables and documents. Here records are flushed first, so that what was acknowledged is erased with
the rest, and spools are scrubbed afterwards; those of other hosts when the corpus is next opened there (recorder).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from treering.capture.recorder import flush_spools, scrub_spools, spool_directory
from treering.errors import UsageError
from treering.schema.record_type import safe_repr
from treering.store.corpus import BaseCorpus
from treering.store.documents import EraseReceipt
from treering.store.erase import ErasePreview, Scrubbed, Wanted, drop_cached
from treering.store.erase import erase as erase_stored
from treering.store.erase import preview as preview_stored

__all__ = ["erase", "held_path", "preview", "scrub"]

#: How long other processes of this host get to commit what their spools held when the erasure was decided: they do so
#: every two seconds.
_WAIT_S = 6.0


def erase(
    corpus: BaseCorpus,
    *,
    where: Mapping[str, str | Sequence[str]] | None = None,
    ids: Iterable[str] | None = None,
    reason: str = "",
    block_subject: bool = True,
) -> EraseReceipt:
    """See `Corpus.erase`."""
    wanted = Wanted(_ids(ids), _subjects(where), reason, block_subject)
    flush_spools(corpus)
    return erase_stored(corpus, wanted, lambda: scrub(corpus))


def preview(
    corpus: BaseCorpus, *, where: Mapping[str, str | Sequence[str]] | None = None, ids: Iterable[str] | None = None
) -> ErasePreview:
    """See `Corpus.erase_preview`."""
    flush_spools(corpus)
    return preview_stored(corpus, Wanted(_ids(ids), _subjects(where)))


def _ids(ids: Iterable[str] | None) -> tuple[str, ...]:
    if ids is None:
        return ()
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise UsageError("ids is a list of ids", code="bad-erase")
    return tuple(ids)


def _subjects(where: Mapping[str, str | Sequence[str]] | None) -> tuple[str, ...]:
    if where is None:
        return ()
    if not isinstance(where, Mapping) or set(where) != {"subject"}:
        raise UsageError(
            f"where names {safe_repr(list(where))[:80]}" if isinstance(where, Mapping) else "where is a dict",
            code="bad-erase",
            hint='erase by subject, where={"subject": …}, or by ids=[…]; the ids of other records `head` and `scan` tell',
        )
    given = where["subject"]
    return (given,) if isinstance(given, str) else tuple(given)


def held_path(corpus: BaseCorpus) -> Path:
    """Where a server on this host holds conversations that aren't complete."""
    return corpus.store.host_dir / "held" / f"{corpus.record.table}.sqlite"


def scrub(corpus: BaseCorpus) -> Scrubbed:
    """Commit, or drop, what this host's spools hold, overwrite what they held, and drop its caches of what was erased."""
    dropped = flush_spools(corpus)
    left: list[str] = []
    directory = spool_directory(corpus)
    paths = sorted(directory.glob("*.sqlite")) if directory.is_dir() else []
    waiting = {path: newest for path in paths if (newest := _number(path, "max(seq), 0"))}
    end = time.monotonic() + _WAIT_S
    while (held := [path for path, newest in waiting.items() if _oldest(path) <= newest]) and time.monotonic() < end:
        time.sleep(0.05)
    if held:
        left.append(
            f"{len(held)} spools of processes on this host that haven't committed what they held: their next commit drops it"
        )
    if busy := scrub_spools(corpus, wait_s=max(1.0, end - time.monotonic()), again=True):
        left.append(
            f"{len(busy)} spools of processes on this host that were busy: their next commit overwrites what they held"
        )
    if pieces := _number(held_path(corpus), "count(*), 0", "pieces"):
        left.append(
            f"{pieces} pieces of conversations under way in {held_path(corpus)}: a server drops those that name what was "
            "erased within 10 seconds, or when it starts"
        )
    damaged = sorted(directory.glob("*.damaged")) if directory.is_dir() else []
    if damaged:
        left.append(
            f"{len(damaged)} spools in {directory} that can't be read (*.damaged): look at them and remove them"
        )
    return Scrubbed(dropped, drop_cached(corpus), tuple(left))


def _oldest(path: Path) -> int:
    return _number(path, f"min(seq), {2**62}") or 2**62


def _number(path: Path, what: str, table: str = "batches") -> int:
    """Of the batches in a spool, or the pieces of conversations, that may be another process's; 0 when it is gone, or can't be asked just now."""
    if not path.exists():
        return 0
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)
    except sqlite3.Error:
        return 0
    try:
        return int(connection.execute(f"SELECT coalesce({what}) FROM {table}").fetchone()[0])  # noqa: S608
    except sqlite3.Error:
        return 0
    finally:
        connection.close()
