"""A place: one version of a corpus's table, read as one version of its schema.

The only way to a corpus's records: tables hold them as they were captured, callers see them as their schema version says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from treering.errors import ConflictError
from treering.schema.evolution import SCHEMA_VERSION, Alignment, History
from treering.store.documents import SnapshotRecord
from treering.store.table import ROW_ID, Dataset, captured_after, rows_between, text_in

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = ["Place", "head_of", "sealed_in"]


class Place:
    """Records of one table version, delivered as the newest of `versions`. `dataset` is the open Lance dataset."""

    def __init__(
        self, corpus: BaseCorpus, dataset: Dataset, versions: History, *, where: str, sealed: int | None = None
    ) -> None:
        self.dataset = dataset
        self._corpus = corpus
        self._versions = versions
        self._alignment = Alignment.of_stored(versions, dataset.schema, where=where, sealed=sealed)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are delivered."""
        return list(self._versions[-1].schema.names)

    @property
    def schema(self) -> pa.Schema:
        """Of what is delivered, when every column is."""
        return self._versions[-1].schema

    def scan(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Batches of the rows that match, in table order. `_rowid` and `_schema_version` may be asked for like columns.

        `where` is a filter over common columns: those are stored under their names in every version.
        """
        for batch in self._corpus.table.scan(self.dataset, self._reads(columns), where):
            yield self._alignment.apply(batch, columns)

    def within(
        self,
        columns: Sequence[str],
        low: int,
        high: int,
        *,
        split: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the rows with ids in [low, high); of one split, and of some records (a thousand at most), if asked."""
        where = rows_between(low, high)
        where += f" AND {text_in('split', [split])}" if split else ""
        where += f" AND {text_in('id', ids)}" if ids is not None else ""
        return self.scan(columns, where)

    def take(self, row_ids: np.ndarray[Any, np.dtype[np.int64]], columns: Sequence[str]) -> pa.Table:
        """Rows by stable row id, in the order asked. Ids the version doesn't hold are left out, silently."""
        found = self._corpus.table.take(self.dataset, row_ids, self._reads(columns))
        return self._alignment.apply(found, columns)

    def fill(self, row_ids: np.ndarray[Any, np.dtype[np.int64]], column: pa.Field, out: np.ndarray[Any, Any]) -> bool:
        """Copy one column of these rows into `out`, where it stands in the files as `column` has it; else False."""
        stored = self._alignment.stored_as(column.name)
        if stored is None or self.dataset.schema.field(stored).type != column.type:
            return False
        return self._corpus.table.fill(self.dataset, row_ids, column.with_name(stored), out)

    def _reads(self, columns: Sequence[str]) -> list[str]:
        return self._alignment.reads(columns) or ["id"]  # what has no stored column yet has at least a length

    def stored_as(self, column: str) -> str | None:
        """The stored column that holds exactly what is delivered as `column`; None when there is more to it."""
        return self._alignment.stored_as(column)

    def record_versions(self, low: int, high: int) -> list[int]:
        """The schema versions that the records with row ids in [low, high) were captured under, ascending."""
        if SCHEMA_VERSION not in self.dataset.schema.names:
            return [1]
        batches = self.scan([SCHEMA_VERSION], rows_between(low, high))
        return sorted({version for batch in batches for version in batch.column(0).unique().to_pylist()})

    def check_readable(self, low: int, high: int) -> None:
        """Raise ConflictError when records with row ids in [low, high) are of a later schema version than this reads."""
        if self.first_later(low, high) < high:
            raise ConflictError(
                f"records of {self._corpus.name} were captured under a later schema than version {self._versions[-1].number}",
                code="schema-later",
                hint="load the ref anew: it is read as the newest version then",
            )

    def first_later(self, low: int, high: int) -> int:
        """Row id of the first record in [low, high) that is of a later schema version than this reads; else `high`."""
        known = {column.stored for version in self._versions for column in version.columns} | {SCHEMA_VERSION}
        if set(self.dataset.schema.names) <= known:
            return high  # whatever came later only renamed: nothing is stored elsewhere
        later = f"{rows_between(low, high)} AND {captured_after(self._versions[-1].number)}"
        batches = self._corpus.table.scan(self.dataset, [ROW_ID], later)
        return min([high, *(int(np.asarray(batch.column(0)).min()) for batch in batches if len(batch))])


def head_of(corpus: BaseCorpus, versions: History | None = None) -> Place:
    """The newest version of the table: live, and what sealing has not taken out yet."""
    return Place(corpus, corpus.table.head(), versions or corpus.versions, where=f"{corpus.name}@live")


def sealed_in(corpus: BaseCorpus, record: SnapshotRecord, versions: History | None = None) -> Place:
    """The table as a snapshot sealed it."""
    chosen = versions or corpus.versions
    sealed = min(record.schema_version, len(chosen))
    return Place(corpus, corpus.table.at(record.version, record.branch), chosen, where=record.ref, sealed=sealed)
