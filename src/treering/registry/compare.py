"""An adapter beside the one it continues: what each slice gained or lost, from scores that were measured already.

Reads the registry and the kept scores. Measures nothing (rounds).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from .registry import Registry
from .scores import every_score

if TYPE_CHECKING:
    from treering.store import BaseStore

    from .records import AdapterRecord

__all__ = ["SliceChange", "against_parent", "known_scores"]


class SliceChange(BaseModel):
    """One slice under both adapters; fractions of 1."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    slice: str
    score: float
    parent: float | None = Field(description="The parent's score on the same slice; null when it was never measured.")
    change: float | None = Field(description="score - parent: below 0, the slice was better answered before.")


def known_scores(store: BaseStore, record: AdapterRecord) -> dict[str, float]:
    """Scores of an adapter by slice, in its own metric: right after training, and those measured since."""
    found = dict(record.scores)
    for stored in every_score(store, record):
        if stored.metric == record.metric:
            found.setdefault(stored.slice, stored.score)
    return found


def against_parent(store: BaseStore, adapter: str) -> list[SliceChange]:
    """By slice, an adapter against its parent; empty without a parent of the same metric. Raises NotFoundError."""
    record = Registry.of(store, adapter).get(adapter)
    if record.parent is None:
        return []
    parent = Registry.of(store, record.parent).get(record.parent)
    if parent.metric != record.metric:
        return []
    before = known_scores(store, parent)
    return [
        SliceChange(
            slice=name,
            score=score,
            parent=before.get(name),
            change=None if name not in before else score - before[name],
        )
        for name, score in known_scores(store, record).items()
    ]
