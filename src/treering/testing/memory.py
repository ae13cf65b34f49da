"""Sources in memory, for tests of what is built on a mix: no store, no Lance, no files.

Same behaviour as a store's sources: rows named by ascending ids with gaps, held-out rows apart, picklable, pinned by
content. What it doesn't have: capture, sealing, versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from treering.errors import ConflictError, NotFoundError, StoreError

__all__ = ["MemorySegment", "MemorySource", "MemoryStore"]

Int64Array = npt.NDArray[np.int64]

_GAP = 7  # row ids skipped before each segment: nothing may rely on ids being positions


class MemorySegment:
    """One stretch of records, from a `pa.Table` with an `id` and a `split` column."""

    def __init__(self, corpus: str, name: str, table: Any, first_row_id: int) -> None:
        self.corpus = corpus
        self.name = name
        self.row_ids = (first_row_id, first_row_id + len(table))
        self._table = table
        self._newest = [self]  # live: what it has grown to; shared by all its states

    def append(self, table: Any) -> None:
        """Let live grow; segments that are in use stay as they are until they are asked to follow."""
        newest = self._newest[0]
        whole = pa.concat_tables([newest._table, table.select(newest._table.column_names)]).combine_chunks()
        grown = MemorySegment(self.corpus, self.name, whole, self.row_ids[0])
        grown._newest = self._newest
        self._newest[0] = grown

    def first(self, rows: int) -> MemorySegment:
        """Its first rows, as it was when it held no more."""
        shorter = MemorySegment(self.corpus, self.name, self._table.slice(0, rows), self.row_ids[0])
        shorter._newest = self._newest
        return shorter

    said = 0  # there are no annotations in memory

    def up_to(self, end: int | None = None) -> MemorySegment:
        """The same stretch of live, grown to end before row id `end`, or to all there is. Gives itself when nothing came."""
        newest = self._newest[0]
        end = newest.row_ids[1] if end is None else end
        if end <= self.row_ids[1]:
            return self
        if end > newest.row_ids[1]:
            raise StoreError(f"{self.ref} doesn't hold all of these rows", code="rows-missing")
        return newest.first(end - self.row_ids[0])

    @property
    def ref(self) -> str:
        """`support@v1`."""
        return f"{self.corpus}@{self.name}"

    @property
    def digest(self) -> str | None:
        """SHA-256 of the records; None for live."""
        if self.name == "live":
            return None
        return hashlib.sha256(repr(self._table.to_pylist()).encode()).hexdigest()

    def runs(self, split: str = "train") -> Int64Array:
        """int64 (k, 2): first row id and length of each run of rows of this split."""
        inside = np.array([value == split for value in self._table.column("split").to_pylist()], dtype=np.int8)
        edges = np.diff(np.concatenate([[0], inside, [0]]))
        first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        return np.stack([first + self.row_ids[0], last - first], axis=1).astype(np.int64)

    def take(self, row_ids: Int64Array, columns: Sequence[str]) -> Any:
        """These rows as a `pa.Table`, in the order asked. Raises StoreError when one isn't there."""
        positions = np.asarray(row_ids) - self.row_ids[0]
        if len(positions) and (positions.min() < 0 or positions.max() >= len(self._table)):
            raise StoreError(f"{self.ref} doesn't hold all of these rows", code="rows-missing")
        return self._table.select(list(columns)).take(pa.array(positions))

    def table(self) -> Any:
        """Every record."""
        return self._table


@dataclass(frozen=True)
class _Sampling:
    kind: str
    by: str
    missing: float = 0.0


class MemorySource:
    """One member of a mix, in memory: `len()`, `to_table()`, `heldout()`, `pin()`, as a store's source has them."""

    def __init__(
        self,
        ref: str,
        segments: Sequence[MemorySegment],
        split: str | None = None,
        sampling: _Sampling | None = None,
    ) -> None:
        self.sampling = sampling
        self.ref = ref
        self.corpus = ref.split("@", 1)[0]
        self.segments = tuple(segments)
        self.schema = segments[0].table().schema
        self.split = split

    def __len__(self) -> int:
        return len(self.to_table(["split"]))

    def to_table(self, columns: Sequence[str] | None = None) -> Any:
        """Every record of the source, in order."""
        table = pa.concat_tables([segment.table() for segment in self.segments])
        if self.split is not None:
            table = table.filter(pa.array([value == self.split for value in table.column("split").to_pylist()]))
        return table if columns is None else table.select(list(columns))

    def up_to(self, end: int | None = None, annotations: int = 0) -> MemorySource:
        """The same source with what was appended since. Gives itself when nothing was."""
        grown = self.segments[-1].up_to(end)
        return (
            self
            if grown is self.segments[-1]
            else MemorySource(self.ref, [*self.segments[:-1], grown], self.split, self.sampling)
        )

    def heldout(self) -> MemorySource:
        """The held-out records alone; no mix can draw from it."""
        return MemorySource(self.ref, self.segments, "heldout")

    def balanced(self, by: str) -> MemorySource:
        """The same rows, drawn so that each value of a column comes equally often."""
        return MemorySource(self.ref, self.segments, self.split, _Sampling("balanced", by))

    def weighted(self, by: str, *, missing: float = 0.0) -> MemorySource:
        """The same rows, each drawn in proportion to a column of numbers ≥ 0; `missing` stands for nulls."""
        return MemorySource(self.ref, self.segments, self.split, _Sampling("weighted", by, missing))

    def sampled_by(self) -> Any:
        """Per training row, in order: float64 weights, or the int64 number of the row's group."""
        assert self.sampling is not None
        table = self.to_table(["split", self.sampling.by])
        inside = [value == "train" for value in table.column("split").to_pylist()]
        values = table.filter(pa.array(inside)).column(self.sampling.by).to_pylist()
        if self.sampling.kind == "weighted":
            return np.array([self.sampling.missing if value is None else value for value in values], np.float64)
        groups: dict[Any, int] = {}
        return np.array([groups.setdefault(value, len(groups)) for value in values], np.int64)

    def pin(self) -> dict[str, Any]:
        """JSON-ready: what finds these rows again, and what to know them by."""
        return {
            "ref": self.ref,
            "corpus": self.corpus,
            "segments": [
                {
                    "name": segment.name,
                    "incarnation": "memory",
                    "digest": segment.digest,
                    "row_ids": list(segment.row_ids),
                    "rows": len(segment.table()),
                }
                for segment in self.segments
            ],
        }


class MemoryStore:
    """A few corpora in memory: `add("support@v1", records)` in the order they were sealed, then `load(ref)`."""

    def __init__(self) -> None:
        self._segments: dict[str, MemorySegment] = {}

    def add(self, ref: str, records: Any) -> MemorySource:
        """Add records (a `pa.Table`, columns, or a list of dicts) as one snapshot, or as `NAME@live`.

        `id` and `split` are filled in when they are missing: ids from the ref, every row for training. Added to again,
        live grows.
        """
        if isinstance(records, pa.Table):
            table = records
        else:
            table = pa.table(dict(records)) if isinstance(records, Mapping) else pa.Table.from_pylist(list(records))
        corpus, name = ref.split("@", 1)
        there = self._segments[ref]._newest[0] if name == "live" and ref in self._segments else None
        if "id" not in table.column_names:
            first = len(there.table()) if there is not None else 0
            table = table.append_column("id", pa.array([f"{name}-{first + n:06d}" for n in range(len(table))]))
        if "split" not in table.column_names:
            table = table.append_column("split", pa.array(["train"] * len(table), type=pa.string()))
        if there is not None:
            there.append(table)
            self._segments[ref] = there.up_to()
            return self.load(ref)
        last = max((s.row_ids[1] for s in self._segments.values() if s.corpus == corpus), default=0)
        self._segments[ref] = MemorySegment(corpus, name, table.combine_chunks(), last + _GAP)
        return self.load(ref)

    def load(self, ref: str) -> MemorySource:
        """`support@v1`, `support@v1..v3` or `support@live`. Raises NotFoundError."""
        corpus, name = ref.split("@", 1)
        names = [name]
        if ".." in name:
            low, high = name.split("..")
            names = [f"v{n}" for n in range(int(low[1:]), int(high[1:]) + 1)]
        for one in names:
            if f"{corpus}@{one}" not in self._segments:
                raise NotFoundError(f"there is no {corpus}@{one}", code="no-snapshot")
        return MemorySource(ref, [self._segments[f"{corpus}@{one}"] for one in names])

    def live(self, name: str) -> MemorySource:
        """`load("NAME@live")`."""
        return self.load(f"{name}@live")

    def from_pin(self, pin: dict[str, Any]) -> MemorySource:
        """The source that was pinned. Raises NotFoundError, and ConflictError when its content is another one now."""
        source = self.load(pin["ref"])
        if source.segments[-1].name == "live":  # which may have grown since
            *sealed, live = source.segments
            source = MemorySource(pin["ref"], [*sealed, live.first(pin["segments"][-1]["rows"])])
        if source.pin() != pin:
            raise ConflictError(f"{pin['ref']} isn't what was pinned", code="content-changed")
        return source
