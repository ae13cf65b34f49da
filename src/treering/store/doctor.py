"""The doctor: whether a store is fit to be relied on, and what to do where it isn't.

Looks at everything around the records: documents, permissions, symbolic links, versions and their witness, tags, pending
seals, leases, files left behind, how far small commits have made tables rot, and disk space. Repairs what can be repaired
without guessing. Whether the records are what was sealed is `verify`'s to say; spools are looked at by `capture.rescue`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from treering.errors import NotFoundError, StoreError, TreeringError
from treering.schema import fingerprint
from treering.schema.evolution import newest_held
from treering.store.certificate import find_certificate, read_content
from treering.store.documents import Certificate, SnapshotRecord, check_document, parse_document
from treering.store.durable import sync_directory, sync_file
from treering.store.lease import is_held
from treering.store.snapshot import finish_pending, listed, standing
from treering.store.table import TARGET_ROWS_PER_FRAGMENT, created_up_to
from treering.store.witness import Seen, boot_id

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.table import LanceTable

__all__ = ["Chart", "Diagnosis", "Remark", "TableHealth", "examine"]

Level = Literal["note", "warning", "problem"]

#: A file that its writer hasn't finished within so long is of a process that died.
_ABANDONED_S = 60.0
_LITTLE_SPACE = 1 << 30
#: The store's own directories; whatever else lies at its top is none of it.
_OWN = (
    "corpora",
    "snapshots",
    "tables",
    "adapters",
    "selections",
    "unpacking",
    "quarantine",
    "spool",
    "witness",
    "leases",
)


class Remark(BaseModel):
    """One thing that was found; `warning` and `problem` need action, a `note` doesn't."""

    model_config = ConfigDict(frozen=True)

    level: Level
    code: str = Field(description="What kind of thing; never renamed.")
    where: str = Field(description="Path relative to the store, or a ref.")
    line: str
    remedy: str | None = None
    repaired: bool = False


class TableHealth(BaseModel):
    """How a table fares against the same records in one compacted table."""

    model_config = ConfigDict(frozen=True)

    table: str
    version: int
    witnessed: int | None = Field(description="Newest version known to be on disk; null on an object store.")
    rows: int = Field(description="Records in its newest version.")
    fragments: int
    fragments_compacted: int = Field(description="How many full fragments those records would take.")
    manifests: int
    bytes_on_disk: int = Field(description="All its files.")
    bytes_needed: int = Field(description="Those that the newest version or a snapshot refers to.")


class Diagnosis(BaseModel):
    """What the doctor found."""

    model_config = ConfigDict(frozen=True)

    store: str
    ok: bool = Field(description="Nothing is left that needs action.")
    remarks: list[Remark]
    tables: list[TableHealth]
    disk_free: int | None = Field(description="Bytes free where the store lies; null on an object store.")


class Chart:
    """Remarks as they come up. `repair`: whether what can be repaired is to be."""

    def __init__(self, store: BaseStore, repair: bool) -> None:
        self.store = store
        self.repair = repair
        self.remarks: list[Remark] = []
        self.tables: list[TableHealth] = []
        self._command = f"treering doctor --repair --store {store.uri}"

    def add(
        self,
        level: Level,
        code: str,
        where: str,
        line: str,
        remedy: str | None = None,
        *,
        cure: Callable[[], object] | None = None,
    ) -> bool:
        """Note something; with a `cure`, and if repairing, apply that. Whether it is repaired."""
        repaired = False
        if cure is not None:
            if self.repair:
                try:
                    cure()
                    repaired = True
                except (TreeringError, OSError) as exc:
                    line += f"; repairing it failed: {getattr(exc, 'message', exc)}"
            else:
                remedy = f"{self._command}" + (f" ({remedy})" if remedy else "")
        self.remarks.append(Remark(level=level, code=code, where=where, line=line, remedy=remedy, repaired=repaired))
        return repaired

    @contextmanager
    def checking(self, where: str) -> Iterator[None]:
        """An error inside is a problem with `where`; the examination goes on."""
        try:
            yield
        except TreeringError as exc:
            if not any(remark.code == exc.code and not remark.repaired for remark in self.remarks):  # said already
                self.add("problem", exc.code, where, exc.message, exc.hint)
        except OSError as exc:
            self.add("problem", "read-failed", where, str(exc.strerror or exc))

    def diagnosis(self) -> Diagnosis:
        """All of it."""
        left = [remark for remark in self.remarks if remark.level != "note" and not remark.repaired]
        root = self.store.root
        return Diagnosis(
            store=self.store.uri,
            ok=not left,
            remarks=sorted(self.remarks, key=_order),
            tables=self.tables,
            disk_free=None if root is None else shutil.disk_usage(root).free,
        )


def _order(remark: Remark) -> tuple[bool, int]:
    return remark.repaired, ("problem", "warning", "note").index(remark.level)


def examine(chart: Chart, corpus_too: Callable[[Chart, Any], object] = lambda chart, corpus: None) -> Diagnosis:
    """Look at a whole store. `corpus_too` is called with each corpus that opens, for what lies outside this layer."""
    store = chart.store
    with chart.checking("treering.json"):
        check_document("treering.json", store.objects.get("treering.json"))
    if store.root is not None:
        _permissions(chart, store.root)
        _left_behind(chart, store.root)
        _space(chart, store.root)
    names = [path.split("/")[1] for path in store.objects.list("corpora") if path.endswith("/corpus.json")]
    for name in sorted(names):
        with chart.checking(f"corpora/{name}"):
            corpus = store.corpus(name)
            if store.root is not None:
                _versions(chart, corpus)
            _records(chart, corpus)
            _tags(chart, corpus)
            _health(chart, corpus.table, [(r.version, r.branch) for r in standing(corpus)])
            _pending(chart, corpus)
            if corpus.annotation_log.table.head_if_made() is not None:
                _health(chart, corpus.annotation_log.table, [])
            corpus_too(chart, corpus)
    return chart.diagnosis()


# --- the directory -------------------------------------------------------------------------------------------------


def _permissions(chart: Chart, root: Path) -> None:
    """What others can write, and links that leave the store."""
    real = root.resolve()
    writable: list[Path] = []
    for folder, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(folder) / name
            with suppress(OSError):
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    target = path.resolve()
                    if not target.is_relative_to(real):
                        chart.add(
                            "warning", "symlink", _relative(root, path),
                            f"is a link that leaves the store, to {target}",
                            "put what it names there itself, or remove the link",
                        )  # fmt: skip
                elif mode & stat.S_IWOTH:
                    writable.append(path)
    if root.stat().st_mode & stat.S_IWOTH:
        writable.insert(0, root)
    if writable:
        more = f" and {len(writable) - 1:,} more" if len(writable) > 1 else ""
        chart.add(
            "warning", "world-writable", _relative(root, writable[0]),
            f"anybody on this machine can change it{more}",
            f"chmod -R o-w {root}",
            cure=partial(_close_to_others, writable),
        )  # fmt: skip


def _close_to_others(paths: Sequence[Path]) -> None:
    for path in paths:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~stat.S_IWOTH)


def _left_behind(chart: Chart, root: Path) -> None:
    """Files that processes that are gone were still writing."""
    before = time.time() - _ABANDONED_S
    for top in _OWN:
        for path in (root / top).rglob("*#*") if top != "tables" else ():
            with suppress(OSError):
                if path.is_file() and path.stat().st_mtime < before:
                    cure = path.unlink
                    chart.add("note", "left-behind", _relative(root, path), "was never finished; nothing refers to it",
                              "it is removed", cure=cure)  # fmt: skip
    for path in (root / "damaged").glob("*") if (root / "damaged").is_dir() else ():
        chart.add(
            "note",
            "set-aside",
            _relative(root, path),
            "was set aside by an earlier repair",
            "look at it, then remove it",
        )


def _space(chart: Chart, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < _LITTLE_SPACE:
        chart.add("warning", "little-space", ".", f"{free >> 20:,} MB are free on this disk", "free some space")
    cached = sum(path.stat().st_size for path in (root / "cache").rglob("*") if path.is_file())
    if cached:
        chart.add(
            "note", "cache", "cache", f"{cached >> 20:,} MB of it can be dropped at any time", "treering cache drop"
        )


# --- versions ------------------------------------------------------------------------------------------------------


def _versions(chart: Chart, corpus: BaseCorpus) -> None:
    for table in (corpus.table, corpus.annotation_log.table):
        if table.newest_manifests() and not table.is_unmade():
            _witness(chart, corpus, table)
            _head(chart, corpus, table)


def _witness(chart: Chart, corpus: BaseCorpus, table: LanceTable) -> None:
    """Whether what is known of the newest version can be read at all."""
    witness = table.witness
    assert witness is not None
    where = f"witness/{witness.path.name}"
    try:
        seen = witness.read()
    except StoreError as exc:
        chart.add("problem", exc.code, where, "both halves of it are damaged: nobody knows what the newest version was",
                  "it is written anew from what is there", cure=lambda: _rewrite(corpus, table))  # fmt: skip
        return
    if seen is None:
        chart.add("warning", "witness-missing", where, "is missing: nobody knows what the newest version was",
                  "it is written anew from what is there", cure=lambda: _rewrite(corpus, table))  # fmt: skip
    elif witness.slots() < 2:

        def cure() -> None:
            with witness.held():
                witness.renew(witness.read() or seen)
            table.make_durable(table.head())  # the half that is lost may have known more

        chart.add(
            "warning",
            "witness-torn",
            where,
            "one half of it is damaged",
            "it is written anew from the other",
            cure=cure,
        )


def _rewrite(corpus: BaseCorpus, table: LanceTable) -> None:
    """Write the witness anew: what is there now is what counts."""
    assert table.witness is not None
    with table.witness.held():
        version = table.newest_manifests()[0]
        snapshots = _numbers(corpus) if table is corpus.table else []
        table.witness.renew(Seen(version, table.manifest_sha256(version), max(snapshots, default=0), boot_id()))


def _numbers(corpus: BaseCorpus) -> list[int]:
    """Numbers of the snapshots that have a record, whatever may be missing."""
    paths = corpus.store.objects.list(f"snapshots/{corpus.record.table}")
    return sorted({int(p.split("/")[2][1:]) for p in paths if _is_record(p)})


def _is_record(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name.removesuffix(".json").isdigit() and name.endswith(".json") and folder.rpartition("/v")[2].isdigit()


def _head(chart: Chart, corpus: BaseCorpus, table: LanceTable) -> None:
    """Whether the newest version is the one that was committed."""
    try:
        table.head()
    except StoreError as exc:
        where = table.path_of("_versions")
        if exc.code in ("rolled-back", "manifest-changed", "manifest-damaged"):
            repaired = chart.add(
                "problem", exc.code, where, exc.message,
                "what can still be read becomes the newest version; records in files that no version names are taken in again",
                cure=lambda: _go_on(corpus, table),
            )  # fmt: skip
            if repaired:
                return
        raise


def _go_on(corpus: BaseCorpus, table: LanceTable) -> None:
    """Go on from the newest version that can be read, under a number that was never used.

    The numbers of lost versions must not come back: a tag or a record could then name other rows.
    """
    with corpus.lease():
        assert table.witness is not None
        assert table.root is not None
        seen = table.witness.read()
        aside = table.root.parents[1] / "damaged"
        for version in table.newest_manifests():
            if table.reads(version):
                break
            aside.mkdir(exist_ok=True)
            path = table.root / table.manifest_path(version)
            path.rename(aside / f"{table.name}-{version}.manifest")
            sync_directory(path.parent)
        table.bump(max(seen.version if seen is not None else 0, table.floor))


# --- snapshots -----------------------------------------------------------------------------------------------------


def _records(chart: Chart, corpus: BaseCorpus) -> None:
    """Records and certificates: each there, each readable."""
    objects, table = corpus.store.objects, corpus.table
    folder = f"snapshots/{table.name}"
    for path in objects.list(folder):
        if not path.endswith(".json"):
            continue
        try:
            check_document(path, objects.get(path))
        except StoreError as exc:
            cure = partial(_restore, corpus, path) if _is_record(path) else None
            chart.add("problem", exc.code, path, exc.message, "it is written anew from the certificate" if cure else exc.hint,
                      cure=cure)  # fmt: skip
    known = _numbers(corpus)
    # A folder that holds nothing but an intent is a snapshot that never came to be.
    folders = [path.split("/")[2][1:] for path in objects.list(folder) if not path.endswith("/unpacking.json")]
    named = {int(number) for number in folders if number.isdigit()} | set(_tagged(table))
    seen = table.witness.read() if table.witness is not None else None
    for number in range(1, max([0, *named, *known, seen.snapshots if seen is not None else 0]) + 1):
        if number not in known:
            chart.add(
                "problem", "record-missing", f"{folder}/v{number}/1.json",
                f"the record of {corpus.name}@v{number} is missing, and it was sealed",
                "it is written anew from its certificate or its tag",
                cure=partial(_remake, corpus, number),
            )  # fmt: skip
    if not [remark for remark in chart.remarks if remark.where.startswith(folder) and not remark.repaired]:
        for record in standing(corpus):
            _certificate(chart, corpus, record)


def _certificate(chart: Chart, corpus: BaseCorpus, record: SnapshotRecord) -> None:
    certificate = find_certificate(corpus, record)
    if certificate is None:
        chart.add("note", "uncertified", record.ref, "nobody has certified it yet", f"treering verify {record.ref}")
        path = record.path("ids.bloom")
        if corpus.store.objects.exists(path) and corpus.store.root is not None:
            chart.add("note", "left-behind", path, "a filter without its certificate", "it is made anew with the certificate",
                      cure=(corpus.store.root / path).unlink)  # fmt: skip
        return
    try:
        sound = (
            hashlib.sha256(corpus.store.objects.get(certificate.id_filter)).hexdigest() == certificate.id_filter_sha256
        )
    except NotFoundError:
        sound = False
    if not sound:
        chart.add("warning", "filter-damaged", certificate.id_filter, "isn't the filter of ids that was certified",
                  "it is made anew; until then ids are looked up one by one",
                  cure=lambda: _refilter(corpus, record, certificate))  # fmt: skip


def _refilter(corpus: BaseCorpus, record: SnapshotRecord, certificate: Certificate) -> None:
    made = read_content(corpus, record).id_filter
    if hashlib.sha256(made).hexdigest() != certificate.id_filter_sha256:
        raise StoreError(
            "the filter of the ids that are there isn't the one that was certified", code="snapshot-damaged"
        )
    _replace(corpus, certificate.id_filter, made)


def _tagged(table: LanceTable) -> list[int]:
    """Numbers of the snapshots that have a tag."""
    return [int(name[1:]) for name in table.tags() if name[:1] == "v" and name[1:].isdigit()]


def _restore(corpus: BaseCorpus, path: str) -> None:
    """Write a damaged record anew from the certificate that holds a copy."""
    held = path.removesuffix(".json") + ".certificate.json"
    certificate = parse_document(Certificate, held, corpus.store.objects.get(held))
    _replace(corpus, path, certificate.record.to_json())


def _replace(corpus: BaseCorpus, path: str, data: bytes) -> None:
    """Put other bytes in the place of an object that is damaged or gone; what was there is set aside."""
    root = corpus.store.root
    if root is None:
        raise StoreError(f"{path} can't be replaced on an object store", code="write-failed",
                         hint="put it back from the bucket's earlier versions")  # fmt: skip
    file = root / path
    if file.exists():
        (root / "damaged").mkdir(exist_ok=True)
        file.rename(root / "damaged" / path.replace("/", "-"))
        sync_directory(file.parent)
    corpus.store.objects.create(path, data)


def _remake(corpus: BaseCorpus, number: int) -> None:
    """Write a missing record: the certificate's copy of it, else what the tag and the version tell."""
    table, objects = corpus.table, corpus.store.objects
    held = f"snapshots/{table.name}/v{number}/1.certificate.json"
    with suppress(NotFoundError, StoreError):
        kept = parse_document(Certificate, held, objects.get(held)).record
        objects.create(kept.path(), kept.to_json())
        return
    data = table.read_tag(f"v{number}")
    if data is None:
        raise StoreError(f"neither a certificate nor a tag tells of v{number}", code="record-missing")
    said = json.loads(data)
    if said.get("branch") is not None:
        raise StoreError(f"the tag of v{number} names a branch: only its certificate could tell", code="record-missing")
    version = int(said["version"])
    with corpus.lease():
        before = _record_at(corpus, number - 1) if number > 1 else None
        dataset = table.at(version)
        versions = corpus.known_versions()
        schema = versions[newest_held(versions, dataset.schema) - 1]
        record = SnapshotRecord(
            corpus=corpus.name,
            incarnation=corpus.record.incarnation,
            name=f"v{number}",
            number=number,
            edition=1,
            branch=None,
            version=version,
            manifest_sha256=table.manifest_sha256(version),
            schema_version=schema.number,
            schema_fingerprint=fingerprint(schema.schema),
            parent=before.name if before else None,
            parent_version=before.version if before else 0,
            rows=table.count(dataset),
            row_ids=(before.row_ids[1] if before else 0, table.last_row_id(dataset) + 1),
            created_at=datetime.fromisoformat(said["createdAt"]),
            message="(its record was lost and written anew)",
        )
        objects.create(record.path(), record.to_json())


def _record_at(corpus: BaseCorpus, number: int) -> SnapshotRecord:
    """The first edition of a record: whose row ids and version a later one keeps on the main branch."""
    path = f"snapshots/{corpus.record.table}/v{number}/1.json"
    return parse_document(SnapshotRecord, path, corpus.store.objects.get(path))


def _tags(chart: Chart, corpus: BaseCorpus) -> None:
    """Each snapshot has its tag, which plain Lance opens it by."""
    table = corpus.table
    records = standing(corpus)
    for record in records:
        data = table.read_tag(record.name)
        try:
            said = json.loads(data) if data is not None else {}
            right = (said.get("branch"), said.get("version")) == (record.branch, record.version)
        except (ValueError, AttributeError):
            right = False
        if right or (data is None and record == records[-1] and not _was_tagged(corpus, record)):
            continue  # the newest one's seal may have been cut short: `_pending` completes it
        wrong = "is missing" if data is None else "doesn't name the version that was sealed"
        chart.add(
            "problem", "tag-moved" if data else "tag-missing", table.path_of(table.tag_path(record.name)),
            f"{wrong}; the record is what counts", "it is written anew from the record",
            cure=partial(_retag, corpus, record),
        )  # fmt: skip


def _was_tagged(corpus: BaseCorpus, record: SnapshotRecord) -> bool:
    certificate = find_certificate(corpus, record)
    return certificate is not None and certificate.tag is not None


def _retag(corpus: BaseCorpus, record: SnapshotRecord) -> None:
    table = corpus.table
    certificate = find_certificate(corpus, record)
    with corpus.lease():
        if certificate is not None and certificate.tag is not None and table.root is not None:
            path = table.root / table.tag_path(record.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(certificate.tag, "utf-8")
            sync_file(temporary)
            temporary.replace(path)
            sync_directory(path.parent)
        else:
            table.untag(record.name)
            table.tag(record.name, record.version, record.branch)


def _pending(chart: Chart, corpus: BaseCorpus) -> None:
    """A seal that was cut short, and whether somebody is at it."""
    found = listed(corpus)
    records = [record for record, _ in found]
    if not records:
        return
    left = corpus.table.count(corpus.table.head(), created_up_to(records[-1].boundary))
    untagged = found[-1][1] is None and corpus.table.read_tag(records[-1].name) is None
    if (left or untagged) and not _held(corpus):

        def cure() -> None:
            with corpus.lease():
                finish_pending(corpus)

        chart.add("note", "seal-pending", records[-1].ref, f"the seal was cut short: {left:,} records are to be taken out of live",
                  "whoever maintains the corpus next completes it", cure=cure)  # fmt: skip


def _held(corpus: BaseCorpus) -> bool:
    """Whether a process on this host maintains the corpus right now."""
    return is_held(corpus.store.host_dir / "leases" / f"{corpus.record.table}.lock")


def _health(chart: Chart, table: LanceTable, sealed: list[tuple[int, str | None]]) -> None:
    """The figures that small commits make grow."""
    head = table.head()
    rows = table.fragment_rows(head)
    seen = table.witness.read() if table.witness is not None else None
    sizes = table.sizes()
    needed = {path for dataset in [head, *(table.at(*version) for version in sealed)] for path in table.files(dataset)}
    total = sum(rows)
    chart.tables.append(
        TableHealth(
            table=table.name,
            version=int(head.version),
            witnessed=seen.version if seen is not None else None,
            rows=total,
            fragments=len(rows),
            fragments_compacted=-(-total // TARGET_ROWS_PER_FRAGMENT),
            manifests=sum(path.endswith(".manifest") for path in sizes),
            bytes_on_disk=sum(sizes.values()),
            bytes_needed=sum(size for path, size in sizes.items() if path in needed),
        )
    )


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else "."
