"""The records of a source that count for a look at it: all it holds, but for what annotations exclude."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from treering.capture import flush_spools
from treering.store.ref import Ref
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store import BaseStore, Source
    from treering.store.source import Segment

__all__ = ["counted", "excluded_rows", "load_fresh"]


def load_fresh(store: BaseStore, ref: str) -> Source:
    """The source that a ref names, with what this host has acknowledged and not committed yet. Raises as `load` does."""
    parsed = Ref.parse(ref)
    if parsed.store is None and parsed.kind in ("live", "new"):
        flush_spools(store.corpus(parsed.corpus))
    return store.load(ref)


def counted(source: Source, columns: Sequence[str]) -> Iterator[tuple[Segment, pa.RecordBatch]]:
    """Batches of the records that count, in order, each with the segment it lies in. `_rowid` is always there."""
    names = list(dict.fromkeys([*columns, ROW_ID]))
    for segment in source.segments:
        yield from ((segment, batch) for batch in counted_in(segment, names, split=source.split))


def counted_in(segment: Segment, names: Sequence[str], *, split: str | None = None) -> Iterator[pa.RecordBatch]:
    """The same of one segment, or of one split of it; `names` must hold `_rowid`."""
    excluded = segment.excluded()
    for batch in segment.scan(names, split):  # type: ignore[arg-type]
        if len(excluded) and split is None:  # a split comes without them
            kept = ~np.isin(np.asarray(batch.column(ROW_ID)).astype(np.int64), excluded)
            batch = batch.filter(pa.array(kept))
        yield batch


def excluded_rows(source: Source) -> int:
    """How many records annotations exclude."""
    return sum(len(segment.excluded()) for segment in source.segments)
