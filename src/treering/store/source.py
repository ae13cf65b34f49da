"""Sources: what a ref names, pinned to rows that can be read again however the store moves on.

A source is a row of segments, one per snapshot and one for live. Rows are named by stable row id: a handle on an old
version of live fails after compaction and cleanup, a row id doesn't. What may be drawn of a segment is narrowed in its
`runs` and nowhere else: by columns (`where`), by a stored selection, and by what annotations exclude. Does not choose
rows (selection) or shuffle them (mixing).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import ConflictError, NotFoundError, StoreError, UsageError
from treering.schema import Alignment, RecordType
from treering.schema.evolution import column_rule
from treering.store.annotations import ANNOTATION_SCHEMA, KEYS, row_ids_of
from treering.store.base import reopened
from treering.store.certificate import check_files, id_filter, split_runs
from treering.store.corrections import Corrections, corrections_of
from treering.store.heldout import KeptHeldout, find_heldout
from treering.store.place import Place, head_of, sealed_in
from treering.store.ref import Ref
from treering.store.runs import RowIds, Runs, drop_ids, expand, inside, join_runs, keep_ids, runs_of
from treering.store.snapshot import Snapshot, check_record, list_records, listed, pruned_error
from treering.store.table import ROW_ID, created_after, rows_between

if TYPE_CHECKING:
    from pathlib import Path

    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.documents import PruneRecord, SelectionRecord, SnapshotRecord
    from treering.store.selection import HasForgetting, Strategy

__all__ = ["Narrowing", "Sampling", "Segment", "Source", "resolve", "segment_at"]

Split = Literal["train", "heldout"]
_MANY = 500  # ids from which on asking a snapshot's id filter is worth reading it
Plain = str | int | bool | None  # what a column can be asked to equal

#: How often a scan of live goes on at the newest version when the one that it reads is tidied away.
_MOST_SCANS = 5
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Narrowing:
    """What of a segment counts.

    `where` and `rows` (a selection's stable row ids in this segment, ascending) say what the source consists of. What
    annotations had excluded by version `annotations` of their table still belongs to it, and is neither drawn nor
    evaluated on.
    """

    where: tuple[tuple[str, tuple[Plain, ...]], ...] = ()
    rows: RowIds | None = None
    annotations: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the source consists of all records of the segment."""
        return not self.where and self.rows is None


@dataclass(frozen=True)
class Sampling:
    """How a source's rows are drawn when not all alike.

    `by` is a column or an annotation key: "balanced" draws its values equally often, "weighted" each row in proportion
    to it; `missing` is the weight of rows without a value.
    """

    kind: Literal["balanced", "weighted"]
    by: str
    missing: float = 0.0


class Segment:
    """The rows of one snapshot, or of live as it stood when pinned. Immutable, picklable; opens Lance lazily.

    `name` is `v1` or `live`; `row_ids` the half-open interval of stable row ids; `rows` how many rows lie in it.
    """

    def __init__(
        self,
        corpus: BaseCorpus,
        name: str,
        row_ids: tuple[int, int],
        rows: int,
        narrowing: Narrowing | None = None,
    ) -> None:
        self._corpus = corpus
        self.name = name
        self.row_ids = row_ids
        self.rows = rows
        self.narrowing = narrowing or Narrowing()
        self._opened: list[tuple[int, int, Place]] | None = None
        self._runs: dict[str, Runs] = {}
        self._before: Segment | None = None  # the shorter one that this one grew from
        self._version = -1  # of the table when it was last seen to hold nothing new
        self.said = self.narrowing.annotations  # version of the annotations that excludes of what it grew by
        self._excluded: RowIds | None = None
        self._corrected: tuple[Corrections | None] | None = None  # what is laid over it, once that was looked up

    def __getstate__(self) -> tuple[Any, ...]:
        # Corrections go along: a worker that reads cached columns needn't open a table to look them up.
        return (self._corpus, self.name, self.row_ids, self.rows, self.narrowing), self._corrected

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        made, corrected = state
        self.__init__(*made)  # type: ignore[misc]
        self._corrected = corrected

    def narrowed(self, narrowing: Narrowing) -> Segment:
        """The same stretch, of which other rows count."""
        return Segment(self._corpus, self.name, self.row_ids, self.rows, narrowing)

    def piece(self, low: int, high: int) -> Segment:
        """The records of it with row ids in [low, high), for who reads it in parts; with what was looked up for the whole.

        Whether any was erased is for the whole to say: `check_whole`.
        """
        rows = self.narrowing.rows
        if rows is not None:
            rows = rows[np.searchsorted(rows, low) : np.searchsorted(rows, high)]
        made = Segment(self._corpus, self.name, (low, high), 0, replace(self.narrowing, rows=rows))
        excluded = self.excluded()
        made._excluded = excluded[np.searchsorted(excluded, low) : np.searchsorted(excluded, high)]
        made._corrected = (self.corrections,)
        if self.name != "live":  # whose places are found anew for each scan
            places = ((max(first, low), min(end, high), place) for first, end, place in self._places())
            made._opened = [(first, end, place) for first, end, place in places if first < end]
        return made

    @property
    def address(self) -> dict[str, Any]:
        """JSON-ready: what `segment_at` finds it by, in a worker. Holds credentials: never print it."""
        rows = self.narrowing.rows
        return {
            "store": self._corpus.store.address,
            "corpus": self._corpus.name,
            "schema_version": self.schema_version,
            "name": self.name,
            "row_ids": [int(end) for end in self.row_ids],
            "where": [[name, list(values)] for name, values in self.narrowing.where],
            "rows": None if rows is None else runs_of(rows).tolist(),
            "annotations": self.narrowing.annotations,
        }

    @property
    def corpus(self) -> str:
        """Name of the corpus; with its store before a `#` when that isn't the store it was loaded through."""
        return self._corpus.store.prefix + self._corpus.name

    @property
    def ref(self) -> str:
        """`support@v1` or `support@live`."""
        return f"{self.corpus}@{self.name}"

    @property
    def schema(self) -> pa.Schema:
        """All record columns, as `schema_version` has them; records of earlier versions are delivered so too."""
        return self._corpus.versions[-1].schema

    @property
    def schema_version(self) -> int:
        """The schema version that the records are read as: the newest when it was loaded, or the one it was pinned with."""
        return self._corpus.versions[-1].number

    def column_fingerprint(self, name: str) -> str:
        """Text that changes whenever the delivered bytes of a column could: its name, type and alignment rule.

        Raises NotFoundError.
        """
        self.check_columns([name])
        return column_rule(self._corpus.versions, name)

    def stored_as(self, name: str) -> str | None:
        """The Lance column that holds this column's values, all of them as delivered; None when there is more to it.

        Only such a column can be filtered on by the engine.
        """
        self.check_columns([name])
        if self.corrections is not None and self.corrections.touches([name]):
            return None
        found = {place.stored_as(name) for _, _, place in self._places()}
        return found.pop() if len(found) == 1 else None

    def alignments(self) -> dict[int, Alignment]:
        """How its records are read: schema version they were captured under → the rule. Reads that column alone."""
        found = {n for low, high, place in self._places() for n in place.record_versions(low, high)}
        return {n: Alignment.between(self._corpus.versions, n, self.schema_version) for n in sorted(found)}

    def __repr__(self) -> str:
        return f"Segment({self.ref!r}, rows={self.rows}, row_ids={self.row_ids})"

    @property
    def digest(self) -> str | None:
        """Content digest of a snapshot (built if need be); None for live, whose rows are named by their ids alone."""
        record = self._record()
        return None if record is None else Snapshot(self._corpus, record).digest

    def _record(self) -> SnapshotRecord | None:
        if self.name == "live":
            return None
        for record in list_records(self._corpus):
            if record.name == self.name:
                return record
        raise NotFoundError(f"{self.ref} isn't in the store", code="no-snapshot")

    def _places(self, *, again: bool = False) -> list[tuple[int, int, Place]]:
        """(low, high, place) in row order: where the interval's rows are to be read now.

        Rows that were live when pinned may have been sealed since; then the snapshot that holds them is their place.
        """
        if self._opened is None or again:
            places = self._find_places()
            for low, high, place in places:
                place.check_readable(low, high)
            self._opened = places
        return self._opened

    def _find_places(self) -> list[tuple[int, int, Place]]:
        low, high = self.row_ids
        # The head first, the records second: a seal in between then only makes us read rows from their snapshot.
        head = head_of(self._corpus) if self.name == "live" else None
        places: list[tuple[int, int, Place]] = []
        for record, pruned in listed(self._corpus):
            first, end = max(low, record.row_ids[0]), min(high, record.row_ids[1])
            if first >= end:
                continue
            if pruned is not None:
                kept = find_heldout(self._corpus, pruned) if pruned.heldout else None
                if kept is None:
                    raise pruned_error(pruned)
                stand_in: Any = KeptHeldout(self._corpus, record, kept, partial(pruned_error, pruned))
                places.append((first, end, stand_in))
            else:
                check_record(self._corpus, record)
                places.append((first, end, sealed_in(self._corpus, record)))
        reached = places[-1][1] if places else low
        if head is not None and reached < high:
            places.append((reached, high, head))
        return places

    @property
    def is_pruned(self) -> bool:
        """Whether the snapshot was pruned."""
        return any(record.name == self.name and pruned is not None for record, pruned in listed(self._corpus))

    def check_pruned(self, split: Split | None = None) -> None:
        """Raise NotFoundError when a snapshot that holds any of its rows was pruned.

        With `split="heldout"` it is enough that the held-out records were kept.
        """
        for record, pruned in listed(self._corpus):
            touched = max(self.row_ids[0], record.row_ids[0]) < min(self.row_ids[1], record.row_ids[1])
            if pruned is not None and touched and not (split == "heldout" and pruned.heldout):
                raise pruned_error(pruned)

    def scan(self, columns: Sequence[str] | None = None, split: Split | None = None) -> Iterator[pa.RecordBatch]:
        """Batches of all rows that count, or of one split, in record order. `_rowid` may be asked for like a column.

        Excluded records are part of the whole, and of neither split.
        """
        names = list(columns) if columns is not None else self.schema.names
        self.check_columns(names)
        self.check_whole()
        dropped = self.excluded() if split else None
        try:
            if self.narrowing.is_whole and (dropped is None or not len(dropped)):
                yield from self._scan(names, split)
            else:
                wanted = [*names, *(c for c in [*(n for n, _ in self.narrowing.where), ROW_ID] if c not in names)]
                for batch in self._scan(list(dict.fromkeys(wanted)), split):
                    yield batch.filter(pa.array(self._counts(batch, dropped))).select(names)
        except StoreError:
            self.check_whole()
            raise
        self.check_whole()  # what was erased while it was read is missing from some point on

    def _scan(self, names: list[str], split: Split | None) -> Iterator[pa.RecordBatch]:
        """Batches of the segment, whatever is narrowed; with what was corrected."""
        if self.name != "live":
            try:
                yield from (batch for _, batch in self._scan_places(names, split))
            except StoreError:
                self.check_pruned(split)  # while it was read, perhaps
                raise
            return
        # The version of live that is being read may be compacted and cleaned up under way: the rest lies elsewhere then.
        wanted = list(dict.fromkeys([*names, ROW_ID]))
        done: list[Runs] = []
        for left in reversed(range(_MOST_SCANS)):
            before = join_runs(done)
            try:
                for ids, batch in self._scan_places(wanted, split):
                    fresh = ~inside(before, ids)
                    done.append(runs_of(np.sort(ids[fresh])))
                    yield (batch if fresh.all() else batch.filter(pa.array(fresh))).select(names)
                return
            except StoreError:
                self.check_pruned(split)
                if not left:
                    raise

    def _scan_places(self, names: list[str], split: Split | None) -> Iterator[tuple[RowIds, pa.RecordBatch]]:
        """(row ids, batch); without `_rowid` among the names the ids are empty."""
        laid = self.corrections
        if laid is not None and not laid.touches(names):
            laid = None
        reads = names if laid is None or ROW_ID in names else [*names, ROW_ID]
        for low, high, place in self._places(again=self.name == "live"):
            for batch in place.within(reads, low, high, split=split):
                ids = np.asarray(batch.column(ROW_ID)).astype(np.int64) if ROW_ID in reads else _NO_ROWS
                yield ids, batch if laid is None else laid.apply(batch, ids).select(names)

    def _counts(self, batch: pa.RecordBatch, dropped: RowIds | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows of a batch count: bool (n,)."""
        counts = np.ones(len(batch), bool)
        # By Arrow and not by the engine: what an older snapshot calls otherwise or holds narrower is asked as delivered.
        for name, values in self.narrowing.where:
            column = batch.column(name)
            counts &= np.asarray(pc.is_in(column, pa.array(values, column.type)))
        ids = np.asarray(batch.column(ROW_ID)).astype(np.int64)
        if self.narrowing.rows is not None:
            counts &= _among(ids, self.narrowing.rows)
        if dropped is not None:
            counts &= ~_among(ids, dropped)
        return counts

    def count(self) -> int:
        """How many records count, held-out and excluded ones included."""
        if self.narrowing.is_whole:
            return self.rows
        return sum(len(batch) for batch in self.scan([ROW_ID]))

    def runs(self, split: Split = "train") -> Runs:
        """Runs of rows of one split that may be drawn: int64 (k, 2) of (first stable row id, length), in record order.

        The one place where rows are left out: what isn't in here has no position in a mix.
        """
        if split not in self._runs:
            before = self._before
            if before is None:
                self._runs[split] = self._drawable(split)
            else:
                span = (before.row_ids[1], self.row_ids[1])
                new = Segment(self._corpus, self.name, span, 0, replace(self.narrowing, annotations=self.said))
                self._runs[split] = np.concatenate([before.runs(split), new.runs(split)])
        return self._runs[split]

    def _drawable(self, split: Split) -> Runs:
        if self.narrowing.where:
            found = split_runs(self.scan(["split", ROW_ID], "heldout" if split == "heldout" else None), split)
        else:
            # Of a pruned snapshot the held-out records alone may be there; else looking at all is as quick as a filter.
            found = split_runs(self._scan(["split", ROW_ID], "heldout" if split == "heldout" else None), split)
            if self.narrowing.rows is not None:
                found = keep_ids(found, self.narrowing.rows)
        return drop_ids(found, self.excluded())

    def up_to(self, end: int | None = None, annotations: int = 0) -> Segment:
        """The same interval of live, grown to end before row id `end`, or to all that has been committed by now.

        What was sealed meanwhile counts: it came after the pinned rows all the same. When the corpus evolves, growth ends
        before the first record of the later schema: it may hold what the columns of this one can't. Of what came, what
        version `annotations` of the annotations excludes isn't drawn; without `end` that is the newest, and `said` tells
        which. Gives itself when nothing came.
        Raises UsageError for a snapshot.
        """
        if self.name != "live":
            raise UsageError(f"{self.ref} is sealed: it doesn't grow", code="not-live")
        if self.narrowing.rows is not None:
            raise UsageError(f"a selection of {self.ref} doesn't grow", code="not-live")
        table = self._corpus.table
        if end is None:
            version = table.latest_version()
            if version == self._version:
                return self
            head = table.head()
            sealed = [record.row_ids[1] for record in list_records(self._corpus)]
            end = max([*sealed, table.last_row_id(head) + 1])
            end = self._readable_to(end)
            if end <= self.row_ids[1]:
                self._version = version
            else:
                annotations = self._corpus.annotation_log.version()
        if end <= self.row_ids[1]:
            return self
        grown = Segment(self._corpus, self.name, (self.row_ids[0], end), 0, self.narrowing)
        places = grown._places(again=True)
        low = self.row_ids[1]
        grown.rows = self.rows + sum(
            table.count(place.dataset, rows_between(max(low, first), last))
            for first, last, place in places
            if last > low
        )
        grown._before = self
        grown.said = annotations
        return grown

    def _readable_to(self, end: int) -> int:
        """`end`, or where the first record lies that was captured under a later schema than this is read as."""
        if end <= self.row_ids[1]:
            return end
        coming = Segment(self._corpus, self.name, (self.row_ids[1], end), 0)
        return min([end, *(place.first_later(low, high) for low, high, place in coming._find_places())])

    @property
    def corrections(self) -> Corrections | None:
        """What was corrected of its records when it was pinned (of what it grew by: when it grew); None for nothing."""
        if self._corrected is None:
            before = self._before
            if before is None:
                found = corrections_of(self, self.narrowing.annotations, self._corpus.versions)
            else:
                span = (before.row_ids[1], self.row_ids[1])
                later = Segment(self._corpus, self.name, span, 0, replace(self.narrowing, annotations=self.said))
                old, new = before.corrections, later.corrections
                found = new if old is None else old.and_those_of(new)
            self._corrected = (found,)
        return self._corrected[0]

    def as_sealed(self) -> Segment:
        """All records of the stretch as they were captured, whatever was said of them later."""
        return self.narrowed(Narrowing())

    def said_under(self, key: str, version: int) -> dict[str, str]:
        """Id → the newest word (JSON text) under an annotation key at a version, about any record of the corpus."""
        said = self._corpus.annotation_log.newest(key, version)
        return dict(zip(said.column("id").to_pylist(), said.column("value").to_pylist(), strict=True))

    def excluded(self) -> RowIds:
        """Stable row ids (ascending) of the segment's records that were excluded when it was pinned."""
        if self._excluded is None:
            ids = self._corpus.annotation_log.excluded(self.narrowing.annotations)
            self._excluded = self.find_ids(ids)[0]
        return self._excluded

    def find_ids(self, ids: Sequence[str]) -> tuple[RowIds, list[str]]:
        """(row ids, ascending; their ids) of those records among `ids` that the segment holds, through the id index."""
        if len(ids) > _MANY and (record := self._record()) is not None:
            denies = id_filter(self._corpus, record)  # most words are about other snapshots
            ids = ids if denies is None else list(compress(ids, denies.may_hold(ids)))
        if not len(ids):
            return np.empty(0, np.int64), []
        return row_ids_of(self._places(again=self.name == "live"), ids)

    def present(self) -> int:
        """How many rows the store holds in its interval now, whatever is narrowed. Metadata only, mostly."""
        places = self._places(again=True)
        if not all(isinstance(place, Place) for _, _, place in places):
            return self.rows  # of a pruned snapshot only the held-out records may be left: nobody can count the rest
        return sum(self._corpus.table.count(place.dataset, rows_between(low, high)) for low, high, place in places)

    def check_whole(self) -> None:
        """Raise ConflictError when records of it were erased since it was pinned, naming the receipts."""
        from treering.store.erase import has_erasures

        if self.rows and has_erasures(self._corpus):
            gone = self._gone()
            if gone is not None:
                raise gone

    def _gone(self) -> ConflictError | None:
        from treering.store.erase import erased_rows, list_found
        from treering.store.gone import Gone, erased_error, gone_since

        if self.name == "live":
            found = gone_since(self._corpus, self, None)
            return None if found is None else erased_error(self, found)
        record = self._record()
        missing = self.rows - (record.rows if record is not None else 0)
        if not missing:
            return None
        # Pinned by its name alone, as `load` does: the newest erasures that make up for what is missing.
        taken = [one for one in list_found(self._corpus) if any(hit.name == self.name for hit in one.snapshots)]
        by: list[Any] = []
        while taken and len(Gone.of(by, self.row_ids).records) < missing:
            by.insert(0, erased_rows(self._corpus, taken.pop()))
        return erased_error(self, Gone.of(by, self.row_ids))

    def certified_runs(self) -> RowIds | None:
        """Every training row of the snapshot, whatever this source is narrowed to; None for live.

        As the certificate lists them: int64 (k, 2) of (first stable row id, length), in record order.
        """
        record = self._record()
        if record is None:
            return None
        return np.array(Snapshot(self._corpus, record).certificate.train_runs, dtype=np.int64).reshape(-1, 2)

    def check_files(self) -> None:
        """Compare the snapshot's files with its certificate. Raises StoreError for one that isn't as it was certified."""
        record = self._record()
        if record is not None:
            check_files(self._corpus, record, Snapshot(self._corpus, record).certificate)

    @property
    def cache_dir(self) -> Path:
        """A local directory whose content may be dropped at any time."""
        return self._corpus.store.cache_dir

    @property
    def incarnation(self) -> str:
        """Which corpus of that name it belongs to: dropped and made again, it is another one."""
        return self._corpus.record.incarnation

    def release(self) -> None:
        """Close the data files that reading keeps open; the next read opens them again."""
        self._corpus.table.release()

    def take(self, row_ids: RowIds, columns: Sequence[str]) -> pa.Table:
        """Rows by stable row id, in the order asked. Raises StoreError when any of them is gone."""
        self.check_columns(columns)
        found: pa.Table | None = None
        try:
            found = self._take(row_ids, columns, self._places())
        except StoreError:
            self.check_pruned()
            if self.name != "live":
                self.check_whole()
                raise
            # The version of live that the handle knows was compacted and cleaned up: its rows lie elsewhere now.
        if self.name == "live" and (found is None or len(found) != len(row_ids)):
            # Or they were sealed meanwhile: the engine leaves out what a version doesn't hold, without a word.
            found = self._take(row_ids, columns, self._places(again=True))
        assert found is not None
        if len(found) != len(row_ids):
            self.check_whole()
            raise StoreError(
                f"{self.ref}: {len(row_ids) - len(found)} of {len(row_ids)} rows are gone",
                code="rows-missing",
                hint="they were erased, or the store's files were changed",
            )
        laid = self.corrections
        return found if laid is None or not laid.touches(columns) else laid.apply(found, row_ids)

    def fill(self, row_ids: RowIds, column: pa.Field, out: np.ndarray[Any, Any]) -> bool:
        """Copy one column of these rows into `out` (rows, …), where its bytes stand in the store's files as `column` has it.

        False when they don't, or when any was corrected; then, and when anything is wrong, `take` is the way.
        """
        if self.corrections is not None and self.corrections.touches([column.name]):
            return False
        places = self._places()
        try:
            return len(places) == 1 and places[0][2].fill(row_ids, column, out)
        except StoreError:
            return False

    def _take(self, row_ids: RowIds, columns: Sequence[str], places: list[tuple[int, int, Place]]) -> pa.Table:
        if len(places) == 1:
            return places[0][2].take(row_ids, columns)
        parts, positions = [], []
        for low, high, place in places:
            chosen = np.flatnonzero((row_ids >= low) & (row_ids < high))
            if len(chosen):
                parts.append(place.take(row_ids[chosen], columns))
                positions.append(chosen)
        if not parts or sum(map(len, parts)) != len(row_ids):
            kinds = [pa.field(ROW_ID, pa.uint64()) if name == ROW_ID else self.schema.field(name) for name in columns]
            return pa.schema(kinds).empty_table()
        order = np.empty(len(row_ids), np.int64)
        order[np.concatenate(positions)] = np.arange(len(row_ids))
        return pa.concat_tables(parts).take(pa.array(order))

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise NotFoundError for a column that isn't there."""
        unknown = [name for name in columns if name not in self.schema.names and name != ROW_ID]
        if unknown:
            raise NotFoundError(
                f"{self.ref} has no column {', '.join(map(repr, unknown))}",
                code="no-column",
                hint=f"columns here: {', '.join(self.schema.names)}",
            )


class Source:
    """What a ref names, pinned: one member of a mix. Immutable, picklable, cheap.

    `len()`, `to_table()` and `scan()` take in every record, held-out and excluded ones too; only a mix leaves those out.
    `selection` is the record of the stored selection that it is, `sampling` how its rows are drawn when not all alike.
    """

    def __init__(
        self,
        ref: str,
        corpus: str,
        segments: Sequence[Segment],
        schema: pa.Schema,
        split: Split | None = None,
        *,
        selection: SelectionRecord | None = None,
        sampling: Sampling | None = None,
    ):
        self.ref = ref
        self.corpus = corpus
        self.segments = tuple(segments)
        self.schema = schema
        self.split = split
        self.selection = selection
        self.sampling = sampling

    def __repr__(self) -> str:
        only = f", split={self.split!r}" if self.split else ""
        where = "".join(f", {name}={list(values)!r}" for name, values in self._narrowing.where)
        drawn = f", {self.sampling.kind} by {self.sampling.by}" if self.sampling else ""
        return f"Source({self.ref!r}, rows={len(self)}{only}{where}{drawn})"

    def __len__(self) -> int:
        if self.split is None:
            return sum(segment.count() for segment in self.segments)
        return sum(int(segment.runs(self.split)[:, 1].sum()) for segment in self.segments)

    @property
    def is_remote(self) -> bool:
        """Whether any of it lies on an object store, where large reads pay more than on a disk."""
        return any(segment._corpus.store.root is None for segment in self.segments)

    @property
    def _narrowing(self) -> Narrowing:
        """What all segments have in common; a selection's rows are each segment's own."""
        return self.segments[0].narrowing if self.segments else Narrowing()

    @property
    def is_whole(self) -> bool:
        """Whether it holds every record that its ref names; else only some columns' values, or a selection."""
        return all(segment.narrowing.is_whole for segment in self.segments)

    def _like(self, **changed: Any) -> Source:
        kept = {"split": self.split, "selection": self.selection, "sampling": self.sampling, **changed}
        segments = kept.pop("segments", self.segments)
        return Source(self.ref, self.corpus, segments, self.schema, **kept)

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Record batches in record order."""
        for segment in self.segments:
            yield from segment.scan(columns, self.split)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Every record of the source, in record order. Raises NotFoundError for an unknown column."""
        names = list(columns) if columns is not None else self.schema.names
        for segment in self.segments:
            segment.check_columns(names)
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches([batch.cast(schema) for batch in self.scan(names)], schema)

    def up_to(self, end: int | None = None, annotations: int = 0) -> Source:
        """The same source with what has been captured since: up to row id `end`, or all that is committed by now.

        Of that, what version `annotations` of the annotations excludes isn't drawn; without `end` the newest version.
        Gives itself when nothing came. Raises UsageError when its last segment is a snapshot, which doesn't grow.
        """
        grown = self.segments[-1].up_to(end, annotations)
        if grown is self.segments[-1]:
            return self
        return self._like(segments=[*self.segments[:-1], grown])

    @property
    def schema_version(self) -> int:
        """Version of the corpus's schema that the records are read as; 1 for a source without segments."""
        return max((segment.schema_version for segment in self.segments), default=1)

    def heldout(self) -> Source:
        """The held-out records of this source alone, without excluded ones: what it is evaluated on. No mix draws them."""
        return self._like(split="heldout", sampling=None)

    def annotations(self, ids: Sequence[str] | None = None) -> pa.Table:
        """What had been said of its records (of those among `ids`, when given) by the time it was pinned.

        The newest word per record and key, in order; columns as `Corpus.annotations` has them.
        """
        empty = ANNOTATION_SCHEMA.append(pa.field("seq", pa.int64())).empty_table()
        if not self.segments:
            return empty
        log, version = self.segments[0]._corpus.annotation_log, self._narrowing.annotations
        said = log.read(version, ids=ids)
        named = list(dict.fromkeys(said.column("id").to_pylist()))
        here = [name for segment in self.segments for name in segment.find_ids(named)[1]] if named else []
        return said.filter(pc.is_in(said.column("id"), pa.array(here, pa.string())))

    def where(self, **equals: Plain | Sequence[Plain]) -> Source:
        """The records whose columns have these values (one, or a list of them; None is "no value").

        `source.where(domain="billing", label=["refund", "invoice"])`. Raises NotFoundError for an unknown column,
        UsageError for values that the column can't hold.
        """
        conditions = dict(self._narrowing.where)
        for name, given in equals.items():
            values = tuple(given) if isinstance(given, list | tuple | set | frozenset) else (given,)
            self._check_values(name, values)
            if name in conditions:  # narrower and narrower: both hold
                values = tuple(value for value in conditions[name] if value in values)
            conditions[name] = tuple(sorted(set(values), key=lambda value: (str(type(value)), str(value))))
        where = tuple(sorted(conditions.items()))
        return self._like(segments=[s.narrowed(replace(s.narrowing, where=where)) for s in self.segments])

    def _check_values(self, name: str, values: Sequence[Plain]) -> None:
        if name not in self.schema.names:
            raise NotFoundError(
                f"{self.ref} has no column {name!r}",
                code="no-column",
                hint=f"columns here: {', '.join(self.schema.names)}",
            )
        kind = self.schema.field(name).type
        fits = pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        wanted = str if pa.types.is_string(kind) else bool if pa.types.is_boolean(kind) else int
        good = bool(values) and fits and all(value is None or type(value) is wanted for value in values)
        if good:
            try:
                pa.array(values, kind)
            except (pa.ArrowException, OverflowError):
                good = False
        if not good:
            raise UsageError(
                f"{name} is of type {kind}; {list(values)!r} can't be asked of it",
                code="bad-where",
                hint="name text, whole numbers, true/false or None for columns of those types",
            )

    def select(
        self,
        *,
        rows: int | None = None,
        mb: float | None = None,
        tokens: int | None = None,
        strategy: Strategy = "reservoir",
        by: str | Callable[[pa.RecordBatch], Any] | None = None,
        name: str | None = None,
        seed: int = 0,
        columns: Sequence[str] | None = None,
        floor: float | None = None,
        forgetting: Mapping[str, float] | HasForgetting | None = None,
        spread: str | None = None,
    ) -> Source:
        """Choose training rows under a budget, store the choice for good, and return it as a source.

        See `treering.store.selection.select` for the arguments. The choice is found again by `store.load("support/NAME")`.
        """
        from treering.store.selection import select

        return select(
            self,
            rows=rows,
            mb=mb,
            tokens=tokens,
            strategy=strategy,
            by=by,
            name=name,
            seed=seed,
            columns=columns,
            floor=floor,
            forgetting=forgetting,
            spread=spread,
        )

    def balanced(self, by: str) -> Source:
        """The same rows, drawn so that each value of a column (or of an annotation key) comes equally often.

        An epoch still has as many draws as the source has training rows; rows of rare values come up several times in
        it. Records without a value are a group of their own. Raises NotFoundError when `by` is neither.
        """
        return self._sampled(Sampling("balanced", by))

    def weighted(self, by: str, *, missing: float = 0.0) -> Source:
        """The same rows, each drawn in proportion to a column (or annotation key) of numbers ≥ 0.

        `missing` is the weight of records without a value. A mix refuses weights that are negative, NaN or all 0.
        Raises NotFoundError when `by` is neither, UsageError when it doesn't hold numbers.
        """
        if isinstance(missing, bool) or not isinstance(missing, int | float) or not 0 <= missing < float("inf"):
            raise UsageError(f"missing is {missing!r}; it is a number ≥ 0", code="bad-weights")
        if by in self.schema.names:
            kind = self.schema.field(by).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise UsageError(f"{by} is of type {kind}; weights are numbers", code="bad-weights")
        return self._sampled(Sampling("weighted", by, float(missing)))

    def _sampled(self, sampling: Sampling) -> Source:
        if sampling.by not in self.schema.names and sampling.by not in KEYS:
            raise NotFoundError(
                f"{self.ref} has no column {sampling.by!r}, and it isn't an annotation key either",
                code="no-column",
                hint=f"columns here: {', '.join(self.schema.names)}; annotation keys: {', '.join(KEYS)}",
            )
        if sampling.by in self.schema.names and pa.types.is_nested(self.schema.field(sampling.by).type):
            raise UsageError(
                f"{sampling.by} is of type {self.schema.field(sampling.by).type}; rows are drawn by plain values",
                code="bad-weights",
            )
        return self._like(sampling=sampling)

    def sampled_by(self) -> np.ndarray[Any, np.dtype[np.float64]] | np.ndarray[Any, np.dtype[np.int64]]:
        """What `sampling` goes by, per training row in the order of `runs`.

        "weighted": float64 weights (n,), as they stand; "balanced": int64 (n,), the number of the row's group.
        """
        assert self.sampling is not None
        by, missing = self.sampling.by, self.sampling.missing
        parts = []
        for segment in self.segments:
            ids = expand(segment.runs("train"))
            values = _column(segment, by, ids) if by in self.schema.names else _annotated(segment, by, ids)
            parts.append(values)
        values = pa.concat_arrays(_one_type(parts)) if parts else pa.array([], pa.float64())
        if self.sampling.kind == "weighted":
            try:
                numbers = values.cast(pa.float64())
            except pa.ArrowInvalid as exc:
                raise UsageError(f"{by} doesn't hold numbers: {exc}", code="bad-weights") from exc
            return np.asarray(pc.fill_null(numbers, missing))
        codes = values.dictionary_encode(null_encoding="encode").indices
        return np.asarray(codes).astype(np.int64)

    def pin(self) -> dict[str, Any]:
        """JSON-ready: all that is needed to find these very rows again, with the digests to know them by."""
        pin: dict[str, Any] = {
            "ref": self.ref,
            "corpus": self.corpus,
            **({"split": self.split} if self.split else {}),
            **({"schema_version": self.schema_version} if self.schema_version > 1 else {}),
            "segments": [
                {
                    "name": segment.name,
                    "incarnation": segment._corpus.record.incarnation,
                    "digest": segment.digest,
                    "row_ids": list(segment.row_ids),
                    "rows": segment.rows,
                }
                for segment in self.segments
            ],
        }
        if self.selection is not None:
            pin["selection"] = {"name": self.selection.name, "digest": self.selection.digest}
        if self._narrowing.where:
            pin["where"] = {name: list(values) for name, values in self._narrowing.where}
        if self._narrowing.annotations:
            excluded = np.concatenate([segment.excluded() for segment in self.segments])
            pin["annotations"] = {
                "version": self._narrowing.annotations,
                "excluded": len(excluded),
                "digest": hashlib.sha256(excluded.astype("<i8").tobytes()).hexdigest(),
            }
            corrected = [segment.corrections for segment in self.segments if segment.corrections is not None]
            if corrected:
                digests = "\n".join(one.digest for one in corrected)
                pin["annotations"] |= {
                    "corrected": sum(len(one.row_ids()) for one in corrected),
                    "corrections": hashlib.sha256(digests.encode()).hexdigest(),
                }
        return pin

    @classmethod
    def from_pin(
        cls, store: BaseStore, pin: dict[str, Any], *, erased: Literal["refuse", "skip", "fewer"] = "refuse"
    ) -> Source:
        """The source that was pinned, read as the schema version of that time: the same records, byte for byte.

        `erased` says what becomes of records that were erased since: "refuse", "skip" (they keep their positions, and
        loaders leave them out of the batches) or "fewer" (positions close up). Raises NotFoundError when it isn't in this
        store, ConflictError when the store holds something else by that name; with code "erased", naming the receipts, when
        erasures are why.
        """
        home, _, name = pin["corpus"].rpartition("#")
        corpus = (store.neighbour(home) if home else store).corpus(name)
        number = pin.get("schema_version", 1)
        if number > len(corpus.versions):
            raise ConflictError(
                f"{pin['ref']} was pinned with schema version {number} of {corpus.name}; "
                f"the newest here is {len(corpus.versions)}",
                code="content-changed",
                hint="use the store that the pin was made in, or pin anew",
            )
        corpus = corpus.at_schema(number)
        where = tuple((name, tuple(values)) for name, values in sorted((pin.get("where") or {}).items()))
        annotations = pin.get("annotations") or {"version": 0}
        narrowing = Narrowing(where, None, annotations["version"])
        segments = []
        for part in pin["segments"]:
            span = (part["row_ids"][0], part["row_ids"][1])
            segment = _as_pinned(Segment(corpus, part["name"], span, part["rows"], narrowing), part["digest"], erased)
            if erased == "fewer":
                part = {**part, "digest": segment.digest}
            for what, found in (("incarnation", corpus.record.incarnation), ("digest", segment.digest)):
                if part[what] != found:
                    raise ConflictError(
                        f"{segment.ref} isn't what was pinned: its {what} is {found}, the pin says {part[what]}",
                        code="content-changed",
                        hint="use the store that the pin was made in, or pin anew",
                    )
            segment.check_pruned(pin.get("split"))
            segments.append(segment)
        source = cls(pin["ref"], pin["corpus"], segments, corpus.versions[-1].schema, pin.get("split"))
        if pin.get("selection"):
            from treering.store.selection import find_selection, selected

            record = find_selection(corpus, pin["selection"]["name"])
            if record.digest != pin["selection"]["digest"]:
                raise ConflictError(
                    f"{record.ref} isn't the selection that was pinned: its digest is {record.digest}, the pin says "
                    f"{pin['selection']['digest']}",
                    code="content-changed",
                    hint="use the store that the pin was made in, or pin anew",
                )
            source = selected(source, corpus, record)
        if any(segment.is_pruned for segment in segments):
            return source  # of what was excluded then, the training records are gone: there is nothing to compare
        if annotations["version"] and not _says(source, annotations):
            raise ConflictError(
                f"version {annotations['version']} of the annotations excludes or corrects other records of {pin['ref']} "
                "than the pin says",
                code="content-changed",
                hint="use the store that the pin was made in, or pin anew",
            )
        return source


def segment_at(address: Mapping[str, Any]) -> Segment:
    """In a worker: the segment, or the piece of one, of an `address`."""
    corpus = reopened(address["store"]).corpus(address["corpus"]).at_schema(address["schema_version"])
    rows = address["rows"]
    narrowing = Narrowing(
        where=tuple((name, tuple(values)) for name, values in address["where"]),
        rows=None if rows is None else expand(np.array(rows, np.int64).reshape(-1, 2)),
        annotations=address["annotations"],
    )
    return Segment(corpus, address["name"], (address["row_ids"][0], address["row_ids"][1]), 0, narrowing)


def _says(source: Source, pinned: dict[str, Any]) -> bool:
    """Whether annotations say of a source what the pin says they said; of erased records only who was excluded is known."""
    said = source.pin()["annotations"]
    if any(len(getattr(segment, "erased", ())) for segment in source.segments):
        said, pinned = ({k: v for k, v in one.items() if not k.startswith("correct")} for one in (said, pinned))
    return bool(said == pinned)


def _as_pinned(segment: Segment, digest: str | None, erased: Literal["refuse", "skip", "fewer"]) -> Segment:
    """A pinned segment, with what was erased of it since. Raises ConflictError when something was, and that is refused."""
    from treering.store.erase import has_erasures

    corpus = segment._corpus
    if not has_erasures(corpus) or (segment.name != "live" and segment.digest == digest):
        return segment
    from treering.store.gone import GoneSegment, erased_error, gone_since

    gone = gone_since(corpus, segment, digest)
    if gone is None:
        return segment
    if erased == "refuse":
        raise erased_error(segment, gone)
    if erased == "fewer":
        return Segment(corpus, segment.name, segment.row_ids, segment.rows - len(gone.records), segment.narrowing)
    return GoneSegment(corpus, segment.name, segment.row_ids, segment.rows, segment.narrowing, gone, digest)


def _among(ids: RowIds, chosen: RowIds) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which `ids` (n,), in any order, are among ascending `chosen`: bool (n,)."""
    if not len(chosen):
        return np.zeros(len(ids), bool)
    at = np.minimum(np.searchsorted(chosen, ids), len(chosen) - 1)
    return np.asarray(chosen[at] == ids)


def _column(segment: Segment, name: str, ids: RowIds) -> pa.Array:
    """A column's values at these ascending row ids."""
    batches = list(segment.scan([name, ROW_ID], "train"))
    if not batches:
        return pa.array([], segment.schema.field(name).type)
    table = pa.Table.from_batches(batches)
    found = np.asarray(table.column(ROW_ID)).astype(np.int64)
    order = np.argsort(found)
    if not np.array_equal(found[order], ids):
        raise StoreError(f"{segment.ref}: the rows read aren't those of its runs", code="rows-missing")
    return table.column(name).combine_chunks().take(pa.array(order))


def _annotated(segment: Segment, key: str, ids: RowIds) -> pa.Array:
    """An annotation's values at these ascending row ids, null where nothing was said; numbers, or JSON text."""
    texts = segment.said_under(key, segment.narrowing.annotations)
    row_ids, names = segment.find_ids(list(texts))
    values = np.full(len(ids), None, dtype=object)
    here = _among(row_ids, ids)
    decode: Callable[[str], Any] = json.loads if key == "quality" else str
    values[np.searchsorted(ids, row_ids[here])] = [decode(texts[n]) for n, h in zip(names, here, strict=True) if h]
    return pa.array(values, pa.float64() if key == "quality" else pa.string(), from_pandas=False)


def _one_type(parts: list[pa.Array]) -> list[pa.Array]:
    return [part.cast(parts[0].type) for part in parts]


def resolve(store: BaseStore, text: str, split: Split | None = None) -> Source:
    """The source that a ref names, pinned now, and with it what annotations say now. Raises UsageError, NotFoundError.

    With `split="heldout"` its held-out records, for which a snapshot may be pruned if they were kept.
    """
    from treering.store.erase import drop_cached, has_erasures

    ref = Ref.parse(text)
    if ref.store is not None:
        store = store.neighbour(ref.store)
    corpus: BaseCorpus = store.corpus(ref.corpus)
    if ref.kind == "selection":
        from treering.store.selection import load_selection

        source = load_selection(corpus, ref.name)
        return source.heldout() if split == "heldout" else source
    if ref.kind in ("snapshot", "range"):
        records = {record.number: (record, pruned) for record, pruned in listed(corpus)}
        missing = [n for n in range(ref.first, ref.last + 1) if n not in records]
        if missing:
            known = ", ".join(record.name for record, pruned in records.values() if pruned is None) or "none yet"
            raise NotFoundError(
                f"there is no snapshot {ref.corpus}@v{missing[0]}", code="no-snapshot", hint=f"snapshots here: {known}"
            )
        segments = [_sealed(corpus, *records[n], split) for n in range(ref.first, ref.last + 1)]
    elif ref.kind == "live":
        segments = [_live(corpus)]
    else:
        trained = store.trained_snapshots(ref.corpus)
        # Live is pinned first: what is sealed right after it then is a snapshot below or in live, never in neither.
        live = _live(corpus)
        newer = [
            record
            for record, pruned in listed(corpus)
            if pruned is None and record.ref not in trained and record.row_ids[1] <= live.row_ids[0]
        ]
        segments = [*(_sealed(corpus, record) for record in newer), live]  # live last, empty or not: it may grow
    if has_erasures(corpus):
        drop_cached(corpus)  # once an erasure, on whichever host: others may have erased what is cached here
    # Asked last: no record that was pinned is of a later version than the store knows by now.
    versions = corpus.known_versions()
    corpus.adopt(RecordType.stored(versions[-1].record_type, versions[-1].schema), versions)
    narrowing = Narrowing(annotations=corpus.annotation_log.version())
    segments = [segment.narrowed(narrowing) for segment in segments]
    # The ref as this store says it: a path that was relative to a working directory must mean the same elsewhere.
    said = f"{store.prefix}{ref.corpus}@{ref.selector}"
    return Source(said, store.prefix + corpus.name, segments, versions[-1].schema, split)


def _sealed(
    corpus: BaseCorpus, record: SnapshotRecord, pruned: PruneRecord | None = None, split: Split | None = None
) -> Segment:
    if pruned is None:
        check_record(corpus, record)
    elif not (split == "heldout" and pruned.heldout):
        raise pruned_error(pruned)
    return Segment(corpus, record.name, record.row_ids, record.rows)


def _live(corpus: BaseCorpus) -> Segment:
    # The head first, the records second: a seal in between leaves live smaller, never rows in both.
    head = corpus.table.head()
    records = list_records(corpus)
    corpus.table.check_floor(head)
    low = records[-1].row_ids[1] if records else 0
    rows = corpus.table.count(head, created_after(records[-1].boundary) if records else None)
    high = corpus.table.last_row_id(head) + 1 if rows else low
    return Segment(corpus, "live", (low, max(low, high)), rows)
