"""What mixing needs of a source: the protocols that the store's sources (and the in-memory ones for tests) satisfy.

Knows the positions of training rows and the row ids behind them. Never asks for the rows of another split, so a
held-out row has no position here and can't be drawn. Does not decide an order (plan) or read columns (reader).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np

from treering.mixing.permute import Int64Array
from treering.mixing.sampling import Sampled

__all__ = ["Filling", "Releasing", "SegmentLike", "SourceLike", "TrainRows", "is_growing"]


class SegmentLike(Protocol):
    """One stretch of a corpus: a snapshot, or an interval of live. Picklable; opens its table lazily per process."""

    @property
    def row_ids(self) -> tuple[int, int]:
        """Half-open interval of stable row ids."""

    def runs(self, split: str = "train") -> Int64Array:
        """int64 (k, 2): first stable row id and length of each run of rows of this split, in record order."""

    def take(self, row_ids: Int64Array, columns: Sequence[str]) -> Any:
        """The `pa.Table` of these rows (int64 ids), in the order asked."""


@runtime_checkable
class Filling(Protocol):
    """A segment that can copy some columns straight out of its files."""

    def fill(self, row_ids: Int64Array, column: Any, out: Any) -> bool:
        """Copy a column (`pa.Field`) of these rows into a numpy array (rows, …); False when only `take` reads it."""


@runtime_checkable
class Releasing(Protocol):
    """A segment that keeps files open between reads."""

    def release(self) -> None:
        """Close them; the next read opens them again."""


@runtime_checkable
class SourceLike(Protocol):
    """One member of a mix; immutable, picklable, cheap."""

    @property
    def ref(self) -> str:
        """The text that names it: "support@v1..v3"."""

    @property
    def corpus(self) -> str:
        """The corpus it belongs to."""

    @property
    def segments(self) -> Sequence[Any]:
        """Its segments (`SegmentLike`) in order; the rows of a source are their concatenation."""

    @property
    def schema(self) -> Any:
        """The `pa.Schema` of the records as delivered."""

    @property
    def sampling(self) -> Any:
        """How its rows are drawn when not all alike: `kind`, `by` and `missing`; then `sampled_by()` gives the values."""

    def pin(self) -> dict[str, Any]:
        """JSON that resolves to the same rows again, or fails."""

    def up_to(self, end: int | None = None, annotations: int = 0) -> SourceLike:
        """The same source with what came after it was pinned: up to row id `end`, or all there is by now.

        Of what came, what version `annotations` of the corpus's annotations excludes is left out; without `end` it is the
        newest version, and `segments[-1].said` tells which. Only for a source whose last segment is live. Gives itself when nothing came.
        """


def is_growing(ref: str) -> bool:
    """Whether a ref names what is new: `support@live` or `support@new`, in any store."""
    return ref.rsplit("@", 1)[-1] in ("live", "new")


@dataclass(frozen=True, eq=False)
class TrainRows:
    """The training rows of one source, numbered 0 … size-1 in record order, and the row ids behind the numbers."""

    segments: tuple[SegmentLike, ...]
    first: Int64Array  # (k,): first row id of each run
    start: Int64Array  # (k + 1,): position of the first row of each run; the last entry is the size
    segment: Int64Array  # (k,): which segment each run lies in
    sampled: Sampled | None = None  # when they are drawn by weight

    @classmethod
    def of(cls, source: SourceLike) -> TrainRows:
        """Number the training rows of `source`; reads the runs of each segment and what it is sampled by, no records."""
        # A source cut down to another split (`heldout()`) keeps its segments, so it must not be asked for their rows.
        segments = tuple(source.segments) if getattr(source, "split", None) in (None, "train") else ()
        runs = [np.asarray(segment.runs("train"), dtype=np.int64).reshape(-1, 2) for segment in segments]
        table = np.concatenate(runs) if runs else np.empty((0, 2), dtype=np.int64)
        start = np.zeros(len(table) + 1, dtype=np.int64)
        np.cumsum(table[:, 1], out=start[1:])
        owner = np.repeat(np.arange(len(segments), dtype=np.int64), [len(part) for part in runs])
        sampled = None
        if source.sampling is not None and start[-1]:
            sampled = Sampled.of(source.sampling.kind, source.sampled_by())  # type: ignore[attr-defined]
        return cls(segments, np.ascontiguousarray(table[:, 0]), start, owner, sampled)

    @property
    def size(self) -> int:
        """How many training rows there are."""
        return int(self.start[-1])

    def find(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(number of the segment, row id) of each of `positions`, in any order: two int64 arrays (k,)."""
        run = np.searchsorted(self.start, positions, side="right") - 1
        return self.segment[run], self.first[run] + (positions - self.start[run])

    def locate(self, positions: Int64Array) -> list[tuple[SegmentLike, Int64Array]]:
        """The segments and row ids that hold ascending `positions` (k,), one pair per segment, in order.

        Concatenated, the row ids stand in the order of the positions.
        """
        owner, row_ids = self.find(positions)
        cuts = np.flatnonzero(np.diff(owner)) + 1
        bounds = [0, *cuts.tolist(), len(positions)]
        return [(self.segments[int(owner[a])], row_ids[a:b]) for a, b in pairwise(bounds) if b > a]
