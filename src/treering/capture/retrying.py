"""Quarantined records once more: after a schema has evolved, a rule was loosened, a line mended by hand.

What fits now is captured, and leaves quarantine once it is in the table; the rest stays as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from treering.capture import quarantine
from treering.capture.recorder import Recorder, flush_spools
from treering.errors import NotFoundError
from treering.store.corpus import BaseCorpus

__all__ = ["Retried", "retry"]


@dataclass(frozen=True)
class Retried:
    """What became of quarantined records: `stored`, `duplicates` of stored ones, `erased` before; the rest `waits`."""

    corpus: str
    tried: int
    stored: int
    duplicates: int
    erased: int
    waits: int


def retry(corpus: BaseCorpus) -> Retried:
    """See `Corpus.retry_quarantine`."""
    flush_spools(corpus)
    objects, folder = corpus.store.objects, f"quarantine/{corpus.record.table}"
    tried = waits = 0
    with Recorder(corpus) as live:
        for path in objects.list(folder):
            try:
                entries = quarantine.decode(objects.get(path))
            except NotFoundError:
                continue  # somebody else got to it
            found = [(number, _record(one)) for number, one in enumerate(entries)]
            records = [(number, record) for number, record in found if record is not None]
            fits = live.fitting([record for _, record in records])
            chosen = [records[position] for position in fits]
            tried += len(entries)
            waits += len(entries) - len(chosen)
            if not chosen:
                continue
            live.extend([record for _, record in chosen])
            live.flush()  # in the table, before it leaves quarantine
            gone = {number for number, _ in chosen}
            quarantine.replace(corpus, path, [one for number, one in enumerate(entries) if number not in gone])
        counts = live.counts
    # What others under the same id keep out went back to quarantine.
    back = counts.conflicts + counts.refused
    return Retried(corpus.name, tried, counts.stored, counts.duplicates, counts.erased, waits + back)


def _record(one: quarantine.Quarantined) -> dict[str, Any] | None:
    """A quarantined record as it is captured again; None for what isn't one, or waits for another record's sake.

    It gets the id that every retry gives it, so that one which was cut short stores nothing twice, and the time it came at.
    """
    if not isinstance(one.record, dict) or any(problem.kind == "id-conflict" for problem in one.problems):
        return None
    record = dict(one.record)
    if record.get("id") is None:
        record["id"] = hashlib.blake2b(quarantine.encode([one]), digest_size=16).hexdigest()
    if isinstance(one.at, datetime) and record.get("ts") is None:
        record["ts"] = one.at
    return record
