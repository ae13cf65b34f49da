"""Who saw a record: adapters whose runs could draw it, and those that continue from them.

By the rows that the adapter's own lock names, so that an adapter of the same snapshot whose sources left the record out
isn't among them. Reads no records, unless a source was narrowed to values of a column.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from treering.errors import TreeringError
from treering.mixing import MixLock
from treering.store.documents import SeenBy
from treering.store.runs import RowIds, inside

from .needs import every_adapter
from .records import AdapterRecord
from .registry import Registry

if TYPE_CHECKING:
    from treering.mixing.lock import LockedSource
    from treering.store import BaseCorpus, BaseStore

__all__ = ["seen_by"]


def seen_by(store: BaseStore, corpus: BaseCorpus, train_rows: RowIds) -> list[SeenBy]:
    """The adapters of this store that drew from any of these training rows (ascending stable row ids) of a corpus.

    First those that did themselves, by corpus and age, then those that continue from one of them. Call it while the rows
    are still there.
    """
    if not len(train_rows):
        return []
    adapters = every_adapter(store)
    saw: dict[str, SeenBy] = {}
    for adapter in adapters:
        records = _drawn(store, corpus, adapter, train_rows)
        if records:
            saw[adapter.ref] = SeenBy(
                adapter=adapter.ref, lock_digest=adapter.lock_digest, records=records, inherits_from=None
            )
    inherited: dict[str, SeenBy] = {}
    for adapter in adapters:  # a parent is older than its children, but it may be of another corpus
        parent, seen = adapter.parent, {adapter.ref}
        by_ref = {one.ref: one for one in adapters}
        while adapter.ref not in saw and parent is not None and parent not in seen:
            if parent in saw:
                inherited[adapter.ref] = SeenBy(
                    adapter=adapter.ref, lock_digest=adapter.lock_digest, records=0, inherits_from=parent
                )
                break
            seen.add(parent)
            parent = by_ref[parent].parent if parent in by_ref else None
    return [*saw.values(), *inherited.values()]


def _drawn(store: BaseStore, corpus: BaseCorpus, adapter: AdapterRecord, rows: RowIds) -> int:
    """How many of the rows the adapter's run could draw."""
    low, high = int(rows[0]), int(rows[-1]) + 1
    intervals = adapter.trained_rows.get(corpus.name, [])
    snapshots = [ref for ref in adapter.trained_on if ref.rpartition("@")[0] == corpus.name]
    if not snapshots and not any(a < high and low < b for a, b in intervals):
        return 0
    text = Registry.of(store, adapter.ref).lock(adapter.ref)
    lock = None
    with suppress(TreeringError):
        lock = None if text is None else MixLock.from_json(text)
    if lock is None:
        # Without its lock all that is known is which stretches it drew from.
        return int(_between(rows, [*intervals, *_sealed(corpus, snapshots)]).sum())
    drawn = np.zeros(len(rows), bool)
    for number, source in enumerate(lock.sources):
        if source.units or any(event.kind == "weights" and event.units[number] for event in lock.events):
            drawn |= _of_source(store, corpus, lock, number, source, rows)
    return int(drawn.sum())


def _of_source(
    store: BaseStore, corpus: BaseCorpus, lock: MixLock, number: int, source: LockedSource, rows: RowIds
) -> Any:
    pin = source.pin
    if pin.corpus != corpus.name:
        return np.zeros(len(rows), bool)
    spans = [segment.row_ids for segment in pin.segments if segment.incarnation == corpus.record.incarnation]
    spans += [(spans[-1][1], event.end) for event in lock.growths(number)] if spans else []
    drawn = _between(rows, spans)
    if not drawn.any() or not (pin.selection or pin.where or pin.annotations):
        return drawn
    from treering.store.source import Source

    try:
        found = Source.from_pin(store, pin.model_dump(mode="json"))
        within = np.zeros(len(rows), bool)
        for segment in found.segments:
            within |= inside(segment.runs("train"), rows)
    except TreeringError:
        return drawn  # rather one adapter too many
    grown = [(found.segments[-1].row_ids[1], event.end) for event in lock.growths(number)] if found.segments else []
    return drawn & (within | _between(rows, grown))


def _sealed(corpus: BaseCorpus, refs: list[str]) -> list[tuple[int, int]]:
    return [snapshot.row_ids for snapshot in corpus.snapshots() if snapshot.ref in refs]


def _between(rows: RowIds, spans: Any) -> Any:
    found = np.zeros(len(rows), bool)
    for low, high in spans:
        found |= (rows >= low) & (rows < high)
    return found
