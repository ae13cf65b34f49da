"""One column of many rows as one Arrow IPC file: written in bounded memory, read in place.

The file holds one record batch of one column without gaps, so that a reader that maps it can gather any row. Offsets
are 64 bits wide, dictionaries are spelt out. Knows Arrow's layout; does not know snapshots.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["ColumnWriter", "column_in", "stored_type"]


def stored_type(arrow: Any) -> Any | None:
    """The type a column of this type is stored as; None for one that can't be (unions, maps, extension types)."""
    t = pa.types
    if t.is_dictionary(arrow):
        return stored_type(arrow.value_type)
    if t.is_string(arrow) or t.is_large_string(arrow) or t.is_string_view(arrow):
        return pa.large_string()
    if t.is_binary(arrow) or t.is_large_binary(arrow) or t.is_binary_view(arrow):
        return pa.large_binary()
    if t.is_list(arrow) or t.is_large_list(arrow) or t.is_fixed_size_list(arrow):
        child = stored_type(arrow.value_type)
        if child is None:
            return None
        field = arrow.value_field.with_type(child)
        return pa.list_(field, arrow.list_size) if t.is_fixed_size_list(arrow) else pa.large_list(field)
    if t.is_struct(arrow):
        children = [(field, stored_type(field.type)) for field in arrow]
        known = all(child is not None for _, child in children)
        return pa.struct([field.with_type(child) for field, child in children]) if known else None
    if t.is_boolean(arrow) or t.is_null(arrow) or _width(arrow):
        return arrow
    return None


def column_in(buffer: Any) -> Any:
    """The `pa.Array` in a mapped file, without a copy. Raises `pa.ArrowInvalid` when it isn't one of ours."""
    reader = pa.ipc.open_file(buffer)
    if reader.num_record_batches != 1 or len(reader.schema) != 1:
        raise pa.ArrowInvalid("not one record batch of one column")
    return reader.get_batch(0).column(0)


class ColumnWriter:
    """Writes one column: `add` its rows in order, `finish` to a file, `close` in any case.

    `arrow` must have a `stored_type`. Buffers grow in files of their own in `folder`, which the writer makes and
    removes, and are put together at the end.
    """

    def __init__(self, name: str, arrow: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._name = name
        self._files: list[Any] = []
        self._column = _Column(arrow, self._new_file)

    @property
    def rows(self) -> int:
        """How many were added."""
        return self._column.rows

    def add(self, array: Any) -> None:
        """Append the rows of a `pa.Array` of the column's type."""
        self._column.add(array)

    def finish(self, path: Path) -> None:
        """Write the file."""
        for file in self._files:
            file.flush()
        array = self._column.array()
        batch = pa.record_batch([array], schema=pa.schema([pa.field(self._name, array.type)]))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    def close(self) -> None:
        """Remove the buffers."""
        for file in self._files:
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new_file(self) -> Any:
        self._files.append((self._folder / str(len(self._files))).open("w+b", buffering=0))
        return self._files[-1]


class _Buffer:
    """Bytes that grow in a file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = 0

    def add(self, data: npt.NDArray[Any]) -> None:
        view = np.ascontiguousarray(data).view(np.uint8).reshape(-1).data
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])
        self.size += len(view)

    def mapped(self) -> Any:
        return pa.memory_map(self._file.name).read_buffer() if self.size else pa.py_buffer(b"")


class _Bits:
    """Bits that grow in a file, lowest first; whole bytes are written, the rest waits."""

    def __init__(self, file: Any) -> None:
        self._buffer = _Buffer(file)
        self._rest: npt.NDArray[np.bool_] = np.empty(0, np.bool_)

    def add(self, bits: npt.NDArray[np.bool_]) -> None:
        bits = np.concatenate([self._rest, bits])
        whole = len(bits) // 8 * 8
        self._buffer.add(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def mapped(self) -> Any:
        self._buffer.add(np.packbits(self._rest, bitorder="little"))
        self._rest = self._rest[:0]
        return self._buffer.mapped()


class _Column:
    """The buffers of one column, or of a child of one."""

    def __init__(self, arrow: Any, new_file: Any) -> None:
        self.source = arrow
        self.type = stored_type(arrow)
        self.rows = 0
        self._nulls = 0
        self._validity: _Bits | None = None
        self._new_file = new_file
        self._children: list[_Column] = []
        self._offsets: _Buffer | None = None
        self._values: Any = None  # _Buffer or _Bits
        self._size = int(arrow.list_size) if pa.types.is_fixed_size_list(arrow) else 0
        t = pa.types
        if t.is_struct(self.type):
            self._children = [_Column(field.type, new_file) for field in arrow]
        elif t.is_fixed_size_list(self.type) or t.is_large_list(self.type):
            self._children = [_Column(arrow.value_type, new_file)]
        elif t.is_boolean(self.type):
            self._values = _Bits(new_file())
        elif not t.is_null(self.type):
            self._values = _Buffer(new_file())
        if t.is_large_list(self.type) or t.is_large_string(self.type) or t.is_large_binary(self.type):
            self._offsets = _Buffer(new_file())
            self._offsets.add(np.zeros(1, np.int64))
        self._end = 0  # the last offset

    def add(self, array: Any) -> None:
        t = pa.types
        if t.is_dictionary(array.type):
            array = array.dictionary_decode()
        if t.is_string_view(array.type) or t.is_binary_view(array.type):
            array = array.cast(self.type)
        if not len(array):
            return
        if not t.is_null(self.type):
            self._add_validity(array)
        if t.is_struct(self.type):
            for number, child in enumerate(self._children):
                child.add(array.field(number))
        elif t.is_fixed_size_list(self.type):
            self._children[0].add(array.values.slice(array.offset * self._size, len(array) * self._size))
        elif t.is_large_list(self.type):
            first, last = self._add_offsets(array.offsets.to_numpy())
            self._children[0].add(array.values.slice(first, last - first))
        elif t.is_large_string(self.type) or t.is_large_binary(self.type):
            wide = t.is_large_string(array.type) or t.is_large_binary(array.type)
            _, offsets, data = array.buffers()
            found = np.frombuffer(offsets, np.int64 if wide else np.int32)
            first, last = self._add_offsets(found[array.offset : array.offset + len(array) + 1])
            if last > first:
                self._values.add(np.frombuffer(data, np.uint8)[first:last])
        elif t.is_boolean(self.type):
            self._values.add(array.fill_null(False).to_numpy(zero_copy_only=False))
        elif not t.is_null(self.type):
            width = _width(self.type)
            data = np.frombuffer(array.buffers()[1], np.uint8)
            self._values.add(data[array.offset * width : (array.offset + len(array)) * width])
        self.rows += len(array)

    def array(self) -> Any:
        """All rows, memory-mapped."""
        validity = self._validity.mapped() if self._validity is not None else None
        buffers = [validity]
        if pa.types.is_null(self.type):
            return pa.nulls(self.rows)
        if self._offsets is not None:
            buffers.append(self._offsets.mapped())
        if self._values is not None:
            buffers.append(self._values.mapped())
        children = [child.array() for child in self._children]
        return pa.Array.from_buffers(self.type, self.rows, buffers, self._nulls, 0, children)

    def _add_validity(self, array: Any) -> None:
        if self._validity is None:
            if not array.null_count:
                return
            self._validity = _Bits(self._new_file())
            for low in range(0, self.rows, 1 << 20):
                self._validity.add(np.ones(min(1 << 20, self.rows - low), np.bool_))
        self._nulls += array.null_count
        self._validity.add(array.is_valid().to_numpy(zero_copy_only=False))

    def _add_offsets(self, offsets: npt.NDArray[Any]) -> tuple[int, int]:
        first, last = int(offsets[0]), int(offsets[-1])
        self._offsets.add(offsets[1:].astype(np.int64) + (self._end - first))  # type: ignore[union-attr]
        self._end += last - first
        return first, last


def _width(arrow: Any) -> int:
    """Bytes of a value; 0 for a type that has no fixed whole number of them."""
    try:
        bits = int(arrow.bit_width)
    except ValueError:
        return 0
    return 0 if bits % 8 or pa.types.is_nested(arrow) or isinstance(arrow, pa.BaseExtensionType) else bits // 8
