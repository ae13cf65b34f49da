"""How many tokens the rows of a source hold: what turns shares of tokens into shares of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import UsageError
from treering.mixing.sources import SourceLike, TrainRows

__all__ = ["mean_length", "token_column"]

_USUAL = ("tokens", "input_ids")
_AT_ONCE = 65_536  # rows read together: bounds memory at any size


def _is_tokens(kind: Any) -> bool:
    t = pa.types
    return bool(
        (t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind)) and t.is_integer(kind.value_type)
    )


def token_column(sources: Sequence[SourceLike]) -> str:
    """The column that holds tokens in all sources: `tokens`, `input_ids`, else the first one of lists of integers.

    Raises UsageError when there is none.
    """
    names = [
        name
        for name in sources[0].schema.names
        if all(name in s.schema.names and _is_tokens(s.schema.field(name).type) for s in sources)
    ]
    for name in (*_USUAL, *names):
        if name in names:
            return str(name)
    raise UsageError(
        "shares by tokens need a column of token ids in every source",
        code="no-token-column",
        hint="capture token ids (a list of integers a record), or give shares by rows",
    )


def mean_length(rows: TrainRows, column: str, kind: Any) -> float | None:
    """Mean tokens of a training row; reads the column once unless its length is fixed. None when they hold none."""
    if pa.types.is_fixed_size_list(kind):
        return float(kind.list_size)
    total = 0
    for low in range(0, rows.size, _AT_ONCE):
        positions = np.arange(low, min(low + _AT_ONCE, rows.size), dtype=np.int64)
        for segment, ids in rows.locate(positions):
            total += pc.sum(pc.list_value_length(segment.take(ids, [column]).column(0))).as_py() or 0
    return total / rows.size if total else None
