"""Data out: mixes of sources, exact and reproducible batches from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treering.mixing.lock import (
    GrowthEvent,
    LockedSource,
    MixLock,
    PinnedAnnotations,
    PinnedSampling,
    PinnedSegment,
    PinnedSelection,
    SourcePin,
    WeightEvent,
)
from treering.mixing.recipe import BATCH_SIZE, CHUNK_ROWS, POOL_ROWS, Mix, mix, streams
from treering.mixing.weights import ReplayController, Schedule

if TYPE_CHECKING:
    from treering.mixing.loader import Loader, Transform

__all__ = [
    "BATCH_SIZE",
    "CHUNK_ROWS",
    "POOL_ROWS",
    "GrowthEvent",
    "Loader",
    "LockedSource",
    "Mix",
    "MixLock",
    "PinnedAnnotations",
    "PinnedSampling",
    "PinnedSegment",
    "PinnedSelection",
    "ReplayController",
    "Schedule",
    "SourcePin",
    "Transform",
    "WeightEvent",
    "mix",
    "streams",
]


def __getattr__(name: str) -> Any:
    if name in ("Loader", "Transform"):  # their module imports torch, which locking and previewing do without
        from treering.mixing import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
