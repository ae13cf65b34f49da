"""PURE. What records say: which columns hold it, its text, and its words.

One text a record, whatever its type: that of its messages (but for system prompts, which every conversation of an agent
shares), else of its text columns (but for the label), else the items of its first list, joined by spaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import UsageError
from treering.schema.arrow import COMMON

__all__ = ["LABEL", "Content", "content_of", "normal", "payload_columns", "said", "words"]

LABEL = "label"

#: Scripts that put no spaces between words: each character counts as a word.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_PROMPTS = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Content:
    """The columns whose text a record's content is; without any, records have none."""

    columns: tuple[str, ...]


def payload_columns(schema: pa.Schema) -> list[pa.Field]:
    """The columns that aren't common fields."""
    return [field for field in schema if field.name not in COMMON.names]


def content_of(schema: pa.Schema, only: str | None = None) -> Content:
    """Where records of this schema hold their content; `only` names the column instead.

    Raises UsageError when `only` isn't there, or can't be read as text.
    """
    payload = payload_columns(schema)
    if only is not None:
        if only not in schema.names or not _is_readable(schema.field(only).type):
            readable = ", ".join(field.name for field in payload if _is_readable(field.type)) or "none"
            raise UsageError(
                f"there is no text in a column {only!r}", code="no-column", hint=f"columns with text: {readable}"
            )
        return Content((only,))
    messages = tuple(field.name for field in payload if _is_messages(field.type))
    if messages:
        return Content(messages)
    texts = tuple(field.name for field in payload if _is_text(field.type) and field.name != LABEL)
    if texts:
        return Content(texts)
    return Content(tuple(field.name for field in payload if _is_items(field.type))[:1])


def said(batch: pa.RecordBatch, content: Content, *, most: int) -> pa.Array:
    """The first `most` characters of each record's content: large_string (n,); null where it says nothing."""
    texts = [_text(batch.column(name)) for name in content.columns]
    if not texts:
        return pa.nulls(len(batch), pa.large_string())
    joined = (
        texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, pa.scalar(" ", pa.large_string()),
                                                                     null_handling="skip")
    )  # fmt: skip
    cut = pc.utf8_slice_codeunits(joined, 0, most)
    return pc.if_else(pc.equal(pc.fill_null(pc.utf8_length(cut), 0), 0), pa.scalar(None, pa.large_string()), cut)


def normal(texts: pa.Array) -> pa.Array:
    """Texts without what two writings of the same differ in: NFKC, lower case, single spaces. large_string (n,)."""
    folded = pc.utf8_trim_whitespace(pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC")))
    uneven = pc.fill_null(pc.match_substring_regex(folded, r"\s\s|[^\S ]"), False)  # ten times as fast as replacing
    if not pc.any(uneven).as_py():
        return folded
    return pc.replace_with_mask(folded, uneven, pc.replace_substring_regex(folded.filter(uneven), r"\s+", " "))


def words(texts: pa.Array) -> pa.Array:
    """The words of each text, in lower case: list of large_string (n,). Null texts have none."""
    apart = pc.replace_substring_regex(pc.utf8_lower(pc.fill_null(texts, "")), _UNSPACED, r" \1 ")
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(apart, r"[^\pL\pM\pN'’]+", " "))
    found = pc.split_pattern(plain, " ")
    empty = np.asarray(pc.equal(plain, ""))
    if not empty.any():
        return found
    sizes = np.where(empty, 0, np.asarray(pc.list_value_length(found)))
    kept = pc.filter(pc.list_flatten(found), pc.not_equal(pc.list_flatten(found), ""))
    return _lists(sizes, kept)


def _lists(sizes: npt.NDArray[Any], values: Any) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))


def _is_items(kind: pa.DataType) -> bool:
    """A list of texts or whole numbers: tokens, tags. Lists of floats are embeddings, and say nothing by themselves."""
    return _is_list(kind) and (_is_text(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_messages(kind: pa.DataType) -> bool:
    if not _is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    return {"role", "content"} <= {kind.value_type.field(i).name for i in range(kind.value_type.num_fields)}


def _is_readable(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_items(kind) or _is_messages(kind)


def _text(column: Any) -> pa.Array:
    """A readable column as one text a row: large_string (n,)."""
    if _is_text(column.type):
        return column.cast(pa.large_string())
    if _is_messages(column.type):
        return _messages(column)
    values = pc.list_flatten(column).cast(pa.large_string())
    sizes = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
    return pc.binary_join(_lists(sizes, values), pa.scalar(" ", pa.large_string()))


def _messages(column: Any) -> pa.Array:
    parents = np.asarray(pc.list_parent_indices(column)).astype(np.int64)
    messages = pc.list_flatten(column)
    texts = pc.struct_field(messages, "content")
    if not _is_text(texts.type):
        return pa.nulls(len(column), pa.large_string())
    prompts = pc.is_in(pc.struct_field(messages, "role"), pa.array(_PROMPTS))
    kept = np.asarray(pc.and_(pc.is_valid(texts), pc.invert(prompts)))
    sizes = np.bincount(parents[kept], minlength=len(column))
    return pc.binary_join(
        _lists(sizes, texts.filter(pa.array(kept)).cast(pa.large_string())), pa.scalar("\n", pa.large_string())
    )
