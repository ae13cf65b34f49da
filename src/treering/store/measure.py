"""What a selection wants to know of records, by columns: a keyed hash of ids, sizes, tokens, opening words. Pure.

Arrow in, numpy out, one number or one text a row; nothing goes row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import UsageError

__all__ = ["OPENING_WORDS", "arrow_bytes", "hash_texts", "opening_words", "token_counts"]

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

OPENING_WORDS = 5

_TOKENS = "tokens"  # the column that holds token ids, in the built-in type and in most others
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: UInt64Array) -> UInt64Array:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_texts(texts: pa.Array, key: str) -> UInt64Array:
    """A 64-bit hash of each text under `key`: uint64 (n,). The same on any machine; nulls hash as empty texts.

    Eight bytes of all texts at a time. It decides an order and guards nothing.
    """
    base = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8).digest(), "<u8")[0]
    texts = pc.fill_null(texts, "").cast(pa.large_string())
    n = len(texts)
    if not n:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(texts.buffers()[1], "<i8", n + 1, texts.offset * 8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    low, high = int(offsets[0]), int(offsets[-1])
    data = np.zeros(high - low + 8, np.uint8)  # eight more bytes, so that each text may be read in whole words
    if high > low:
        data[: high - low] = np.frombuffer(texts.buffers()[2], np.uint8, high - low, low)
    words: UInt64Array = np.ndarray((high - low + 1,), "<u8", data, strides=(1,))  # a word at every byte
    state = _mixed((lengths.astype(np.uint64) * _GOLDEN) ^ base)
    todo = np.arange(n)
    for at in range(0, int(lengths.max()), 8):
        todo = todo[lengths[todo] > at]
        word = words[starts[todo] - low + at].astype(np.uint64)
        over = np.maximum(8 - (lengths[todo] - at), 0).astype(np.uint64) * np.uint64(8)
        word = (word << over) >> over  # what the word holds of the next text doesn't count
        state[todo] = _mixed((state[todo] ^ word) + _GOLDEN)
    return state


def arrow_bytes(batch: pa.RecordBatch) -> Int64Array:
    """Bytes that each row's values take in Arrow: int64 (n,).

    Values, and an offset (4 bytes, in large types 8) per text and list; validity bits aren't counted.
    """
    total = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        total += _bytes(column)
    return total


def _bytes(array: Any) -> Int64Array:
    t, kind = pa.types, array.type
    if isinstance(array, pa.ExtensionArray):
        return _bytes(array.storage)
    if t.is_dictionary(kind):
        return _bytes(array.dictionary_decode())
    if t.is_struct(kind):
        total = np.zeros(len(array), np.int64)
        for child in array.flatten():
            total += _bytes(child)
        return total
    if t.is_list(kind) or t.is_large_list(kind):
        return _per_row(array, _bytes) + (8 if t.is_large_list(kind) else 4)
    if t.is_fixed_size_list(kind):
        return _per_row(array, _bytes)
    if t.is_string(kind) or t.is_binary(kind) or t.is_large_string(kind) or t.is_large_binary(kind):
        width = 8 if t.is_large_string(kind) or t.is_large_binary(kind) else 4
        return _filled(pc.binary_length(array)) + width
    if t.is_null(kind):
        return np.zeros(len(array), np.int64)
    return np.full(len(array), -(-kind.bit_width // 8), np.int64)


def _filled(counts: Any) -> Int64Array:
    return np.asarray(pc.fill_null(counts, 0)).astype(np.int64)


def _per_row(array: Any, measure: Any) -> Int64Array:
    """The sum of a measure of a list's items, for each list: int64 (n,)."""
    parents = np.asarray(pc.list_parent_indices(array)).astype(np.int64)
    items = measure(pc.list_flatten(array))
    if not len(items):
        return np.zeros(len(array), np.int64)
    return np.bincount(parents, weights=items, minlength=len(array)).astype(np.int64)


def token_counts(batch: pa.RecordBatch) -> Int64Array:
    """Tokens of each row: int64 (n,).

    The length of the column `tokens` where it is a list; without one, the words (runs of anything but white space) in all
    texts of the batch, which for a tokenizer of 30k–100k pieces is about three quarters of its count in English.
    """
    if _TOKENS in batch.schema.names:
        column = batch.column(_TOKENS)
        if (
            pa.types.is_list(column.type)
            or pa.types.is_large_list(column.type)
            or pa.types.is_fixed_size_list(column.type)
        ):
            return _filled(pc.list_value_length(column))
    total = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        total += _words(column)
    return total


def _words(array: Any) -> Int64Array:
    t, kind = pa.types, array.type
    if t.is_string(kind) or t.is_large_string(kind):
        return _filled(pc.count_substring_regex(array, r"\S+"))
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _per_row(array, _words)
    total = np.zeros(len(array), np.int64)
    if t.is_struct(kind):
        for child in array.flatten():
            total += _words(child)
    return total


def opening_words(batch: pa.RecordBatch, payload: Sequence[str]) -> pa.Array:
    """The first five words, in lower case, of what the user says in each row: text (n,), null where nobody does.

    The first user message of the first column of messages, else the first text column, else the first five items of the
    first list, of the columns `payload`. Raises UsageError when there is none of these.
    """
    t = pa.types
    columns = [batch.column(name) for name in payload]
    for column in columns:
        if _is_messages(column.type):
            return _opening(_first_user_message(column))
    for column in columns:
        if t.is_string(column.type) or t.is_large_string(column.type):
            return _opening(column)
    for column in columns:
        if t.is_list(column.type) or t.is_large_list(column.type) or t.is_fixed_size_list(column.type):
            items = pc.list_slice(column, 0, OPENING_WORDS, return_fixed_size_list=False)
            if not t.is_nested(items.type.value_type):
                return pc.binary_join(items.cast(pa.list_(pa.string())), " ")
    raise UsageError(
        "there is no text, message or list that records could be told apart by",
        code="no-column",
        hint="say by which column, or by what function of a batch, records are grouped: by=…",
    )


def _is_messages(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    names = {kind.value_type.field(i).name for i in range(kind.value_type.num_fields)}
    return {"role", "content"} <= names


def _first_user_message(column: Any) -> pa.Array:
    parents = np.asarray(pc.list_parent_indices(column)).astype(np.int64)
    messages = pc.list_flatten(column)
    by_user = np.flatnonzero(np.asarray(pc.fill_null(pc.equal(pc.struct_field(messages, "role"), "user"), False)))
    rows, first = np.unique(parents[by_user], return_index=True)
    where = np.full(len(column), -1, np.int64)
    where[rows] = by_user[first]
    return pc.struct_field(messages, "content").take(pa.array(where, mask=where < 0))


def _opening(texts: Any) -> pa.Array:
    """The first words: a text may be long, and only its beginning is split."""
    words = pc.utf8_split_whitespace(pc.utf8_lower(pc.utf8_ltrim_whitespace(texts)), max_splits=OPENING_WORDS)
    return pc.binary_join(pc.list_slice(words, 0, OPENING_WORDS, return_fixed_size_list=False), " ")
