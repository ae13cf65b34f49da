"""Certificates: what takes a pass over a snapshot's data to know, found out once and kept.

Knows one snapshot at a time. Sealing never waits for it; whoever needs it first builds it.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import AlreadyExistsError, NotFoundError, StoreError
from treering.store.digest import ContentDigest, aligned
from treering.store.documents import Certificate, SnapshotRecord
from treering.store.idfilter import FilterBuilder, IdFilter
from treering.store.memory import giving_back
from treering.store.place import Place, sealed_in
from treering.store.runs import Runs, join_runs, runs_of
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = [
    "Content",
    "block_hashes",
    "build_certificate",
    "check_files",
    "find_certificate",
    "id_filter",
    "read_content",
    "sealed_place",
    "split_runs",
    "stable_hash",
]

_COUNTED = ("split", "domain", "label", "origin")
_MOST_VALUES = 10_000  # beyond it a column is free text, and its counts would be as large as the data

#: SHA-256 of the files that this process has read, by path, inode, size and time of the last change.
_HASHED: dict[tuple[str, int, int, int], str] = {}


def stable_hash(text: str) -> int:
    """128 bits of blake2b as a signed integer: the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big", signed=True)


def _is_countable(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def split_runs(splits: Iterable[pa.RecordBatch], split: str) -> Runs:
    """Runs of consecutive stable row ids whose split is `split`: int64 (k, 2) of (first id, length), ascending.

    Takes batches with the columns `split` and `_rowid`. Commits are sorted by split, so k is about their number. By id
    and not by place in the table, because compaction beside appends can change places, and a lock outlives that.
    """
    return join_runs([_runs(batch, split) for batch in splits])


def _runs(batch: pa.RecordBatch, split: str) -> Runs:
    """The runs of one batch. Copies: a column that is kept would keep the whole batch that it was read with."""
    ids = np.asarray(batch.column(ROW_ID)).astype(np.int64)
    ids = np.sort(ids[np.asarray(pc.fill_null(pc.equal(batch.column("split"), split), False))], kind="stable")
    return runs_of(ids)


def find_certificate(corpus: BaseCorpus, record: SnapshotRecord) -> Certificate | None:
    """The certificate if somebody has built it."""
    try:
        return corpus.store.read_document(Certificate, record.path("certificate.json"))
    except NotFoundError:
        return None


@dataclass(frozen=True)
class Content:
    """What one pass over a snapshot's records tells."""

    rows: int
    row_ids: tuple[int, int]  # the half-open interval of those that are there
    digest: str
    blocks: bytes  # little-endian uint64 per block
    counts: dict[str, dict[str, int]]
    train_runs: list[tuple[int, int]]
    denied: int  # ids that the filter which was given denies
    id_filter: bytes  # of these ids; empty when one was given


def read_content(
    corpus: BaseCorpus,
    record: SnapshotRecord,
    *,
    against: IdFilter | None = None,
    progress: Callable[[int], object] | None = None,
) -> Content:
    """Read the snapshot once; `against`: a filter that its ids are asked of, instead of building one.

    `progress` is called with the rows read so far. Raises StoreError when it can't be read.
    """
    place = sealed_place(corpus, record)
    schema = place.schema
    digest = ContentDigest(schema)
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in _COUNTED if name in schema.names and _is_countable(schema.field(name).type)
    }
    builder = FilterBuilder(record.rows) if against is None else None
    runs = []
    rows = denied = 0
    first, last = record.row_ids[1], record.row_ids[0] - 1
    for batch in aligned(place.scan([*schema.names, ROW_ID])):
        digest.update(batch)
        rows += len(batch)
        for name, counter in list(counts.items()):
            values, times = batch.column(name).value_counts().flatten()
            for value, n in zip(values.to_pylist(), times.to_pylist(), strict=True):
                counter["" if value is None else str(value)] += n
            if len(counter) > _MOST_VALUES:
                del counts[name]
        if builder is not None:
            builder.add(batch.column("id"))
        elif against is not None:
            denied += against.lacks(batch.column("id"))
        runs.append(_runs(batch, "train"))
        ids = np.asarray(batch.column(ROW_ID))
        first, last = min(first, int(ids.min())), max(last, int(ids.max()))
        if progress is not None:
            progress(rows)
    return Content(
        rows=rows,
        row_ids=(first, last + 1),
        digest=digest.hexdigest(),
        blocks=np.array(digest.blocks(), "<u8").tobytes(),
        counts={k: dict(sorted(c.items())) for k, c in counts.items()},
        train_runs=[(int(a), int(n)) for a, n in join_runs(runs)],
        denied=denied,
        id_filter=builder.save() if builder is not None else b"",
    )


def sealed_place(corpus: BaseCorpus, record: SnapshotRecord) -> Place:
    """The snapshot read as the version it was sealed with: what evolves later changes no digest."""
    return sealed_in(corpus, record, corpus.known_versions(record.schema_version)[: record.schema_version])


def block_hashes(certificate: Certificate) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The hash of each `BLOCK_ROWS` records in order, as it was certified: uint64 (n,)."""
    return np.frombuffer(base64.b64decode(certificate.blocks), "<u8")


@giving_back()
def build_certificate(
    corpus: BaseCorpus, record: SnapshotRecord, *, progress: Callable[[int], object] | None = None
) -> Certificate:
    """Read the snapshot once and keep what was learnt. Two builders come to the same; the first one's is kept.

    `progress` is called with the rows read so far. Raises StoreError when the data contradicts the record, or an earlier
    certificate.
    """
    table = corpus.table
    paths = table.certified(sealed_place(corpus, record).dataset)
    with ThreadPoolExecutor(1) as beside:  # files are hashed while records are decoded
        hashing = beside.submit(lambda: {path: table.file_sha256(path) for path in paths})
        content = read_content(corpus, record, progress=progress)
        files = hashing.result()
    low, high = record.row_ids
    if content.rows != record.rows or content.row_ids[0] < low or content.row_ids[1] > high:
        raise StoreError(
            f"{record.ref} holds {content.rows} rows with row ids {content.row_ids[0]}..{content.row_ids[1] - 1}, "
            f"its record says {record.rows} rows with row ids {low}..{high - 1}",
            code="snapshot-damaged",
            hint="restore the store's files from a backup",
        )
    tag = table.read_tag(record.name)
    filter_bytes = content.id_filter
    filter_path = record.path("ids.bloom")
    certificate = Certificate(
        corpus=corpus.name,
        incarnation=corpus.record.incarnation,
        name=record.name,
        edition=record.edition,
        digest=content.digest,
        rows=content.rows,
        train_runs=content.train_runs,
        counts=content.counts,  # type: ignore[arg-type]
        files=files,
        id_filter=filter_path,
        id_filter_sha256=hashlib.sha256(filter_bytes).hexdigest(),
        blocks=base64.b64encode(content.blocks).decode(),
        tag=tag.decode("utf-8", "replace") if tag is not None else None,
        record=record,
        created_at=datetime.now(UTC),
    )
    try:
        corpus.store.objects.create(filter_path, filter_bytes)
    except AlreadyExistsError:
        # Of the same ids it has the same bytes: one that lacks an id would let a record in twice.
        if corpus.store.objects.get(filter_path) != filter_bytes:
            raise StoreError(
                f"{record.ref}: {filter_path} isn't the filter of its ids",
                code="object-damaged",
                hint=f"have it removed and made anew: treering doctor --repair --store {corpus.store.uri}",
            ) from None
    try:
        corpus.store.objects.create(record.path("certificate.json"), certificate.to_json())
    except AlreadyExistsError:
        kept = find_certificate(corpus, record)
        if kept is None or kept.digest != certificate.digest:
            raise StoreError(
                f"{record.ref} has the digest {certificate.digest}, its certificate says "
                f"{kept.digest if kept else 'nothing'}",
                code="snapshot-damaged",
                hint="restore the store's files from a backup",
            ) from None
        return kept
    return certificate


def check_files(corpus: BaseCorpus, record: SnapshotRecord, certificate: Certificate) -> None:
    """Raise StoreError when a data or deletion file of the snapshot isn't what the certificate says (1.2 GB/s).

    A file in a directory is read once in each process, unless it was changed since. Indices and the manifest are left to
    `verify` and to `check_record`: no row is read from them.
    """
    for name, expected in certificate.files.items():
        if not {"data", "_deletions"} & set(name.split("/")[:-1]):
            continue
        try:
            stamp = corpus.table.stamp(name)
            found = _HASHED.get(stamp) if stamp is not None else None
            if found is None:
                found = corpus.table.file_sha256(name)
                if stamp is not None:
                    _HASHED[stamp] = found
        except NotFoundError as exc:
            raise StoreError(
                f"{record.ref}: {name} is missing",
                code="snapshot-damaged",
                hint="restore the store's files from a backup",
            ) from exc
        if found != expected:
            raise StoreError(
                f"{record.ref}: {name} isn't the file that was certified",
                code="snapshot-damaged",
                hint="restore the store's files from a backup",
            )


def id_filter(corpus: BaseCorpus, record: SnapshotRecord) -> IdFilter | None:
    """The static filter of the snapshot's ids: it denies only ids that the snapshot surely lacks.

    None before the certificate exists, and when certificate or filter are damaged: then ids are looked up instead, and
    no record waits for a repair.
    """
    try:
        certificate = find_certificate(corpus, record)
        if certificate is None:
            return None
        data = corpus.store.objects.get(certificate.id_filter)
        if hashlib.sha256(data).hexdigest() == certificate.id_filter_sha256:
            return IdFilter(data)
    except (NotFoundError, StoreError) as exc:
        if exc.code not in ("document-damaged", "object-damaged", "object-missing"):
            raise
    return None
