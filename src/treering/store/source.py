"""Sources: what a ref names, pinned to rows that can be read again however the store moves on.

A source is a row of segments, one per snapshot and one for live. Rows are named by stable row id: a handle on an old
version of live fails after compaction and cleanup, a row id doesn't. Does not choose or shuffle rows (mixing).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from treering.errors import ConflictError, NotFoundError, StoreError, UsageError
from treering.schema import Alignment, RecordType
from treering.schema.evolution import column_rule
from treering.store.certificate import split_runs
from treering.store.place import Place, head_of, sealed_in
from treering.store.ref import Ref
from treering.store.snapshot import Snapshot, check_record, list_records
from treering.store.table import ROW_ID, created_after, rows_between, text_in

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.documents import SnapshotRecord

__all__ = ["Segment", "Source", "resolve"]

RowIds = np.ndarray[Any, np.dtype[np.int64]]
Split = Literal["train", "heldout"]


class Segment:
    """The rows of one snapshot, or of live as it stood when pinned. Immutable, picklable; opens Lance lazily.

    `name` is `v1` or `live`; `row_ids` the half-open interval of stable row ids; `rows` how many rows lie in it.
    """

    def __init__(self, corpus: BaseCorpus, name: str, row_ids: tuple[int, int], rows: int) -> None:
        self._corpus = corpus
        self.name = name
        self.row_ids = row_ids
        self.rows = rows
        self._opened: list[tuple[int, int, Place]] | None = None
        self._runs: dict[str, RowIds] = {}
        self._before: Segment | None = None  # the shorter one that this one grew from
        self._version = -1  # of the table when it was last seen to hold nothing new

    def __getstate__(self) -> tuple[BaseCorpus, str, tuple[int, int], int]:
        return (self._corpus, self.name, self.row_ids, self.rows)

    def __setstate__(self, state: tuple[BaseCorpus, str, tuple[int, int], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

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
        for record in list_records(self._corpus):
            first, end = max(low, record.row_ids[0]), min(high, record.row_ids[1])
            if first < end:
                check_record(self._corpus, record)
                places.append((first, end, sealed_in(self._corpus, record)))
        reached = places[-1][1] if places else low
        if head is not None and reached < high:
            places.append((reached, high, head))
        return places

    def scan(self, columns: Sequence[str] | None = None, split: Split | None = None) -> Iterator[pa.RecordBatch]:
        """Batches of all rows, or of one split, in record order. `_rowid` may be asked for like a column."""
        names = list(columns) if columns is not None else self.schema.names
        self.check_columns(names)
        for low, high, place in self._places(again=self.name == "live"):
            where = rows_between(low, high) + (f" AND {text_in('split', [split])}" if split else "")
            yield from place.scan(names, where)

    def runs(self, split: Split = "train") -> RowIds:
        """Runs of rows of one split: int64 (k, 2) of (first stable row id, length), in record order."""
        if split not in self._runs:
            before = self._before
            new = self if before is None else Segment(self._corpus, self.name, (before.row_ids[1], self.row_ids[1]), 0)
            runs = split_runs(new.scan(["split", ROW_ID]), split)
            self._runs[split] = runs if before is None else np.concatenate([before.runs(split), runs])
        return self._runs[split]

    def up_to(self, end: int | None = None) -> Segment:
        """The same interval of live, grown to end before row id `end`, or to all that has been committed by now.

        What was sealed meanwhile counts: it came after the pinned rows all the same. When the corpus evolves, growth ends
        before the first record of the later schema: it may hold what the columns of this one can't. Gives itself when
        nothing came.
        Raises UsageError for a snapshot.
        """
        if self.name != "live":
            raise UsageError(f"{self.ref} is sealed: it doesn't grow", code="not-live")
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
        if end <= self.row_ids[1]:
            return self
        grown = Segment(self._corpus, self.name, (self.row_ids[0], end), 0)
        places = grown._places(again=True)
        low = self.row_ids[1]
        grown.rows = self.rows + sum(
            table.count(place.dataset, rows_between(max(low, first), last))
            for first, last, place in places
            if last > low
        )
        grown._before = self
        return grown

    def _readable_to(self, end: int) -> int:
        """`end`, or where the first record lies that was captured under a later schema than this is read as."""
        if end <= self.row_ids[1]:
            return end
        coming = Segment(self._corpus, self.name, (self.row_ids[1], end), 0)
        return min([end, *(place.first_later(low, high) for low, high, place in coming._find_places())])

    def take(self, row_ids: RowIds, columns: Sequence[str]) -> pa.Table:
        """Rows by stable row id, in the order asked. Raises StoreError when any of them is gone."""
        self.check_columns(columns)
        found: pa.Table | None = None
        try:
            found = self._take(row_ids, columns, self._places())
        except StoreError:
            if self.name != "live":
                raise
            # The version of live that the handle knows was compacted and cleaned up: its rows lie elsewhere now.
        if self.name == "live" and (found is None or len(found) != len(row_ids)):
            # Or they were sealed meanwhile: the engine leaves out what a version doesn't hold, without a word.
            found = self._take(row_ids, columns, self._places(again=True))
        assert found is not None
        if len(found) != len(row_ids):
            raise StoreError(
                f"{self.ref}: {len(row_ids) - len(found)} of {len(row_ids)} rows are gone",
                code="rows-missing",
                hint="they were erased, or the store's files were changed",
            )
        return found

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

    `len()`, `to_table()` and `scan()` take in every record, held-out ones too; only a mix leaves those out.
    """

    def __init__(
        self, ref: str, corpus: str, segments: Sequence[Segment], schema: pa.Schema, split: Split | None = None
    ):
        self.ref = ref
        self.corpus = corpus
        self.segments = tuple(segments)
        self.schema = schema
        self.split = split

    def __repr__(self) -> str:
        only = f", split={self.split!r}" if self.split else ""
        return f"Source({self.ref!r}, rows={len(self)}{only})"

    def __len__(self) -> int:
        if self.split is None:
            return sum(segment.rows for segment in self.segments)
        return sum(int(segment.runs(self.split)[:, 1].sum()) for segment in self.segments)

    @property
    def is_remote(self) -> bool:
        """Whether any of it lies on an object store, where large reads pay more than on a disk."""
        return any(segment._corpus.store.root is None for segment in self.segments)

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

    def up_to(self, end: int | None = None) -> Source:
        """The same source with what has been captured since: up to row id `end`, or all that is committed by now.

        Gives itself when nothing came. Raises UsageError when its last segment is a snapshot, which doesn't grow.
        """
        grown = self.segments[-1].up_to(end)
        if grown is self.segments[-1]:
            return self
        return Source(self.ref, self.corpus, [*self.segments[:-1], grown], self.schema, self.split)

    @property
    def schema_version(self) -> int:
        """Version of the corpus's schema that the records are read as; 1 for a source without segments."""
        return max((segment.schema_version for segment in self.segments), default=1)

    def heldout(self) -> Source:
        """The held-out records of this source alone: what it is evaluated on. No mix can draw from it."""
        return Source(self.ref, self.corpus, self.segments, self.schema, "heldout")

    def pin(self) -> dict[str, Any]:
        """JSON-ready: all that is needed to find these very rows again, with the digests to know them by."""
        return {
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

    @classmethod
    def from_pin(cls, store: BaseStore, pin: dict[str, Any]) -> Source:
        """The source that was pinned, read as the schema version of that time: the same records, byte for byte.

        Raises NotFoundError when it isn't in this store, ConflictError when the store holds something else by that name.
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
        segments = []
        for part in pin["segments"]:
            segment = Segment(corpus, part["name"], (part["row_ids"][0], part["row_ids"][1]), part["rows"])
            for what, found in (("incarnation", corpus.record.incarnation), ("digest", segment.digest)):
                if part[what] != found:
                    raise ConflictError(
                        f"{segment.ref} isn't what was pinned: its {what} is {found}, the pin says {part[what]}",
                        code="content-changed",
                        hint="use the store that the pin was made in, or pin anew",
                    )
            segments.append(segment)
        return cls(pin["ref"], pin["corpus"], segments, corpus.versions[-1].schema, pin.get("split"))


def resolve(store: BaseStore, text: str) -> Source:
    """The source that a ref names, pinned now. Raises UsageError, NotFoundError."""
    ref = Ref.parse(text)
    if ref.store is not None:
        store = store.neighbour(ref.store)
    corpus: BaseCorpus = store.corpus(ref.corpus)
    records = {record.number: record for record in list_records(corpus)} if ref.kind != "live" else {}
    if ref.kind in ("snapshot", "range"):
        missing = [n for n in range(ref.first, ref.last + 1) if n not in records]
        if missing:
            known = ", ".join(record.name for record in records.values()) or "none yet"
            raise NotFoundError(
                f"there is no snapshot {ref.corpus}@v{missing[0]}", code="no-snapshot", hint=f"snapshots here: {known}"
            )
        segments = [_sealed(corpus, records[n]) for n in range(ref.first, ref.last + 1)]
    elif ref.kind == "live":
        segments = [_live(corpus)]
    else:
        trained = store.trained_snapshots(ref.corpus)
        # Live is pinned first: what is sealed right after it then is a snapshot below or in live, never in neither.
        live = _live(corpus)
        newer = [r for r in list_records(corpus) if r.ref not in trained and r.row_ids[1] <= live.row_ids[0]]
        segments = [*(_sealed(corpus, record) for record in newer), live]  # live last, empty or not: it may grow
    # Asked last: no record that was pinned is of a later version than the store knows by now.
    versions = corpus.known_versions()
    corpus.adopt(RecordType.stored(versions[-1].record_type, versions[-1].schema), versions)
    # The ref as this store says it: a path that was relative to a working directory must mean the same elsewhere.
    said = f"{store.prefix}{ref.corpus}@{ref.selector}"
    return Source(said, store.prefix + corpus.name, segments, versions[-1].schema)


def _sealed(corpus: BaseCorpus, record: SnapshotRecord) -> Segment:
    check_record(corpus, record)
    return Segment(corpus, record.name, record.row_ids, record.rows)


def _live(corpus: BaseCorpus) -> Segment:
    # The head first, the records second: a seal in between leaves live smaller, never rows in both.
    head = corpus.table.head()
    records = list_records(corpus)
    low = records[-1].row_ids[1] if records else 0
    rows = corpus.table.count(head, created_after(records[-1].version) if records else None)
    high = corpus.table.last_row_id(head) + 1 if rows else low
    return Segment(corpus, "live", (low, max(low, high)), rows)
