"""Who needs a snapshot: the adapters that were trained on it, in every registry of the store.

Pruning asks what would stop being reproducible, erasing who saw the records, lineage both. An adapter whose registry lies in
another store isn't found: a store doesn't know who reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treering.errors import NotFoundError, StoreError

from .records import AdapterRecord
from .registry import Registry
from .trained import overlaps

if TYPE_CHECKING:
    from treering.store import BaseStore

__all__ = ["adapters_of", "ancestry", "drew_from", "every_adapter", "in_production"]


def adapters_of(store: BaseStore, corpus: str, snapshot_name: str) -> list[AdapterRecord]:
    """The adapters of any corpus of this store that drew from a snapshot (`v3`), by name or from live before it was sealed.

    By corpus, oldest first. Those that only continue one of them aren't listed: see `Registry.lineage`. Pruned and erased
    snapshots may be asked about. Raises NotFoundError for a snapshot that was never sealed.
    """
    from treering.store.snapshot import list_records

    records = {record.name: record for record in list_records(store.corpus(corpus))}
    if snapshot_name not in records:
        raise NotFoundError(f"there is no snapshot {corpus}@{snapshot_name}", code="no-snapshot")
    row_ids = records[snapshot_name].row_ids
    return [one for one in every_adapter(store) if drew_from(one, corpus, snapshot_name, row_ids)]


def drew_from(adapter: AdapterRecord, corpus: str, snapshot_name: str, row_ids: tuple[int, int]) -> bool:
    """Whether the adapter's own run drew from this snapshot, whose rows have the ids [low, high)."""
    return f"{corpus}@{snapshot_name}" in adapter.trained_on or overlaps(adapter.trained_rows.get(corpus, []), row_ids)


def every_adapter(store: BaseStore) -> list[AdapterRecord]:
    """All adapters of this store, by corpus, oldest first."""
    corpora = sorted({path.split("/")[1] for path in store.objects.list("adapters")})
    return [adapter for corpus in corpora for adapter in Registry(store, corpus).adapters()]


def in_production(store: BaseStore) -> list[AdapterRecord]:
    """The adapters in production, one per corpus at most, each followed by those that it continues from, newest first."""
    corpora = sorted({path.split("/")[1] for path in store.objects.list("adapters")})
    found: dict[str, AdapterRecord] = {}
    for corpus in corpora:
        number = Registry(store, corpus).state().production
        if number is not None:
            found.update((one.ref, one) for one in ancestry(store, f"{corpus}:{number}"))
    return list(found.values())


def ancestry(store: BaseStore, ref: str) -> list[AdapterRecord]:
    """An adapter and those it continues from, newest first; across corpora, which `Registry.lineage` ends at."""
    chain: list[AdapterRecord] = []
    parent: str | None = ref
    while parent is not None:
        lineage = Registry.of(store, parent).lineage(parent)
        chain += lineage[::-1]
        parent = lineage[0].parent
        if any(parent == one.ref for one in chain):
            raise StoreError(f"{ref} descends from itself, by way of {parent}", code="registry-damaged")
    return chain
