"""Live data in: recorder, spool, quarantine, importers. Never imports torch.

Names are loaded when they are used: a worker that turns a file into records needs no store.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treering.capture.quarantine import Quarantined, list_quarantine
    from treering.capture.recorder import Receipt, Receipts, Recorder, adopt_orphans, flush_spools

__all__ = ["Quarantined", "Receipt", "Receipts", "Recorder", "adopt_orphans", "flush_spools", "list_quarantine"]

_QUARANTINE = ("Quarantined", "list_quarantine")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "quarantine" if name in _QUARANTINE else "recorder"
    return getattr(import_module(f"treering.capture.{home}"), name)
