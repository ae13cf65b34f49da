"""PURE. Samples of a stream of records, in bounded memory: the rows whose ids hash lowest.

Bottom-k sampling (Cohen & Kaplan, "Summarizing Data Using Bottom-k Sketches", 2007): uniform without replacement, and the
same records whatever the order, the batches and the fragments they come in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["GroupSample", "RowSample", "one_batch"]

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

_ALL = np.uint64(2**64 - 1)


class RowSample:
    """At most `most` rows of all that are offered, of at most `most_bytes`; half as many more are held on the way."""

    def __init__(self, most: int, schema: pa.Schema, *, most_bytes: int = 32_000_000) -> None:
        self.most = most
        self.schema = schema
        self.offered = 0
        self._most_bytes = most_bytes
        self._line = _ALL  # rows above it can't be among the lowest any more
        self._parts: list[tuple[pa.RecordBatch, UInt64Array]] = []
        self._held = 0
        self._bytes = 0
        self._sorted = True

    def wanted(self, hashes: UInt64Array) -> Int64Array:
        """Which rows, of hashes (n,), still have a chance: indices. Call once per batch, then `add` those rows."""
        self.offered += len(hashes)
        return np.flatnonzero(hashes <= self._line)

    def add(self, rows: pa.RecordBatch, hashes: UInt64Array) -> None:
        """Take in rows of `schema` with their hashes."""
        if not len(rows):
            return
        self._parts.append((rows, hashes))
        self._sorted = False
        self._held += len(rows)
        self._bytes += rows.nbytes
        if self._held > 1.5 * self.most or self._bytes > 1.5 * self._most_bytes:
            self._prune()

    def _prune(self) -> None:
        batch = one_batch([rows for rows, _ in self._parts], self.schema)
        hashes = np.concatenate([h for _, h in self._parts])
        self._parts = []
        order = np.argsort(hashes, kind="stable")[: self.most]
        sizes = np.full(len(order), 32, np.int64)
        for column in batch.columns:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                sizes += np.asarray(pc.fill_null(pc.binary_length(column), 0)).astype(np.int64)[order]
        order = order[: max(int(np.searchsorted(np.cumsum(sizes), self._most_bytes, "right")), 1)]
        kept = batch.take(pa.array(order))
        self._parts = [(kept, hashes[order])]
        if len(order) < len(hashes):
            self._line = hashes[order[-1]]
        self._held, self._bytes, self._sorted = len(order), kept.nbytes, True

    def clear(self) -> None:
        """Let go of the rows; `offered` stays."""
        self._parts, self._held, self._bytes = [], 0, 0

    def batch(self) -> tuple[pa.RecordBatch, UInt64Array]:
        """The sample, by hash, and its hashes."""
        if not self._parts:
            return one_batch([], self.schema), np.empty(0, np.uint64)
        if len(self._parts) > 1 or not self._sorted:
            self._prune()
        return self._parts[0]


def one_batch(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of all of them."""
    columns = [
        pa.concat_arrays([*(batch.column(i) for batch in batches), pa.array([], field.type)])
        for i, field in enumerate(schema)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class GroupSample:
    """At most `each` texts of every group, and at most `most` in all: then fewer of each."""

    def __init__(self, each: int, most: int) -> None:
        self.each = each
        self._most = most
        self._lines = np.empty(0, np.uint64)  # by group: texts above it can't be among its lowest any more
        self._parts: list[tuple[Int64Array, UInt64Array, pa.Array]] = []
        self._held = 0

    def add(self, groups: Int64Array, hashes: UInt64Array, texts: Any) -> None:
        """Offer texts (n,) with the number of their group (≥ 0) and the hash of their record."""
        if not len(groups):
            return
        highest = int(groups.max()) + 1
        if highest > len(self._lines):
            self._lines = np.concatenate([self._lines, np.full(highest - len(self._lines), _ALL)])
        kept = np.flatnonzero(hashes <= self._lines[groups])
        self._parts.append((groups[kept], hashes[kept], texts.take(pa.array(kept))))
        self._held += len(kept)
        if self._held > 1.5 * self._most:
            self._prune()

    def _prune(self) -> None:
        groups = np.concatenate([g for g, _, _ in self._parts])
        hashes = np.concatenate([h for _, h, _ in self._parts])
        texts = pa.concat_arrays([t for _, _, t in self._parts])
        order = np.lexsort((hashes, groups))
        while True:
            sizes = np.bincount(groups, minlength=len(self._lines))
            rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            kept = rank < self.each
            if int(kept.sum()) <= self._most or self.each <= _FEWEST:
                break
            self.each = max(self.each // 2, _FEWEST)
        last = kept & (rank == self.each - 1)
        self._lines[groups[order[last]]] = hashes[order[last]]
        order = order[kept]
        self._parts = [(groups[order], hashes[order], texts.take(pa.array(order)))]
        self._held = len(order)

    def groups(self) -> dict[int, list[str]]:
        """The texts of each group, by hash."""
        if not self._parts:
            return {}
        self._prune()
        groups, _, texts = self._parts[0]
        found: dict[int, list[str]] = {}
        for group, text in zip(groups.tolist(), texts.to_pylist(), strict=True):
            found.setdefault(group, []).append(text)
        return found


_FEWEST = 8  # texts a group; fewer would make shares of them meaningless
