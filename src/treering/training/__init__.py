"""The adapter trainer: a frozen base, kinds of adapter over it, strategies in one loop.

Handed a loader, gives back an adapter. Opens no store, evaluates nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treering.training.card import BaseCard, ModelCard, TrainStats
from treering.training.config import TrainConfig

if TYPE_CHECKING:
    from treering.training.adapters import Adapter
    from treering.training.base import Base
    from treering.training.cache import ActivationCache
    from treering.training.loop import DivergedError, fit
    from treering.training.strategies import Draw, MixSource, Round, Step, Strategy, register, strategy

__all__ = [
    "ActivationCache",
    "Adapter",
    "Base",
    "BaseCard",
    "DivergedError",
    "Draw",
    "MixSource",
    "ModelCard",
    "Round",
    "Step",
    "Strategy",
    "TrainConfig",
    "TrainStats",
    "fit",
    "register",
    "strategy",
]

# Config and card are documents and cost nothing; what needs torch is imported when first asked for.
_LAZY = {
    "ActivationCache": "cache",
    "Adapter": "adapters",
    "Base": "base",
    "DivergedError": "loop",
    "Draw": "strategies",
    "MixSource": "strategies",
    "Round": "strategies",
    "Step": "strategies",
    "Strategy": "strategies",
    "fit": "loop",
    "register": "strategies",
    "strategy": "strategies",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
