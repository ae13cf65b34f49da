"""Which records to look at by hand: a sample that stays the same until it has been gone through."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treering.errors import UsageError
from treering.evaluation.content import content_of, said
from treering.rounds.records import counted, load_fresh

if TYPE_CHECKING:
    from treering.store import BaseStore

__all__ = ["ToLabel", "to_label"]

KEY = "intents"
_SHOWN = 2_000  # characters of a record that are shown


@dataclass(frozen=True, slots=True)
class ToLabel:
    """A sample of a ref's records. `left`: (id, text) of those that nothing was said of yet."""

    ref: str
    sample: int  # records in it
    left: tuple[tuple[str, str], ...]


def to_label(store: BaseStore, ref: str, n: int = 50) -> ToLabel:
    """The `n` records of a ref whose ids hash lowest, and which of them still have no annotation `intents`.

    The same records every time while the ref holds the same, so that labelling can be left off and taken up; what a live
    corpus takes in joins by the same rule, and a larger `n` holds the smaller sample. Records without text, and excluded
    ones, aren't asked about. Raises UsageError for a sample of none, NotFoundError.
    """
    if n < 1:
        raise UsageError(f"a sample of {n} records asks nothing", code="bad-sample", hint="-n 50")
    source = load_fresh(store, ref)
    content = content_of(source.schema)
    lowest: list[tuple[int, str, str]] = []  # (-hash, id, text): a heap whose root hashes highest
    for _, batch in counted(source, ["id", *content.columns]):
        texts = said(batch, content, most=_SHOWN).to_pylist()
        for name, text in zip(batch.column("id").to_pylist(), texts, strict=True):
            if text is None:
                continue
            entry = (-int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"), name, text)
            if len(lowest) < n:
                heapq.heappush(lowest, entry)
            elif entry > lowest[0]:
                heapq.heapreplace(lowest, entry)
    sample = [(name, text) for _, name, text in sorted(lowest, reverse=True)]
    words = source.annotations([name for name, _ in sample])
    keys = zip(words.column("id").to_pylist(), words.column("key").to_pylist(), strict=True)
    known = {name for name, key in keys if key == KEY}
    return ToLabel(source.ref, len(sample), tuple(one for one in sample if one[0] not in known))
