"""Turn Arrow columns into batch columns, all rows at once.

A kind of column decodes a block of rows once and then gathers any of its rows into batch after batch. Numbers are decoded
to numpy arrays; everything else stays Arrow until its rows stand in a batch. What is handed out is always a fresh copy:
writing into one batch changes no other. Knows neither plans nor sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import numpy as np
import pyarrow as pa

from treering.errors import UsageError
from treering.mixing.permute import Int64Array

__all__ = ["ArrowColumn", "Columns", "Kind", "Part", "Ragged", "kind_of"]

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


@dataclass(slots=True)
class Part:
    """Rows of one decoded block that go into a batch."""

    blocks: Sequence[Any]  # what each kind decoded, in the order of the kinds
    rows: Int64Array  # which rows of it, (k,)


class Kind(Protocol):
    """How one column is decoded and gathered."""

    name: str
    type: Any  # pa.DataType

    def decode(self, column: Any, spare: Any = None) -> Any:
        """The block of a `pa.ChunkedArray` of the column's type; it is only ever read.

        `spare` is a block that nobody reads any more, for its memory.
        """

    def view(self, array: Any) -> Any:
        """The block of a whole memory-mapped `pa.Array`, taken as it lies: no memory per row."""

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


def _joined(chunks: Sequence[Any], kind: Any) -> Any:
    """One `pa.Array`, with 64-bit offsets where 32 bits can't count its bytes."""
    if len(chunks) == 1:
        return chunks[0]
    if not chunks:
        return pa.array([], type=kind)
    if sum(chunk.nbytes for chunk in chunks) >= 2**31:
        wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind)
        wide = pa.large_list(kind.value_field) if pa.types.is_list(kind) else wide
        chunks = [chunk.cast(wide) for chunk in chunks] if wide is not None else chunks
    return pa.concat_arrays(chunks)


def _picked(number: int, parts: Sequence[Part]) -> Any:
    """The rows of all parts, one after the other, of blocks that are Arrow arrays."""
    taken = [part.blocks[number].take(pa.array(part.rows)) for part in parts]
    if len(taken) == 1:
        return taken[0]
    if len({one.type for one in taken}) > 1:  # 64-bit offsets here, 32-bit ones there
        widest = max((one.type for one in taken), key=lambda kind: str(kind).startswith("large"))
        taken = [one.cast(widest) for one in taken]
    return pa.concat_arrays(taken)


class _Fixed:
    """Numbers, or fixed-size lists of them: one numpy array (rows, *shape)."""

    def __init__(self, name: str, arrow: Any, shape: tuple[int, ...], leaf: Any) -> None:
        self.name = name
        self.type = arrow
        self.shape = shape
        self.dtype = _dtype(leaf)
        self._scratch: Array = np.empty((0, *shape), dtype=self.dtype)

    def decode(self, column: Any, spare: Any = None) -> Array:
        rows = len(column)
        out = spare if isinstance(spare, np.ndarray) else np.empty((0, *self.shape), dtype=self.dtype)
        if len(out) < rows or len(out) > 2 * rows:
            out = np.empty((rows, *self.shape), dtype=self.dtype)
        low = 0
        for chunk in column.chunks:
            out[low : low + len(chunk)] = self._decoded(chunk)
            low += len(chunk)
        return out

    def view(self, array: Any) -> Any:
        leaf = array
        for _ in self.shape:
            if leaf.null_count:
                return array
            leaf = leaf.flatten()
        if leaf.null_count or pa.types.is_boolean(leaf.type):
            return array  # what would have to be made anew is made for the rows of a batch
        return self._decoded(array)

    def _decoded(self, array: Any) -> Array:
        leaf = array
        for _ in self.shape:
            if leaf.null_count:
                raise UsageError(
                    f"column {self.name!r} holds nulls, and a tensor can't",
                    code="null-in-column",
                    hint="leave it out with columns=[…], or give the field a default",
                )
            leaf = leaf.flatten()
        return _numbers(leaf, self.name).reshape(len(array), *self.shape)

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        out = np.empty((len(order), *self.shape), dtype=self.dtype)
        if len(parts) == 1:
            self._take(parts[0].blocks[number], parts[0].rows[order], out)
            return {self.name: out}
        rows = sum([len(part.rows) for part in parts])
        if len(self._scratch) < rows:
            self._scratch = np.empty((rows, *self.shape), dtype=self.dtype)
        scratch = self._scratch
        low = 0
        for part in parts:  # source after source into a buffer that stays in the CPU's cache, then into order
            high = low + len(part.rows)
            self._take(part.blocks[number], part.rows, scratch[low:high])
            low = high
        scratch.take(order, axis=0, out=out, mode="clip")
        return {self.name: out}

    def _take(self, block: Any, rows: Int64Array, out: Array) -> None:
        if isinstance(block, np.ndarray):
            # mode="clip" because the default checks by way of a buffer, a second copy; the rows are in range by plan.
            block.take(rows, axis=0, out=out, mode="clip")
        else:
            out[:] = self._decoded(block.take(pa.array(rows)))


class _Arrow:
    """What stays Arrow until its rows stand in a batch."""

    def __init__(self, name: str, arrow: Any) -> None:
        self.name = name
        self.type = arrow

    def decode(self, column: Any, spare: Any = None) -> Any:
        return _joined(column.chunks, self.type)

    def view(self, array: Any) -> Any:
        return array


class _Text(_Arrow):
    """Text or bytes: a list of `str` (or `bytes`), None where null."""

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        # A list, since tokenizers take nothing else. Made in C++ for the rows of the batch: a whole block of objects
        # would take twice the memory, and the garbage collector would walk them.
        picked: Array = _picked(number, parts).to_numpy(zero_copy_only=False)
        return {self.name: picked[order].tolist()}


class _Ragged(_Arrow):
    """Lists of numbers.

    "pad": `name` is (rows, longest list), filled up with `pad_value`, and `name.lengths` int64 (rows,). "values":
    `name` is all values, one after the other, and `name.offsets` int64 (rows + 1,). A null list counts as empty.
    """

    def __init__(self, name: str, arrow: Any, ragged: Ragged, pad_value: float) -> None:
        super().__init__(name, arrow)
        self.dtype = _dtype(arrow.value_type)
        self.ragged = ragged
        self.pad_value = pad_value

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        lists = _picked(number, parts).take(pa.array(order))
        offsets = lists.offsets.to_numpy().astype(np.int64)
        offsets -= offsets[0]
        values = _numbers(lists.flatten(), self.name)
        if self.ragged == "values":
            return {self.name: np.array(values, dtype=self.dtype), f"{self.name}.offsets": offsets}
        length = np.diff(offsets)
        width = int(length.max()) if len(length) else 0
        out = np.full((len(order), width), self.pad_value, dtype=self.dtype)
        out[np.arange(width) < length[:, None]] = values
        return {self.name: out, f"{self.name}.lengths": length}


class _Nested(_Arrow):
    """Anything else (lists of structs, say): stays in Arrow."""

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        return {self.name: ArrowColumn(_picked(number, parts).take(pa.array(order)))}
