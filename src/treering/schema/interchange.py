"""Arrow schemas as JSON, in the form of Arrow's integration tests, for readers in other languages.

Format: https://arrow.apache.org/docs/format/Integration.html#json-test-data-format (the `schema` object).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

__all__ = ["schema_to_json"]


def schema_to_json(schema: pa.Schema) -> dict[str, Any]:
    """`{"fields": [{"name", "nullable", "type", "children", "metadata"?}]}`."""
    return {"fields": [_field(field) for field in schema]}


def _field(field: pa.Field) -> dict[str, Any]:
    kind = field.type
    children = [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_nested(kind) else []
    found: dict[str, Any] = {
        "name": field.name,
        "nullable": field.nullable,
        "type": _type(kind),
        "children": [_field(child) for child in children],
    }
    if field.metadata:
        found["metadata"] = [{"key": k.decode(), "value": v.decode()} for k, v in sorted(field.metadata.items())]
    return found


def _type(kind: pa.DataType) -> dict[str, Any]:
    t = pa.types
    if t.is_string(kind):
        return {"name": "utf8"}
    if t.is_binary(kind):
        return {"name": "binary"}
    if t.is_boolean(kind):
        return {"name": "bool"}
    if t.is_integer(kind):
        return {"name": "int", "bitWidth": kind.bit_width, "isSigned": t.is_signed_integer(kind)}
    if t.is_floating(kind):
        return {"name": "floatingpoint", "precision": {16: "HALF", 32: "SINGLE", 64: "DOUBLE"}[kind.bit_width]}
    if t.is_timestamp(kind):
        unit = {"s": "SECOND", "ms": "MILLISECOND", "us": "MICROSECOND", "ns": "NANOSECOND"}[kind.unit]
        return {"name": "timestamp", "unit": unit, **({"timezone": kind.tz} if kind.tz else {})}
    if t.is_date32(kind):
        return {"name": "date", "unit": "DAY"}
    if t.is_fixed_size_list(kind):
        return {"name": "fixedsizelist", "listSize": kind.list_size}
    if t.is_list(kind):
        return {"name": "list"}
    if t.is_struct(kind):
        return {"name": "struct"}
    raise ValueError(f"no JSON form for Arrow type {kind}")
