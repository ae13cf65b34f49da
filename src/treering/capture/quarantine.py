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
from treering.schema.plain import plain, printable
from treering.store.corpus import BaseCorpus
from treering.store.erase import forget_object

__all__ = ["Quarantined", "decode", "encode", "entry", "list_quarantine", "plain", "put_aside", "replace"]


class Quarantined(BaseModel):
    """A refused record: as much of it as JSON can hold, its problems, when it came, and from where (`FILE:LINE`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Any
    problems: tuple[Problem, ...]
    at: datetime
    source: str | None = None


_LIST = TypeAdapter(list[Quarantined])


def entry(
    record: Any, problems: Sequence[Problem], source: str | None = None, *, at: datetime | None = None
) -> Quarantined:
    """What is kept of a refused record: what JSON can't hold is kept as its `repr`. Never raises for any record."""
    kept = plain(record)
    shown = tuple(Problem(_printable(p.loc), p.kind, printable(p.message)) for p in problems)
    return Quarantined(record=kept, problems=shown, at=at or datetime.now(UTC), source=source)


def _printable(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return tuple(part if isinstance(part, int) else printable(part) for part in loc)


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


def replace(corpus: BaseCorpus, path: str, kept: Sequence[Quarantined]) -> None:
    """Put what is kept of an object's entries in its place. An object never changes: another comes, then this one goes."""
    if kept:
        put_aside(corpus, encode(kept))
    forget_object(corpus, path)


def list_quarantine(corpus: BaseCorpus) -> list[Quarantined]:
    """All quarantined records, oldest first. The same line of a file, refused at each import, is one of them."""
    objects = corpus.store.objects
    found = [q for path in objects.list(f"quarantine/{corpus.record.table}") for q in decode(objects.get(path))]
    found.sort(key=lambda q: q.at)
    kept: dict[Any, Quarantined] = {}
    for number, q in enumerate(found):
        again = number if q.source is None else (q.source, json.dumps(q.record, sort_keys=True), q.problems)
        kept.setdefault(again, q)
    return list(kept.values())
