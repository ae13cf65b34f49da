"""Turn Arrow columns into batch columns, all rows at once.

A kind of column decodes a block of rows once and then gathers any of its rows into batch after batch. Numbers are decoded
to numpy arrays; everything else stays Arrow until its rows stand in a batch. What is handed out is always a fresh copy:
writing into one batch changes no other. Knows neither plans nor sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import numpy as np
import pyarrow as pa

from treering.errors import UsageError
from treering.mixing.permute import Int64Array

__all__ = ["ArrowColumn", "Columns", "Kind", "Part", "Ragged", "arrow_kind", "drop_rows", "kind_of", "token_count"]

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


class Block(Protocol):
    """The rows of one window of one column, while they are read."""

    def add(self, array: Any) -> None:
        """Append the rows of a `pa.Array` of the column's type."""

    def fill(self, rows: int, copy: Callable[[Array], bool]) -> bool:
        """Append rows that `copy` writes into their place; False, and nothing appended, if that can't be done."""

    def done(self) -> Any:
        """What `gather` reads from; to be changed no more."""


class Kind(Protocol):
    """How one column is decoded and gathered."""

    name: str
    type: Any  # pa.DataType
    row_bytes: int  # of a row in memory; a guess where rows differ in length

    def block(self, rows: int, spare: Any = None) -> Block:
        """A block for that many rows, in the memory of `spare`: one that was done, and that nobody reads any more."""

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


def arrow_kind(name: str, arrow: Any) -> Kind:
    """The kind of a column that stays what it is in Arrow, nulls and all: gathered, it is an ArrowColumn of this type."""
    return _Kept(name, arrow)


def drop_rows(columns: Columns, gone: Any) -> Columns:
    """Batch columns without some of their rows; `gone`: bool (rows,)."""
    kept = ~gone
    out: Columns = {}
    for name, column in columns.items():
        if f"{name}.offsets" in columns:
            lengths = np.diff(columns[f"{name}.offsets"])
            out[name] = column[np.repeat(kept, lengths)]
        elif name.endswith(".offsets") and name.removesuffix(".offsets") in columns:
            out[name] = np.concatenate([[0], np.cumsum(np.diff(column)[kept])]).astype(np.int64)
        elif isinstance(column, np.ndarray):
            out[name] = column[kept]
        elif isinstance(column, ArrowColumn):
            out[name] = ArrowColumn(column.arrow.filter(pa.array(kept)))
        else:
            out[name] = [value for value, keep in zip(column, kept.tolist(), strict=True) if keep]
    return out


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


def _picked(number: int, parts: Sequence[Part], arrow: Any) -> Any:
    """The rows of all parts, one after the other, of blocks that are Arrow arrays of a column of type `arrow`."""
    if not parts:  # a rank's slice of a short last batch may be empty
        return pa.array([], arrow)
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
        self.row_bytes = np.dtype((self.dtype, shape)).itemsize
        self.holds_tokens = bool(shape) and pa.types.is_integer(leaf)
        self._scratch: Array = np.empty((0, *shape), dtype=self.dtype)

    def elements(self, columns: Columns) -> int:
        """Elements of this column in a batch."""
        return int(columns[self.name].size)

    def block(self, rows: int, spare: Any = None) -> Block:
        fits = isinstance(spare, np.ndarray) and rows <= len(spare) <= 2 * rows
        return _Numbers(self, spare if fits else np.empty((rows, *self.shape), dtype=self.dtype))

    def view(self, array: Any) -> Any:
        leaf = array
        for _ in self.shape:
            if leaf.null_count:
                return array
            leaf = leaf.flatten()
        if leaf.null_count or pa.types.is_boolean(leaf.type):
            return array  # what would have to be made anew is made for the rows of a batch
        return self.decoded(array)

    def decoded(self, array: Any) -> Array:
        """One Arrow array of the column as numpy, (rows, *shape)."""
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
            out[:] = self.decoded(block.take(pa.array(rows)))


class _Numbers:
    """A block of `_Fixed`: one numpy array."""

    def __init__(self, kind: _Fixed, out: Array) -> None:
        self._kind = kind
        self._out = out
        self._rows = 0

    def add(self, array: Any) -> None:
        self._out[self._rows : self._rows + len(array)] = self._kind.decoded(array)
        self._rows += len(array)

    def fill(self, rows: int, copy: Callable[[Array], bool]) -> bool:
        done = copy(self._out[self._rows : self._rows + rows])
        self._rows += rows * done
        return done

    def done(self) -> Array:
        return self._out


class _Arrow:
    """What stays Arrow until its rows stand in a batch."""

    row_bytes = 512

    def __init__(self, name: str, arrow: Any) -> None:
        self.name = name
        self.type = arrow

    def block(self, rows: int, spare: Any = None) -> Block:
        return _Chunks(self.type)

    def view(self, array: Any) -> Any:
        return array


class _Chunks:
    """A block of `_Arrow`: one `pa.Array`, joined when all rows are there."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._chunks: list[Any] = []

    def add(self, array: Any) -> None:
        self._chunks.append(array)

    def fill(self, rows: int, copy: Callable[[Array], bool]) -> bool:
        return False

    def done(self) -> Any:
        chunks = self._chunks
        if not chunks:
            return pa.array([], type=self._kind)
        if pa.types.is_list(self._kind) and sum(len(chunk.flatten()) for chunk in chunks) >= 2**31:
            chunks = [chunk.cast(pa.large_list(self._kind.value_field)) for chunk in chunks]
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


class _Text(_Arrow):
    """Text or bytes: a list of `str` (or `bytes`), None where null."""

    def block(self, rows: int, spare: Any = None) -> Block:
        return _Strings(self.type, rows, spare)

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        # A list, since tokenizers take nothing else. Made in C++ for the rows of the batch: a whole block of objects
        # would take twice the memory, and the garbage collector would walk them.
        picked: Array = _picked(number, parts, self.type).to_numpy(zero_copy_only=False)
        return {self.name: picked[order].tolist()}


@dataclass(slots=True)
class _StringsRead:
    """A block of text: an Arrow array over numpy buffers, which a later block may take over."""

    array: Any  # pa.Array, large_string or large_binary
    data: Array  # uint8

    def take(self, rows: Any) -> Any:
        return self.array.take(rows)


class _Strings:
    """Collects text into buffers of its own: a window's worth of it allocated anew each time cost more than the copy."""

    def __init__(self, kind: Any, rows: int, spare: Any) -> None:
        t = pa.types
        text = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
        self._type = pa.large_string() if text else pa.large_binary()
        self._offsets = np.zeros(rows + 1, dtype=np.int64)
        self._data = spare.data if isinstance(spare, _StringsRead) else np.empty(0, dtype=np.uint8)
        self._valid: Array | None = None
        self._rows = 0

    def add(self, array: Any) -> None:
        array = array.cast(self._type)
        valid, offsets, data = array.buffers()
        low, end = self._rows, self._rows + len(array)
        found = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        begin, used = int(self._offsets[low]), int(found[-1] - found[0])
        if begin + used > len(self._data):
            # By what the rows so far make likely for all of them; the rest is a margin, so that a spare fits as it is.
            likely = (begin + used) * (len(self._offsets) - 1) // max(end, 1)
            grown = np.empty(max(begin + used, likely) * 9 // 8, dtype=np.uint8)
            grown[:begin] = self._data[:begin]
            self._data = grown
        if used:
            self._data[begin : begin + used] = np.frombuffer(data, np.uint8)[found[0] : found[-1]]
        np.add(found[1:], begin - found[0], out=self._offsets[low + 1 : end + 1])
        if valid is not None and array.null_count:
            if self._valid is None:
                self._valid = np.ones(len(self._offsets) - 1, dtype=np.bool_)
            self._valid[low:end] = array.is_valid().to_numpy(zero_copy_only=False)
        self._rows = end

    def fill(self, rows: int, copy: Callable[[Array], bool]) -> bool:
        return False

    def done(self) -> Any:
        valid = None if self._valid is None else pa.py_buffer(np.packbits(self._valid[: self._rows], bitorder="little"))
        buffers = [valid, pa.py_buffer(self._offsets), pa.py_buffer(self._data)]
        return _StringsRead(pa.Array.from_buffers(self._type, self._rows, buffers), self._data)


class _Ragged(_Arrow):
    """Lists of numbers.

    "pad": `name` is (rows, longest list), filled up with `pad_value`, and `name.lengths` int64 (rows,). "values":
    `name` is all values, one after the other, and `name.offsets` int64 (rows + 1,). A null list counts as empty.
    """

    def __init__(self, name: str, arrow: Any, ragged: Ragged, pad_value: float) -> None:
        super().__init__(name, arrow)
        dtype = _dtype(arrow.value_type)
        assert dtype is not None
        self.dtype = dtype
        self.ragged = ragged
        self.pad_value = _padding(name, pad_value, dtype) if ragged == "pad" else pad_value
        self.holds_tokens = pa.types.is_integer(arrow.value_type)

    def elements(self, columns: Columns) -> int:
        """Elements of this column in a batch, padding left out."""
        values = columns[self.name]
        return len(values) if self.ragged == "values" else int(columns[f"{self.name}.lengths"].sum())

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        lists = _picked(number, parts, self.type).take(pa.array(order))
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


def _padding(name: str, value: float, dtype: np.dtype[Any]) -> float:
    """`pad_value`, if lists of this type can hold it. Raises UsageError."""
    with np.errstate(all="ignore"):
        try:
            held = np.array(value).astype(dtype)
        except (OverflowError, TypeError, ValueError):
            held = None
    if held is None or (dtype.kind in "biu" and held != value) or (np.isinf(held) and not np.isinf(value)):
        raise UsageError(
            f"pad_value is {value!r}, which column {name!r} of {dtype} can't hold",
            code="bad-pad-value",
            hint='give a value of its type, or take the lists unpadded: ragged="values"',
        )
    return value


class _Nested(_Arrow):
    """Anything else (lists of structs, say): stays in Arrow."""

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        return {self.name: ArrowColumn(_picked(number, parts, self.type).take(pa.array(order)))}


class _Kept(_Nested):
    """Anything, as it is."""

    def block(self, rows: int, spare: Any = None) -> Block:
        # Texts of a window may be more than 32-bit offsets reach.
        return _Strings(self.type, rows, spare) if _is_text(self.type) else _Chunks(self.type)

    def gather(self, number: int, parts: Sequence[Part], order: Int64Array) -> Columns:
        picked = _picked(number, parts, self.type).take(pa.array(order))
        return {self.name: ArrowColumn(picked if picked.type == self.type else picked.cast(self.type))}
