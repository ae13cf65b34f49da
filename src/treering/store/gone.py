"""What was erased of a stretch of rows since it was pinned, and the stretch as the pin knew it.

A pin names rows by interval, number and, for a snapshot, digest. Erasures say which rows they took and from which digest
on; so what is missing is known row by row, and index space stays: an erased row keeps its position, and nothing of it is
delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from treering.errors import ConflictError
from treering.store.erase import ErasedRows, erased_rows, list_found
from treering.store.runs import RowIds, drop_ids, join_runs, keep_ids, runs_of
from treering.store.source import Narrowing, Segment, Split
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus
    from treering.store.documents import ErasedFound
    from treering.store.runs import Runs

__all__ = ["Gone", "GoneSegment", "erased_error", "gone_since"]


@dataclass(frozen=True, eq=False)
class Gone:
    """Rows of a stretch that were erased, and by which erasures; row ids ascending."""

    erasures: tuple[int, ...]
    train: RowIds
    records: RowIds  # held-out ones included
    by: tuple[ErasedRows, ...]

    @classmethod
    def of(cls, by: Sequence[ErasedRows], row_ids: tuple[int, int]) -> Gone:
        """What these erasures took of an interval."""
        train = np.sort(np.concatenate([np.empty(0, np.int64), *(_between(one.train, row_ids) for one in by)]))
        records = np.sort(np.concatenate([np.empty(0, np.int64), *(_between(one.records, row_ids) for one in by)]))
        return cls(tuple(one.number for one in by), train, records, tuple(by))

    def excluded_at(self, version: int) -> RowIds:
        """Which of them annotations had excluded at a version."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(one.excluded_at(version) for one in self.by)]))


def gone_since(corpus: BaseCorpus, segment: Segment, digest: str | None) -> Gone | None:
    """What was erased of a segment's rows since they were pinned (a snapshot's under `digest`); None when nothing was.

    Raises ConflictError when erasures can't be all that happened to live.
    """
    found = list_found(corpus)
    if not found:
        return None
    if segment.name != "live":
        hits = [one for one in found for hit in one.snapshots if hit.name == segment.name and hit.records]
        first = next((n for n, one in enumerate(hits) if _digest_before(one, segment.name) == digest), None)
        return None if first is None else Gone.of([erased_rows(corpus, one) for one in hits[first:]], segment.row_ids)
    by = [erased_rows(corpus, one) for one in found]
    touching = [one for one in by if len(_between(one.records, segment.row_ids))]
    if not touching:
        return None
    missing = segment.rows - segment.present()
    for first in range(len(touching), -1, -1):  # those before the pin had been taken when it was made
        gone = Gone.of(touching[first:], segment.row_ids)
        if len(gone.records) == missing:
            return gone if missing else None
    raise ConflictError(
        f"{segment.ref}: {missing} of the {segment.rows} records that were pinned are gone, and erasures don't account for it",
        code="content-changed",
        hint="use the store that the pin was made in, or pin anew",
    )


def erased_error(segment: Segment, gone: Gone) -> ConflictError:
    """For whoever asks for rows that are gone."""
    which = "receipt" if len(gone.erasures) == 1 else "receipts"
    corpus = segment.corpus
    return ConflictError(
        f"{len(gone.records):,} records of {segment.ref} were erased since it was pinned "
        f"({which} {', '.join(map(str, gone.erasures))} of {corpus})",
        code="erased",
        hint=f"treering erase {corpus} --list shows the receipts; load the ref anew, or go on without the records: "
        'lock.loader(store, erased="skip"), treering export --erased skip',
    )


class GoneSegment(Segment):
    """A segment as it was pinned, with tombstones where records were erased: positions are as they were.

    `runs` includes erased training rows; `take` gives something in their place, which whoever asks must drop.
    """

    def __init__(
        self,
        corpus: BaseCorpus,
        name: str,
        row_ids: tuple[int, int],
        rows: int,
        narrowing: Narrowing | None = None,
        gone: Gone | None = None,
        pinned: str | None = None,
    ) -> None:
        super().__init__(corpus, name, row_ids, rows, narrowing)
        self.gone = gone or Gone.of([], row_ids)
        self._pinned_digest = pinned
        self._stand_in: int | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        made, corrected = super().__getstate__()
        return (*made, self.gone, self._pinned_digest), corrected

    def narrowed(self, narrowing: Narrowing) -> Segment:
        """The same stretch, of which other rows count."""
        return GoneSegment(self._corpus, self.name, self.row_ids, self.rows, narrowing, self.gone, self._pinned_digest)

    @property
    def erased(self) -> RowIds:
        """Row ids, ascending, that `runs` may hold and nobody has any more."""
        return self.gone.train

    @property
    def digest(self) -> str | None:
        """The content digest that was pinned."""
        return self._pinned_digest

    def check_whole(self) -> None:
        """Nothing to check: what is missing is known."""

    def certified_runs(self) -> RowIds | None:
        """None: what is cached of the snapshot has other positions."""
        return None

    def excluded(self) -> RowIds:
        """Row ids of records that were excluded when it was pinned, erased ones included."""
        if self._excluded is None:
            gone = _between(self.gone.excluded_at(self.narrowing.annotations), self.row_ids)
            self._excluded = np.union1d(super().excluded(), gone)
        return self._excluded

    def _drawable(self, split: Split) -> Runs:
        found = super()._drawable(split)
        if split != "train" or not len(self.gone.train):
            return found
        if self.narrowing.where:
            raise ConflictError(
                f"{self.ref} was narrowed by {', '.join(name for name, _ in self.narrowing.where)}, and nobody knows any more "
                "which of the erased records that held",
                code="erased",
                hint="such a lock can't be served again: make a new mix",
            )
        tombstones = runs_of(self.gone.train)
        if self.narrowing.rows is not None:
            tombstones = keep_ids(tombstones, self.narrowing.rows)
        return drop_ids(join_runs([found, tombstones]), self.excluded())

    def up_to(self, end: int | None = None, annotations: int = 0) -> Segment:
        """Live grown since it was pinned; see `Segment.up_to`. Raises ConflictError when rows it grew by were erased."""
        grown = super().up_to(end, annotations)
        if grown is self:
            return self
        rest = (self.row_ids[1], grown.row_ids[1])
        if any(len(_between(erased_rows(self._corpus, one).records, rest)) for one in list_found(self._corpus)):
            raise ConflictError(
                f"records that {self.ref} grew by during the run were erased",
                code="erased",
                hint="such a lock can't be served again: make a new mix",
            )
        whole = GoneSegment(
            self._corpus, grown.name, grown.row_ids, grown.rows, grown.narrowing, self.gone, self._pinned_digest
        )
        whole._before, whole.said = grown._before, grown.said
        return whole

    def take(self, row_ids: RowIds, columns: Sequence[str]) -> pa.Table:
        """Rows by stable row id, in the order asked; in the place of erased ones, some other row or empty values."""
        erased = np.isin(row_ids, self.gone.records)
        if not erased.any():
            return super().take(row_ids, columns)
        stand_in = self._some_row()
        if stand_in is None:
            self.check_columns(columns)
            return pa.table([_empty(self.schema.field(name).type, len(row_ids)) for name in columns], list(columns))
        return super().take(np.where(erased, stand_in, row_ids), columns)

    def _some_row(self) -> int | None:
        """A row that is still there; None when none is."""
        if self._stand_in is None:
            for batch in self._scan([ROW_ID], None):
                if len(batch):
                    self._stand_in = int(batch.column(0)[0].as_py())
                    break
        return self._stand_in

    def fill(self, row_ids: RowIds, column: Any, out: Any) -> bool:
        """Never straight from the files."""
        return False


def _digest_before(found: ErasedFound, name: str) -> str | None:
    return next((hit.digest for hit in found.snapshots if hit.name == name), None)


def _between(rows: RowIds, interval: tuple[int, int]) -> RowIds:
    return rows[(rows >= interval[0]) & (rows < interval[1])]


def _empty(kind: Any, rows: int) -> Any:
    """A column of values that any kind of column can be made of: zeros, empty text, empty lists."""
    t = pa.types
    if t.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_empty(kind.value_type, rows * kind.list_size), type=kind)
    if t.is_list(kind) or t.is_large_list(kind):
        return pa.array([[]] * rows, kind)
    if t.is_struct(kind):
        return pa.StructArray.from_arrays([_empty(field.type, rows) for field in kind], fields=list(kind))
    if t.is_string(kind) or t.is_large_string(kind):
        return pa.array([""] * rows, kind)
    if t.is_binary(kind) or t.is_large_binary(kind):
        return pa.array([b""] * rows, kind)
    if t.is_primitive(kind) or t.is_decimal(kind):
        return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(bytes((kind.bit_width * rows + 7) // 8))])
    return pa.nulls(rows, kind)
