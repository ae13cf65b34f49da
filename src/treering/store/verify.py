"""Verify that everything a snapshot consists of is what it was when it was sealed.

Documents by their own checksums, the manifest by the record, every file by the certificate, and what the records say by
their digest. A finding names the file and, where a data file is damaged, the records that no longer read as they did.
Reads, and changes nothing but to certify a snapshot that nobody has certified yet. What the engine can be asked of live
is asked: which version is the newest, which files there are, and whether every record can be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from treering.engine import engine_of
from treering.engine.base import WORKER_CODES
from treering.errors import NotFoundError, StoreError, TreeringError, UsageError
from treering.store.base import reopened
from treering.store.certificate import (
    block_hashes,
    build_certificate,
    file_sums,
    find_certificate,
    read_content,
    sealed_place,
)
from treering.store.digest import BLOCK_ROWS, ContentDigest
from treering.store.documents import CorpusRecord, PruneRecord, SnapshotRecord, check_document, parse_document
from treering.store.heldout import read_heldout
from treering.store.idfilter import IdFilter
from treering.store.memory import giving_back
from treering.store.place import head_of
from treering.store.runs import RowIds, runs_of
from treering.store.schemas import read_versions
from treering.store.snapshot import list_records
from treering.store.table import ROW_ADDRESS, ROW_ID, Dataset, describe

if TYPE_CHECKING:
    from treering.engine import Engine
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.documents import Certificate

__all__ = ["Finding", "Verification", "verify", "verify_live", "verify_store"]

#: Called with (what is being verified, rows read, rows in all).
Progress = Callable[[str, int, int], object]


class Finding(BaseModel):
    """One thing that isn't as it was."""

    model_config = ConfigDict(frozen=True)

    file: str = Field(description="Path relative to the store.")
    what: str
    records: list[tuple[int, int]] = Field(
        default_factory=list, description="Half-open intervals of stable row ids: the records that it concerns."
    )

    def __str__(self) -> str:
        """`tables/…: isn't the file that was certified; records 512–1,023 and 2,048–2,559 (by row id)`."""
        named = [f"{low:,}–{high - 1:,}" for low, high in self.records[:_NAMED]]
        more = f" and {len(self.records) - _NAMED:,} more stretches" if len(self.records) > _NAMED else ""
        return f"{self.file}: {self.what}" + (f"; records {', '.join(named)}{more} (by row id)" if named else "")


_NAMED = 5
_FRAGMENTS = 8  # of live that a worker reads at a time


class Verification(BaseModel):
    """What verifying a snapshot, a live or a corpus's documents came to."""

    model_config = ConfigDict(frozen=True)

    ref: str
    ok: bool
    snapshot: str | None = Field(description="`v1`; null for live and for documents.")
    edition: int | None
    rows: int = Field(description="Records that were read.")
    digest: str | None = Field(description="Content digest as certified.")
    certified_now: bool = Field(description="Nobody had certified it: from now on it can be compared with something.")
    pruned: bool = Field(default=False, description="Its records were pruned: only its documents are left to compare.")
    files: int = Field(description="Files and documents that were compared.")
    findings: list[Finding]


class _Report:
    """Findings as they come up."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.files = 0
        self.pruned = False  # then there are no records to compare

    def add(self, file: str, what: str, records: list[tuple[int, int]] | None = None) -> None:
        if not any(finding.file == file and finding.what == what for finding in self.findings):
            self.findings.append(Finding(file=file, what=what, records=records or []))

    @contextmanager
    def checking(self, file: str) -> Iterator[None]:
        """Whatever goes wrong inside is a finding about `file`."""
        self.files += 1
        try:
            yield
        except TreeringError as exc:
            if exc.code in WORKER_CODES:
                raise  # it says nothing of the file
            self.add(file, exc.message)


@giving_back()
def verify(
    corpus: BaseCorpus, name: str, *, progress: Progress | None = None, engine: Engine | None = None
) -> Verification:
    """Compare a snapshot (`v1`) with all that is known of it; of a pruned one, what is left. See `Verification`.

    Workers of an `engine` read columns and hash files; what they find is put together and judged here.
    Raises NotFoundError when there never was such a snapshot, UsageError for what can't name one; damage never raises.
    """
    if not (name[:1] == "v" and name[1:].isascii() and name[1:].isdigit() and name[1] != "0"):
        raise UsageError(f"snapshots are called v1, v2, …, not {name!r}", code="bad-ref")
    report = _Report()
    record = _record(corpus, name, report)
    if record is None:
        return _result(f"{corpus.name}@{name}", report, snapshot=name)
    _documents(corpus.store, corpus.name, report)
    if report.pruned:
        return _left_of(corpus, record, report)
    readable = _manifest(corpus, record, report)
    certificate, new = None, False
    path = record.path("certificate.json")
    with report.checking(path):
        certificate = _fresh_certificate(corpus, record)
    if certificate is None and not report.findings:
        with report.checking(path):
            shown = None if progress is None else lambda done: progress(f"certifying {record.ref}", done, record.rows)
            certificate, new = build_certificate(corpus, record, progress=shown, engine=engine), True
    _tag(corpus, record, certificate, report)
    if certificate is not None:
        if certificate.record != record:
            report.add(path, f"it was made for another record of {record.ref} than the one that is there")
        elif not new:
            _certified(corpus, record, certificate, readable, report, progress, engine)
    return _result(record.ref, report, record, certificate, new)


def _left_of(corpus: BaseCorpus, record: SnapshotRecord, report: _Report) -> Verification:
    """What a pruned snapshot has left: hashes of its ids, held-out records that were kept, its certificate."""
    folder = record.path("").rpartition("/")[0]
    path = f"{folder}/pruned.json"
    certificate, rows = None, 0
    with report.checking(path):
        pruned = parse_document(PruneRecord, path, corpus.store.objects.get(path))
        with report.checking(pruned.ids):
            if corpus.store.objects.sha256(pruned.ids) != pruned.ids_sha256:
                report.add(pruned.ids, "isn't the list of ids that late retries are known by")
        if pruned.heldout:
            with report.checking(f"{folder}/heldout.1.json"):
                rows = read_heldout(corpus, pruned)
    with report.checking(record.path("certificate.json")):
        certificate = _fresh_certificate(corpus, record)
    return Verification(
        ref=record.ref,
        ok=not report.findings,
        snapshot=record.name,
        edition=record.edition,
        rows=rows,
        digest=certificate.digest if certificate is not None else None,
        certified_now=False,
        files=report.files,
        findings=report.findings,
        pruned=True,
    )


def _result(
    ref: str,
    report: _Report,
    record: SnapshotRecord | None = None,
    certificate: Certificate | None = None,
    new: bool = False,
    *,
    snapshot: str | None = None,
    rows: int = 0,
) -> Verification:
    return Verification(
        ref=ref,
        ok=not report.findings,
        snapshot=record.name if record is not None else snapshot,
        edition=record.edition if record is not None else None,
        rows=record.rows if record is not None else rows,
        digest=certificate.digest if certificate is not None else None,
        certified_now=new,
        files=report.files,
        findings=report.findings,
    )


def _record(corpus: BaseCorpus, name: str, report: _Report) -> SnapshotRecord | None:
    """The newest edition of the record; every document beside it has its checksum compared."""
    folder = f"snapshots/{corpus.record.table}/{name}"
    objects = corpus.store.objects
    paths = objects.list(folder)
    report.pruned = f"{folder}/pruned.json" in paths
    editions = {int(stem): path for path in paths if (stem := _stem(path)).isdigit()}
    for path in paths:
        if path.endswith(".json"):
            with report.checking(path):
                check_document(path, objects.get(path))
    if not editions:
        if paths:
            report.add(f"{folder}/1.json", f"the record of {corpus.name}@{name} is missing")
            return None
        known = []
        with report.checking(f"{folder}/1.json"):  # the witness knows of snapshots whose folder is gone, too
            known = [record.name for record in list_records(corpus)]
        if not report.findings:
            raise NotFoundError(
                f"there is no snapshot {corpus.name}@{name}",
                code="no-snapshot",
                hint=f"snapshots here: {', '.join(known) or 'none yet'}",
            )
        return None
    path = editions[max(editions)]
    with report.checking(path):
        record = parse_document(SnapshotRecord, path, objects.get(path))
        if (record.path(), record.name) != (path, name):
            raise StoreError(f"it says that it is {record.path()}", code="document-damaged")
        return record
    return None


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.removesuffix(".json") if name.endswith(".json") else ""


def _documents(store: BaseStore, name: str, report: _Report) -> None:
    """What it takes to read any snapshot of a corpus: the store's marker, the corpus's record, its schemas."""
    paths = store.objects.list(f"corpora/{name}")
    for path in ["treering.json", *paths]:
        with report.checking(path):
            check_document(path, store.objects.get(path))
    path = f"corpora/{name}/corpus.json"
    if not any(finding.file in paths for finding in report.findings):
        with report.checking(path):
            record = parse_document(CorpusRecord, path, store.objects.get(path))
            read_versions(store, record)


def _manifest(corpus: BaseCorpus, record: SnapshotRecord, report: _Report) -> bool:
    """Compare the manifest with the record. Whether the version can be opened at all."""
    table = corpus.table
    path = table.path_of(table.manifest_path(record.version, record.branch))
    with report.checking(path):
        if table.manifest_sha256(record.version, record.branch) != record.manifest_sha256:
            report.add(path, "isn't the manifest that was sealed", [record.row_ids])
            return False
        sealed_place(corpus, record)
        return True
    return False


def _tag(corpus: BaseCorpus, record: SnapshotRecord, certificate: Certificate | None, report: _Report) -> None:
    table = corpus.table
    path = table.path_of(table.tag_path(record.name))
    with report.checking(path):
        data = table.read_tag(record.name)
        if data is None:
            if certificate is None or certificate.tag is None:
                return  # a seal that was cut short: whoever maintains the corpus next tags it
            report.add(path, "the tag is missing: plain Lance can't open the snapshot by its name")
            return
        try:
            said = json.loads(data)
            named = (said["branch"], said["version"])
        except (ValueError, LookupError, TypeError):
            report.add(path, "the tag can't be read")
            return
        if named != (record.branch, record.version):
            report.add(
                path, f"the tag names {describe(named)}, the record says {describe((record.branch, record.version))}"
            )
        elif certificate is not None and certificate.tag is not None and data != certificate.tag.encode():
            report.add(path, "the tag was changed since it was certified, though it names the right version")


def _certified(
    corpus: BaseCorpus,
    record: SnapshotRecord,
    certificate: Certificate,
    readable: bool,
    report: _Report,
    progress: Progress | None,
    engine: Engine | None,
) -> None:
    """Compare every file with the certificate and, where they can be read, the records with their digest."""
    table = corpus.table
    bloom = _filter(corpus, certificate, report)
    with ThreadPoolExecutor(1) as beside:  # files are hashed while records are decoded
        comparing = beside.submit(file_sums, corpus, list(certificate.files), engine)
        content, unread = None, None
        if readable:
            try:
                shown = None if progress is None else lambda done: progress(record.ref, done, record.rows)
                content = read_content(
                    corpus, record, against=bloom, progress=shown, engine=engine, denies=certificate.id_filter
                )
            except TreeringError as exc:
                unread = exc
        sums = comparing.result()
    wrong = [path for path, expected in certificate.files.items() if sums[path] != expected]
    # Nothing ever reads a transaction again: one that a cleanup took is no loss.
    wrong = [path for path in wrong if sums[path] or "_transactions" not in path.split("/")]
    report.files += len(certificate.files)
    concerned = _damaged_records(corpus, record, certificate, wrong) if readable else {}
    for path in wrong:
        said = "isn't the file that was certified" if sums[path] else "is missing"
        report.add(table.path_of(path), said, concerned.get(path))
    if wrong:
        return
    if unread is not None and unread.code in WORKER_CODES:
        raise unread  # it says nothing of the records
    where = record.path("certificate.json")
    if unread is not None:
        report.add(table.path_of("data"), f"can't be read, though every file is as it was certified: {unread}")
    elif content is not None:
        for what, same in (
            ("rows", content.rows == certificate.rows),
            ("content digest", content.digest == certificate.digest),
            ("hashes of its records", content.blocks == block_hashes(certificate).tobytes()),
            ("training rows", content.train_runs == certificate.train_runs),
            ("counts", content.counts == certificate.counts),
        ):
            if not same:
                report.add(where, f"the {what} are not those of the files", [record.row_ids])
        if (
            content.rows != record.rows
            or content.row_ids[0] < record.row_ids[0]
            or content.row_ids[1] > record.row_ids[1]
        ):
            report.add(record.path(), "its rows aren't those of the files", [record.row_ids])
        if content.denied:
            report.add(certificate.id_filter, f"denies {content.denied:,} ids that the snapshot holds")


def _fresh_certificate(corpus: BaseCorpus, record: SnapshotRecord) -> Certificate | None:
    corpus.store.forget_document(record.path("certificate.json"))
    return find_certificate(corpus, record)


def _filter(corpus: BaseCorpus, certificate: Certificate, report: _Report) -> IdFilter | None:
    with report.checking(certificate.id_filter):
        data = corpus.store.objects.get(certificate.id_filter)
        if hashlib.sha256(data).hexdigest() != certificate.id_filter_sha256:
            raise StoreError("isn't the filter that was certified", code="object-damaged")
        return IdFilter(data)
    return None


def _damaged_records(
    corpus: BaseCorpus, record: SnapshotRecord, certificate: Certificate, wrong: list[str]
) -> dict[str, list[tuple[int, int]]]:
    """For each damaged data or deletion file the records that don't read as they did, as intervals of row ids.

    Only the damaged files' blocks are read, each on its own: one that can't be decoded at all counts as damaged.
    """
    table = corpus.table
    table.release()
    place = sealed_place(corpus, record)
    owners = table.owners(place.dataset)
    if not any(path in owners for path in wrong):
        return {}
    try:
        batches = list(table.scan(place.dataset, [ROW_ID, ROW_ADDRESS]))
    except TreeringError:  # a damaged deletion file: then nothing can be told apart
        return {path: [record.row_ids] for path in wrong if path in owners}
    row_ids = np.concatenate([np.asarray(batch.column(0)).astype(np.int64) for batch in batches])
    fragments = np.concatenate([np.asarray(batch.column(1)) >> np.uint64(32) for batch in batches])
    hashes = block_hashes(certificate)
    found: dict[str, list[tuple[int, int]]] = {}
    for path in wrong:
        if path not in owners:
            continue
        mine = fragments == owners[path]
        if not mine.any() or len(row_ids) != certificate.rows:
            found[path] = [record.row_ids]
            continue
        damaged = np.zeros(len(row_ids), bool)
        for block in np.unique(np.flatnonzero(mine) // BLOCK_ROWS).tolist():
            span = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
            damaged[span] = not _reads_as(corpus, record, row_ids[span], int(hashes[block]))
        runs = runs_of(np.sort(row_ids[damaged & mine]))
        found[path] = [(int(first), int(first + length)) for first, length in runs]
    table.release()
    return found


def _reads_as(corpus: BaseCorpus, record: SnapshotRecord, row_ids: RowIds, expected: int) -> bool:
    place = sealed_place(corpus, record)
    digest = ContentDigest(place.schema)
    try:
        rows = place.take(row_ids, place.columns).combine_chunks().to_batches()
        if len(rows) != 1 or len(rows[0]) != len(row_ids):
            return False
        digest.update(rows[0])
    except (TreeringError, ArithmeticError, LookupError, ValueError):
        return False
    return digest.blocks() == [expected]


@giving_back()
def verify_live(corpus: BaseCorpus, *, progress: Progress | None = None, engine: Engine | None = None) -> Verification:
    """Whether live's newest version is the one that was committed, all its files are there, and every record can be read.

    Live has no certificate: a flipped bit that still decodes shows only once it is sealed, as a digest of its own.
    """
    report = _Report()
    ref, rows = f"{corpus.name}@live", 0
    table = corpus.table
    with report.checking(table.path_of("_versions")):
        list_records(corpus)  # first: then the handle is known to be no older than any of them
        head = head_of(corpus)
        report.files += len(table.files(head.dataset))
        table.check_present(head.dataset)
        total = table.count(head.dataset)
        for more in _lengths(corpus, head.dataset, engine):
            rows += more
            if progress is not None:
                progress(ref, rows, total)
        if rows != total:
            raise StoreError(f"{rows:,} records can be read, {total:,} should be there", code="snapshot-damaged")
    return _result(ref, report, rows=rows)


def _lengths(corpus: BaseCorpus, dataset: Dataset, engine: Engine | None) -> Iterator[int]:
    """Read every record of live; gives how many, as they are read."""
    table = corpus.table
    if engine is None:
        yield from (len(batch) for batch in table.scan(dataset, dataset.schema.names))
        return
    numbers = [int(fragment.fragment_id) for fragment in dataset.get_fragments()]
    where = {"store": corpus.store.address, "corpus": corpus.name, "version": int(dataset.version)}
    each = [{**where, "fragments": numbers[n : n + _FRAGMENTS]} for n in range(0, len(numbers), _FRAGMENTS)]
    for result in engine.map("treering.store.verify:read_fragments", each):
        yield int(result)


def read_fragments(store: Mapping[str, Any], corpus: str, version: int, fragments: Sequence[int]) -> bytes:
    """In a worker: read every record of these fragments; gives how many there are."""
    table = reopened(store).corpus(corpus).table
    dataset = table.at(version)
    return str(sum(map(len, table.scan(dataset, dataset.schema.names, fragments=fragments)))).encode()


def verify_store(
    store: BaseStore,
    ref: str | None = None,
    *,
    progress: Progress | None = None,
    engine: str | Engine | None = None,
) -> list[Verification]:
    """Everything that a ref names (`support@v1`, `support@v1..v3`, `support@live`, `support`); all of it without one.

    engine: who reads, this process by default; "local" (worker processes), "ray", or an engine at hand. They find the same.

    Damage never raises, not even in what it takes to open a corpus. Raises NotFoundError, UsageError for what isn't there, and
    StoreError when a worker dies.
    """
    with engine_of(engine, store.uri) as workers:
        return _verify_store(store, ref, progress, workers)


def _verify_store(
    store: BaseStore, ref: str | None, progress: Progress | None, engine: Engine | None
) -> list[Verification]:
    from treering.store.ref import Ref, check_corpus_name

    if ref is not None and "@" in ref:
        parsed = Ref.parse(ref)
        home = store if parsed.store is None else store.neighbour(parsed.store)
        corpus: BaseCorpus = home.corpus(parsed.corpus)
        if parsed.kind == "live":
            return [verify_live(corpus, progress=progress, engine=engine)]
        if parsed.kind in ("snapshot", "range"):
            numbers = range(parsed.first, parsed.last + 1)
            return [verify(corpus, f"v{n}", progress=progress, engine=engine) for n in numbers]
        raise UsageError(
            f"{ref} can't be verified by itself", code="bad-ref", hint="name a snapshot, live, or a whole corpus"
        )
    found: list[Verification] = []
    names = [path.split("/")[1] for path in store.objects.list("corpora") if path.endswith("/corpus.json")]
    if ref is not None:
        check_corpus_name(ref)
        if ref not in names:
            store.corpus(ref)  # says which there are
        names = [ref]
    for name in sorted(names):
        report = _Report()
        _documents(store, name, report)
        if not report.findings:
            with report.checking(f"corpora/{name}/corpus.json"):
                found += _all_of(store.corpus(name), progress, engine)
        if report.findings:
            found.append(_result(name, report))
    return found


def _all_of(corpus: BaseCorpus, progress: Progress | None, engine: Engine | None) -> Iterator[Verification]:
    folder = f"snapshots/{corpus.record.table}/"
    numbers = {
        path.removeprefix(folder).partition("/")[0][1:]
        for path in corpus.store.objects.list(folder)
        if not path.endswith("/unpacking.json")  # that alone is a snapshot that never came to be
    }
    witness = corpus.table.witness
    seen = None if witness is None else witness.read()
    last = max([seen.snapshots if seen is not None else 0, *(int(n) for n in numbers if n.isdigit())])
    for number in range(1, last + 1):
        yield verify(corpus, f"v{number}", progress=progress, engine=engine)
    yield verify_live(corpus, progress=progress, engine=engine)
