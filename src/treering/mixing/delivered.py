"""Which columns the batches of a mix have, and of which type: what all of its sources can give. Reads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treering.errors import ConflictError, NotFoundError, UsageError
from treering.mixing.lock import MixLock
from treering.mixing.reader import REF
from treering.mixing.sources import SourceLike
from treering.schema.evolution import widens

__all__ = ["delivered_types"]


def delivered_types(lock: MixLock, sources: Sequence[SourceLike], *, adaptive: bool = False) -> dict[str, Any]:
    """Column → the one `pa.DataType` it has in all sources that are, or may be, drawn from; those the lock names, or all shared.

    Raises NotFoundError for a column that a source lacks, UsageError for one of several types, ConflictError for sources
    of one corpus that are read as different schema versions.
    """
    may_change = adaptive or lock.schedule is not None or bool(lock.events)
    drawn = [source for source, units in zip(sources, lock.units, strict=True) if units or may_change]
    _check_same_schema(drawn)
    shared = [name for name in drawn[0].schema.names if all(name in source.schema.names for source in drawn)]
    names = shared if lock.columns is None else list(dict.fromkeys(lock.columns))
    found: dict[str, Any] = {}
    for name in names:
        for source in drawn:
            if name == REF:
                raise UsageError(f"{REF!r} is the loader's own: leave it out of columns", code="reserved-column")
            if name not in source.schema.names:
                raise NotFoundError(
                    f"{source.ref} has no column {name!r}",
                    code="no-column",
                    hint="it has " + ", ".join(source.schema.names),
                )
        types = {source.ref: source.schema.field(name).type for source in drawn}
        if len(set(types.values())) > 1:
            listed = ", ".join(f"{kind} in {ref}" for ref, kind in types.items())
            raise UsageError(
                f"column {name!r} has several types: {listed}", code="column-types", hint=_way_out(name, drawn)
            )
        found[name] = next(iter(types.values()))
    return found


def _check_same_schema(sources: Sequence[SourceLike]) -> None:
    """Sources of one corpus that were loaded before and after it evolved: a renamed column would be in none of the batches."""
    read_as: dict[str, tuple[int, str]] = {}
    for source in sources:
        version = int(getattr(source, "schema_version", 1))
        other, ref = read_as.setdefault(source.corpus, (version, source.ref))
        if other != version:
            raise ConflictError(
                f"{source.corpus} evolved meanwhile: {ref} is read as schema version {other}, {source.ref} as {version}",
                code="schema-changed",
                hint="load the sources again, then mix them",
            )


def _way_out(name: str, sources: Sequence[SourceLike]) -> str:
    """What to do about a column that has several types."""
    without = f"leave {name} out with columns=[…]"
    types = [(source.corpus, source.schema.field(name).type) for source in sources]
    for _, kind in types:
        if all(widens(other, kind) for _, other in types):
            narrow = list(dict.fromkeys(corpus for corpus, other in types if other != kind))
            which = "the corpus" if len(narrow) == 1 else "the corpora"
            return f"evolve {which} {', '.join(narrow)} so that {name} is {kind} (treering schema … --evolve), or {without}"
    return f"no type here holds the values of all of them: {without}, or rename it in one of the corpora"
