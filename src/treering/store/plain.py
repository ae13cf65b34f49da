"""Columns that stand in a data file as they are: fixed-size lists of numbers, row after row, nothing before or between.

Token ids and embeddings are stored so. Read by the engine, 256 rows of half a kilobyte in chunks of 64 take 100 µs; copied
out of the mapped file, 35 to 50. Whether a column stands so is told by what the engine says of each of its pages: at the
first word that isn't the expected one, it is for the engine to read.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["PlainColumn", "PlainLayout", "may_be_plain", "plain_layouts"]

Int64Array = npt.NDArray[np.int64]

#: The file format whose pages are known here.
_FORMAT = (2, 2)

#: What the engine says of a page of such rows, without any null: no levels, no compression, no lengths.
_SAID = r"""
PageLayout { layout: Some\( FullZipLayout\( FullZipLayout { bits_rep: 0, bits_def: 0, num_items: (?P<rows>\d+),
num_visible_items: (?P=rows), value_compression: Some\( CompressiveEncoding { compression: Some\( FixedSizeList\(
FixedSizeList { items_per_value: (?P<items>\d+), has_validity: false, values: Some\( CompressiveEncoding { compression:
Some\( Flat\( Flat { bits_per_value: (?P<bits>\d+), data: None, }, \), \), }, \), }, \), \), }, \), layers: \[
RepdefAllValidItem, \], details: Some\( BitsPerValue\( (?P<row_bits>\d+), \), \), }, \), \), }
"""
_PAGE = re.compile(r"\s+".join(_SAID.split()))

#: Bytes between two rows up to which what lies between is read ahead with them.
_GAP = 16 << 10
#: Rows of those wanted that are looked up, to tell whether the file is in memory.
_LOOKED_UP = 16


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """Where the rows of such a column stand."""

    items: int  # numbers in a row
    item_bytes: int
    pages: tuple[tuple[int, int], ...]  # (byte of the file at which it begins, rows) of each page, in row order

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.items * self.item_bytes

    def holds(self, kind: Any) -> bool:
        """Whether rows of this type are of this form."""
        return may_be_plain(kind) and (kind.list_size, kind.value_type.bit_width) == (self.items, self.item_bytes * 8)


def may_be_plain(kind: Any) -> bool:
    """Whether columns of a type can stand plainly at all."""
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_primitive(kind.value_type))


def plain_layouts(metadata: Any) -> dict[int, PlainLayout]:
    """The layouts of those columns of a data file that stand plainly, by the number of the column.

    `metadata` is the file's `lance.file.LanceFileMetadata`. Empty where bytes are ordered otherwise than in the file, and
    on Windows, where a mapped file couldn't be removed.
    """
    known = (metadata.major_version, metadata.minor_version) == _FORMAT
    if not known or sys.byteorder != "little" or os.name != "posix":
        return {}
    found = {number: _layout(column.pages, metadata.num_rows) for number, column in enumerate(metadata.columns)}
    return {number: layout for number, layout in found.items() if layout is not None}


def _layout(pages: list[Any], rows: int) -> PlainLayout | None:
    forms, places = set(), []
    for page in pages:
        said = _PAGE.fullmatch(page.encoding)
        if said is None or len(page.buffers) != 1:
            return None
        items, bits = int(said["items"]), int(said["bits"])
        (buffer,) = page.buffers
        if bits % 8 or int(said["row_bits"]) != items * bits or buffer.size * 8 != items * bits * int(said["rows"]):
            return None
        forms.add((items, bits // 8))
        places.append((buffer.position, int(said["rows"])))
    if len(forms) != 1 or sum(count for _, count in places) != rows:
        return None
    return PlainLayout(*forms.pop(), tuple(places))


class PlainColumn:
    """One such column of a data file, mapped. Safe to use from several threads."""

    def __init__(self, path: str, layout: PlainLayout) -> None:
        with Path(path).open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Rows far apart: around each one the kernel would read up to megabytes for nothing.
        self._mapped.madvise(mmap.MADV_RANDOM)
        self._address = np.frombuffer(self._mapped, np.uint8).ctypes.data
        self._width = layout.row_bytes
        self._starts = np.cumsum([0, *(rows for _, rows in layout.pages)])
        self._pages = [
            (at, np.frombuffer(self._mapped, np.uint8, rows * self._width, at).reshape(rows, self._width))
            for at, rows in layout.pages
        ]

    def fill(self, rows: Int64Array, out: npt.NDArray[Any]) -> None:
        """Copy these rows (ascending) of the file into `out` (rows, …), contiguous."""
        assert out.flags.c_contiguous
        raw = out.reshape(len(rows), -1).view(np.uint8)
        cuts = np.searchsorted(rows, self._starts).tolist()
        if cuts[0] or cuts[-1] != len(rows):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {self._starts[-1]}")
        for (at, page), start, (low, high) in zip(self._pages, self._starts, pairwise(cuts), strict=False):
            if low < high:
                wanted = rows[low:high] - start
                if not self._in_memory(at, wanted):
                    self._announce(at, wanted)
                # "clip", since the default checks by way of a buffer; the cuts have checked already.
                page.take(wanted, axis=0, out=raw[low:high], mode="clip")

    def _announce(self, at: int, rows: Int64Array) -> None:
        """Tell the kernel what is to be read: what isn't in memory comes all at once then, not fault by fault.

        From a disk that made 640k rows/s of 11k; for what is in memory it costs a loader up to a third of its speed.
        """
        cuts = np.flatnonzero(np.diff(rows) * self._width > _GAP)
        first = at + rows[np.concatenate([[0], cuts + 1])] * self._width
        end = at + rows[np.concatenate([cuts, [len(rows) - 1]])] * self._width + self._width
        first -= first % mmap.PAGESIZE
        for low, length in zip(first.tolist(), (end - first).tolist(), strict=True):
            self._mapped.madvise(mmap.MADV_WILLNEED, low, length)

    def _in_memory(self, at: int, rows: Int64Array) -> bool:
        """Whether some of these rows, evenly spread, are all in memory: then the others will be, or nearly all."""
        resident = _mincore()
        if resident is None:
            return False
        found = ctypes.c_ubyte()
        some = at + rows[:: max(1, len(rows) // _LOOKED_UP)] * self._width
        pages = some - some % mmap.PAGESIZE + self._address
        return all(
            resident(ctypes.c_void_p(page), 1, ctypes.byref(found)) == 0 and found.value & 1 for page in pages.tolist()
        )


@functools.cache
def _mincore() -> Any:
    """The C library's `mincore`, where there is one.

    Called with the interpreter's lock held: it takes a microsecond, and waiting for the lock again up to 5,000.
    """
    return getattr(ctypes.PyDLL(None), "mincore", None)
