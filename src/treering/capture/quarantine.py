"""Quarantine: where refused records wait, each with everything that is wrong with it.

Entries are JSON objects in the store, written when a spool is drained. Does not decide what is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from treering.errors import AlreadyExistsError, Problem
from treering.store.corpus import BaseCorpus

__all__ = ["Quarantined", "decode", "encode", "entry", "list_quarantine", "put_aside"]


class Quarantined(BaseModel):
    """A refused record: as much of it as JSON can hold, its problems, when it came, and from where (`FILE:LINE`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Any
    problems: tuple[Problem, ...]
    at: datetime
    source: str | None = None


_LIST = TypeAdapter(list[Quarantined])


def entry(record: Any, problems: Sequence[Problem], source: str | None = None) -> Quarantined:
    """What is kept of a refused record: what JSON can't hold is kept as its `repr`."""
    kept = json.loads(json.dumps(record, default=repr, ensure_ascii=True).encode("ascii"), parse_constant=str)
    return Quarantined(record=kept, problems=tuple(problems), at=datetime.now(UTC), source=source)


def encode(entries: Sequence[Quarantined]) -> bytes:
    """JSON bytes of some entries."""
    return _LIST.dump_json(list(entries), ensure_ascii=True)


def decode(data: bytes) -> list[Quarantined]:
    """The entries again."""
    return _LIST.validate_json(data)


def put_aside(corpus: BaseCorpus, data: bytes) -> None:
    """Store encoded entries, durably. The same bytes again (a drain that was cut short) are stored once."""
    name = hashlib.sha256(data).hexdigest()[:32]
    try:
        corpus.store.objects.create(f"quarantine/{corpus.record.table}/{name}.json", data)
    except AlreadyExistsError:
        return


def list_quarantine(corpus: BaseCorpus) -> list[Quarantined]:
    """All quarantined records, oldest first."""
    objects = corpus.store.objects
    found = [q for path in objects.list(f"quarantine/{corpus.record.table}") for q in decode(objects.get(path))]
    return sorted(found, key=lambda q: q.at)
