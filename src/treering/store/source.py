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
from treering.store.certificate import check_files, split_runs
from treering.store.ref import Ref
from treering.store.snapshot import Snapshot, check_record, list_records
from treering.store.table import ROW_ID, Dataset, created_after, rows_between, text_in

if TYPE_CHECKING:
    from pathlib import Path

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
        self._opened: list[tuple[int, int, Dataset]] | None = None
        self._runs: dict[str, RowIds] = {}

    def __getstate__(self) -> tuple[BaseCorpus, str, tuple[int, int], int]:
        return (self._corpus, self.name, self.row_ids, self.rows)

    def __setstate__(self, state: tuple[BaseCorpus, str, tuple[int, int], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def corpus(self) -> str:
        """Name of the corpus."""
        return self._corpus.name

    @property
    def ref(self) -> str:
        """`support@v1` or `support@live`."""
        return f"{self.corpus}@{self.name}"

    @property
    def schema(self) -> pa.Schema:
        """All record columns."""
        return self._corpus.record_type.schema

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

    def _places(self, *, again: bool = False) -> list[tuple[int, int, Dataset]]:
        """(low, high, dataset) in row order: where the interval's rows are to be read now.

        Rows that were live when pinned may have been sealed since; then the snapshot that holds them is their place.
        """
        if self._opened is not None and not again:
            return self._opened
        low, high = self.row_ids
        table = self._corpus.table
        # The head first, the records second: a seal in between then only makes us read rows from their snapshot.
        head = table.head() if self.name == "live" else None
        places: list[tuple[int, int, Dataset]] = []
        for record in list_records(self._corpus):
            first, end = max(low, record.row_ids[0]), min(high, record.row_ids[1])
            if first < end:
                check_record(self._corpus, record)
                places.append((first, end, table.at(record.version)))
        reached = places[-1][1] if places else low
        if head is not None and reached < high:
            places.append((reached, high, head))
        self._opened = places
        return places

    def scan(self, columns: Sequence[str] | None = None, split: Split | None = None) -> Iterator[pa.RecordBatch]:
        """Batches of all rows, or of one split, in record order. `_rowid` may be asked for like a column."""
        names = list(columns) if columns is not None else self.schema.names
        self.check_columns(names)
        for low, high, dataset in self._places(again=self.name == "live"):
            where = rows_between(low, high) + (f" AND {text_in('split', [split])}" if split else "")
            yield from self._corpus.table.scan(dataset, names, where)

    def runs(self, split: Split = "train") -> RowIds:
        """Runs of rows of one split: int64 (k, 2) of (first stable row id, length), in record order."""
        if split not in self._runs:
            self._runs[split] = split_runs(self.scan(["split", ROW_ID]), split)
        return self._runs[split]

    def certified_runs(self) -> RowIds | None:
        """Every training row of the snapshot, whatever this source is narrowed to; None for live.

        As the certificate lists them: int64 (k, 2) of (first stable row id, length), in record order.
        """
        record = self._record()
        if record is None:
            return None
        return np.array(Snapshot(self._corpus, record).certificate.train_runs, dtype=np.int64).reshape(-1, 2)

    def column_fingerprint(self, name: str) -> str:
        """Text that is another one whenever `take` may deliver other bytes for this column of the same rows."""
        return f"{name}:{self.schema.field(name).type}"

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

    def _take(self, row_ids: RowIds, columns: Sequence[str], places: list[tuple[int, int, Dataset]]) -> pa.Table:
        table = self._corpus.table
        if len(places) == 1:
            return table.take(places[0][2], row_ids, columns)
        parts, positions = [], []
        for low, high, dataset in places:
            chosen = np.flatnonzero((row_ids >= low) & (row_ids < high))
            if len(chosen):
                parts.append(table.take(dataset, row_ids[chosen], columns))
                positions.append(chosen)
        if not parts or sum(map(len, parts)) != len(row_ids):
            return parts[0].slice(0, 0) if parts else pa.table({name: [] for name in columns})
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

    def heldout(self) -> Source:
        """The held-out records of this source alone: what it is evaluated on. No mix can draw from it."""
        return Source(self.ref, self.corpus, self.segments, self.schema, "heldout")

    def pin(self) -> dict[str, Any]:
        """JSON-ready: all that is needed to find these very rows again, with the digests to know them by."""
        return {
            "ref": self.ref,
            "corpus": self.corpus,
            **({"split": self.split} if self.split else {}),
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
        """The source that was pinned.

        Raises NotFoundError when it isn't in this store, ConflictError when the store holds something else by that name.
        """
        corpus = store.corpus(pin["corpus"])
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
        return cls(pin["ref"], corpus.name, segments, corpus.record_type.schema, pin.get("split"))


def resolve(store: BaseStore, text: str) -> Source:
    """The source that a ref names, pinned now. Raises UsageError, NotFoundError."""
    ref = Ref.parse(text)
    if ref.store is not None:
        raise UsageError(
            f"{text!r} names a store of its own", code="bad-ref", hint=f"open {ref.store} and load the rest"
        )
    corpus = store.corpus(ref.corpus)
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
        segments = [_sealed(corpus, record) for record in newer] + ([live] if live.rows else [])
    return Source(text, corpus.name, segments, corpus.record_type.schema)


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
