"""Models that were trained elsewhere, in the registry beside those that were trained here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treering.mixing import MixLock
from treering.registry import AdapterRecord, Registry
from treering.registry.trained import training_data

if TYPE_CHECKING:
    from treering.store import BaseStore

__all__ = ["add_external"]


def add_external(
    store: BaseStore, corpus: str, name: str, *, parent: str | None = None, lock: MixLock | None = None
) -> AdapterRecord:
    """Add a model to a corpus's registry by what it is called where it was trained; it becomes a candidate.

    name: a path, a hub name, a run's id. parent: the adapter that it continues from. lock: the mix lock that it was trained
    on, which says what it has learnt, and so what score matrix and gate judge it on. It has no weights here: it is scored
    by `evaluate(…, predictions=FILE)`. Raises NotFoundError for a corpus or parent that isn't there, UsageError.
    """
    store.corpus(corpus)
    drawn = [] if lock is None else [source.pin for source in lock.sources if source.units]
    trained_on, trained_rows = training_data([pin.model_dump(mode="json") for pin in drawn])
    return Registry(store, corpus).add_external(
        name,
        parent=parent,
        lock=None if lock is None else lock.to_json().encode(),
        lock_digest=None if lock is None else lock.digest,
        trained_on=trained_on,
        trained_rows=trained_rows,
    )
