"""Where the rows of one table version lie, so that they can be read straight from their data files.

The engine's own take by row id allocates its whole answer anew and copies it once more: of chunks of 64 rows of half a
kilobyte it cost 225 µs of processor time a 256 rows, reading the same rows from the files 100 (benchmarks/RESULTS.md).
Knows row ids, addresses and files; the engine is handed in (table).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from treering.store.plain import PlainColumn, PlainLayout, may_be_plain

__all__ = ["DataFile", "FileContents", "FileReaders", "RowPlaces", "row_runs"]

Int64Array = npt.NDArray[np.int64]
Open = Callable[[str, tuple[str, ...]], Any]  # (path of a data file, columns) → the engine's reader of it
Contents = Callable[[str], "FileContents"]  # of the data file at a path

#: Rows of one message from a file's reader. Of larger ones the engine keeps more memory for itself, 30 MB at 8,192.
_MESSAGE_ROWS = 4_096

#: Data files one read may touch; beyond, most of it would be opening files, and the engine's own take is no slower.
MOST_FILES = 128


def row_runs(batches: Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]) -> Int64Array:
    """Runs of rows whose ids and addresses both go up by one: int64 (k, 3) of (first id, first address, length), by id.

    Takes (row ids, row addresses) in table order.
    """
    found = []
    for ids, addresses in batches:
        if not len(ids):
            continue
        a, b = ids.astype(np.int64), addresses.astype(np.int64)
        cuts = np.flatnonzero((np.diff(a) != 1) | (np.diff(b) != 1)) + 1
        starts = np.concatenate([[0], cuts])
        found.append(np.stack([a[starts], b[starts], np.diff(np.append(starts, len(a)))], axis=1))
    if not found:
        return np.empty((0, 3), np.int64)
    runs = np.concatenate(found)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    joins = (runs[1:, 0] == runs[:-1, 0] + runs[:-1, 2]) & (runs[1:, 1] == runs[:-1, 1] + runs[:-1, 2])
    heads = np.flatnonzero(np.concatenate([[True], ~joins]))
    joined = runs[heads]
    joined[:, 2] = np.add.reduceat(runs[:, 2], heads)
    return joined


@dataclass(frozen=True, slots=True)
class FileContents:
    """What a data file says of itself."""

    names: tuple[str, ...]  # of its columns; a nested one is several by number
    plain: dict[int, PlainLayout]  # of the columns that stand there plainly, by number


class FileReaders:
    """Open data files, the least recently used closed first. Safe to use from several threads."""

    def __init__(self, open_file: Open, contents: Contents, limit: int = MOST_FILES) -> None:
        @lru_cache(maxsize=limit)
        def opened(path: str, columns: tuple[str, ...]) -> tuple[Any, Lock]:
            return open_file(path, columns), Lock()

        @lru_cache(maxsize=limit)
        def mapped(path: str, number: int) -> PlainColumn:
            return PlainColumn(path, self.contents(path).plain[number])

        self._opened, self._mapped = opened, mapped
        self.contents: Contents = lru_cache(maxsize=None)(contents)

    def take(self, path: str, columns: tuple[str, ...], rows: list[int]) -> Iterable[pa.RecordBatch]:
        """These rows (ascending, none twice) of a data file, in batches."""
        reader, lock = self._opened(path, columns)
        with lock:  # the engine's reader answers one request at a time; what it answers with is on its own
            return cast("Iterable[pa.RecordBatch]", reader.take_rows(rows, _MESSAGE_ROWS, 1))

    def plain(self, file: DataFile, leaf: int, kind: Any) -> PlainColumn | None:
        """The column of a field of type `kind`, if it stands in the file plainly."""
        number = file.number_of(leaf)
        layout = None if number is None else self.contents(file.path).plain.get(number)
        return None if layout is None or not layout.holds(kind) else self._mapped(file.path, number)

    def close(self) -> None:
        """Close them all; what is asked next opens again."""
        self._opened.cache_clear()
        self._mapped.cache_clear()


@dataclass(frozen=True, slots=True)
class DataFile:
    """The one data file of a fragment: its path, and the ids of its fields, leaf by leaf, with their column numbers."""

    path: str
    fields: tuple[int, ...]
    numbers: tuple[int, ...]

    def number_of(self, leaf: int) -> int | None:
        """The number of the column that holds a field; None when there is none."""
        return self.numbers[self.fields.index(leaf)] if leaf in self.fields else None


class RowPlaces:
    """The rows of one table version: which data file holds each, and where in it.

    `runs` as `row_runs` gives them; `files` the data file of each fragment; `leaves` the ids of the leaves of each of the
    version's columns: a file written before a rename has a column of the name that means another. Immutable.
    """

    def __init__(self, runs: Int64Array, files: dict[int, DataFile], leaves: dict[str, tuple[int, ...]]) -> None:
        self._first = np.ascontiguousarray(runs[:, 0])
        self._address = np.ascontiguousarray(runs[:, 1])
        self._length = np.ascontiguousarray(runs[:, 2])
        self._files = files
        self._leaves = leaves

    def take(self, row_ids: Int64Array, columns: tuple[str, ...], readers: FileReaders) -> pa.Table | None:
        """Rows by stable row id, in the order asked, or None when this isn't the way to read them.

        That is when an id isn't there, a column isn't in the files under its name, or too many files would be touched.
        """
        addresses = self._find(row_ids)
        if addresses is None:
            return None
        order: Int64Array | None = None
        step = np.diff(addresses)
        if (step < 0).any():
            order = np.argsort(addresses, kind="stable")
            addresses = addresses[order]
            step = np.diff(addresses)
        repeats: Int64Array | None = None
        if (step == 0).any():  # the files' reader takes each row once
            addresses, repeats = np.unique(addresses, return_inverse=True)
        fragment = addresses >> 32
        cuts = np.flatnonzero(np.diff(fragment)) + 1
        if len(cuts) >= MOST_FILES:
            return None
        bounds = [0, *cuts.tolist(), len(addresses)]
        files = [self._files.get(int(fragment[low])) for low in bounds[:-1]]
        batches: list[pa.RecordBatch] = []
        for file, low, high in zip(files, bounds[:-1], bounds[1:], strict=True):
            if file is None or not self._holds(file, columns, readers.contents(file.path).names):
                return None
            rows = (addresses[low:high] & 0xFFFFFFFF).tolist()
            found = readers.take(file.path, columns, rows)
            batches += (batch.select(list(columns)) for batch in found)  # the file gives them in its own order
        table = pa.Table.from_batches(batches)
        if repeats is not None:
            table = table.take(pa.array(repeats))
        if order is not None:
            back = np.empty(len(order), np.int64)
            back[order] = np.arange(len(order))
            table = table.take(pa.array(back))
        return table

    def fill(self, row_ids: Int64Array, column: pa.Field, out: npt.NDArray[Any], readers: FileReaders) -> bool:
        """Copy one column of these rows into `out` (rows, …), if all of it stands plainly in the files, as `column` has it."""
        leaves = self._leaves.get(column.name, ())
        addresses = self._find(row_ids) if len(leaves) == 1 and may_be_plain(column.type) else None
        if addresses is None:
            return False
        cuts = np.flatnonzero((np.diff(addresses) < 0) | (np.diff(addresses >> 32) != 0)) + 1
        bounds = list(pairwise([0, *cuts.tolist(), len(addresses)]))
        if len(bounds) > MOST_FILES:
            return False
        files = [self._files.get(int(addresses[low]) >> 32) for low, _ in bounds]
        columns = [None if file is None else readers.plain(file, leaves[0], column.type) for file in files]
        plain = [one for one in columns if one is not None]
        if len(plain) < len(bounds):
            return False
        for (low, high), one in zip(bounds, plain, strict=True):
            one.fill(addresses[low:high] & 0xFFFFFFFF, out[low:high])
        return True

    def _find(self, row_ids: Int64Array) -> Int64Array | None:
        """The address of each row; None when there are none, or one of them isn't there."""
        if not len(self._first) or not len(row_ids):
            return None
        run = np.searchsorted(self._first, row_ids, side="right") - 1
        inside = row_ids - self._first[run]
        if run.min() < 0 or (inside >= self._length[run]).any():
            return None
        addresses: Int64Array = self._address[run] + inside
        return addresses

    def _holds(self, file: DataFile, columns: Sequence[str], names: Sequence[str]) -> bool:
        if not set(columns) <= set(names) or not set(names) <= self._leaves.keys():
            return False
        return sum((self._leaves[name] for name in names), ()) == file.fields
