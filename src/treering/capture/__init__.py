"""Live data in: recorder, spool, quarantine, importers. Never imports torch."""

from treering.capture.quarantine import Quarantined, list_quarantine
from treering.capture.recorder import Receipt, Receipts, Recorder, adopt_orphans, flush_spools

__all__ = ["Quarantined", "Receipt", "Receipts", "Recorder", "adopt_orphans", "flush_spools", "list_quarantine"]
