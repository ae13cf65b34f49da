"""Certificates: what takes a pass over a snapshot's data to know, found out once and kept.

Knows one snapshot at a time. Sealing never waits for it; whoever needs it first builds it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rbloom import Bloom

from treering.errors import AlreadyExistsError, NotFoundError, StoreError
from treering.store.digest import ContentDigest
from treering.store.documents import Certificate, SnapshotRecord
from treering.store.place import sealed_in
from treering.store.runs import Runs, join_runs, runs_of
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = ["build_certificate", "check_files", "find_certificate", "id_filter", "split_runs", "stable_hash"]

_COUNTED = ("split", "domain", "label", "origin")
_MOST_VALUES = 10_000  # beyond it a column is free text, and its counts would be as large as the data


def _identity(value: Any) -> Any:
    return value  # filters hold hashes: an id is hashed once, however many snapshots are asked


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


def build_certificate(corpus: BaseCorpus, record: SnapshotRecord) -> Certificate:
    """Read the snapshot once and keep what was learnt. Two builders come to the same; the first one's is kept.

    Raises StoreError when the data contradicts the record, or an earlier certificate.
    """
    table, versions = corpus.table, corpus.known_versions(record.schema_version)[: record.schema_version]
    schema = versions[-1].schema  # of the version it was sealed with: what evolves later changes no digest
    place = sealed_in(corpus, record, versions)
    digest = ContentDigest(schema)
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in _COUNTED if name in schema.names and _is_countable(schema.field(name).type)
    }
    bloom = Bloom(max(1, record.rows), 1e-4, _identity)  # none are left once all were erased
    runs = []
    rows = 0
    low, high = record.row_ids
    first, last = high, low - 1
    for batch in place.scan([*schema.names, ROW_ID]):
        digest.update(batch)
        rows += len(batch)
        for name, counter in list(counts.items()):
            for item in batch.column(name).value_counts().to_pylist():
                counter["" if item["values"] is None else str(item["values"])] += item["counts"]
            if len(counter) > _MOST_VALUES:
                del counts[name]
        bloom.update(map(stable_hash, batch.column("id").to_pylist()))
        runs.append(_runs(batch, "train"))
        if len(batch):
            ids = np.asarray(batch.column(ROW_ID))
            first, last = min(first, int(ids.min())), max(last, int(ids.max()))
    if rows != record.rows or first < low or last >= high:
        raise StoreError(
            f"{record.ref} holds {rows} rows with row ids {first}..{last}, "
            f"its record says {record.rows} rows with row ids {low}..{high - 1}",
            code="snapshot-damaged",
            hint="restore the store's files from a backup",
        )
    filter_bytes = bloom.save_bytes()
    filter_path = record.path("ids.bloom")
    certificate = Certificate(
        corpus=corpus.name,
        incarnation=corpus.record.incarnation,
        name=record.name,
        edition=record.edition,
        digest=digest.hexdigest(),
        rows=rows,
        train_runs=[(int(a), int(n)) for a, n in join_runs(runs)],
        counts={k: dict(sorted(c.items())) for k, c in counts.items()},  # type: ignore[misc]
        files={path: table.file_sha256(path) for path in table.files(place.dataset)},
        id_filter=filter_path,
        id_filter_sha256=hashlib.sha256(filter_bytes).hexdigest(),
        created_at=datetime.now(UTC),
    )
    try:
        corpus.store.objects.create(filter_path, filter_bytes)
    except AlreadyExistsError:
        filter_bytes = corpus.store.objects.get(filter_path)
        certificate = certificate.model_copy(update={"id_filter_sha256": hashlib.sha256(filter_bytes).hexdigest()})
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

    Indices and the manifest are left to `verify` and to `check_record`: no row is read from them.
    """
    for name, expected in certificate.files.items():
        if not name.startswith(("data/", "_deletions/")):
            continue
        try:
            found = corpus.table.file_sha256(name)
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


def id_filter(corpus: BaseCorpus, record: SnapshotRecord) -> Any | None:
    """The static filter of the snapshot's ids: `stable_hash(id) in filter` is False only for ids it surely lacks.

    None before the certificate exists, and when the filter's bytes aren't those that the certificate names; then ids
    are looked up instead.
    """
    certificate = find_certificate(corpus, record)
    if certificate is None:
        return None
    data = corpus.store.objects.get(certificate.id_filter)
    if hashlib.sha256(data).hexdigest() != certificate.id_filter_sha256:
        return None
    return Bloom.load_bytes(data, _identity)
