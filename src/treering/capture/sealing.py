"""Seal live with everything that this host has acknowledged. How a seal is made is the store's to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from treering.capture.recorder import flush_spools
from treering.errors import ConflictError
from treering.store.snapshot import NAME_TAKEN, seal

if TYPE_CHECKING:
    from treering.store import BaseCorpus
    from treering.store.documents import SnapshotRecord

__all__ = ["seal_live"]

#: Sealers that find their name taken begin again; more often than this in a row, it is worth telling the caller.
_MOST_SEALS = 20


def seal_live(corpus: BaseCorpus, *, message: str = "", to: int | None = None) -> SnapshotRecord | None:
    """Flush the spools, then seal; None when live is empty. Raises ConflictError when `to` isn't the next number."""
    for _ in range(_MOST_SEALS):
        flush_spools(corpus)
        sealed = seal(corpus, to=to, message=message)
        if sealed is not NAME_TAKEN:
            return cast("SnapshotRecord", sealed) if sealed else None
    raise ConflictError(
        f"other processes kept sealing {corpus.name} first", code="seal-raced", hint="look at its log, then try again"
    )
