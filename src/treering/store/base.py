"""A store: a directory, or a prefix on an object store, that holds corpora, snapshots and adapters.

Layout: `treering.json` (the marker), `corpora/`, `snapshots/`, `erasures/`, `adapters/` … (objects), `tables/` (Lance). In a
directory also `spool/`, `leases/`, `erased/` (what the host was scrubbed for) and `cache/` (droppable); beside an object
store these lie on each host (location), `leases/` on both.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import BaseModel

import treering
from treering.errors import AlreadyExistsError, NotFoundError, StoreError, UsageError
from treering.schema import RecordType, SchemaSpec
from treering.schema.evolution import first_version
from treering.store.documents import FORMAT, CorpusRecord, Document, SchemaVersion, StoreMarker, parse_document
from treering.store.durable import make_directory
from treering.store.lease import Lease, file_lease, object_lease
from treering.store.location import Location, private_dir
from treering.store.objects import LocalObjects, Objects, RemoteObjects, objects_at
from treering.store.ref import check_corpus_name
from treering.store.schemas import read_versions, version_path

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus
    from treering.store.source import Source

__all__ = ["BaseStore", "reopened"]

_MARKER = "treering.json"
_MOST_DOCUMENTS = 1_000  # kept of an object store


def _make_local(root: Path, create: bool) -> None:
    if not create:
        raise NotFoundError(f"there is no store at {root}", code="no-store", hint="make one: treering init")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"{root} isn't a store, and it isn't an empty directory either",
            code="not-a-store",
            hint="name an empty or a new directory",
        )
    try:
        make_directory(root)
    except OSError as exc:
        raise StoreError(f"can't make {root}: {exc.strerror}", code="write-failed") from exc
    _mark(LocalObjects(root))


def _check_directory(root: Path) -> None:
    """Raise StoreError when part of a store lies elsewhere behind a link; warn when anybody may write into it."""
    for entry in os.scandir(root):
        if (
            entry.is_symlink()
            and entry.name != "cache"
            and not Path(entry.path).resolve().is_relative_to(root.resolve())
        ):
            raise StoreError(
                f"{entry.path} is a link that leaves the store",
                code="symlink",
                hint="move what it names into the store; only `cache` may lie elsewhere",
            )
    mode = root.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        warnings.warn(
            f"anybody on this machine can change the store at {root}: chmod o-w, or treering doctor --repair",
            stacklevel=4,
        )


def _make_remote(objects: RemoteObjects, create: bool) -> None:
    uri = objects.location.uri
    if not create:
        raise NotFoundError(f"there is no store at {uri}", code="no-store", hint="make one: treering init")
    if not objects.is_empty() and not objects.exists(_MARKER):  # or another process made it at the same moment
        raise UsageError(
            f"{uri} isn't a store, and it isn't empty either", code="not-a-store", hint="name another prefix"
        )
    objects.probe()
    _mark(objects)


def _mark(objects: Objects) -> None:
    marker = StoreMarker(
        format=FORMAT,
        id=secrets.token_hex(8),
        created_at=datetime.now(UTC),
        created_by=f"treering {treering.__version__}",
    )
    with suppress(AlreadyExistsError):  # another process made it at the same moment
        objects.create(_MARKER, marker.to_json())


def _version_named(created_by: Any) -> str:
    """`treering 0.9.1` out of a newer store's marker, which is text from outside."""
    found = re.fullmatch(r"treering [0-9][0-9A-Za-z.+-]{0,40}", created_by) if isinstance(created_by, str) else None
    return found[0] if found else "the treering that made it"


class BaseStore:
    """An open store. What every layer may do with one; `treering.Store` adds what stands further right."""

    def __init__(self, location: Location, prefix: str = "") -> None:
        self.location = location
        #: What refs and names of corpora begin with when this store was reached from another one: `s3://b/store#`.
        self.prefix = prefix
        self.root = location.root  # of a local store; None on an object store
        self.uri = location.uri
        self.objects: Objects = objects_at(location)
        self._documents: dict[str, BaseModel] = {}
        self._neighbours: dict[str, BaseStore] = {}

    def __getstate__(self) -> tuple[Location, str, StoreMarker]:
        return (self.location, self.prefix, self.marker)  # with the marker: workers needn't ask the server for it

    def __setstate__(self, state: tuple[Location, str, StoreMarker]) -> None:
        location, prefix, marker = state
        self.__init__(location, prefix)  # type: ignore[misc]
        self.marker = marker

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @classmethod
    def at(
        cls,
        uri: str | Path,
        *,
        create: bool = True,
        storage_options: Mapping[str, str | int | bool] | None = None,
        prefix: str = "",
    ) -> Self:
        """Open the store at `uri`, making it if `create` and nothing is there.

        Raises NotFoundError (no store, and not to be made), UsageError (a scheme that isn't supported, a place that holds
        something else, options that don't exist), StoreError (a newer format; an object store that can't be reached, that
        refuses the credentials, that lacks the bucket or conditional writes).
        """
        location = Location.parse(uri, storage_options)
        if location.root is not None and not (location.root / _MARKER).exists():
            _make_local(location.root, create)
        store = cls(location, prefix)
        if location.root is not None:
            _check_directory(location.root)
        if isinstance(store.objects, RemoteObjects):
            try:
                _ = store.marker
            except NotFoundError:
                _make_remote(store.objects, create)
            else:
                store.objects.probe()
        _ = store.marker
        return store

    @cached_property
    def marker(self) -> StoreMarker:
        """What kind of store this is. Raises StoreError for a damaged marker or a newer format."""
        data = self.objects.get(_MARKER)
        with suppress(
            ValueError, RecursionError
        ):  # before anything else of it is believed: a newer one may look otherwise
            found = json.loads(data)
            if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
                raise StoreError(
                    f"{self.uri} has store format {found['format']}; treering {treering.__version__} reads up to {FORMAT}",
                    code="newer-format",
                    hint=f"install {_version_named(found.get('created_by'))} or a newer one: pip install -U treering",
                )
        return parse_document(StoreMarker, f"{self.uri}/{_MARKER}", data)

    @property
    def address(self) -> dict[str, Any]:
        """JSON-ready: what `reopened` finds this store by, in a worker. Holds credentials: never print it."""
        marker = self.marker.to_json().decode()
        return {"uri": self.uri, "options": dict(self.location.options), "prefix": self.prefix, "marker": marker}

    @property
    def cache_dir(self) -> Path:
        """A directory on this host's disk whose content may be dropped at any time."""
        path = self.location.cache_dir(self.marker.id)
        if self.root is None:
            return private_dir(path)
        path.mkdir(exist_ok=True)
        return path

    @property
    def host_dir(self) -> Path:
        """A directory on this host's disk for what this host alone needs: spools and lease files."""
        path = self.location.host_dir(self.marker.id)
        return path if self.root is not None else private_dir(path)

    def neighbour(self, uri: str) -> BaseStore:
        """The store that a ref names before its `#`, opened with this store's options; this one if it is the same.

        Raises NotFoundError when there is none, and what `at` raises.
        """
        target = Location.parse(uri)
        if target.uri == self.uri:
            return self
        if target.uri not in self._neighbours:
            options = self.location.options if target.scheme == self.location.scheme != "file" else None
            found = type(self).at(target.uri, create=False, storage_options=options, prefix=f"{target.uri}#")
            self._neighbours[target.uri] = found
        return self._neighbours[target.uri]

    def read_document(self, kind: type[Document], path: str) -> Document:
        """A stored document. Raises NotFoundError, and StoreError when it isn't what it should be."""
        if self.root is not None:
            return parse_document(kind, path, self.objects.get(path))
        # Documents never change, and each commit looks at every snapshot: a request apiece would be 20 ms a snapshot.
        if path not in self._documents:
            if len(self._documents) >= _MOST_DOCUMENTS:
                self._documents.clear()
            self._documents[path] = parse_document(kind, path, self.objects.get(path))
        return cast(Document, self._documents[path])

    def forget_document(self, path: str) -> None:
        """Have a document read anew the next time."""
        self._documents.pop(path, None)

    # --- corpora -------------------------------------------------------------------------------------------------

    def _corpus_type(self) -> type[BaseCorpus]:
        from treering.store.corpus import BaseCorpus

        return BaseCorpus

    def create(
        self,
        name: str,
        schema: SchemaSpec,
        *,
        heldout: float = 0.1,
        group_by: str = "session_id",
        split_key: str = "",
        redact: Sequence[str] = (),
    ) -> Any:
        """Make a corpus.

        `schema`: a built-in record type's name, a pydantic model class, or a `pyarrow.Schema`. `heldout`: share in
        [0, 1) of the groups that become held-out; records with equal `group_by` share a split, and one without that
        field is a group of its own. `split_key` keys the hash that draws them (by default the corpus's name: the same
        records are split alike in every store). `redact`: what recorders replace by markers (`Store.create` takes more).
        Raises AlreadyExistsError, UsageError.
        """
        check_corpus_name(name)
        record_type = RecordType.of(schema)
        if not 0 <= heldout < 1:
            raise UsageError(f"heldout is a share in [0, 1), not {heldout}", code="bad-share")
        if group_by not in ("session_id", "subject", "domain", "id"):
            raise UsageError(f"group_by is session_id, subject, domain or id, not {group_by!r}", code="bad-group")
        path = f"corpora/{name}/corpus.json"
        if self.objects.exists(path):
            raise AlreadyExistsError(f"there is a corpus {name!r} already", code="corpus-exists")
        now = datetime.now(UTC)
        record = CorpusRecord(
            name=name,
            incarnation=secrets.token_hex(4),
            record_type=record_type.name,
            heldout=float(heldout),
            group_by=group_by,
            split_key=split_key or name,
            redact=list(redact),
            created_at=now,
        )
        first = first_version(record_type)
        corpus = self._corpus_type()(self, record, record_type, (first,))
        corpus.table.create(record_type.schema)
        # The corpus record comes last: it is the commit point. A crash before it leaves a table that nothing names.
        self.objects.create(version_path(record, 1), SchemaVersion.of(first, now).to_json())
        try:
            self.objects.create(path, record.to_json())
        except AlreadyExistsError as exc:
            raise AlreadyExistsError(f"there is a corpus {name!r} already", code="corpus-exists") from exc
        return corpus

    def corpus(self, name: str, *, schema: SchemaSpec | None = None) -> Any:
        """A corpus by name. With a `schema` that has its columns, records are checked against that schema's rules too.

        Raises NotFoundError; UsageError when `schema` has other columns.
        """
        check_corpus_name(name)
        path = f"corpora/{name}/corpus.json"
        if not self.objects.exists(path):
            known = ", ".join(corpus.name for corpus in self.corpora()) or "none yet"
            raise NotFoundError(
                f"there is no corpus {name!r} in {self.uri}", code="no-corpus", hint=f"corpora here: {known}"
            )
        record = self.read_document(CorpusRecord, path)
        versions = read_versions(self, record)
        record_type = RecordType.stored(versions[-1].record_type, versions[-1].schema)
        if schema is not None:
            record_type = record_type.with_rules_of(RecordType.of(schema))
        return self._corpus_type()(self, record, record_type, versions)

    def corpora(self) -> list[Any]:
        """All corpora, by name."""
        names = [p.split("/")[1] for p in self.objects.list("corpora") if p.endswith("/corpus.json")]
        return [self.corpus(name) for name in sorted(names)]

    def lease(self, name: str, *, wait_s: float = 30.0) -> AbstractContextManager[Lease]:
        """The lease of that name, among all processes and hosts. Raises ConflictError, StoreError."""
        lock = self.host_dir / "leases" / f"{name}.lock"
        if isinstance(self.objects, RemoteObjects):
            return object_lease(self.objects, name, lock=lock, wait_s=wait_s)
        return file_lease(lock, wait_s=wait_s)

    # --- reading -------------------------------------------------------------------------------------------------

    def load(self, ref: str, *, verify: bool = False) -> Source:
        """What a ref names, pinned now: `support@v1`, `support@v1..v3`, `support@live`, `support@new`, `support/NAME`.

        A snapshot's manifest, tag, files and their sizes are always compared with what was sealed. `verify` also reads
        its data files and compares them with the certificate (1 GB/s; certified first if need be), each file once in a
        process unless it changes: then no flipped bit is ever served.

        Raises UsageError for what isn't a ref, NotFoundError for what isn't there, StoreError for what is damaged.
        """
        from treering.store.source import resolve

        source = resolve(self, ref)
        if verify:
            for segment in source.segments:
                segment.check_files()
        return source

    def heldout(self, ref: str) -> Source:
        """The held-out records of a ref: `load(ref).heldout()`, and of a pruned snapshot those that were kept.

        Raises as `load` does.
        """
        from treering.store.source import resolve

        return resolve(self, ref, "heldout")

    def live(self, name: str) -> Source:
        """What live holds now: `load("NAME@live")`."""
        return self.load(f"{name}@live")

    def trained_snapshots(self, corpus: str) -> set[str]:
        """Refs of the snapshots that the production adapter was trained on; nothing in this layer knows adapters."""
        return set()


def reopened(address: Mapping[str, Any]) -> BaseStore:
    """In a worker: the store of an `address`, as open as it was there. One a process: the next task finds it open."""
    return _reopened(json.dumps(address, sort_keys=True))


@lru_cache(4)
def _reopened(address: str) -> BaseStore:
    said = json.loads(address)
    store = BaseStore(Location.parse(said["uri"], said["options"] or None), said["prefix"])
    store.marker = parse_document(StoreMarker, _MARKER, said["marker"].encode())
    return store
