"""treering's own records: one a value, with the fields of the corpus' record type under their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Unfit
from treering.schema import BUILT_IN, Record
from treering.schema.record_type import safe_repr

__all__ = ["ParquetImporter", "RecordsImporter"]

_COMMON = frozenset(Record.model_fields)
_FIELDS = _COMMON.union(*(model.model_fields for model in BUILT_IN.values()))
_PAYLOADS = tuple(
    frozenset(name for name, info in model.model_fields.items() if info.is_required()) for model in BUILT_IN.values()
)
#: What other programs' files have in common with ours says nothing: these they don't have.
_OURS = _COMMON - {"id"} | {"label", "tokens"}


class RecordsImporter(Importer):
    """Takes each object as a record; one without an id gets one from the file and its text."""

    name: ClassVar[str] = "records"
    makes: ClassVar[tuple[str, ...]] = ()
    stands_alone: ClassVar[bool] = True

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """Whether it has nothing but fields of the built-in record types, a whole payload, and a field that only ours have."""
        return (
            isinstance(value, dict)
            and _FIELDS.issuperset(value)
            and not _OURS.isdisjoint(value)
            and any(payload.issubset(value) for payload in _PAYLOADS)
        )

    @property
    def remembers(self) -> bool:
        """Only how often it has seen a text that brings no id of its own."""
        return bool(self._ids)

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """The record."""
        if not isinstance(value, dict):
            shown = safe_repr(value)
            shown = shown if len(shown) <= 48 else f"{shown[:45]}..."
            problem = Problem((), "wrong-type", f"expected an object, got {type(value).__name__} {shown}")
            return (Unfit(line, (problem,), value),)
        if value.get("id") is None and (made := self.own_id(text)) is not None:
            value["id"] = made
        return (Found(value, line),)


class ParquetImporter(RecordsImporter):
    """Records in a Parquet file, a column a field. Capture hands it whole row groups, and rows only where they lack ids."""

    name: ClassVar[str] = "parquet"

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """Never: a Parquet file is known by its first bytes."""
        return False
