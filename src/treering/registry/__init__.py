"""Adapters of a corpus with their lineage, and which of them is in production.

Built on create-if-absent objects alone. Does not train, evaluate or judge (training, evaluation), nor build a model
from weights (rounds).
"""

from __future__ import annotations

from .fold import RegistryState, Status, fold
from .records import AdapterEvent, AdapterRecord, StoredAdapter
from .registry import Registry
from .scores import CanaryLog, CanaryLook, ScoreLog, StoredScore
from .trained import trained_snapshots, training_data

__all__ = [
    "AdapterEvent",
    "AdapterRecord",
    "CanaryLog",
    "CanaryLook",
    "Registry",
    "RegistryState",
    "ScoreLog",
    "Status",
    "StoredAdapter",
    "StoredScore",
    "fold",
    "trained_snapshots",
    "training_data",
]
