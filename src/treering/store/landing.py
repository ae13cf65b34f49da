"""Take records in as a snapshot of their own: all of them or none, whatever happens on the way.

Needs an empty live, since a snapshot is what live holds. 1. Data files are written that no version names. 2. An intent
names them (create if absent). 3. One commit adds them. 4. Their digest is compared. 5. The snapshot record is created:
the commit point; then it is tagged and taken out of live, as after any seal. Whoever maintains the corpus next undoes
what was cut short before 5. Between 3 and 5 the records are in live, for as long as it takes to read them once.
Does not read bundles (bundle).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import ConflictError, StoreError, TreeringError
from treering.schema import Version, fingerprint
from treering.schema.evolution import as_stored
from treering.store.digest import ContentDigest
from treering.store.documents import SnapshotOrigin, SnapshotRecord, UnpackIntent, parse_document
from treering.store.place import Place
from treering.store.schemas import add_columns
from treering.store.snapshot import finish, list_records
from treering.store.table import ROW_ID, created_after, retry_conflicts

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus
    from treering.store.lease import Lease

__all__ = ["land", "undo_landings"]

#: Not among the snapshots' objects: a folder there says that there is, or was, a record.
_INTENTS = "unpacking"


def land(
    corpus: BaseCorpus,
    held: Lease,
    batches: Callable[[], Iterator[pa.RecordBatch]],
    version: Version,
    *,
    digest: str,
    message: str,
    origin: SnapshotOrigin,
) -> SnapshotRecord:
    """Store `batches()`, records of one schema version in order, as the next snapshot; `digest` is what they must have.

    Under the lease, with everything pending finished. Raises ConflictError when live holds records, or some came in
    meanwhile, and StoreError when what was stored has another digest; nothing is left then.
    """
    table, objects = corpus.table, corpus.store.objects
    records = list_records(corpus)
    parent = records[-1] if records else None
    number = parent.number + 1 if parent else 1
    _add_columns(corpus)
    head = table.head()
    waiting = table.count(head, created_after(parent.boundary) if parent else None)
    if waiting:
        raise ConflictError(
            f"{corpus.name}@live holds {waiting:,} records, and a snapshot is what live holds",
            code="live-not-empty",
            hint=f"seal them first (treering snapshot live --to {corpus.name}), or unpack to another corpus: --to NAME",
        )
    files = table.write_files(head, (_stored(batch, version, head.schema) for batch in batches()))
    paths = table.paths_of(files)
    intent = f"{_INTENTS}/{corpus.record.table}/v{number}.json"
    corpus.step("before-intent")
    objects.create(intent, UnpackIntent(read_version=head.version, files=paths).to_json())
    corpus.step("after-intent")
    try:
        held.check()
        landed = table.add_files(head, files)
        corpus.step("after-landing")
        if landed != head.version + 1:
            raise ConflictError(
                f"records of {corpus.name} came in at the same moment",
                code="live-not-empty",
                hint=f"seal them first (treering snapshot live --to {corpus.name}), then unpack again",
            )
        dataset = table.at(landed)
        place = Place(corpus, dataset, corpus.known_versions()[: version.number], where=corpus.name)
        found, rows, last = _read(place, version)
        if found != digest:
            raise StoreError(f"what was stored has the digest {found}, not {digest}", code="bad-bundle")
        table.make_durable(dataset)
        record = SnapshotRecord(
            corpus=corpus.name,
            incarnation=corpus.record.incarnation,
            name=f"v{number}",
            number=number,
            edition=1,
            branch=None,
            version=landed,
            manifest_sha256=table.manifest_sha256(landed),
            schema_version=version.number,
            schema_fingerprint=fingerprint(version.schema),
            parent=parent.name if parent else None,
            parent_version=parent.boundary if parent else 0,
            rows=rows,
            row_ids=(parent.row_ids[1] if parent else 0, last + 1),
            created_at=datetime.now(UTC),
            message=message,
            origin=origin,
        )
        held.check()
        corpus.step("before-unpacked")
        objects.create(record.path(), record.to_json())
    except BaseException:
        # A killed process leaves it to the next one. Should this fail too, the next one does it as well.
        with suppress(TreeringError):
            _undo(corpus, intent)
        raise
    corpus.step("after-unpacked")
    finish(corpus, record)
    objects.delete(intent)
    return record


def undo_landings(corpus: BaseCorpus, sealed: set[str]) -> None:
    """Undo what was cut short before its snapshot record; forget the intents of the rest. Under the lease."""
    for path in corpus.store.objects.list(f"{_INTENTS}/{corpus.record.table}"):
        if path.rpartition("/")[2].removesuffix(".json") in sealed:
            corpus.store.objects.delete(path)
        else:
            _undo(corpus, path)


def _undo(corpus: BaseCorpus, path: str) -> None:
    objects, table = corpus.store.objects, corpus.table
    intent = parse_document(UnpackIntent, path, objects.get(path))  # not kept: another one may come by that name
    landed = table.version_with(intent.files, intent.read_version)
    if landed is None:
        for file in intent.files:  # nothing names them
            objects.delete(f"{corpus._table_path}/{file}")
    else:

        def attempt() -> bool:
            table.delete_created_at(landed)
            return True

        retry_conflicts(attempt, what=f"undoing what was cut short in {corpus.name}")
        table.make_durable(table.head())
    objects.delete(path)


def _add_columns(corpus: BaseCorpus) -> None:
    def attempt() -> bool:
        add_columns(corpus, corpus.table.head(), corpus.known_versions())
        return True

    retry_conflicts(attempt, what=f"adding columns to {corpus.name}", limit=50)


def _stored(batch: pa.RecordBatch, version: Version, layout: pa.Schema) -> pa.RecordBatch:
    rows = as_stored(pa.Table.from_batches([batch]), version, layout)
    assert rows is not None  # every column was added
    return rows.combine_chunks().to_batches()[0]


def _read(place: Place, version: Version) -> tuple[str, int, int]:
    """Digest, rows and last row id of what a place holds."""
    digest = ContentDigest(version.schema)
    rows, last = 0, -1
    for batch in place.scan([*version.schema.names, ROW_ID]):
        digest.update(batch)
        rows += len(batch)
        if len(batch):
            last = max(last, int(pc.max(batch.column(ROW_ID)).as_py()))
    return digest.hexdigest(), rows, last
