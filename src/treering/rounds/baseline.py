"""The fresh baseline of a lineage: one adapter, trained from scratch on everything that the lineage learnt bit by bit.

What a month of rounds is compared with: are they accumulating, or running in place? Composes registry and training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treering.errors import UsageError
from treering.mixing import mix
from treering.registry import AdapterRecord, Registry
from treering.registry.trained import overlaps
from treering.rounds.train import train

if TYPE_CHECKING:
    from treering.store import BaseStore
    from treering.training import TrainConfig

__all__ = ["baseline_for", "find_baseline", "newest_baseline"]


def baseline_for(store: BaseStore, adapter: str) -> AdapterRecord:
    """The fresh baseline of an adapter's lineage, trained now unless the registry has it already.

    Strategy `joint` over the snapshots that the lineage drew from (what it drew from live and isn't sealed is left out),
    with the adapter's own base and config, and as many updates as its rounds together. Raises UsageError for an adapter
    that was trained elsewhere, or on nothing that is sealed; else as `train`.
    """
    registry = Registry.of(store, adapter)
    found = find_baseline(store, adapter)
    if found is not None:
        return found
    refs, config = _recipe(store, registry.lineage(adapter))
    sources = [store.load(ref) for ref in refs]
    return train(
        store, mix(*sources, seed=config.seed), config, parent=None, corpus=registry.corpus, baseline=True
    ).adapter


def find_baseline(store: BaseStore, adapter: str) -> AdapterRecord | None:
    """The newest fresh baseline over just the snapshots, base and config of an adapter's lineage; None without one."""
    registry = Registry.of(store, adapter)
    lineage = registry.lineage(adapter)
    made = [one for one in registry.adapters() if one.baseline]
    if not made:
        return None
    refs, config = _recipe(store, lineage)
    asked = config.model_dump(mode="json")
    for one in reversed(made):
        if set(one.trained_on) == set(refs) and one.config == asked and one.base_digest == lineage[-1].base_digest:
            return one
    return None


def newest_baseline(store: BaseStore, adapter: str) -> AdapterRecord | None:
    """The newest fresh baseline that covers something of an adapter's lineage on the same base; None without one.

    It may be older than the lineage's last rounds, and lack what they learnt: see its `trained_on`.
    """
    registry = Registry.of(store, adapter)
    lineage = registry.lineage(adapter)
    learned = set(_learned(store, lineage))
    made = [one for one in registry.adapters() if one.baseline and one.base_digest == lineage[-1].base_digest]
    return next((one for one in reversed(made) if not learned.isdisjoint(one.trained_on)), None)


def _learned(store: BaseStore, lineage: list[AdapterRecord]) -> list[str]:
    """Snapshots that a lineage drew from, as live too, in order of first use."""
    corpus = lineage[-1].corpus
    rows = [(lo, hi) for one in lineage for lo, hi in one.trained_rows.get(corpus, [])]
    drawn = dict.fromkeys(ref for one in lineage for ref in one.trained_on)
    drawn.update((s.ref, None) for s in store.corpus(corpus).snapshots() if overlaps(rows, s.row_ids))
    return list(drawn)


def _recipe(store: BaseStore, lineage: list[AdapterRecord]) -> tuple[list[str], TrainConfig]:
    from treering.training import TrainConfig

    tip = lineage[-1]
    if tip.external is not None:
        raise UsageError(
            f"{tip.ref} was trained elsewhere, so nobody here knows how to train a baseline for it",
            code="external-adapter",
            hint="train one where it was trained, and add it: treering adapters add",
        )
    drawn = _learned(store, lineage)
    if not drawn:
        raise UsageError(
            f"{tip.ref} was trained on nothing that is sealed, so a baseline has nothing to train on",
            code="empty-slice",
            hint=f"seal live first: treering snapshot live --to {tip.corpus}",
        )
    config = TrainConfig(**tip.config)
    steps = sum(int(one.config.get("steps", config.steps)) for one in lineage)
    kind = "linear" if config.kind == "slda" else config.kind  # joint learns by gradient
    return drawn, config.changed(strategy="joint", kind=kind, steps=steps, general="", eval_every=0, only=None)
