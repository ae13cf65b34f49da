"""A corpus: a named stream of records of one type, in one Lance table.

What every layer may do with a corpus. Capturing stands to the right of this layer: see `treering.front.Corpus`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from treering.engine import engine_of
from treering.errors import StoreError
from treering.schema import RecordType
from treering.schema.evolution import History
from treering.store.annotations import AnnotationLog
from treering.store.documents import CorpusRecord, PruneRecord, SeenBy
from treering.store.lease import Lease
from treering.store.memory import giving_back
from treering.store.runs import RowIds
from treering.store.schemas import newer_versions
from treering.store.snapshot import Snapshot, finish_pending, list_records, listed
from treering.store.table import RECENT_S, TARGET_ROWS_PER_FRAGMENT, LanceTable, created_after, retry_conflicts

if TYPE_CHECKING:
    from treering.engine import Engine
    from treering.store.base import BaseStore

__all__ = ["BaseCorpus", "Compaction"]


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting a corpus's live came to. JSON-ready."""

    corpus: str
    fragments_before: int
    fragments_after: int


class BaseCorpus:
    """A corpus of an open store. Cheap to make, safe to pickle; opens Lance when first needed."""

    _found: History = ()

    def __init__(self, store: BaseStore, record: CorpusRecord, record_type: RecordType, versions: History) -> None:
        self.store = store
        self.record = record
        self.adopt(record_type, versions)

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.record.name

    @property
    def record_type(self) -> RecordType:
        """What its records are, by the schema version that this handle knows."""
        return self._kind[0]

    @property
    def versions(self) -> History:
        """The schema versions up to the one that this handle knows; version n is entry n - 1."""
        return self._kind[1]

    def adopt(self, record_type: RecordType, versions: History) -> None:
        """From now on this handle knows these schema versions; `record_type` is that of the newest."""
        self._kind = (record_type, versions)  # at once: other threads use the handle

    def known_versions(self, at_least: int = 0) -> History:
        """The schema versions that the store holds now, whatever this handle was opened with.

        With `at_least` no look-up is made when the handle knows that version. Raises StoreError when it isn't there.
        """
        known = self.versions
        if not 0 < at_least <= len(known):
            # What was found is kept beside: versions never change, and the handle keeps the one it was opened with.
            known = self._found = newer_versions(self.store, self.record, max(known, self._found, key=len))
        if at_least > len(known):
            raise StoreError(
                f"version {at_least} of the schema of {self.name} is missing",
                code="document-damaged",
                hint="restore the store's files from a backup",
            )
        return known

    def at_schema(self, number: int) -> Self:
        """A handle that knows the schema up to a version: what is read through it is read as that version."""
        versions = self.known_versions(number)[:number]
        record_type = RecordType.stored(versions[-1].record_type, versions[-1].schema)
        return type(self)(self.store, self.record, record_type, versions)

    @property
    def uri(self) -> str:
        """URI of its Lance table, for `lance.dataset(uri, version="v1")`."""
        return self.store.location.under(self._table_path)

    @property
    def _table_path(self) -> str:
        return f"tables/{self.record.table}.lance"

    @cached_property
    def table(self) -> LanceTable:
        """Its Lance table."""
        return LanceTable(self.store.objects, self._table_path)

    @cached_property
    def annotation_log(self) -> AnnotationLog:
        """What was said about its records later."""
        return AnnotationLog(self)

    def __getstate__(self) -> tuple[BaseStore, CorpusRecord, tuple[RecordType, History]]:
        return (self.store, self.record, self._kind)

    def __setstate__(self, state: tuple[BaseStore, CorpusRecord, tuple[RecordType, History]]) -> None:
        self.store, self.record, self._kind = state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, record_type={self.record_type.name!r})"

    def lease(self, *, wait_s: float = 30.0) -> AbstractContextManager[Lease]:
        """The maintenance lease: sealing, compaction and cleanup, one at a time. Raises ConflictError, StoreError."""
        return self.store.lease(self.record.table, wait_s=wait_s)

    def step(self, name: str) -> None:
        """Called between the steps of a seal, an evolution or an erasure. Does nothing; crash tests stop the process here."""

    def seen_by(self, train_rows: RowIds) -> list[SeenBy]:
        """The adapters whose runs could draw any of these rows (ascending stable row ids); nothing here knows adapters."""
        return []

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first; without pruned ones."""
        return [Snapshot(self, record) for record, pruned in listed(self) if pruned is None]

    def evaluable(self) -> list[Snapshot]:
        """The snapshots whose held-out records can be read, oldest first: those of pruned ones may have been kept."""
        return [Snapshot(self, record) for record, pruned in listed(self) if pruned is None or pruned.heldout]

    def pruned(self) -> list[PruneRecord]:
        """What was pruned, oldest snapshot first."""
        return [pruned for _, pruned in listed(self) if pruned is not None]

    def live_rows(self) -> int:
        """Records in live: committed to the table and not sealed yet."""
        head = self.table.head()
        records = list_records(self)
        self.table.check_floor(head)
        return self.table.count(head, created_after(records[-1].boundary) if records else None)

    @giving_back()
    def compact(
        self,
        *,
        rows_per_fragment: int = TARGET_ROWS_PER_FRAGMENT,
        wait_s: float = 30.0,
        engine: str | Engine | None = None,
    ) -> Compaction:
        """Join small fragments of live and bring its id index up to date. Snapshots stay as they are.

        engine: who joins them, this process by default; "local" (worker processes), "ray", or an engine at hand. What is
        committed, and by whom, is the same.

        Raises ConflictError when another process holds the lease for longer than `wait_s` seconds, or other writers
        keep coming first; with an engine, StoreError when a worker dies: then nothing has changed.
        """
        with engine_of(engine, self.store.uri) as workers:
            return self._compact(rows_per_fragment, wait_s, workers)

    def _compact(self, rows_per_fragment: int, wait_s: float, engine: Engine | None) -> Compaction:
        done: list[tuple[int, int]] = []
        with self.lease(wait_s=wait_s):
            finish_pending(self)

            def attempt() -> bool:
                done.append(self.table.compact(rows_per_fragment, engine=engine))
                return True

            retry_conflicts(attempt, what=f"compacting {self.name}", limit=50)
        self.annotation_log.compact(wait_s=wait_s)
        return Compaction(self.name, *done[-1])

    def clean_up(self, *, older_than_s: float = RECENT_S, keep_versions: int = 1, wait_s: float = 30.0) -> int:
        """Remove files that only unsealed table versions need that are older than that and not among the newest ones.

        Returns the bytes freed. Snapshots are never touched. What reads live through a source finds its rows again by
        their ids; a plain Lance handle on an older version of live doesn't.
        """
        with self.lease(wait_s=wait_s) as held:
            finish_pending(self)
            held.check()
            freed = self.table.clean_up(older_than_s, keep_versions)
        return freed + self.annotation_log.clean_up(older_than_s, keep_versions, wait_s=wait_s)
