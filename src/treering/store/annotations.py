"""Annotations: later words on records, by id; append-only, in a table of their own beside the corpus.

One row is one word: who said what about which record under which key. The newest per (id, key) counts, by the order of
commits and not by clocks; older ones stay as history. Whoever reads names a version of the table, and a version is
found again by `_row_created_at_version`, never by opening it: handles on old versions fail after compaction and
cleanup. Does not check what is said (capture.annotations) or act on it (source).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import ConflictError
from treering.store.lease import Lease
from treering.store.table import RECENT_S, RECENT_VERSIONS, ROW_ID, LanceTable, created_up_to, text_in

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus
    from treering.store.place import Place

__all__ = ["ANNOTATION_SCHEMA", "KEYS", "AnnotationLog", "chunks", "row_ids_of"]

#: What can be said about a record.
KEYS = ("label", "outcome", "quality", "correction", "exclude", "intents")

ANNOTATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),  # JSON text
        pa.field("by", pa.string()),
        pa.field("note", pa.string()),
        pa.field("ts", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

#: Stable row ids are given out in the order of commits: they are the order of what was said.
_ORDER = "seq"

#: Fragments after which an append compacts: single annotations come one a commit.
_FRAGMENTS = 64

#: ids an index look-up; 4 ms a thousand.
_LOOK_UP = 1_000

#: Newest words that are kept, by key and version: sources ask for what excludes and what corrects, segment by segment.
_KEPT = len(KEYS)


def chunks(values: Sequence[str], size: int = _LOOK_UP) -> Iterator[Sequence[str]]:
    """The values in pieces that one look-up takes."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


class AnnotationLog:
    """The annotations of one corpus. The table is made by the first annotation; until then its version is 0."""

    def __init__(self, corpus: BaseCorpus) -> None:
        self._store = corpus.store
        self._name = corpus.record.table
        # A corpus's name has no dot, so no corpus's table can have this name.
        self.table = LanceTable(corpus.store.objects, f"tables/{self._name}.annotations.lance")
        self._newest: dict[tuple[str, int], pa.Table] = {}

    def version(self) -> int:
        """The version that holds everything said so far; 0 while nothing has been said."""
        head = self.table.head_if_made()
        return 0 if head is None else int(head.version)

    def append(self, rows: pa.Table) -> int:
        """Store rows of `ANNOTATION_SCHEMA`; durable when this returns. Returns the version that holds them.

        Raises StoreError, ConflictError.
        """
        self._make()
        version = self.table.append(rows.cast(ANNOTATION_SCHEMA))
        head = self.table.head()
        self.table.make_durable(head)
        if len(self.table.fragment_rows(head)) > _FRAGMENTS:
            with suppress(ConflictError):  # somebody else is at it, or was faster: as good
                self.compact(wait_s=0.0)
        return version

    def compact(self, *, wait_s: float = 30.0) -> None:
        """Join small fragments and drop old versions; pins stay good. Does nothing without a table."""
        if self.table.head_if_made() is not None:
            with self.lease(wait_s) as held:
                self.table.compact()
                held.check()
                self.table.clean_up(RECENT_S, RECENT_VERSIONS)

    def clean_up(self, older_than_s: float, keep_versions: int, *, wait_s: float = 30.0) -> int:
        """Remove what only versions need that are older than that and not the newest; returns the bytes freed.

        Pins stay good.
        """
        if self.table.head_if_made() is None:
            return 0
        with self.lease(wait_s):
            return self.table.clean_up(older_than_s, keep_versions)

    def read(
        self, version: int, *, ids: Sequence[str] | None = None, key: str | None = None, history: bool = False
    ) -> pa.Table:
        """What had been said at `version`, in order: `ANNOTATION_SCHEMA` and `seq` (int64, ascending).

        Only the newest of each (id, key) unless `history`; only about these ids, under this key, when given. Raises
        ConflictError when the table doesn't reach to `version`.
        """
        schema = ANNOTATION_SCHEMA.append(pa.field(_ORDER, pa.int64()))
        if version == 0:
            return schema.empty_table()
        head = self.table.head_if_made()
        if head is None or head.version < version:
            raise ConflictError(
                f"the annotations of {self._name} have version {head.version if head else 0}, not {version} yet",
                code="annotations-missing",
                hint="the store isn't the one that was pinned, or was restored from an older backup",
            )
        where = created_up_to(version) + (f" AND {text_in('key', [key])}" if key is not None else "")
        wheres = [where] if ids is None else [f"{where} AND {text_in('id', part)}" for part in chunks(ids)]
        batches = [
            pa.RecordBatch.from_arrays([*batch.columns[:-1], batch.column(ROW_ID).cast(pa.int64())], schema=schema)
            for one in wheres
            for batch in self.table.scan(head, ANNOTATION_SCHEMA.names, one, row_ids=True)
        ]
        table = pa.Table.from_batches(batches, schema).sort_by(_ORDER)
        if history or not len(table):
            return table
        last = table.group_by(["id", "key"]).aggregate([(_ORDER, "max")])
        return table.filter(pc.is_in(table.column(_ORDER), last.column(f"{_ORDER}_max").combine_chunks()))

    def newest(self, key: str, version: int) -> pa.Table:
        """`id` and `value` (JSON text) of the newest word under `key` at `version`."""
        found = self._newest.get((key, version))
        if found is None:
            found = self.read(version, key=key).select(["id", "value"])
            while len(self._newest) >= _KEPT:
                self._newest.pop(next(iter(self._newest)), None)
            self._newest[key, version] = found
        return found

    def excluded(self, version: int) -> list[str]:
        """Ids of the records that were excluded at `version`."""
        if version == 0:
            return []
        table = self.newest("exclude", version)
        return list(table.filter(pc.equal(table.column("value"), "true")).column("id").to_pylist())

    def lease(self, wait_s: float) -> AbstractContextManager[Lease]:
        """Of whoever compacts, cleans up or erases annotations. Raises ConflictError, StoreError."""
        return self._store.lease(f"{self._name}.annotations", wait_s=wait_s)

    def _make(self) -> None:
        if self.table.head_if_made() is not None:
            return
        with self.lease(30.0):
            if self.table.head_if_made() is None:
                self.table.create(ANNOTATION_SCHEMA)


def row_ids_of(
    places: Sequence[tuple[int, int, Place]], ids: Sequence[str]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """Row ids (ascending) and ids of those records among `ids` that lie in `places` of a corpus; by the id index."""
    rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    found: list[str] = []
    for low, high, place in places:
        for part in chunks(ids):
            for batch in place.within(["id", ROW_ID], low, high, ids=part):
                rows.append(np.asarray(batch.column(ROW_ID)).astype(np.int64))
                found += batch.column("id").to_pylist()
    row_ids = np.concatenate(rows) if rows else np.empty(0, np.int64)
    order = np.argsort(row_ids)
    return row_ids[order], [found[at] for at in order.tolist()]
