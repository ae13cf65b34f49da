"""Columns of records that hold what Arrow takes as it is, made column by column: no validator looks at each record.

All values of a member together are looked at for their class, which takes a hundredth of a microsecond each; their rules are
checked in columns afterwards (by_columns). A chat takes 1.4 µs so, and 3.5 by the strict validator and Arrow's own way from dicts
to columns. It gives columns only where the validator would have made the very same; else the validator is asked. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from treering.schema.arrow import TIMESTAMP
from treering.schema.fields import _parse_time, dump_json

__all__ = ["ENCODED", "columns_of"]

#: Members of the built-in record types that hold JSON text, and what the validator makes it of.
ENCODED = {"meta": dict, "tools": list, "arguments": dict}

#: The class of the values that an Arrow type takes without changing them.
_CLASSES = {kind.id: one for kind, one in ((pa.string(), str), (pa.int32(), int), (TIMESTAMP, datetime))}
_NOTHING = type(None)


def columns_of(rows: Sequence[Any], struct: pa.StructType) -> list[pa.Array] | None:
    """The columns (n,) of n records of a built-in type, in the order of `struct`; rules of values aren't checked.

    None when a record isn't a plain dict, has a member that `struct` doesn't have, or a value that isn't None nor of exactly the
    class that its column takes unchanged: `str`, `int`, and lists and dicts of these; times and JSON text are made as the validator
    makes them. Raises ValueError, OverflowError or pa.ArrowException for values that no column holds.
    """
    if set(map(type, rows)) != {dict}:
        return None
    names: set[Any] = set().union(*rows)
    if not names <= {field.name for field in struct}:
        return None
    made: dict[str, pa.Array] = {}
    # What isn't nested first: a record that the validator has to look at is told before much has been made.
    for field in sorted(struct, key=lambda field: pa.types.is_nested(field.type)):
        if field.name not in names:
            made[field.name] = pa.nulls(len(rows), field.type)
            continue
        try:
            values = list(map(itemgetter(field.name), rows))
        except KeyError:
            values = [row.get(field.name) for row in rows]
        column = _column(values, field.type, ENCODED.get(field.name))
        if column is None:
            return None
        made[field.name] = column
    return [made[field.name] for field in struct]


def _column(
    values: list[Any], kind: pa.DataType, encoded: type | None = None, *, optional: bool = True
) -> pa.Array | None:
    classes = set(map(type, values))
    has_nothing = _NOTHING in classes
    if has_nothing and not optional:
        return None
    classes.discard(_NOTHING)
    if not classes:
        return pa.nulls(len(values), kind)
    if pa.types.is_list(kind):
        return _lists(values, kind, has_nothing) if classes == {list} else None
    if pa.types.is_struct(kind):
        children = columns_of(values, kind)
        return None if children is None else pa.StructArray.from_arrays(children, fields=list(kind))
    if encoded in classes and classes <= {encoded, str}:
        values = [dump_json(value, sort_keys=True) if type(value) is encoded else value for value in values]
        classes = {str}
    if pa.types.is_timestamp(kind) and classes <= {str, datetime}:
        values = [_parse_time(value) for value in values]
        classes = {datetime}
    return pa.array(values, kind) if classes == {_CLASSES.get(kind.id)} else None


def _lists(values: list[list[Any] | None], kind: pa.ListType, has_nothing: bool) -> pa.Array | None:
    mask = pa.array([value is None for value in values]) if has_nothing else None
    lists = [value or [] for value in values]
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, lists), np.int32, len(lists)), out=offsets[1:])
    items = list(chain.from_iterable(lists))
    inner = _column(items, kind.value_type, optional=False)
    return None if inner is None else pa.ListArray.from_arrays(pa.array(offsets), inner, type=kind, mask=mask)
