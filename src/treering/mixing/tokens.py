"""How many tokens the rows of a source hold: what turns shares of tokens into shares of rows.

Token ids are counted; conversations by whoever knows a tokenizer, else by their bytes: of sources in one language and one
tokenizer these stand in the same proportion, and only proportions matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import UsageError
from treering.mixing.permute import Int64Array
from treering.mixing.sources import SegmentLike, SourceLike, TrainRows

__all__ = ["CountTokens", "mean_length", "token_column"]

CountTokens = Callable[[Any, Any], int]  # (messages, tools or None) of one conversation → its tokens

_USUAL = ("tokens", "input_ids")
_MESSAGES, _TOOLS = "messages", "tools"
_FRAME_BYTES = 16  # of each message, for its role and the marks around it: about four tokens in most chat templates
_AT_ONCE = 65_536  # rows read together: bounds memory at any size


def _is_tokens(kind: Any) -> bool:
    t = pa.types
    return bool(
        (t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind)) and t.is_integer(kind.value_type)
    )


def token_column(sources: Sequence[SourceLike]) -> str:
    """The column that holds tokens in all sources.

    `tokens`, `input_ids`, else the first one of lists of integers, else the `messages` of conversations. Raises UsageError when there is none.
    """
    names = [
        name
        for name in sources[0].schema.names
        if all(name in s.schema.names and _is_tokens(s.schema.field(name).type) for s in sources)
    ]
    for name in (*_USUAL, *names):
        if name in names:
            return str(name)
    if all(_MESSAGES in s.schema.names and pa.types.is_list(s.schema.field(_MESSAGES).type) for s in sources):
        return _MESSAGES
    raise UsageError(
        "shares by tokens need a column of token ids, or conversations, in every source",
        code="no-token-column",
        hint="capture token ids (a list of integers a record) or messages, or give shares by rows",
    )


def mean_length(rows: TrainRows, column: str, kind: Any, count: CountTokens | None = None) -> float | None:
    """Mean tokens of a training row; reads the column once unless its length is fixed. None when they hold none.

    Of conversations: what `count` says of each, else the bytes of what was said and of arguments of tool calls, and some
    for each message.
    """
    if pa.types.is_fixed_size_list(kind):
        return float(kind.list_size)
    total = 0
    talks = column == _MESSAGES and not _is_tokens(kind)
    for low in range(0, rows.size, _AT_ONCE):
        positions = np.arange(low, min(low + _AT_ONCE, rows.size), dtype=np.int64)
        for segment, ids in rows.locate(positions):
            if talks:
                total += _said(segment, ids, count)
            else:
                total += pc.sum(pc.list_value_length(segment.take(ids, [column]).column(0))).as_py() or 0
    return total / rows.size if total else None


def _said(segment: SegmentLike, ids: Int64Array, count: CountTokens | None) -> int:
    """Tokens of these conversations, or their bytes."""
    if count is not None:
        table = segment.take(ids, [_MESSAGES, _TOOLS])
        pairs = zip(*(table.column(name).to_pylist() for name in (_MESSAGES, _TOOLS)), strict=True)
        return sum(int(count(messages, tools)) for messages, tools in pairs)
    said = pc.list_flatten(segment.take(ids, [_MESSAGES]).column(0))
    calls = pc.list_flatten(pc.struct_field(said, ["tool_calls"]))
    texts = [pc.struct_field(said, ["content"]), pc.struct_field(calls, ["function", "arguments"])]
    return _FRAME_BYTES * len(said) + sum(pc.sum(pc.binary_length(text)).as_py() or 0 for text in texts)
