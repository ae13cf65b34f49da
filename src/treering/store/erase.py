"""Erase records for good: from live, snapshots, annotations, quarantine, documents, indices, old versions and leftover files.

An erasure is a row of small documents under `erasures/TABLE/`, numbered from 1, each created if absent:

1. `N.json` decides it, by keyed hashes alone. From then on nobody who looks commits such a record (denylist), and whoever
   maintains the corpus next completes what was begun.
2. `N.found.json` names the rows: found after 1, so that nobody can have added any unnoticed; by row id, never by value.
3. Each snapshot that holds some is rewritten on a branch of its own and committed as its next edition; its tag follows.
4. Live, annotations, quarantine and selections lose theirs; then everything that only old versions needed is removed.
5. `N.receipt.json` says what was done.

Each step can be repeated by anybody. Needs the maintenance lease; who captures goes on meanwhile. Spools and caches of this
and other hosts are scrubbed by whoever opens them (capture.scrub); nothing here knows them.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from treering.errors import AlreadyExistsError, ConflictError, NotFoundError, StoreError, UsageError
from treering.store.annotations import chunks
from treering.store.certificate import find_certificate
from treering.store.denylist import Denylist, Hashes, KeyedHash, among, keep, keyed_hash, load_stored
from treering.store.documents import (
    AffectedSnapshot,
    ErasedFound,
    EraseReceipt,
    ErasureRecord,
    RewrittenSnapshot,
    SeenBy,
    SnapshotRecord,
    StoredRows,
    add_checksum,
    check_document,
)
from treering.store.heldout import clear_heldout, find_heldout, folder_of, keep_heldout_without
from treering.store.memory import giving_back
from treering.store.place import Place, head_of, sealed_in
from treering.store.runs import RowIds
from treering.store.snapshot import Snapshot, finish_pending, list_records, listed, settle_tag
from treering.store.table import CREATED_AT, ROW_ID, LanceTable, retry_conflicts, rows_among, rows_between, text_in

if TYPE_CHECKING:
    from pathlib import Path

    from treering.store.corpus import BaseCorpus
    from treering.store.lease import Lease

__all__ = [
    "ErasePreview",
    "ErasedRows",
    "Scrubbed",
    "Wanted",
    "drop_cached",
    "erase",
    "erased_rows",
    "erasures",
    "finish_erasures",
    "forget_object",
    "has_erasures",
    "list_found",
    "note",
    "noted",
    "preview",
]

#: What a row of `N.rows` is.
_TRAIN, _HELDOUT, _ANNOTATION, _EXCLUSION = range(4)
_ROWS = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("version", pa.int64()),  # of the annotations, of what excluded the record or let it back in
        pa.field("excluded", pa.bool_()),
    ]
)

#: Stands where a stored description named an erased value.
ERASED = "(erased)"

#: How long writers may keep us from being alone, and how old a file that no version names must be on an object store,
#: where nobody can be held up, before it counts as left behind: far beyond any commit.
_HELD_UP_S = 30.0
_LEFT_BEHIND_S = 3600.0

_LIMITS = (
    "backups and copies of the store, and versions that a bucket keeps of its own",
    "weights, cards, locks and scores of adapters that had seen the records, which are named here, and evaluations: they may "
    "name labels and domains",
    "what processes that read the records before still hold in memory or have open",
    "spools and caches of other hosts, until the corpus is next opened there",
)


@dataclass(frozen=True)
class Wanted:
    """What to erase, in the clear: in the memory of the process that was asked, and nowhere else."""

    ids: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    reason: str = ""
    block_subjects: bool = True


@dataclass(frozen=True)
class ErasePreview:
    """What an erasure would find; `records` are by place (`live`, `v1`, …)."""

    corpus: str
    records: dict[str, int]
    annotations: int
    quarantined: int
    snapshots: list[str]
    seen_by: list[SeenBy]

    @property
    def total(self) -> int:
        """Records, over all places."""
        return sum(self.records.values())


@dataclass(frozen=True)
class Scrubbed:
    """What became of this host's spools and caches."""

    spooled: int = 0  # records dropped before they reached the table
    cached: int = 0  # files dropped
    not_covered: tuple[str, ...] = ()


Scrub = Callable[[], Scrubbed]


@dataclass
class _Done:
    """What the steps of one erasure came to."""

    quarantined: int = 0
    selections: int = 0
    freed: int = 0
    heldout: dict[str, int] = field(default_factory=dict)  # by snapshot, of what was kept of pruned ones
    not_covered: list[str] = field(default_factory=list)


# --- asking --------------------------------------------------------------------------------------------------------


@giving_back()
def erase(corpus: BaseCorpus, wanted: Wanted, scrub: Scrub | None = None) -> EraseReceipt:
    """Erase records by id or subject and return the receipt; see `Corpus.erase`.

    `scrub` is called once nothing is left in the table. Raises UsageError, ConflictError, StoreError.
    """
    _check(wanted)
    with corpus.lease() as held:
        finish_pending(corpus)
        record = _begin(corpus, wanted, held)
        found = _find(corpus, record, wanted.ids if not wanted.subjects else None)
        done = _complete(corpus, record, found, held)
    # Without the lease: what the spools still hold may have to be erased from the table in its turn.
    scrubbed = Scrubbed() if scrub is None else scrub()
    return _receipt(corpus, record, found, done, scrubbed)


def erasures(corpus: BaseCorpus) -> list[EraseReceipt]:
    """The receipts of all erasures that were carried out, oldest first."""
    paths = [p for p in corpus.store.objects.list(_folder(corpus)) if p.endswith(".receipt.json")]
    found = [corpus.store.read_document(EraseReceipt, path) for path in paths]
    return sorted(found, key=lambda receipt: receipt.number)


def has_erasures(corpus: BaseCorpus) -> bool:
    """Whether anything was ever erased from the corpus: one listing."""
    return bool(corpus.store.objects.list(_folder(corpus)))


def finish_erasures(corpus: BaseCorpus) -> None:
    """Complete erasures that were begun, oldest first. The caller holds the lease."""
    for record in _pending(corpus):
        found = _find(corpus, record, None)
        done = _complete(corpus, record, found, None)
        _receipt(corpus, record, found, done, Scrubbed(cached=drop_cached(corpus)))


def _check(wanted: Wanted) -> None:
    for values in (wanted.ids, wanted.subjects):
        if not all(isinstance(value, str) and value for value in values):
            raise UsageError("ids and subjects to erase are texts, none of them empty", code="bad-erase")
    if not wanted.ids and not wanted.subjects:
        raise UsageError(
            "nothing was named to erase", code="bad-erase", hint='erase(where={"subject": "u42"}) or erase(ids=[…])'
        )
    if not isinstance(wanted.reason, str):
        raise UsageError("a reason is text", code="bad-erase")
    if any(value in wanted.reason for value in (*wanted.subjects, *wanted.ids)):
        # Not the reason itself: errors end up in logs.
        raise UsageError(
            "the reason names what is to be erased, and reasons are kept",
            code="personal-reason",
            hint="say why, or the number of the request, and leave the person out",
        )


def _folder(corpus: BaseCorpus) -> str:
    return f"erasures/{corpus.record.table}"


def _records(corpus: BaseCorpus) -> list[ErasureRecord]:
    """All erasures that were decided, by number."""
    paths = corpus.store.objects.list(_folder(corpus))
    numbered = [path for path in paths if path.rpartition("/")[2].removesuffix(".json").isdigit()]
    found = [corpus.store.read_document(ErasureRecord, path) for path in numbered if path.endswith(".json")]
    return sorted(found, key=lambda record: record.number)


def _pending(corpus: BaseCorpus) -> list[ErasureRecord]:
    paths = set(corpus.store.objects.list(_folder(corpus)))
    if not paths:
        return []
    return [record for record in _records(corpus) if record.path("receipt.json") not in paths]


def _begin(corpus: BaseCorpus, wanted: Wanted, held: Lease) -> ErasureRecord:
    store = corpus.store
    hash_of = keyed_hash(store, make=True)
    assert hash_of is not None
    subjects = sorted(hash_of.one(subject).hex() for subject in set(wanted.subjects))
    known = _records(corpus)
    number = known[-1].number + 1 if known else 1
    asked = None
    if wanted.ids:
        asked = _keep_hashes(corpus, number, Hashes(hash_of.many(wanted.ids)))
    while True:
        record = ErasureRecord(
            corpus=corpus.name,
            incarnation=corpus.record.incarnation,
            number=number,
            subjects=subjects,
            ids=asked,
            block_subjects=wanted.block_subjects and bool(subjects),
            reason=wanted.reason.encode("utf-8", "backslashreplace").decode(),
            requested_at=datetime.now(UTC),
        )
        corpus.step("before-erasure")
        held.check()
        try:
            store.objects.create(record.path(), record.to_json())
        except AlreadyExistsError:
            number += 1
            continue
        corpus.step("after-erasure")
        return record


def _keep_hashes(corpus: BaseCorpus, number: int, hashes: Hashes) -> StoredRows:
    return keep(corpus.store, f"{_folder(corpus)}/{number}.ids", hashes.to_bytes(), len(hashes))


# --- finding -------------------------------------------------------------------------------------------------------


class _Matching:
    """Which records an erasure means: by keyed hashes, whoever completes it."""

    def __init__(self, hash_of: KeyedHash, subjects: Hashes, asked: Hashes) -> None:
        self.hash_of = hash_of
        self.subjects = subjects
        self.asked = asked

    @classmethod
    def of(cls, corpus: BaseCorpus, record: ErasureRecord) -> _Matching:
        """What a decided erasure means."""
        hash_of = keyed_hash(corpus.store)
        if hash_of is None:
            raise StoreError(
                "the key of the erasures is missing", code="document-missing", hint="restore it from a backup"
            )
        asked = Hashes(load_stored(corpus.store, record.ids)) if record.ids is not None else Hashes()
        return cls(hash_of, Hashes(bytes.fromhex("".join(record.subjects))), asked)

    @classmethod
    def for_now(cls, wanted: Wanted) -> _Matching:
        """What one would mean, under a key that nobody keeps."""
        hash_of = KeyedHash(secrets.token_bytes(32))
        return cls(hash_of, Hashes(hash_of.many(wanted.subjects)), Hashes(hash_of.many(wanted.ids)))

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The records of the batch that are meant."""
        hit = np.zeros(len(batch), bool)
        for denied, name in ((self.subjects, "subject"), (self.asked, "id")):
            if len(denied) and len(batch):
                hit |= among(self.hash_of, denied, batch.column(name))
        return batch.filter(pa.array(hit))


@dataclass
class _Rows:
    """Rows found so far."""

    row_ids: list[RowIds] = field(default_factory=list)
    kinds: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch) -> int:
        train = np.asarray([value == "train" for value in batch.column("split").to_pylist()], bool)
        self.row_ids.append(np.asarray(batch.column(ROW_ID)).astype(np.int64))
        self.kinds.append(np.where(train, _TRAIN, _HELDOUT).astype(np.int8))
        self.ids += batch.column("id").to_pylist()
        return len(batch)


@dataclass
class _Search:
    """What there is to erase, as it stands."""

    row_ids: RowIds
    kinds: Any
    ids: list[str]
    live: int
    snapshots: list[tuple[SnapshotRecord, int]]

    @property
    def train(self) -> RowIds:
        """Row ids of training records, ascending."""
        return np.sort(self.row_ids[self.kinds == _TRAIN])


def _search(corpus: BaseCorpus, matching: _Matching, ids: Sequence[str] | None) -> _Search:
    """Look for the records. With `ids` in the clear the index finds them; else everything is looked at."""
    rows = _Rows()
    versions = corpus.known_versions()
    head = head_of(corpus, versions)  # first: what is sealed right after it is in a snapshot as well
    snapshots = []
    for sealed in _kept_records(corpus):
        place = sealed_in(corpus, sealed, versions)
        snapshots.append((sealed, sum(rows.add(batch) for batch in _meant(place, matching, ids))))
    live = sum(rows.add(batch) for batch in _meant(head, matching, ids))
    return _Search(
        np.concatenate([np.empty(0, np.int64), *rows.row_ids]),
        np.concatenate([np.empty(0, np.int8), *rows.kinds]),
        rows.ids,
        live,
        snapshots,
    )


def _kept_records(corpus: BaseCorpus) -> list[SnapshotRecord]:
    """Snapshots that hold their records; of a pruned one only its name is left, and perhaps its held-out records."""
    return [record for record, pruned in listed(corpus) if pruned is None]


def _find(corpus: BaseCorpus, record: ErasureRecord, ids: Sequence[str] | None) -> ErasedFound:
    """Find the rows, once."""
    path = record.path("found.json")
    with suppress(NotFoundError):
        return corpus.store.read_document(ErasedFound, path)
    matching = _Matching.of(corpus, record)
    search = _search(corpus, matching, ids)
    affected = [
        AffectedSnapshot(name=sealed.name, edition=sealed.edition, digest=Snapshot(corpus, sealed).digest, records=hits)
        for sealed, hits in search.snapshots
        if hits or _index_names(corpus.table, corpus.table.at(sealed.version, sealed.branch), search.row_ids)
    ]
    hashes = Hashes(matching.hash_of.many(search.ids))
    said = _said(corpus, hashes | matching.asked, matching.hash_of, search)
    nothing = [pa.nulls(len(search.row_ids), _ROWS.field(name).type) for name in ("version", "excluded")]
    records = pa.Table.from_arrays([pa.array(search.row_ids), pa.array(search.kinds), *nothing], schema=_ROWS)
    table = pa.concat_tables([records, said]).sort_by([("kind", "ascending"), ("row_id", "ascending")])
    corpus.step("before-found")
    found = ErasedFound(
        corpus=corpus.name,
        incarnation=corpus.record.incarnation,
        number=record.number,
        rows=keep(corpus.store, f"{_folder(corpus)}/{record.number}.rows", _ipc(table), len(records)),
        ids=_keep_hashes(corpus, record.number, hashes),
        live=search.live,
        snapshots=affected,
        annotations=_words(said),
        seen_by=corpus.seen_by(search.train),
        found_at=datetime.now(UTC),
    )
    try:
        corpus.store.objects.create(path, found.to_json())
    except AlreadyExistsError:  # somebody else completes it, too; the first one's counts
        return corpus.store.read_document(ErasedFound, path)
    corpus.step("after-found")
    return found


def preview(corpus: BaseCorpus, wanted: Wanted) -> ErasePreview:
    """What `erase` would find. Stores nothing. Raises UsageError."""
    _check(wanted)
    matching = _Matching.for_now(wanted)
    search = _search(corpus, matching, wanted.ids if not wanted.subjects else None)
    ids = Hashes(matching.hash_of.many(search.ids)) | matching.asked
    said = _said(corpus, ids, matching.hash_of, search)
    meant = Denylist(matching.hash_of, ids, matching.subjects, frozenset())
    by_place = {"live": search.live, **{sealed.name: hits for sealed, hits in search.snapshots}}
    return ErasePreview(
        corpus=corpus.name,
        records={place: count for place, count in by_place.items() if count},
        annotations=_words(said),
        quarantined=sum(len(entries) - len(kept) for _, entries, kept in _quarantine_without(corpus, meant)),
        snapshots=[sealed.ref for sealed, hits in search.snapshots if hits],
        seen_by=corpus.seen_by(search.train),
    )


def _words(said: pa.Table) -> int:
    return sum(kind == _ANNOTATION for kind in said.column("kind").to_pylist())


def _meant(place: Place, matching: _Matching, ids: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    columns = ["id", "subject", "split", ROW_ID]
    for where in [None] if ids is None else [text_in("id", part) for part in chunks(sorted(set(ids)))]:
        for batch in place.scan(columns, where):
            found = matching.rows(batch)
            if len(found):
                yield found


def _index_names(table: LanceTable, dataset: Any, row_ids: RowIds) -> bool:
    """Whether the id index of a version still holds any of these rows: those of earlier snapshots may be in it."""
    if not len(row_ids):
        return False
    return any(np.isin(held, row_ids).any() for held in table.indexed_row_ids(dataset))


def _said(corpus: BaseCorpus, ids: Hashes, hash_of: KeyedHash, search: _Search) -> pa.Table:
    """The annotations about these records, and when which of them was excluded."""
    table = corpus.annotation_log.table
    head = table.head_if_made()
    found: list[tuple[int, int, int | None, bool | None]] = []
    if head is not None and len(ids):
        at = dict(zip(search.ids, search.row_ids.tolist(), strict=True))
        for batch in table.scan(head, ["id", "key", "value", CREATED_AT], row_ids=True):
            hit = batch.filter(pa.array(among(hash_of, ids, batch.column("id"))))
            for row in hit.to_pylist():
                found.append((row[ROW_ID], _ANNOTATION, None, None))
                if row["key"] == "exclude" and row["id"] in at:
                    found.append((at[row["id"]], _EXCLUSION, row[CREATED_AT], row["value"] == "true"))
    columns = [list(column) for column in zip(*found, strict=True)] if found else [[], [], [], []]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, _ROWS, strict=True)], schema=_ROWS)


def _ipc(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


@dataclass(frozen=True, eq=False)
class ErasedRows:
    """The rows of one erasure, ascending stable row ids."""

    number: int
    train: RowIds
    heldout: RowIds
    annotations: RowIds
    exclusions: tuple[tuple[int, int, bool], ...]  # (row id, version of the annotations, excluded), as they were said

    @property
    def records(self) -> RowIds:
        """All records."""
        return np.sort(np.concatenate([self.train, self.heldout]))

    def excluded_at(self, version: int) -> RowIds:
        """Which of them were excluded at a version of the annotations."""
        last = {row: excluded for row, said, excluded in sorted(self.exclusions, key=lambda e: e[1]) if said <= version}
        return np.array(sorted(row for row, excluded in last.items() if excluded), np.int64)


def erased_rows(corpus: BaseCorpus, found: ErasedFound) -> ErasedRows:
    """The rows that an erasure found."""
    table = pa.ipc.open_stream(load_stored(corpus.store, found.rows)).read_all()
    row_ids, kinds = np.asarray(table.column("row_id")).astype(np.int64), np.asarray(table.column("kind"))
    excluded = table.filter(pa.array(kinds == _EXCLUSION))
    said = zip(*(excluded.column(name).to_pylist() for name in ("row_id", "version", "excluded")), strict=True)
    train, heldout, annotations = (np.sort(row_ids[kinds == kind]) for kind in (_TRAIN, _HELDOUT, _ANNOTATION))
    return ErasedRows(found.number, train, heldout, annotations, tuple(said))


def list_found(corpus: BaseCorpus) -> list[ErasedFound]:
    """What each erasure found, oldest first; one that is pending and hasn't looked yet isn't among them."""
    paths = [p for p in corpus.store.objects.list(_folder(corpus)) if p.endswith(".found.json")]
    return sorted((corpus.store.read_document(ErasedFound, path) for path in paths), key=lambda found: found.number)


# --- doing ---------------------------------------------------------------------------------------------------------


def _complete(corpus: BaseCorpus, record: ErasureRecord, found: ErasedFound, held: Lease | None) -> _Done:
    """Steps 3 and 4; what is done already is left alone."""
    corpus.store.objects.make_durable(record.path())  # its creator may have died before it was
    corpus.store.objects.make_durable(record.path("found.json"))
    done = _Done()
    erased = erased_rows(corpus, found)
    for affected in found.snapshots:
        _rewrite(corpus, record, affected, erased.records, held)
    _erase_live(corpus, erased.records)
    corpus.step("after-live")
    _erase_annotations(corpus, erased.annotations)
    corpus.step("after-annotations")
    meant = _meant_by(corpus, record, found)
    _erase_heldout(corpus, meant, done)
    _erase_counts(corpus)
    done.quarantined = _erase_quarantine(corpus, meant)
    corpus.step("after-quarantine")
    done.selections = _erase_descriptions(corpus, meant, erased.records)
    _purge(corpus, done, held)
    corpus.step("after-purge")
    corpus.table.release()
    return done


def _rewrite(
    corpus: BaseCorpus, record: ErasureRecord, affected: AffectedSnapshot, erased: RowIds, held: Lease | None
) -> None:
    """Step 3 for one snapshot: its next edition, without the erased rows and with an index that names none of them."""
    table, store = corpus.table, corpus.store
    newest = _snapshot(corpus, affected.name)
    if newest.edition == affected.edition:
        branch = newest.branch or f"{newest.name}-erased"
        if newest.branch is None:
            table.branch(branch, newest.version)
            corpus.step("after-branch")
        low, high = newest.row_ids
        table.delete_rows(branch, erased[(erased >= low) & (erased < high)])
        corpus.step("after-delete")
        table.make_own(branch)
        corpus.step("after-rewrite")
        table.reindex(branch)
        head = table.branch_head(branch)
        rows = table.count(head)
        if rows != newest.rows - affected.records:
            raise StoreError(
                f"{newest.ref} would have {rows} records left of {newest.rows} once {affected.records} are erased",
                code="snapshot-damaged",
                hint="see what is wrong with it first: treering verify",
            )
        table.make_durable(head)
        edition = newest.model_copy(
            update={
                "edition": newest.edition + 1,
                "branch": branch,
                "version": int(head.version),
                "main_version": newest.boundary,
                "manifest_sha256": table.manifest_sha256(int(head.version), branch),
                "rows": rows,
                "receipt": record.path("receipt.json"),
            }
        )
        corpus.step("before-edition")
        if held is not None:
            held.check()
        with suppress(AlreadyExistsError):  # somebody else completes the same erasure
            store.objects.create(edition.path(), edition.to_json())
        corpus.step("after-edition")
        newest = _snapshot(corpus, affected.name)
    settle_tag(corpus, newest)
    corpus.step("after-retag")
    _ = Snapshot(corpus, newest).certificate
    # What was certified of the former content counts its values by name, and nobody can check it any more.
    for edition_number in range(1, newest.edition):
        before = newest.model_copy(update={"edition": edition_number})
        for suffix in ("certificate.json", "ids.bloom"):
            forget_object(corpus, before.path(suffix))
    corpus.step("after-certificate")


def _snapshot(corpus: BaseCorpus, name: str) -> SnapshotRecord:
    for record in list_records(corpus):
        if record.name == name:
            return record
    raise NotFoundError(f"{corpus.name}@{name} isn't in the store", code="no-snapshot")


def forget_object(corpus: BaseCorpus, path: str) -> None:
    """Remove an object for good: durably, and from what this process remembers of it."""
    corpus.store.objects.delete(path)
    corpus.store.objects.make_durable(path)  # of a directory: that the name is gone
    corpus.store.forget_document(path)


def _erase_live(corpus: BaseCorpus, erased: RowIds) -> None:
    """From the main branch, whose index may name rows of snapshots as well; those are in it no more."""
    table = corpus.table
    records = list_records(corpus)
    live = erased[erased >= records[-1].row_ids[1]] if records else erased

    def attempt() -> bool:
        head = table.head()
        if any(table.count(head, where) for where in rows_among(live)):
            table.delete_rows(None, live)
            head = table.head()
        if len(live) and table.holds_deleted(head):
            table.drop_deleted()
            head = table.head()
        if _index_names(table, head, erased):
            table.reindex(None)
            head = table.head()
        return not any(table.count(head, where) for where in rows_among(live))

    retry_conflicts(attempt, what=f"erasing from {corpus.name}", limit=100)


def _erase_annotations(corpus: BaseCorpus, rows: RowIds) -> None:
    table = corpus.annotation_log.table
    if not len(rows):
        return
    with corpus.annotation_log.lease(30.0):

        def attempt() -> bool:
            table.delete_rows(None, rows)
            table.drop_deleted()
            table.reindex(None)
            return True

        retry_conflicts(attempt, what=f"erasing annotations of {corpus.name}", limit=100)
        table.make_durable(table.head())


def _erase_heldout(corpus: BaseCorpus, meant: Denylist, done: _Done) -> None:
    """From the held-out records that were kept of pruned snapshots: the next edition of those, without them."""

    def gone(batch: pa.RecordBatch) -> Any:
        return meant.denies(batch.column("id"), batch.column("subject"))

    for record, pruned in listed(corpus):
        before = find_heldout(corpus, pruned) if pruned is not None and pruned.heldout else None
        if before is None:
            continue
        after = keep_heldout_without(corpus, record, gone)
        if after is not None and after.rows != before.rows:
            done.heldout[record.name] = before.rows - after.rows
        # Repeated after a crash, too: the older edition is what must not stay.
        folder = folder_of(record)
        paths = corpus.store.objects.list(folder)
        clear_heldout(corpus, folder, paths, pruned=True)
        corpus.store.objects.make_durable(f"{folder}/pruned.json")  # of a directory: that the names are gone


def _erase_counts(corpus: BaseCorpus) -> None:
    """Names in the counts of pruned snapshots that no record has any more: whose they were, nobody can tell.

    The certificates of the others were built anew. That a domain was lost with its pruned snapshot alone can't be told
    from that either, and goes as well.
    """
    pruned = [record for record, said in listed(corpus) if said is not None]
    certified = [(record, found) for record in pruned if (found := find_certificate(corpus, record)) is not None]
    if not certified:
        return
    left: dict[Any, set[str]] = {}
    for record in _kept_records(corpus):
        for name, values in Snapshot(corpus, record).certificate.counts.items():
            left.setdefault(name, set()).update(values)
    head = head_of(corpus, corpus.known_versions())
    named = sorted({name for _, found in certified for name in found.counts} & set(head.columns))
    for batch in head.scan(named):
        for name in named:
            left.setdefault(name, set()).update(map(str, batch.column(name).unique().to_pylist()))
    for record, found in certified:
        kept = {name: _only_known(values, left.get(name, set())) for name, values in found.counts.items()}
        if kept != found.counts:
            path = record.path("certificate.json")
            corpus.store.objects.replace(path, found.model_copy(update={"counts": kept}).to_json())
            corpus.store.forget_document(path)


def _only_known(counts: dict[str, int], known: set[str]) -> dict[str, int]:
    """Counts whose unknown names became one."""
    kept = {value: rows for value, rows in counts.items() if value in known | {"", "train", "heldout", ERASED}}
    if lost := sum(counts.values()) - sum(kept.values()):
        kept[ERASED] = kept.get(ERASED, 0) + lost
    return kept


def _meant_by(corpus: BaseCorpus, record: ErasureRecord, found: ErasedFound) -> Denylist:
    """What one erasure means, subjects that aren't blocked included."""
    matching = _Matching.of(corpus, record)
    ids = matching.asked | Hashes(load_stored(corpus.store, found.ids))
    return Denylist(matching.hash_of, ids, matching.subjects, frozenset())


def _erase_quarantine(corpus: BaseCorpus, meant: Denylist) -> int:
    """Refused records that name any of it, wherever it stands in them. An object never changes: others take its place."""
    objects = corpus.store.objects
    gone = 0
    for path, entries, kept in _quarantine_without(corpus, meant):
        if kept:
            data = json.dumps(kept, ensure_ascii=True, separators=(",", ":")).encode()
            with suppress(AlreadyExistsError):
                objects.create(f"{path.rpartition('/')[0]}/{hashlib.sha256(data).hexdigest()[:32]}.json", data)
        forget_object(corpus, path)
        gone += len(entries) - len(kept)
    return gone


def _quarantine_without(corpus: BaseCorpus, meant: Denylist) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Objects of the quarantine that name any of it: path, entries, those of them that don't."""
    objects = corpus.store.objects
    for path in objects.list(f"quarantine/{corpus.record.table}"):
        try:
            entries = json.loads(objects.get(path))
        except NotFoundError:
            continue
        kept = [entry for entry in entries if not meant.mentions(entry.get("record"))]
        if len(kept) < len(entries):
            yield path, entries, kept


def _erase_descriptions(corpus: BaseCorpus, meant: Denylist, erased: RowIds) -> int:
    """Selections keep their rows, and lose the words that only erased records said.

    That are values they were narrowed to, and names of groups in their reports.
    """
    objects = corpus.store.objects
    changed = 0
    for path in objects.list(f"selections/{corpus.record.table}"):
        if not path.endswith(".json"):
            continue
        before = json.loads(check_document(path, objects.get(path)))
        after = _without(before, meant)
        spans = [segment["row_ids"] for segment in before["source"]["segments"]]
        if any(((erased >= low) & (erased < high)).any() for low, high in spans):
            _rename_lost(after, _names_left(corpus, before["by"], spans))
        if after != before:
            objects.replace(path, add_checksum(json.dumps(after, indent=2, ensure_ascii=False).encode()))
            corpus.store.forget_document(path)
            changed += 1
    return changed


def _without(value: Any, meant: Denylist) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, meant) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, meant) for item in value]
    return ERASED if isinstance(value, str) and meant.denies_record(value, value) else value


def _names_left(corpus: BaseCorpus, by: str, spans: Sequence[tuple[int, int]]) -> set[str] | None:
    """The values that a column still has in these stretches; None when the groups weren't those of a column."""
    versions = corpus.known_versions()
    if by not in versions[-1].schema.names:
        return None
    left: set[str] = set()
    places = [head_of(corpus, versions), *(sealed_in(corpus, sealed, versions) for sealed in _kept_records(corpus))]
    for place in places:
        for low, high in spans:
            for batch in place.scan([by], rows_between(low, high)):
                left.update(map(str, batch.column(0).unique().to_pylist()))
    return left


def _rename_lost(selection: dict[str, Any], left: set[str] | None) -> None:
    """Take the names of groups that are gone out of a selection's report."""
    from treering.store.selection import NO_VALUE

    names = {entry["domain"] for entry in selection["report"]["domains"]}
    names.update(selection["report"]["starving"], selection["weights"])
    lost = sorted(names - (left or set()) - {NO_VALUE})
    new = {name: f"{ERASED} {number}" for number, name in enumerate(lost, 1)}
    for entry in selection["report"]["domains"]:
        entry["domain"] = new.get(entry["domain"], entry["domain"])
    selection["report"]["starving"] = [new.get(name, name) for name in selection["report"]["starving"]]
    selection["weights"] = {new.get(name, name): share for name, share in selection["weights"].items()}


def _purge(corpus: BaseCorpus, done: _Done, held: Lease | None) -> None:
    """Remove what only old versions needed, and what killed writers left."""
    if held is not None:
        held.check()
    logs = [(corpus.table, corpus.table.branches())]
    if corpus.annotation_log.table.head_if_made() is not None:
        logs.append((corpus.annotation_log.table, []))
    for table, branches in logs:
        if corpus.store.root is None:
            done.freed += table.purge(branches, unnamed=False)
            young = table.remove_left_behind(_LEFT_BEHIND_S)
            if young:
                done.not_covered.append(
                    f"{young} files of {table.name} that no version names and that may belong to a commit under way: erase "
                    "again in an hour"
                )
            continue
        try:
            with table.held_up(_HELD_UP_S):
                table.make_durable(table.head())  # nothing older is left to go back to
                done.freed += table.purge(branches, unnamed=True)
        except ConflictError as exc:
            if exc.code != "writers-inside":
                raise
            done.freed += table.purge(branches, unnamed=False)
            done.not_covered.append(f"files of {table.name} that a process which doesn't end may be about to commit")


def drop_cached(corpus: BaseCorpus) -> int:
    """Remove from this host's caches what may come from records that were erased; how many files that were.

    Once an erasure and host, whoever comes first: columns of snapshots that have another edition now, and activations,
    which don't say what they were made of. Dropping a cache costs speed and nothing else.
    """
    newest = max((found.number for found in list_found(corpus)), default=0)
    if not newest:
        return 0
    marker = corpus.store.host_dir / "erased" / f"{corpus.record.table}.caches"
    if noted(marker) >= newest:
        return 0
    stale = {hit.digest for found in list_found(corpus) for hit in found.snapshots if hit.records}
    gone = 0
    folder = corpus.store.cache_dir
    for path in folder.glob("columns/*.json"):
        try:
            entry = json.loads(path.read_bytes())
            if entry["digest"] not in stale:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged: nobody could use it
        for file in [path, *path.parent.glob(f"{path.stem}.*.arrow")]:
            file.unlink(missing_ok=True)
            gone += 1
    for unfinished in folder.glob("columns/.*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    activations = [path for path in folder.glob("activations/**/*") if path.is_file()]
    for path in activations:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        note(marker, newest)
    return gone + len(activations)


def noted(marker: Path) -> int:
    """The number of the newest erasure that this host was scrubbed for; 0 for none."""
    try:
        return int(marker.read_text())
    except (OSError, ValueError):
        return 0


def note(marker: Path, number: int) -> None:
    """Note on this host's disk up to which erasure it was scrubbed. Raises OSError."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_name(f"{marker.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(str(number))
    temporary.replace(marker)


def _receipt(
    corpus: BaseCorpus,
    record: ErasureRecord,
    found: ErasedFound,
    done: _Done,
    scrubbed: Scrubbed,
) -> EraseReceipt:
    """Step 5. The first one's counts."""
    rewritten = []
    newest = {sealed.name: sealed for sealed in list_records(corpus)}
    for affected in found.snapshots:
        sealed = newest[affected.name]
        rewritten.append(
            RewrittenSnapshot(
                name=sealed.name,
                edition=affected.edition + 1,
                digest_before=affected.digest,
                digest_after=Snapshot(corpus, sealed).digest,
                rows_before=sealed.rows + affected.records,
                rows_after=sealed.rows,
            )
        )
    by_place = {"live": found.live, **{hit.name: hit.records for hit in found.snapshots}, **done.heldout}
    receipt = EraseReceipt(
        corpus=corpus.name,
        incarnation=corpus.record.incarnation,
        number=record.number,
        reason=record.reason,
        subjects=len(record.subjects),
        block_subjects=record.block_subjects,
        records={place: count for place, count in by_place.items() if count},
        annotations=found.annotations,
        quarantined=done.quarantined,
        spooled=scrubbed.spooled,
        selections=done.selections,
        cached=scrubbed.cached,
        freed_bytes=done.freed,
        snapshots=rewritten,
        seen_by=found.seen_by,
        not_covered=[*_LIMITS, *done.not_covered, *scrubbed.not_covered],
        requested_at=record.requested_at,
        completed_at=datetime.now(UTC),
    )
    corpus.step("before-receipt")
    try:
        corpus.store.objects.create(record.path("receipt.json"), receipt.to_json())
    except AlreadyExistsError:
        return corpus.store.read_document(EraseReceipt, record.path("receipt.json"))
    return receipt
