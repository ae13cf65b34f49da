"""Certificates: what takes a pass over a snapshot's data to know, found out once and kept.

Knows one snapshot at a time. Sealing never waits for it; whoever needs it first builds it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.engine.packed import pack, unpack
from treering.errors import AlreadyExistsError, NotFoundError, StoreError, TreeringError
from treering.store.base import reopened
from treering.store.digest import ContentDigest, aligned, joined
from treering.store.documents import Certificate, SnapshotRecord, parse_document
from treering.store.idfilter import FilterBuilder, IdFilter
from treering.store.memory import giving_back
from treering.store.place import Place, sealed_in
from treering.store.runs import Runs, join_runs, runs_of
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.engine import Engine
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
    engine: Engine | None = None,
    denies: str = "",
) -> Content:
    """Read the snapshot once; `against`: a filter that its ids are asked of, instead of building one.

    `progress` is called with the rows read so far; with an `engine`, of which workers read a column each and one of them the rest, with
    the share of the rows that the columns read so far are of all. `denies` is where workers find the filter. Raises StoreError when
    it can't be read.
    """
    schema = sealed_place(corpus, record).schema
    if engine is None:
        part = _read_part(corpus, record, schema.names, _Facts(corpus, record, against), progress, whole=True)
        assert part.facts is not None
        return _content(part.rows, part.digest.hexdigest(), part.digest.blocks(), part.facts)
    pieces: list[list[str]] = [[], *([name] for name in schema.names)]
    shared = {"store": corpus.store.address, "corpus": corpus.name, "record": record.to_json().decode()}
    filter_path = denies if against is not None else None
    each = [{**shared, "columns": columns, "filter_path": filter_path} for columns in pieces]
    facts: dict[str, Any] = {}
    id_filter = b""
    streams, hashes, lengths = [], [], set()
    for n, result in enumerate(engine.map("treering.store.certificate:content_part", each)):
        said, parts = unpack(result)
        lengths.add(said["rows"])
        if n == 0:
            facts, id_filter = said["facts"], bytes(parts["id_filter"])
        else:
            streams.append(said["streams"])
            hashes.append(np.frombuffer(parts["hashes"], "<u8").reshape(said["shape"]))
        if progress is not None:
            progress(record.rows * (n + 1) // len(pieces))
    if len(lengths) != 1:
        raise StoreError(
            f"{record.ref}: its columns are of different lengths: {', '.join(map(str, sorted(lengths)))}",
            code="snapshot-damaged",
            hint="restore the store's files from a backup",
        )
    digest, blocks = joined(schema, facts["rows"], streams, hashes)
    return Content(
        rows=facts["rows"],
        row_ids=(facts["row_ids"][0], facts["row_ids"][1]),
        digest=digest,
        blocks=np.array(blocks, "<u8").tobytes(),
        counts=facts["counts"],
        train_runs=[(first, length) for first, length in facts["train_runs"]],
        denied=facts["denied"],
        id_filter=id_filter,
    )


def content_part(
    store: Mapping[str, Any], corpus: str, record: str, columns: Sequence[str], filter_path: str | None
) -> bytes:
    """In a worker: what reading some columns of a snapshot tells; without columns, all but their digests."""
    opened = reopened(store)
    known = parse_document(SnapshotRecord, "", record.encode())
    home: BaseCorpus = opened.corpus(corpus)
    facts = None
    if not columns:
        facts = _Facts(home, known, None if filter_path is None else IdFilter(opened.objects.get(filter_path)))
    part = _read_part(home, known, columns, facts, None)
    if part.facts is None:
        found = part.digest.parts()
        said = {"rows": part.rows, "streams": part.digest.streams(), "shape": list(found.shape)}
        return pack(said, hashes=np.ascontiguousarray(found).tobytes())
    content = _content(part.rows, "", [], part.facts)
    told = {
        "rows": content.rows,
        "row_ids": content.row_ids,
        "counts": content.counts,
        "train_runs": content.train_runs,
        "denied": content.denied,
    }
    return pack({"rows": part.rows, "facts": told}, id_filter=content.id_filter)


class _Facts:
    """What is looked at beside the digest: counts, row ids, training rows, ids."""

    def __init__(self, corpus: BaseCorpus, record: SnapshotRecord, against: IdFilter | None) -> None:
        schema = sealed_place(corpus, record).schema
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in _COUNTED if name in schema.names and _is_countable(schema.field(name).type)
        }
        self.columns = [*dict.fromkeys(["id", "split", *self.counts]), ROW_ID]
        self.against = against
        self.builder = FilterBuilder(record.rows) if against is None else None
        self.runs: list[Runs] = []
        self.denied = 0
        self.first, self.last = record.row_ids[1], record.row_ids[0] - 1

    def look(self, batch: pa.RecordBatch) -> None:
        for name, counter in list(self.counts.items()):
            values, times = batch.column(name).value_counts().flatten()
            for value, n in zip(values.to_pylist(), times.to_pylist(), strict=True):
                counter["" if value is None else str(value)] += n
            if len(counter) > _MOST_VALUES:
                del self.counts[name]
        if self.builder is not None:
            self.builder.add(batch.column("id"))
        elif self.against is not None:
            self.denied += self.against.lacks(batch.column("id"))
        self.runs.append(_runs(batch, "train"))
        ids = np.asarray(batch.column(ROW_ID))
        self.first, self.last = min(self.first, int(ids.min())), max(self.last, int(ids.max()))


@dataclass(frozen=True)
class _Part:
    rows: int
    digest: ContentDigest
    facts: _Facts | None


def _read_part(
    corpus: BaseCorpus,
    record: SnapshotRecord,
    columns: Sequence[str],
    facts: _Facts | None,
    progress: Callable[[int], object] | None,
    *,
    whole: bool = False,
) -> _Part:
    """Read these columns once, and what the facts look at."""
    place = sealed_place(corpus, record)
    digest = ContentDigest(place.schema, None if whole else columns)
    rows = 0
    wanted = list(dict.fromkeys([*columns, *(facts.columns if facts is not None else ())]))
    try:
        for batch in aligned(place.scan(wanted)):
            if columns:
                digest.update(batch)
            rows += len(batch)
            if facts is not None:
                facts.look(batch)
            if progress is not None:
                progress(rows)
    except (ArithmeticError, LookupError, ValueError) as exc:  # what a flipped bit decodes to, Arrow may refuse
        if isinstance(exc, TreeringError):
            raise
        raise StoreError(str(exc), code="engine") from exc
    return _Part(rows, digest, facts)


def _content(rows: int, digest: str, blocks: Sequence[int], facts: _Facts) -> Content:
    return Content(
        rows=rows,
        row_ids=(facts.first, facts.last + 1),
        digest=digest,
        blocks=np.array(blocks, "<u8").tobytes(),
        counts={k: dict(sorted(c.items())) for k, c in facts.counts.items()},
        train_runs=[(int(a), int(n)) for a, n in join_runs(facts.runs)],
        denied=facts.denied,
        id_filter=facts.builder.save() if facts.builder is not None else b"",
    )


def sealed_place(corpus: BaseCorpus, record: SnapshotRecord) -> Place:
    """The snapshot read as the version it was sealed with: what evolves later changes no digest."""
    return sealed_in(corpus, record, corpus.known_versions(record.schema_version)[: record.schema_version])


def block_hashes(certificate: Certificate) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The hash of each `BLOCK_ROWS` records in order, as it was certified: uint64 (n,)."""
    return np.frombuffer(base64.b64decode(certificate.blocks), "<u8")


@giving_back()
def build_certificate(
    corpus: BaseCorpus,
    record: SnapshotRecord,
    *,
    progress: Callable[[int], object] | None = None,
    engine: Engine | None = None,
) -> Certificate:
    """Read the snapshot once and keep what was learnt. Two builders come to the same; the first one's is kept.

    `progress` is called as by `read_content`; workers of an `engine` read, and this process keeps. Raises StoreError when the data
    contradicts the record, or an earlier certificate.
    """
    table = corpus.table
    paths = table.certified(sealed_place(corpus, record).dataset)
    with ThreadPoolExecutor(1) as beside:  # files are hashed while records are decoded
        hashing = beside.submit(file_sums, corpus, paths, engine)
        content = read_content(corpus, record, progress=progress, engine=engine)
        files = hashing.result()
    missing = next((path for path in paths if not files[path]), None)
    if missing is not None:
        raise NotFoundError(f"{table.path_of(missing)} is missing", code="object-missing")
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


def file_sums(corpus: BaseCorpus, paths: Sequence[str], engine: Engine | None) -> dict[str, str]:
    """SHA-256 (hex) of files of the table; "" for one that is missing, and what is wrong with one that can't be read."""
    if engine is None:
        return _sums(corpus, paths)
    count = max(1, min(len(paths), 4 * engine.slots))
    each = [{"store": corpus.store.address, "corpus": corpus.name, "paths": paths[n::count]} for n in range(count)]
    found: dict[str, str] = {}
    for result in engine.map("treering.store.certificate:sum_files", each):
        found |= json.loads(result)
    return found


def sum_files(store: Mapping[str, Any], corpus: str, paths: Sequence[str]) -> bytes:
    """In a worker: `file_sums` of some files, as JSON."""
    return json.dumps(_sums(reopened(store).corpus(corpus), paths)).encode()


def _sums(corpus: BaseCorpus, paths: Sequence[str]) -> dict[str, str]:
    sums: dict[str, str] = {}
    for path in paths:
        try:
            sums[path] = corpus.table.file_sha256(path)
        except TreeringError as exc:
            sums[path] = "" if isinstance(exc, NotFoundError) else exc.message
    return sums


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
