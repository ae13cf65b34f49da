"""treering's own records, a JSON object each, as `treering capture --format records` takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from treering.errors import UsageError
from treering.formats.writers.json_lines import JsonLines

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Records"]


class Records(JsonLines):
    """Every column under its name; what is null is left out, also inside of structs.

    Columns that hold JSON as text (`meta`, `tools`, arguments) stay text, so that capturing the file again gives the
    same bytes.
    """

    name = "records"
    by_record = True

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        unheld = [f"{field.name} ({field.type})" for field in schema if _holds_bytes(field.type)]
        if unheld:
            raise UsageError(
                f"JSON has no form for bytes: {', '.join(unheld)}",
                code="bad-columns",
                hint="--format parquet holds them",
            )

    @override
    def lines(self, record: dict[str, Any]) -> Iterable[Any]:
        yield {name: _without_nulls(value) for name, value in record.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]  # a null in a list keeps its place
    return value


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    t = pa.types
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(child) for child in _children(kind))


def _children(kind: Any) -> Iterator[Any]:
    for number in range(kind.num_fields):
        yield kind.field(number).type
