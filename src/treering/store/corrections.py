"""Corrections: what was said later of a record's columns, laid over what its snapshot or live holds.

A correction changes what a source delivers, never what a snapshot holds: digest, certificate, cached columns and plain
Lance stay. Values are kept in the annotations under the names and types of the schema version that they were checked
against, and delivered as the one that the source is read as. The newest correction of a record counts as a whole: it
takes the place of the one before, and an empty one takes it back.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from treering.errors import Problem, UsageError
from treering.formats.chat import kept_after
from treering.schema import RecordType
from treering.schema.evolution import SCHEMA_VERSION, History, converted, shown
from treering.schema.fields import dump_json
from treering.store.digest import ContentDigest
from treering.store.runs import RowIds, Runs, inside

if TYPE_CHECKING:
    from treering.store.source import Segment

__all__ = ["UNCORRECTABLE", "Corrections", "corrections_of", "encode_correction"]

#: What a record is, whom it is about, when and from where it came, and which split it is in aren't matters of opinion.
UNCORRECTABLE = frozenset({"id", "session_id", "subject", "ts", "split", "origin"})

_Data = TypeVar("_Data", pa.RecordBatch, pa.Table)


def encode_correction(record_type: RecordType, version: int, value: Any) -> str | list[Problem]:
    """A correction as it is kept, JSON text; or everything that is wrong with it, `loc` relative to the correction.

    `value`: column → what should have stood there (None: nothing), checked as a record's field is. Times are kept as ISO
    8601 text, and the number of the schema version beside the columns, unless it is 1.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return [Problem((), "wrong-type", "expected an object of columns and their values")]
    problems: list[Problem] = []
    kept: dict[str, Any] = {}
    for name, given in value.items():
        if name not in record_type.schema.names:
            known = ", ".join(n for n in record_type.schema.names if n not in UNCORRECTABLE)
            problems.append(Problem((name,), "unknown-field", f"expected one of {known}"))
        elif name in UNCORRECTABLE:
            problems.append(Problem((name,), "bad-value", "expected a column that can be corrected; this one stays"))
        elif given is None:
            if not record_type.schema.field(name).nullable:
                problems.append(Problem((name,), "wrong-type", "expected a value: this column is never empty"))
            kept[name] = None
        else:
            try:
                kept[name] = shown(record_type.scalar(name, given))
            except UsageError as exc:
                problems.append(Problem((name,), "wrong-type", exc.message))
    if problems:
        return problems
    return dump_json({**kept, **({SCHEMA_VERSION: version} if kept and version > 1 else {})}, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Corrections:
    """What is laid over one segment: column → (row ids, int64 ascending; their values, of the type that is delivered)."""

    columns: Mapping[str, tuple[RowIds, pa.Array]]

    def touches(self, names: Sequence[str]) -> bool:
        """Whether any of these columns has a corrected value."""
        return any(name in self.columns for name in names)

    def row_ids(self, names: Sequence[str] | None = None) -> RowIds:
        """Row ids, ascending, of the records with a corrected value in any column, or in any of these."""
        parts = [ids for name, (ids, _) in self.columns.items() if names is None or name in names]
        return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))

    def within(self, runs: Runs) -> Corrections:
        """Those of records that lie in the runs."""
        kept = {}
        for name, (ids, values) in self.columns.items():
            chosen = inside(runs, ids)
            if chosen.any():
                kept[name] = ids[chosen], values.filter(pa.array(chosen))
        return Corrections(kept)

    def apply(self, data: _Data, row_ids: RowIds) -> _Data:
        """The rows with their corrected values; `row_ids` (n,) are theirs, in any order.

        Where `meta` is among the columns, it loses what an importer kept there of what was corrected: exporters lay that
        over the record, and it would say again what the correction took back.
        """
        changed: list[tuple[str, pa.Array, pa.Array, RowIds]] = []
        for name, (ids, values) in self.columns.items():
            at = data.schema.get_field_index(name)
            if at < 0 or not len(data):
                continue
            found = np.minimum(np.searchsorted(ids, row_ids), len(ids) - 1)
            hit = ids[found] == row_ids
            if hit.any():
                column = data.column(at)
                whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
                whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
                places = np.where(hit, len(whole) + found, np.arange(len(whole)))
                laid = pa.concat_arrays([whole, converted(values, whole.type)]).take(pa.array(places))
                data = data.set_column(at, data.schema.field(at), laid)
                changed.append((name, whole, laid, np.flatnonzero(hit)))
        for name, before, after, rows in changed:  # once `meta` itself is corrected, too
            data = _without_kept(data, name, before, after, rows)
        return data

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of which values stand in which columns of which rows."""
        parts = []
        for name, (ids, values) in sorted(self.columns.items()):
            content = ContentDigest(pa.schema([("row_id", pa.int64()), (name, values.type)]))
            content.update(pa.record_batch([pa.array(ids), values], names=["row_id", name]))
            parts.append(content.hexdigest())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def and_those_of(self, later: Corrections | None) -> Corrections:
        """Both; they are about different records."""
        if later is None:
            return self
        joined = dict(self.columns)
        for name, (ids, values) in later.columns.items():
            if name in joined:
                before = joined[name]
                ids, values = np.concatenate([before[0], ids]), pa.concat_arrays([before[1], values])
                order = np.argsort(ids)
                ids, values = ids[order], values.take(pa.array(order))
            joined[name] = ids, values
        return Corrections(joined)


def corrections_of(segment: Segment, version: int, history: History) -> Corrections | None:
    """What version `version` of the annotations corrects of a segment, as `history[-1]` reads it; None for nothing.

    A correction that was checked against a later schema isn't delivered: its columns may be no others than this reads.
    """
    if version == 0:
        return None
    said = segment.said_under("correction", version)
    texts = {name: text for name, text in said.items() if text != "{}"}
    if not texts:
        return None
    row_ids, names = segment.find_ids(list(texts))
    target = {column.key: column.field for column in history[-1].columns}
    found: dict[tuple[int, str], tuple[list[int], list[Any]]] = {}
    for row_id, name in zip(row_ids.tolist(), names, strict=True):
        correction = json.loads(texts[name])
        checked = correction.pop(SCHEMA_VERSION, 1)
        if checked > len(history):
            continue
        for column, value in correction.items():
            rows, values = found.setdefault((checked, column), ([], []))
            rows.append(row_id)
            values.append(value)
    made: Corrections | None = None
    for (checked, column), (rows, values) in sorted(found.items()):
        known = history[checked - 1].named(column)
        field = target.get(known.key) if known is not None else None
        if known is None or field is None:
            continue
        array = pa.array([_from_json(value, known.field.type) for value in values], known.field.type)
        one = Corrections({field.name: (np.array(rows, np.int64), converted(array, field.type))})
        made = one if made is None else made.and_those_of(one)
    return made


def _without_kept(data: _Data, column: str, before: pa.Array, after: pa.Array, hit: RowIds) -> _Data:
    """The rows with `meta` as it is after the correction of a column in the rows `hit`; see `kept_after`."""
    at = data.schema.get_field_index("meta")
    if at < 0 or column == "meta":
        return data
    field = data.schema.field(at)
    if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
        return data  # a record type of somebody's own
    metas = data.column(at).to_pylist()
    changed = False
    for row in hit.tolist():
        if metas[row] is not None:
            made = kept_after(metas[row], column, before[row].as_py(), after[row].as_py())
            changed |= made != metas[row]
            metas[row] = made
    return data.set_column(at, field, pa.array(metas, field.type)) if changed else data


def _from_json(value: Any, kind: pa.DataType) -> Any:
    """What `shown` made of a value, as Arrow takes it."""
    t = pa.types
    if value is None:
        return None
    if t.is_struct(kind):
        return {field.name: _from_json(value.get(field.name), field.type) for field in kind}
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return [_from_json(item, kind.value_type) for item in value]
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return base64.b64decode(value)
    if t.is_date(kind):
        return date.fromisoformat(value)
    if t.is_timestamp(kind):
        return datetime.fromisoformat(value)
    if t.is_floating(kind):
        return float(value)
    return value
