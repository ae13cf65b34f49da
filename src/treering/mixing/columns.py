"""Turn Arrow columns into batch columns, all rows at once.

A kind of column decodes a block of rows once and then gathers any of its rows into batch after batch. What it hands
out is always a fresh copy: writing into one batch changes no other. Knows neither plans nor sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import numpy as np
import pyarrow as pa

from treering.errors import UsageError
from treering.mixing.permute import Int64Array

__all__ = ["ArrowColumn", "Columns", "Kind", "Part", "Ragged", "kind_of", "token_count"]

Ragged = Literal["pad", "values"]
Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Any]  # name → numpy array, list of str, or ArrowColumn


class ArrowColumn(Sequence[Any]):
    """A nested column of one batch, kept in Arrow: a sequence of Python values, converted when they are looked at.

    `.arrow` is the `pa.Array` itself; `tolist()` converts all rows. Compares equal to a sequence of equal values.
    """

    __slots__ = ("arrow",)

    def __init__(self, array: Any) -> None:
        self.arrow = array

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            return self.arrow.take(pa.array(rows)).to_pylist()
        return self.arrow[range(len(self))[index]].as_py()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ArrowColumn):
            return bool(self.arrow.equals(other.arrow))
        return isinstance(other, Sequence) and self.tolist() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ArrowColumn({self.arrow.type}, {len(self)} rows)"

    def tolist(self) -> list[Any]:
        """All rows as Python values."""
        values: list[Any] = self.arrow.to_pylist()
        return values


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one decoded block that go into a batch."""

    blocks: Sequence[Any]  # what each kind decoded, in the order of the kinds
    rows: Int64Array  # which rows of it, (k,)


class Kind(Protocol):
    """How one column is decoded and gathered."""

    name: str
    type: Any  # pa.DataType

    def decode(self, column: Any) -> Any:
        """Decode a `pa.ChunkedArray` of the column's type; the result is only ever read."""

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        """The batch columns made of `parts`, one after the other, then brought into `order` (rows of the batch,).

        `number` is the place of this kind's block in each part.
        """


def kind_of(name: str, arrow: Any, *, ragged: Ragged, pad_value: float) -> Kind:
    """The kind of a column of this Arrow type.

    Numbers, booleans, times and fixed-size lists of them → numpy arrays (times as int64 in their own unit); text and
    bytes → lists of `str` or `bytes`; lists of numbers → padded or as values and offsets; anything else → ArrowColumn.
    """
    if pa.types.is_dictionary(arrow):
        return kind_of(name, arrow.value_type, ragged=ragged, pad_value=pad_value)
    if _is_text(arrow):
        return _Text(name, arrow)
    shape: tuple[int, ...] = ()
    leaf = arrow
    while pa.types.is_fixed_size_list(leaf):
        shape, leaf = (*shape, leaf.list_size), leaf.value_type
    if _dtype(leaf) is not None:
        return _Fixed(name, arrow, shape, leaf)
    if (pa.types.is_list(arrow) or pa.types.is_large_list(arrow)) and _dtype(arrow.value_type) is not None:
        return _Ragged(name, arrow, ragged, pad_value)
    return _Nested(name, arrow)


def token_count(kinds: Sequence[Kind], columns: Columns) -> int:
    """How many tokens a batch holds: elements of its first column of lists of integers; 0 without one."""
    for kind in kinds:
        if isinstance(kind, _Ragged | _Fixed) and kind.holds_tokens:
            return kind.elements(columns)
    return 0


def _is_text(arrow: Any) -> bool:
    t = pa.types
    return bool(
        t.is_string(arrow) or t.is_large_string(arrow) or t.is_string_view(arrow)
        or t.is_binary(arrow) or t.is_large_binary(arrow) or t.is_binary_view(arrow)
    )  # fmt: skip


def _dtype(arrow: Any) -> np.dtype[Any] | None:
    """The numpy dtype of a number, boolean or time; None for anything else."""
    if pa.types.is_boolean(arrow):
        return np.dtype(np.bool_)
    if pa.types.is_integer(arrow) or pa.types.is_floating(arrow):
        number: np.dtype[Any] = np.dtype(arrow.to_pandas_dtype())
        return number
    if pa.types.is_temporal(arrow):
        return None if pa.types.is_interval(arrow) else np.dtype(np.int32 if arrow.bit_width == 32 else np.int64)
    return None


def _numbers(array: Any, name: str) -> Array:
    """One Arrow array of numbers as numpy, without a copy where the type allows."""
    arrow = array.type
    if pa.types.is_temporal(arrow):
        array = array.cast(pa.int32() if arrow.bit_width == 32 else pa.int64())
        if array.null_count:
            array = array.fill_null(np.iinfo(np.int32 if arrow.bit_width == 32 else np.int64).min)
    if array.null_count:
        if not pa.types.is_floating(array.type):
            raise UsageError(
                f"column {name!r} holds nulls, and a tensor of {array.type} can't",
                code="null-in-column",
                hint="leave it out with columns=[…], or give the field a default",
            )
        array = array.fill_null(float("nan"))
    values: Array = array.to_numpy(zero_copy_only=False)
    return values


def _joined(arrays: Sequence[Array], dtype: Any, shape: tuple[int, ...] = ()) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty((0, *shape), dtype=dtype)


def _rows(parts: Sequence[Part]) -> int:
    return sum(len(part.rows) for part in parts)


class _Fixed:
    """Numbers, or fixed-size lists of them: one numpy array (rows, *shape)."""

    def __init__(self, name: str, arrow: Any, shape: tuple[int, ...], leaf: Any) -> None:
        self.name = name
        self.type = arrow
        self.shape = shape
        self.dtype = _dtype(leaf)
        self.holds_tokens = bool(shape) and pa.types.is_integer(leaf)
        self._scratch: Array = np.empty((0, *shape), dtype=self.dtype)

    def elements(self, columns: Columns) -> int:
        """Elements of this column in a batch."""
        return int(columns[self.name].size)

    def decode(self, column: Any) -> Array:
        arrays = []
        for chunk in column.chunks:
            leaf = chunk
            for _ in self.shape:
                if leaf.null_count:
                    raise UsageError(
                        f"column {self.name!r} holds nulls, and a tensor can't",
                        code="null-in-column",
                        hint="leave it out with columns=[…], or give the field a default",
                    )
                leaf = leaf.flatten()
            arrays.append(_numbers(leaf, self.name).reshape(len(chunk), *self.shape))
        return _joined(arrays, self.dtype, self.shape)

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        out = np.empty((len(order), *self.shape), dtype=self.dtype)
        # mode="clip" because the default checks by way of a buffer, a second copy; the rows are in range by plan.
        if len(parts) == 1:
            parts[0].blocks[number].take(parts[0].rows[order], axis=0, out=out, mode="clip")
            return {self.name: out}
        rows = _rows(parts)
        if len(self._scratch) < rows:
            self._scratch = np.empty((rows, *self.shape), dtype=self.dtype)
        low = 0
        for part in parts:  # source after source into a buffer that stays in the CPU's cache, then into order
            high = low + len(part.rows)
            part.blocks[number].take(part.rows, axis=0, out=self._scratch[low:high], mode="clip")
            low = high
        self._scratch.take(order, axis=0, out=out, mode="clip")
        return {self.name: out}


class _Text:
    """Text or bytes: a list of `str` (or `bytes`), None where null."""

    def __init__(self, name: str, arrow: Any) -> None:
        self.name = name
        self.type = arrow

    def decode(self, column: Any) -> Array:
        # Once a block, in C++; a batch then only copies references. Strings can't be written into.
        arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return _joined(arrays, object)

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        picked = _joined([part.blocks[number][part.rows] for part in parts], object)
        return {self.name: picked[order].tolist()}


@dataclass(frozen=True, slots=True)
class _Lists:
    values: Array  # all numbers, one after the other
    start: Int64Array  # (rows,): where each list begins in `values`
    length: Int64Array  # (rows,)


class _Ragged:
    """Lists of numbers.

    "pad": `name` is (rows, longest list), filled up with `pad_value`, and `name.lengths` int64 (rows,). "values":
    `name` is all values, one after the other, and `name.offsets` int64 (rows + 1,). A null list counts as empty.
    """

    def __init__(self, name: str, arrow: Any, ragged: Ragged, pad_value: float) -> None:
        self.name = name
        self.type = arrow
        self.dtype = _dtype(arrow.value_type)
        self.ragged = ragged
        self.pad_value = pad_value
        self.holds_tokens = pa.types.is_integer(arrow.value_type)

    def elements(self, columns: Columns) -> int:
        """Elements of this column in a batch, padding left out."""
        values = columns[self.name]
        return len(values) if self.ragged == "values" else int(columns[f"{self.name}.lengths"].sum())

    def decode(self, column: Any) -> _Lists:
        values, starts, lengths = [], [], []
        base = 0
        for chunk in column.chunks:
            offsets = chunk.offsets.to_numpy().astype(np.int64)
            child = chunk.values.slice(offsets[0], offsets[-1] - offsets[0])
            length = np.diff(offsets)
            if chunk.null_count:
                length[chunk.is_null().to_numpy(zero_copy_only=False)] = 0
            values.append(_numbers(child, self.name))
            starts.append(offsets[:-1] - offsets[0] + base)
            lengths.append(length)
            base += len(child)
        return _Lists(_joined(values, self.dtype), _joined(starts, np.int64), _joined(lengths, np.int64))

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        length = np.concatenate([part.blocks[number].length[part.rows] for part in parts])[order]
        offsets = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(length, out=offsets[1:])
        if self.ragged == "values":
            out = np.empty(offsets[-1], dtype=self.dtype)
            target, extra = offsets[:-1], {f"{self.name}.offsets": offsets}
        else:
            width = int(length.max()) if len(length) else 0
            out = np.full((len(order), width), self.pad_value, dtype=self.dtype)
            target, extra = np.arange(len(order), dtype=np.int64) * width, {f"{self.name}.lengths": length}
        flat = out.reshape(-1)
        # order says which row stands in each slot; here each part's rows look for their slots.
        rows = _rows(parts)
        slot = np.full(rows, -1, dtype=np.int64)
        slot[order] = np.arange(len(order))
        low = 0
        for part in parts:
            lists: _Lists = part.blocks[number]
            high = low + len(part.rows)
            begin, size = lists.start[part.rows], lists.length[part.rows]
            step = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)  # 0, 1, … inside each list
            flat[np.repeat(target[slot[low:high]], size) + step] = lists.values[np.repeat(begin, size) + step]
            low = high
        return {self.name: out, **extra}


class _Nested:
    """Anything else (lists of structs, say): stays in Arrow."""

    def __init__(self, name: str, arrow: Any) -> None:
        self.name = name
        self.type = arrow

    def decode(self, column: Any) -> Any:
        return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        picked = [part.blocks[number].take(pa.array(part.rows)) for part in parts]
        joined = picked[0] if len(picked) == 1 else pa.concat_arrays(picked)
        return {self.name: ArrowColumn(joined.take(pa.array(order)))}
