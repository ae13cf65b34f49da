"""Held-out records that were kept of pruned snapshots: small objects of their own, for evaluation alone.

Copies of the stored rows with their row ids, so that later schema versions, annotations and selections still fit them.
A document names each part by its SHA-256. Only pruning makes them, and erasing makes them anew under the next edition.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import ConflictError, NotFoundError, StoreError
from treering.schema.evolution import SCHEMA_VERSION, Alignment, History
from treering.store.documents import HeldoutPart, HeldoutRecord, PruneRecord, SnapshotRecord, parse_document
from treering.store.place import sealed_in
from treering.store.table import ROW_ID, text_in

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = [
    "KeptHeldout",
    "clear_heldout",
    "find_heldout",
    "folder_of",
    "keep_heldout",
    "keep_heldout_without",
    "read_heldout",
]

_PART_BYTES = 16 << 20  # of a part, as Arrow holds it: what reading one keeps in memory

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def folder_of(record: SnapshotRecord | PruneRecord) -> str:
    """Where the objects of a snapshot lie."""
    return f"snapshots/{record.corpus}-{record.incarnation}/{record.name}"


def find_heldout(corpus: BaseCorpus, record: SnapshotRecord | PruneRecord) -> HeldoutRecord | None:
    """What was kept of a snapshot's held-out records; None when nothing was."""
    newest = (0, "")
    for path in corpus.store.objects.list(folder_of(record)):
        kind, _, rest = path.rpartition("/")[2].partition(".")
        number, _, suffix = rest.partition(".")
        if kind == "heldout" and suffix == "json" and number.isdigit():
            newest = max(newest, (int(number), path))
    # Not kept in memory: what a killed process left may be removed, and another one written by that name.
    return parse_document(HeldoutRecord, newest[1], corpus.store.objects.get(newest[1])) if newest[0] else None


def keep_heldout(corpus: BaseCorpus, record: SnapshotRecord) -> HeldoutRecord:
    """Copy the held-out records of a snapshot that is about to be pruned."""
    dataset = sealed_in(corpus, record).dataset
    batches = corpus.table.scan(dataset, dataset.schema.names, text_in("split", ["heldout"]), row_ids=True)
    return _write(corpus, record, 1, batches)


def keep_heldout_without(
    corpus: BaseCorpus, record: SnapshotRecord, gone: Callable[[pa.RecordBatch], Mask]
) -> HeldoutRecord | None:
    """Write what was kept anew, without the rows that `gone` marks (bool (n,) for a batch of the stored columns).

    None when there are none. The new edition counts as soon as its document is there; the old parts are removed then.
    Needs the corpus's lease. Repeating it after a crash removes what is left.
    """
    old = find_heldout(corpus, record)
    if old is None:
        return None
    batches = list(_counted(old, _parts(corpus, old), gone))
    if not any(marked.any() for _, marked in batches):
        return old
    return _write(corpus, record, old.edition + 1, (b.filter(pa.array(~marked)) for b, marked in batches))


def _counted(
    old: HeldoutRecord, parts: Iterable[pa.RecordBatch], gone: Callable[[pa.RecordBatch], Mask]
) -> Iterator[tuple[pa.RecordBatch, Mask]]:
    for batch in parts:
        yield batch, np.asarray(gone(batch), dtype=bool)


def _write(
    corpus: BaseCorpus, record: SnapshotRecord, edition: int, batches: Iterable[pa.RecordBatch]
) -> HeldoutRecord:
    """Store the rows in parts, then the document that names them."""
    objects, folder = corpus.store.objects, folder_of(record)
    attempt = secrets.token_hex(4)  # a process that was killed half-way may have left parts of that edition
    parts: list[HeldoutPart] = []
    waiting: list[pa.RecordBatch] = []

    def store() -> None:
        data = _encode(waiting)
        path = f"{folder}/heldout.{edition}.{attempt}-{len(parts):05d}.arrow"
        objects.create(path, data)
        parts.append(HeldoutPart(path=path, sha256=hashlib.sha256(data).hexdigest(), rows=sum(map(len, waiting))))
        waiting.clear()

    for batch in batches:
        rows = max(1, len(batch) * _PART_BYTES // max(batch.nbytes, 1))
        for start in range(0, len(batch), rows):
            waiting.append(batch.slice(start, rows))
            if sum(one.nbytes for one in waiting) >= _PART_BYTES:
                store()
    if sum(map(len, waiting)):
        store()
    made = HeldoutRecord(
        corpus=record.corpus,
        incarnation=record.incarnation,
        name=record.name,
        edition=edition,
        rows=sum(part.rows for part in parts),
        parts=parts,
        created_at=datetime.now(UTC),
    )
    objects.create(f"{folder}/heldout.{edition}.json", made.to_json())
    return made


def clear_heldout(corpus: BaseCorpus, folder: str, paths: Sequence[str], *, pruned: bool) -> None:
    """Remove what no document names, and older editions; all of it while the snapshot isn't pruned. Under the lease."""
    ours = [path for path in paths if path.startswith(f"{folder}/heldout.")]
    kinds = {tuple(path.rpartition("/")[2].split(".")[1:3]) for path in ours}  # (edition, "json" or attempt and number)
    attempts = {(edition, rest.partition("-")[0]) for edition, rest in kinds}
    if not ours or (pruned and len({edition for edition, _ in attempts}) == 1 and len(attempts) <= 2):
        return  # one edition, written at one go: looked at often, so nothing is read for it
    keep: set[str] = set()
    if pruned:
        editions = sorted((path for path in ours if path.endswith(".json")), key=lambda path: int(path.split(".")[-2]))
        if editions:
            newest = parse_document(HeldoutRecord, editions[-1], corpus.store.objects.get(editions[-1]))
            keep = {editions[-1], *(part.path for part in newest.parts)}
    for path in ours:
        if path not in keep:
            corpus.store.objects.delete(path)


def read_heldout(corpus: BaseCorpus, record: SnapshotRecord | PruneRecord) -> int:
    """Read all of what was kept; how many records. Raises StoreError when it isn't what it should be."""
    kept = find_heldout(corpus, record)
    if kept is None:
        raise StoreError(f"the held-out records that were kept of {record.ref} are gone", code="snapshot-damaged")
    rows = sum(map(len, _parts(corpus, kept)))
    if rows != kept.rows:
        raise StoreError(f"{rows} held-out records of {record.ref} are left of {kept.rows}", code="snapshot-damaged")
    return rows


def _encode(batches: Sequence[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _parts(corpus: BaseCorpus, kept: HeldoutRecord) -> Iterator[pa.RecordBatch]:
    """The stored rows in record order, part by part. Raises StoreError for a part that isn't what the document names."""
    for part in kept.parts:
        try:
            data = corpus.store.objects.get(part.path)
        except NotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise StoreError(
                f"{kept.corpus}@{kept.name}: {part.path} isn't what was kept of its held-out records",
                code="snapshot-damaged",
                hint="restore the store's files from a backup",
            )
        yield from pa.ipc.open_stream(data)


class KeptHeldout:
    """What stands in for a pruned snapshot's place (`treering.store.place.Place`): its held-out records, nothing else.

    Asked for any other record it raises `error()`.
    """

    def __init__(
        self,
        corpus: BaseCorpus,
        record: SnapshotRecord,
        kept: HeldoutRecord,
        error: Callable[[], NotFoundError],
        versions: History | None = None,
    ) -> None:
        self._corpus = corpus
        self._record = record
        self._kept = kept
        self._error = error
        self._versions = versions or corpus.versions
        self._alignment: Alignment | None = None

    @property
    def dataset(self) -> Any:
        """There is none."""
        raise self._error()

    def within(
        self,
        columns: Sequence[str],
        low: int,
        high: int,
        *,
        split: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """As of a place. Without `ids`, which asks who of some is here, only for `split="heldout"`."""
        if split != "heldout" and ids is None:
            raise self._error()
        for batch in _parts(self._corpus, self._kept):
            rows = np.asarray(batch.column(ROW_ID)).astype(np.int64)
            chosen = (rows >= low) & (rows < high)
            if ids is not None:
                chosen &= np.asarray(pc.is_in(batch.column("id"), pa.array(ids, pa.string())))
            if not chosen.all():
                batch = batch.filter(pa.array(chosen))
            if len(batch):
                alignment = self._aligned(batch.schema)
                yield alignment.apply(batch.select(alignment.reads(columns) or ["id"]), columns)

    def _aligned(self, stored: pa.Schema) -> Alignment:
        if self._alignment is None:
            sealed = min(self._record.schema_version, len(self._versions))
            schema = pa.schema([field for field in stored if field.name != ROW_ID])
            self._alignment = Alignment.of_stored(self._versions, schema, where=self._record.ref, sealed=sealed)
        return self._alignment

    def take(self, row_ids: Any, columns: Sequence[str]) -> pa.Table:
        """Rows aren't drawn of a pruned snapshot."""
        raise self._error()

    def fill(self, row_ids: Any, column: Any, out: Any) -> bool:
        """Rows aren't drawn of a pruned snapshot."""
        raise self._error()

    def stored_as(self, column: str) -> str | None:
        """No engine reads it."""
        return None

    def record_versions(self, low: int, high: int) -> list[int]:
        """The schema versions that its records were captured under, ascending."""
        found: set[int] = set()
        for batch in _parts(self._corpus, self._kept):
            found |= set(batch.column(SCHEMA_VERSION).to_pylist()) if SCHEMA_VERSION in batch.schema.names else {1}
        return sorted(found)

    def check_readable(self, low: int, high: int) -> None:
        """Raise ConflictError when its records are of a later schema version than this reads."""
        if max(self.record_versions(low, high), default=1) > len(self._versions):
            raise ConflictError(
                f"{self._record.ref} was captured under a later schema than version {len(self._versions)}",
                code="schema-later",
                hint="load the ref anew: it is read as the newest version then",
            )

    def first_later(self, low: int, high: int) -> int:
        """Sealed records are read as the version they were sealed under, or a later one."""
        return high
