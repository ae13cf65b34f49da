"""Content digest: a hash over records in order that doesn't depend on how they lie in files. Pure.

Every column is walked down to its leaves. A leaf feeds three streams: validity (one byte a value), lengths (int64,
for strings and lists) and values (nulls as zeros). SHA-256 over each stream, then over their names, types and digests.
Batches may be cut anywhere: the streams are the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ContentDigest"]


class ContentDigest:
    """Feed it record batches in order, then ask for `hexdigest()`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows = 0
        self._streams: dict[str, Any] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the rows of one batch; it must hold the schema's columns."""
        self._rows += len(batch)
        for field in self._schema:
            self._feed(field.name, batch.column(field.name))

    def _stream(self, path: str, kind: str, data: Any) -> None:
        stream = self._streams.get(f"{path}\0{kind}")
        if stream is None:
            stream = self._streams[f"{path}\0{kind}"] = hashlib.sha256()
        stream.update(data)

    def _feed(self, path: str, array: Any) -> None:
        t = pa.types
        kind = array.type
        if isinstance(array, pa.ExtensionArray):
            return self._feed(path, array.storage)
        if t.is_dictionary(kind):
            return self._feed(path, array.dictionary_decode())
        self._stream(path, "valid", np.asarray(pc.is_valid(array)).astype(np.uint8).data)
        if t.is_struct(kind):
            for field, child in zip(kind, array.flatten(), strict=True):
                self._feed(f"{path}.{field.name}", child)
        elif t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
            self._lengths(path, pc.list_value_length(array))
            self._feed(f"{path}[]", pc.list_flatten(array))
        elif t.is_string(kind) or t.is_binary(kind) or t.is_large_string(kind) or t.is_large_binary(kind):
            self._lengths(path, pc.binary_length(array))
            self._stream(path, "values", _bytes_of(array))
        elif t.is_boolean(kind):
            self._stream(path, "values", np.asarray(pc.fill_null(array, False)).astype(np.uint8).data)
        elif not t.is_null(kind):
            self._stream(path, "values", _fixed_width(array))
        return None

    def _lengths(self, path: str, lengths: Any) -> None:
        self._stream(path, "lengths", np.asarray(pc.fill_null(lengths, 0)).astype("<i8").data)

    def hexdigest(self) -> str:
        """SHA-256 (hex) of everything fed so far. An empty table has a digest too."""
        parts = [[key, stream.hexdigest()] for key, stream in sorted(self._streams.items())]
        names = [[field.name, str(field.type)] for field in self._schema]
        text = json.dumps({"rows": self._rows, "schema": names, "streams": parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _bytes_of(array: Any) -> Any:
    """The bytes of all strings in a row, nulls as nothing."""
    if array.null_count:
        array = array.drop_null()
    if not len(array):
        return b""
    width = "<i8" if pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type) else "<i4"
    offsets = np.frombuffer(array.buffers()[1], dtype=width, count=len(array) + 1, offset=array.offset * int(width[2]))
    data = array.buffers()[2]
    return b"" if data is None else memoryview(data)[int(offsets[0]) : int(offsets[-1])]


def _fixed_width(array: Any) -> Any:
    """The value bytes, nulls as zeros."""
    width = array.type.bit_width // 8
    buffer = array.buffers()[1]
    values = np.frombuffer(buffer, dtype=np.uint8, count=len(array) * width, offset=array.offset * width)
    if array.null_count:
        values = values.reshape(len(array), width).copy()
        values[~np.asarray(pc.is_valid(array))] = 0
    return np.ascontiguousarray(values).data
