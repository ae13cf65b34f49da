"""Bundles: one snapshot as one file, to be carried to another store.

A zip archive whose entries are stored as they are: every name and size stands in its directory, so all of them can be
judged before a byte is read, any tool shows what is inside, and nothing can swell while it is read. The records are an
Arrow IPC stream compressed by zstd (`data.arrow.zst`), which is read in pieces of bounded size. Nothing is ever extracted
to a path. SHA-256 guards against damage, not against forgery: whoever may write a bundle may write any records.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from treering.errors import (
    AlreadyExistsError,
    CheckFailedError,
    ConflictError,
    NotFoundError,
    StoreError,
    UsageError,
)
from treering.schema import RecordType, Version, fingerprint
from treering.schema.evolution import SCHEMA_VERSION, History
from treering.store.annotations import ANNOTATION_SCHEMA, row_ids_of
from treering.store.certificate import build_certificate, find_certificate, id_filter, stable_hash
from treering.store.denylist import denylist
from treering.store.digest import ContentDigest
from treering.store.documents import (
    BundleEntry,
    BundleManifest,
    CorpusRecord,
    SchemaVersion,
    SelectionRecord,
    SnapshotOrigin,
    SnapshotRecord,
    parse_document,
)
from treering.store.durable import sync_directory
from treering.store.landing import land
from treering.store.memory import giving_back
from treering.store.place import sealed_in
from treering.store.ref import Ref, check_corpus_name
from treering.store.schemas import version_path
from treering.store.selection import list_selections, row_ids_in, store_selection
from treering.store.snapshot import Snapshot, finish_pending, listed, pruned_error
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.lease import Lease

__all__ = ["pack", "unpack"]

_MANIFEST, _DATA, _WORDS, _CERTIFICATE = "bundle.json", "data.arrow.zst", "annotations.arrow.zst", "certificate.json"
_NAMES = re.compile(
    r"bundle\.json|certificate\.json|data\.arrow\.zst|annotations\.arrow\.zst|schemas/[1-9][0-9]{0,5}\.json"
    r"|selections/[a-z0-9][a-z0-9_.-]{0,62}\.json|selections/[a-z0-9][a-z0-9_.-]{0,62}\.places\.zst"
)
_MOST_ENTRIES = 10_000
_MOST_DOCUMENT = 32 << 20  # bytes of a document, in which everything is held at once
_PIECE = 32 << 20  # bytes of a batch that is written, unless one record is larger
_MOST_PIECE = 256 << 20  # of one that is read
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


# --- packing ----------------------------------------------------------------------------------------------------


def pack(
    store: BaseStore,
    ref: str,
    path: str | os.PathLike[str] | None = None,
    *,
    annotations: bool = False,
    selections: bool = False,
) -> Path:
    """Write a snapshot to a bundle, by default `CORPUS-vN.treering.zip` in the working directory; returns its path.

    The records as they were sealed, their record, certificate and schema versions. `annotations`: what was said about them
    later, too. `selections`: the stored selections all of whose rows lie in it.

    Raises UsageError for what isn't one snapshot, NotFoundError, AlreadyExistsError for a file that is there, StoreError
    for a snapshot that isn't what was certified, and when the file can't be written; nothing is left then.
    """
    parsed = Ref.parse(ref)
    if parsed.kind != "snapshot":
        raise UsageError(
            f"{ref} isn't a snapshot", code="not-a-snapshot", hint="pack one at a time: treering pack support@v1"
        )
    home = store if parsed.store is None else store.neighbour(parsed.store)
    corpus = home.corpus(parsed.corpus)
    record, pruned = _named(corpus, parsed.selector)
    if pruned is not None:
        raise pruned_error(pruned)
    certificate = find_certificate(corpus, record) or build_certificate(corpus, record)
    target = Path(path) if path is not None else Path(f"{corpus.name}-{record.name}.treering.zip")
    if target.exists():
        raise AlreadyExistsError(f"{target} is there already", code="file-exists", hint="name another file: -o FILE")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        with _writing(target):
            try:
                with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
                    _fill(archive, home, corpus, record, certificate.digest, annotations, selections)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.link(temporary, target)
                sync_directory(target.absolute().parent)
            finally:
                temporary.unlink(missing_ok=True)
    except FileExistsError as exc:
        raise AlreadyExistsError(f"{target} is there already", code="file-exists", hint="name another file") from exc
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as exc:
        raise StoreError(f"can't write {target}: {exc.strerror or exc}", code="write-failed") from exc


def _named(corpus: BaseCorpus, name: str) -> tuple[SnapshotRecord, Any]:
    found = listed(corpus)
    for record, pruned in found:
        if record.name == name:
            return record, pruned
    known = ", ".join(record.name for record, pruned in found if pruned is None) or "none yet"
    raise NotFoundError(
        f"there is no snapshot {corpus.name}@{name}", code="no-snapshot", hint=f"snapshots here: {known}"
    )


def _fill(
    archive: zipfile.ZipFile,
    store: BaseStore,
    corpus: BaseCorpus,
    record: SnapshotRecord,
    digest: str,
    annotations: bool,
    selections: bool,
) -> None:
    versions = corpus.known_versions(record.schema_version)[: record.schema_version]
    schema = versions[-1].schema
    entries: list[BundleEntry] = []
    content, order = ContentDigest(schema), []
    with _compressed(archive, _DATA, schema, entries) as write:
        for batch in sealed_in(corpus, record, versions).scan([*schema.names, ROW_ID]):
            rows = batch.select(schema.names).cast(schema)
            content.update(rows)
            if selections:
                order.append(np.asarray(batch.column(ROW_ID)).astype(np.int64))
            write(rows)
    if content.hexdigest() != digest:
        raise StoreError(
            f"{record.ref} has the digest {content.hexdigest()}, its certificate says {digest}",
            code="snapshot-damaged",
            hint="restore the store's files from a backup",
        )
    words = 0
    if annotations:
        said = _words(corpus, record)
        words = len(said)
        with _compressed(archive, _WORDS, ANNOTATION_SCHEMA, entries) as write:
            for batch in said.to_batches():
                write(batch)
    chosen = _selections(corpus, record) if selections else []
    place_of = np.concatenate([np.empty(0, np.int64), *order])
    by_id = np.argsort(place_of)
    for selection, row_ids in chosen:
        places = np.sort(by_id[np.searchsorted(place_of[by_id], row_ids)])
        kind = pa.schema([pa.field("place", pa.int64(), nullable=False)])
        with _compressed(archive, f"selections/{selection.name}.places.zst", kind, entries) as write:
            write(pa.record_batch([pa.array(places)], schema=kind))
        _document(archive, f"selections/{selection.name}.json", selection.to_json(), entries)
    for version in versions:
        path = version_path(corpus.record, version.number)
        _document(archive, f"schemas/{version.number}.json", store.objects.get(path), entries)
    _document(archive, _CERTIFICATE, store.objects.get(record.path("certificate.json")), entries)
    manifest = BundleManifest(
        store=store.marker.id,
        corpus=corpus.record,
        snapshot=record,
        digest=digest,
        entries=entries,
        annotations=words,
        selections=[selection.name for selection, _ in chosen],
    )
    archive.writestr(zipfile.ZipInfo(_MANIFEST, _FIXED_TIME), manifest.to_json())


def _document(archive: zipfile.ZipFile, name: str, data: bytes, entries: list[BundleEntry]) -> None:
    archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), data)
    digest = hashlib.sha256(data).hexdigest()
    entries.append(BundleEntry(name=name, bytes=len(data), sha256=digest, unpacked=len(data)))


@contextmanager
def _compressed(
    archive: zipfile.ZipFile, name: str, schema: pa.Schema, entries: list[BundleEntry]
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Gives a function that writes batches to an entry: an Arrow IPC stream, compressed as a whole."""
    with archive.open(zipfile.ZipInfo(name, _FIXED_TIME), "w", force_zip64=True) as file:
        stored = _Tally(file)
        packed = pa.CompressedOutputStream(pa.PythonFile(stored, "w"), "zstd")
        plain = _Tally(packed)
        with pa.ipc.new_stream(pa.PythonFile(plain, "w"), schema) as writer:

            def write(batch: pa.RecordBatch) -> None:
                rows = max(1, len(batch) * _PIECE // max(batch.nbytes, 1))
                for start in range(0, len(batch), rows):
                    writer.write_batch(batch.slice(start, rows))

            yield write
        packed.close()
    entries.append(BundleEntry(name=name, bytes=stored.bytes, sha256=stored.digest.hexdigest(), unpacked=plain.bytes))


class _Tally(io.RawIOBase):
    """A file that is written through this, counted and hashed; closing this leaves it open."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.bytes = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)


def _words(corpus: BaseCorpus, record: SnapshotRecord) -> pa.Table:
    """Every word about the snapshot's records, in order."""
    log = corpus.annotation_log
    said = log.read(log.version(), history=True)
    ids = list(dict.fromkeys(said.column("id").to_pylist()))
    _, here = row_ids_of([(*record.row_ids, sealed_in(corpus, record))], ids) if ids else (None, [])
    return (
        said.filter(pc.is_in(said.column("id"), pa.array(here, pa.string())))
        .select(ANNOTATION_SCHEMA.names)
        .cast(ANNOTATION_SCHEMA)
    )


def _selections(corpus: BaseCorpus, record: SnapshotRecord) -> list[tuple[SelectionRecord, Any]]:
    """The selections all of whose rows lie in the snapshot, with their row ids."""
    low, high = record.row_ids
    found = [(selection, row_ids_in(corpus, selection)) for selection in list_selections(corpus)]
    return [(selection, ids) for selection, ids in found if len(ids) and low <= ids[0] and ids[-1] < high]


# --- reading what may be anything -------------------------------------------------------------------------------


def _bad(path: Path, what: str) -> CheckFailedError:
    return CheckFailedError(
        f"{path} can't be unpacked: {what}",
        code="bad-bundle",
        hint="nothing was stored; pack it anew, or fetch it again",
    )


class _Bundle:
    """An open bundle whose directory and documents were checked. Its data are read by `batches`, checked as they come."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        infos = self._checked_directory()
        self.manifest = self._parsed(BundleManifest, _MANIFEST, self._bytes_of(infos[_MANIFEST]))
        self.entries = {entry.name: entry for entry in self.manifest.entries}
        named = {name: info.file_size for name, info in infos.items() if name != _MANIFEST}
        if len(self.entries) != len(self.manifest.entries) or named != {e.name: e.bytes for e in self.manifest.entries}:
            raise _bad(path, "its files aren't those that bundle.json lists")
        for entry in self.manifest.entries:
            if entry.unpacked != entry.bytes and not entry.name.endswith(".zst"):
                raise _bad(path, f"{entry.name} can't come to {entry.unpacked:,} bytes")
            if not entry.name.endswith(".zst"):
                self._document(entry.name)
        self.versions = self._versions()
        record = self.manifest.snapshot
        if record.schema_version != len(self.versions) or record.schema_fingerprint != fingerprint(self.schema):
            raise _bad(path, "its schema isn't the one that its snapshot was sealed with")
        for name in (_DATA, _CERTIFICATE):
            if name not in self.entries:
                raise _bad(path, f"it has no {name}")

    @property
    def schema(self) -> pa.Schema:
        """The columns of its records."""
        return self.versions[-1].schema

    def _checked_directory(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._archive.infolist()
        size = os.fstat(self._archive.fp.fileno()).st_size  # type: ignore[union-attr]
        if len(infos) > _MOST_ENTRIES:
            raise _bad(self.path, f"it has {len(infos):,} files, more than {_MOST_ENTRIES:,}")
        found: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.orig_filename
            if not _NAMES.fullmatch(name) or info.filename != name:
                raise _bad(self.path, f"{name[:100]!r} isn't a name that a bundle's file may have")
            if name in found:
                raise _bad(self.path, f"{name} is in it twice")
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or info.is_dir():
                raise _bad(self.path, f"{name} isn't a plain file")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise _bad(self.path, f"{name} isn't stored as it is")
            found[name] = info
        if sum(info.file_size for info in infos) > size:
            raise _bad(self.path, "its files overlap, or it was cut short")
        if _MANIFEST not in found:
            raise _bad(self.path, f"it has no {_MANIFEST}")
        return found

    def _bytes_of(self, info: zipfile.ZipInfo) -> bytes:
        if info.file_size > _MOST_DOCUMENT:
            raise _bad(self.path, f"{info.filename} has {info.file_size:,} bytes")
        with self._reading():
            return self._archive.read(info)

    def _document(self, name: str) -> bytes:
        """The bytes of a document, compared with its digest."""
        data = self._bytes_of(self._archive.getinfo(name))
        if hashlib.sha256(data).hexdigest() != self.entries[name].sha256:
            raise _bad(self.path, f"{name} isn't what bundle.json says it is")
        return data

    def _parsed(self, kind: Any, name: str, data: bytes) -> Any:
        try:
            return parse_document(kind, name, data)
        except (StoreError, ValidationError, RecursionError) as exc:
            raise _bad(self.path, str(exc)) from exc

    def _versions(self) -> History:
        numbers = sorted(int(name[8:-5]) for name in self.entries if name.startswith("schemas/"))
        if not numbers or numbers != list(range(1, len(numbers) + 1)):
            raise _bad(self.path, "a version of its schema is missing")
        documents = [self.schema_document(number) for number in numbers]
        try:
            versions = tuple(document.columns() for document in documents)
            for version in versions:
                RecordType.stored(version.record_type, version.schema)
        except (StoreError, UsageError) as exc:
            raise _bad(self.path, exc.message) from exc
        return versions

    def schema_document(self, number: int) -> SchemaVersion:
        """A schema version as it is kept."""
        name = f"schemas/{number}.json"
        found: SchemaVersion = self._parsed(SchemaVersion, name, self._document(name))
        return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, pa.ArrowException, struct.error, EOFError, ValueError, MemoryError, OSError) as exc:
            raise _bad(self.path, str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__) from exc

    def batches(self, name: str = _DATA, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
        """The batches of a stream, each checked to be what its schema says. Raises CheckFailedError at the first that isn't.

        Once all were taken, the entry's bytes were those that bundle.json names.
        """
        entry, wanted = self.entries[name], schema or self.schema
        with self._reading(), self._archive.open(name) as file:
            stored = _Source(file, entry.bytes)
            plain = _Source(pa.CompressedInputStream(pa.PythonFile(stored, "r"), "zstd"), entry.unpacked)
            messages = pa.ipc.MessageReader.open_stream(pa.PythonFile(plain, "r"))
            found: pa.Schema | None = None
            for message in _all(messages):
                header = _header(bytes(message.metadata))
                if found is None:
                    if header != "schema":
                        raise _bad(self.path, f"{name} doesn't begin with a schema")
                    found = pa.ipc.read_schema(message)
                    if not found.equals(wanted):
                        raise _bad(self.path, f"the columns of {name} aren't those of its schema")
                    continue
                if header != "batch":
                    raise _bad(self.path, f"{name} holds a {header}")
                batch = pa.ipc.read_record_batch(message, wanted)
                batch.validate(full=True)
                for field in wanted:
                    if not field.nullable and batch.column(field.name).null_count:
                        raise _bad(self.path, f"{field.name} is empty in a record of {name}")
                yield batch
            plain.read(1)
            while stored.read(1 << 20):
                pass
            if stored.bytes != entry.bytes or plain.bytes != entry.unpacked or found is None:
                raise _bad(self.path, f"{name} is longer or shorter than bundle.json says")
            if stored.digest.hexdigest() != entry.sha256:
                raise _bad(self.path, f"{name} isn't what bundle.json says it is")

    def verify(self, on_ids: Callable[[list[str]], None] | None = None) -> None:
        """Read the records once: every digest, every id once. `on_ids` gets the ids, a batch at a time."""
        content, rows, hashes = ContentDigest(self.schema), 0, []
        for batch in self.batches():
            content.update(batch)
            rows += len(batch)
            if rows > self.manifest.snapshot.rows:
                break
            ids = batch.column("id").to_pylist()
            if not all(ids):
                raise _bad(self.path, "a record has an empty id")
            if not pc.all(pc.is_in(batch.column("split"), pa.array(["train", "heldout"]))).as_py():
                raise _bad(self.path, "a record is in neither split")
            hashes.append(b"".join(stable_hash(record_id).to_bytes(16, "big", signed=True) for record_id in ids))
            if on_ids is not None:
                on_ids(ids)
        if rows != self.manifest.snapshot.rows:
            raise _bad(self.path, f"it doesn't hold {self.manifest.snapshot.rows:,} records")
        if content.hexdigest() != self.manifest.digest:
            raise _bad(self.path, f"its records have the digest {content.hexdigest()}, not {self.manifest.digest}")
        keys = np.frombuffer(b"".join(hashes), np.dtype([("high", ">u8"), ("low", ">u8")]))
        if len(np.unique(keys)) != rows:
            raise _bad(self.path, "two of its records have one id")

    def words(self) -> pa.Table:
        """The annotations that came along."""
        if _WORDS not in self.entries:
            return ANNOTATION_SCHEMA.empty_table()
        return pa.Table.from_batches(list(self.batches(_WORDS, ANNOTATION_SCHEMA)), ANNOTATION_SCHEMA)

    def selections(self) -> list[tuple[SelectionRecord, Any]]:
        """The selections that came along: record, and places in the snapshot (int64, ascending)."""
        kind = pa.schema([pa.field("place", pa.int64(), nullable=False)])
        found = []
        for name in self.manifest.selections:
            document = f"selections/{name}.json"
            if document not in self.entries or f"selections/{name}.places.zst" not in self.entries:
                raise _bad(self.path, f"it lacks the selection {name}")
            record: SelectionRecord = self._parsed(SelectionRecord, document, self._document(document))
            batches = list(self.batches(f"selections/{name}.places.zst", kind))
            places = np.asarray(pa.Table.from_batches(batches, kind).column("place")).astype(np.int64)
            fits = len(places) == record.rows and record.name == name and bool((np.diff(places) > 0).all())
            if not fits or places[0] < 0 or places[-1] >= self.manifest.snapshot.rows:
                raise _bad(self.path, f"the selection {name} names records that aren't in it")
            found.append((record, places))
        return found


class _Source(io.RawIOBase):
    """A stream that is read through this: counted, hashed, and never beyond what was declared."""

    def __init__(self, file: Any, most: int) -> None:
        self._file = file
        self._most = most
        self.bytes = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MOST_PIECE:
            raise ValueError(f"a piece of {size:,} bytes was asked for; at most {_MOST_PIECE:,} are read at once")
        data: bytes = self._file.read(size)
        self.bytes += len(data)
        if self.bytes > self._most:
            raise ValueError(f"more than the {self._most:,} bytes that bundle.json says")
        self.digest.update(data)
        return data


def _all(messages: Any) -> Iterator[Any]:
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message is None:
            return
        yield message


def _header(data: bytes) -> str:
    """What an IPC message is: "schema", "batch", or what is refused.

    A batch whose buffers are compressed may swell to any size in one allocation, so its metadata (a flatbuffer: Message,
    then RecordBatch, whose fourth field is the compression) is looked at before it is decoded.
    """

    def field(table: int, number: int) -> int:
        offsets = table - struct.unpack_from("<i", data, table)[0]
        size = struct.unpack_from("<H", data, offsets)[0]
        at = 4 + 2 * number
        return int(struct.unpack_from("<H", data, offsets + at)[0]) if at < size else 0

    root = struct.unpack_from("<I", data, 0)[0]
    kind = data[root + field(root, 1)]
    if kind == 1:
        return "schema"
    if kind != 3:
        return "message of another kind"
    inner = root + field(root, 2)
    inner += struct.unpack_from("<I", data, inner)[0]
    return "batch that is compressed itself" if field(inner, 3) else "batch"


# --- unpacking --------------------------------------------------------------------------------------------------


@giving_back()
def unpack(store: BaseStore, path: str | os.PathLike[str], *, to: str | None = None) -> Snapshot:
    """Take the snapshot of a bundle in: the next one of the corpus `to` (by default its own name), same content digest.

    Everything is checked before anything is visible; all of it comes in or nothing. A corpus that isn't there is made, with
    the schema versions and the split rule of the one it comes from. One that is must have a schema version with just these
    columns, an empty live, and none of the ids; those of pruned snapshots don't count. A bundle whose records are there
    already as a snapshot adds nothing but annotations and selections that are missing, and gives that snapshot.

    Raises CheckFailedError for a file that isn't a sound bundle, NotFoundError, ConflictError (ids that are there, other
    columns, a live that isn't empty), StoreError.
    """
    file = Path(path)
    name = None if to is None else check_corpus_name(to)
    try:
        opened: IO[bytes] = file.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
        raise NotFoundError(f"there is no file {file}", code="no-file") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"can't read {file}: {exc}", code="read-failed") from exc
    with opened:
        try:
            archive = zipfile.ZipFile(opened)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error, OverflowError) as exc:
            raise _bad(file, f"it isn't a zip archive ({exc})") from exc
        with archive:
            bundle = _Bundle(file, archive)
            _check_room(store, bundle)
            return _unpack(store, bundle, name or check_corpus_name(bundle.manifest.corpus.name))


def _check_room(store: BaseStore, bundle: _Bundle) -> None:
    """Refuse sizes that no honest disk here could take, before anything is written."""
    if store.root is None:
        return
    declared, free = sum(entry.unpacked for entry in bundle.manifest.entries), shutil.disk_usage(store.root).free
    if declared > free:
        raise StoreError(
            f"{bundle.path} comes to {declared:,} bytes, and {free:,} are free",
            code="no-space",
            hint="free some space, then try again",
        )


def _unpack(store: BaseStore, bundle: _Bundle, name: str) -> Snapshot:
    words, selections = bundle.words(), bundle.selections()
    exists = store.objects.exists(f"corpora/{name}/corpus.json")
    if not exists:
        bundle.verify()  # before anything is made
    corpus: BaseCorpus = store.corpus(name) if exists else _new_corpus(store, bundle, name)
    version = _version_here(corpus, bundle)
    manifest = bundle.manifest
    renumbered = _renumbered(corpus, bundle, words)
    with corpus.lease() as held:
        same = None
        if exists:
            finish_pending(corpus)
            there = _Ids(corpus)
            bundle.verify(there.count)
            same = _same_content(corpus, manifest)
            if same is None and there.found:
                raise ConflictError(
                    f"{there.found:,} of the {manifest.snapshot.rows:,} records of {bundle.path} are in {name} already",
                    code="ids-exist",
                    hint="nothing was stored; unpack to another corpus: --to NAME",
                )
            _check_selections(corpus, selections, same)
        if same is None:
            _check_erased(corpus, bundle)
        record = same or _landed(corpus, held, bundle, version)
        build_certificate(corpus, record)
        if not exists:
            _commit_corpus(store, corpus)
    _say_again(corpus, renumbered)
    snapshot = Snapshot(corpus, record)
    for selection, places in selections:
        _choose_again(store, snapshot, selection, places)
    return snapshot


def _landed(corpus: BaseCorpus, held: Lease, bundle: _Bundle, version: Version) -> SnapshotRecord:
    sealed = bundle.manifest.snapshot
    origin = sealed.origin or SnapshotOrigin(store=bundle.manifest.store, ref=sealed.ref, created_at=sealed.created_at)
    digest = bundle.manifest.digest
    return land(corpus, held, bundle.batches, version, digest=digest, message=sealed.message, origin=origin)


def _check_erased(corpus: BaseCorpus, bundle: _Bundle) -> None:
    """Refuse a bundle that would bring back what was erased. Reads its records only where anything was."""
    denied = denylist(corpus)
    if not denied:
        return
    found = sum(int(denied.denies(batch.column("id"), batch.column("subject")).sum()) for batch in bundle.batches())
    if found:
        raise ConflictError(
            f"{found:,} of the {bundle.manifest.snapshot.rows:,} records of {bundle.path} were erased from {corpus.name}",
            code="erased",
            hint=f"nothing was stored; see treering erase {corpus.name} --list",
        )


class _Ids:
    """Counts the ids that a corpus has already, in live or in a snapshot that isn't pruned."""

    def __init__(self, corpus: BaseCorpus) -> None:
        self._corpus = corpus
        self._places = [
            (record, sealed_in(corpus, record), id_filter(corpus, record))
            for record, pruned in listed(corpus)
            if pruned is None
        ]
        self.found = 0

    def count(self, ids: list[str]) -> None:
        """Look these up."""
        for record, place, denies in self._places:
            maybe = ids if denies is None else list(compress(ids, denies.may_hold(ids)))
            if maybe:
                self.found += len(row_ids_of([(*record.row_ids, place)], maybe)[0])


def _same_content(corpus: BaseCorpus, manifest: BundleManifest) -> SnapshotRecord | None:
    """The snapshot that has this very content."""
    for record, pruned in listed(corpus):
        if pruned is None and record.rows == manifest.snapshot.rows:
            certificate = find_certificate(corpus, record) or build_certificate(corpus, record)
            if certificate.digest == manifest.digest:
                return record
    return None


def _new_corpus(store: BaseStore, bundle: _Bundle, name: str) -> BaseCorpus:
    """A corpus that nothing names yet: its table and its schema versions."""
    theirs, versions = bundle.manifest.corpus, bundle.versions
    now = datetime.now(UTC)
    record = CorpusRecord(
        name=name,
        incarnation=secrets.token_hex(4),
        record_type=theirs.record_type,
        heldout=theirs.heldout,
        group_by=theirs.group_by,
        split_key=theirs.split_key,
        created_at=now,
    )
    record_type = RecordType.stored(versions[-1].record_type, versions[-1].schema)
    corpus = store._corpus_type()(store, record, record_type, versions)
    corpus.table.create(versions[0].schema)
    for version in versions:
        document = SchemaVersion.of(version, version.created_at or now)
        store.objects.create(version_path(record, version.number), document.to_json())
    return corpus


def _commit_corpus(store: BaseStore, corpus: BaseCorpus) -> None:
    """From here on the corpus is there, and with it its snapshot."""
    corpus.step("before-corpus")
    try:
        store.objects.create(f"corpora/{corpus.name}/corpus.json", corpus.record.to_json())
    except AlreadyExistsError as exc:
        raise ConflictError(
            f"another process made the corpus {corpus.name!r} meanwhile", code="corpus-exists", hint="unpack again"
        ) from exc
    corpus.step("after-corpus")


def _version_here(corpus: BaseCorpus, bundle: _Bundle) -> Version:
    """The newest schema version of the corpus that has just the bundle's columns."""
    wanted = bundle.schema
    for version in reversed(corpus.known_versions()):
        if fingerprint(version.schema) == fingerprint(wanted):
            return version
    here = corpus.known_versions()[-1].schema
    theirs, ours = ({f.name: str(f.type) for f in schema} for schema in (wanted, here))
    differ = [f"{n} is {theirs.get(n, 'not there')} in the bundle, {ours.get(n, 'not there')} here"
              for n in dict.fromkeys([*theirs, *ours]) if theirs.get(n) != ours.get(n)]  # fmt: skip
    raise ConflictError(
        f"no schema version of {corpus.name} has just the columns of {bundle.path}: "
        + ("; ".join(differ[:5]) or "they differ in their order, or in what may be empty"),
        code="schema-mismatch",
        hint=f"evolve {corpus.name} to those columns first (treering schema {corpus.name} --evolve …), or unpack to another "
        "corpus: --to NAME",
    )


def _renumbered(corpus: BaseCorpus, bundle: _Bundle, words: pa.Table) -> pa.Table:
    """The annotations with corrections that name this corpus's schema versions."""
    here = {fingerprint(version.schema): version.number for version in corpus.known_versions()}
    values, keys = words.column("value").to_pylist(), words.column("key").to_pylist()
    for at, (key, value) in enumerate(zip(keys, values, strict=True)):
        if key != "correction" or value == "{}":
            continue
        try:
            said = json.loads(value)
            theirs = said.pop(SCHEMA_VERSION, 1)
            number = here[fingerprint(bundle.versions[theirs - 1].schema)]
        except (ValueError, AttributeError, TypeError, LookupError) as exc:
            raise _bad(bundle.path, "a correction in it names columns that aren't known here") from exc
        text = {**said, **({SCHEMA_VERSION: number} if number > 1 else {})}
        values[at] = json.dumps(text, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return words.set_column(
        words.schema.get_field_index("value"), words.schema.field("value"), pa.array(values, pa.string())
    )


def _say_again(corpus: BaseCorpus, words: pa.Table) -> None:
    """Store what isn't there yet of the annotations: a process that was cut short may have stored some."""
    if not len(words):
        return
    log = corpus.annotation_log
    ids = list(dict.fromkeys(words.column("id").to_pylist()))
    known = log.read(log.version(), ids=ids, history=True).select(words.schema.names).to_pylist()
    there = {tuple(row.values()) for row in known}
    missing = [tuple(row.values()) not in there for row in words.to_pylist()]
    if any(missing):
        log.append(words.filter(pa.array(missing)))


def _check_selections(
    corpus: BaseCorpus, selections: Sequence[tuple[SelectionRecord, Any]], same: SnapshotRecord | None
) -> None:
    """Names that are taken are found before anything is stored."""
    taken = {record.name for record in list_selections(corpus)}
    clash = [record.name for record, _ in selections if record.name in taken]
    if clash and same is None:
        raise ConflictError(
            f"{corpus.name} has a selection {clash[0]!r} already",
            code="selection-exists",
            hint="nothing was stored; unpack to another corpus: --to NAME",
        )


def _choose_again(store: BaseStore, snapshot: Snapshot, theirs: SelectionRecord, places: Any) -> None:
    """The selection of the same records here."""
    from treering.store.source import resolve

    corpus, record = snapshot._corpus, snapshot.record
    scanned = sealed_in(corpus, record).scan([ROW_ID])
    order = np.concatenate([np.asarray(batch.column(ROW_ID)).astype(np.int64) for batch in scanned])
    store_selection(corpus, theirs, np.sort(order[places]), resolve(store, record.ref).pin())
