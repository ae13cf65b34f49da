"""What adapters have seen, and so what is new to the one in production: the other half of what `support@new` means.

Reads snapshots' row intervals through the store layer, and adapters through the registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .registry import Registry

if TYPE_CHECKING:
    from treering.store import BaseStore

__all__ = ["covers", "overlaps", "trained_snapshots", "training_data"]

Interval = tuple[int, int]


def trained_snapshots(store: BaseStore, corpus: str) -> set[str]:
    """Refs of the corpus's snapshots that the production adapter, or one it descends from, was trained on.

    A snapshot sealed after training counts when every row of it was live then and drawn from; one that took in further
    rows is still new. Empty without an adapter in production.
    """
    registry = Registry(store, corpus)
    production = registry.state().production
    if production is None:
        return set()
    ref = f"{corpus}:{production}"
    trained, rows = set(registry.trained_on(ref)), registry.trained_rows(ref)
    return {s.ref for s in store.corpus(corpus).snapshots() if s.ref in trained or covers(rows, s.row_ids)}


def training_data(pins: Iterable[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[Interval]]]:
    """What `Registry.add` wants to know of a run's data: `trained_on` and `trained_rows`, from its sources' pins.

    `pins`: `Source.pin()` of every source that was drawn from (one of weight 0 wasn't). Snapshots are named by ref; live
    by its interval of stable row ids, since its name will mean other rows tomorrow.
    """
    refs: dict[str, None] = {}
    rows: dict[str, list[Interval]] = {}
    for pin in pins:
        for segment in pin["segments"]:
            if segment["name"] == "live":
                lo, hi = segment["row_ids"]
                if lo < hi:
                    rows.setdefault(pin["corpus"], []).append((int(lo), int(hi)))
            else:
                refs[f"{pin['corpus']}@{segment['name']}"] = None
    return list(refs), rows


def covers(intervals: list[Interval], wanted: Interval) -> bool:
    """Whether half-open, merged `intervals` hold all of `wanted`; an empty one is in nothing."""
    lo, hi = wanted
    return lo < hi and any(a <= lo and hi <= b for a, b in intervals)


def overlaps(intervals: list[Interval], wanted: Interval) -> bool:
    """Whether half-open `intervals` hold any of `wanted`."""
    lo, hi = wanted
    return any(max(a, lo) < min(b, hi) for a, b in intervals)
