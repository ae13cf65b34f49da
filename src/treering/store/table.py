"""One Lance table: the only module that talks to Lance and LanceDB.

Offers what the store needs of the engine and turns its errors into ours. Does not know corpora, snapshots or records.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation
from lance.commit import CommitConflictError

from treering.errors import ConflictError, NotFoundError, StoreError
from treering.schema.evolution import SCHEMA_VERSION
from treering.store.durable import sync_directory, sync_file
from treering.store.location import Location, remote_failure
from treering.store.memory import few_arenas
from treering.store.objects import Objects, objects_at
from treering.store.plain import plain_layouts
from treering.store.rows import DataFile, FileContents, FileReaders, RowPlaces, row_runs
from treering.store.runs import RowIds, inside, runs_of
from treering.store.turnstile import Turnstile
from treering.store.witness import HeadWitness, Seen, boot_id

if TYPE_CHECKING:
    from treering.engine import Engine

__all__ = [
    "CREATED_AT",
    "RECENT_S",
    "RECENT_VERSIONS",
    "ROW_ADDRESS",
    "ROW_ID",
    "Dataset",
    "LanceTable",
    "TagTarget",
    "captured_after",
    "created_after",
    "created_up_to",
    "describe",
    "rows_among",
    "rows_between",
    "text_in",
]

few_arenas()

Dataset = Any  # lance.LanceDataset; pylance ships no types
TagTarget = tuple[str | None, int]  # branch (None: the main one) and version

ROW_ID = "_rowid"
CREATED_AT = "_row_created_at_version"
ROW_ADDRESS = "_rowaddr"
_NARROW = frozenset({ROW_ID, CREATED_AT, ROW_ADDRESS, SCHEMA_VERSION, "id", "split"})

_MOST_VERSIONS = 16  # versions whose rows' places are kept

#: A scan with Lance's defaults peaks at 550 MB (1M rows of 1 kB); these bound it. With one fragment at a time a table of
#: five would take 1.3 times as long to scan as the same in one.
_SCAN = {"batch_readahead": 2, "fragment_readahead": 2, "io_buffer_size": 16 << 20}
#: Rows of a batch that holds more than `_NARROW` columns. With the engine's 8,192 a scan of records of 1 kB takes twice as
#: much memory (112 MB, 64 like this) and no less time; row numbers come three times as fast in large batches.
_WIDE_ROWS, _NARROW_ROWS = 2_048, 65_536

#: What tidying leaves of a table's history: versions younger than this, for whoever is committing on top of one …
RECENT_S = 20.0
#: … and the newest ones, whatever their age. A version costs 60 kB at least, and all it took to write it.
RECENT_VERSIONS = 8

#: Row ids one deletion names, and how long a run must be to be named by its ends.
_DELETED_AT_ONCE = 10_000
_LONG_RUN = 1_000

#: How the engine is told to rewrite single fragments, each to one of its own: the options as it writes them into its own
#: plans, which make tasks of neighbours that are small, and never of a fragment that is merely another branch's.
_REWRITE: dict[str, Any] = {
    "target_rows_per_fragment": 1 << 40,
    "max_rows_per_group": 1024,
    "max_bytes_per_file": None,
    "materialize_deletions": True,
    "materialize_deletions_threshold": 0.0,
    "num_threads": 1,
    "batch_size": None,
    "io_buffer_size": None,
    "defer_index_remap": False,
    "index_remap_mode": "Direct",
    "compaction_mode": None,
    "enable_binary_copy": False,
    "enable_binary_copy_force": False,
    "binary_copy_read_batch_bytes": 16 << 20,
    "max_source_fragments": None,
    "max_source_rows": None,
    "max_source_bytes": None,
    "excluded_fragment_ids": [],
    "max_overlays_per_fragment": 10,
    "data_storage_version": "2.2",
    "has_eager_remappable_index": True,
}

_MANIFEST = re.compile(r"([0-9]{20})\.manifest")
#: Keeps the newest durable version while old ones are being removed: until the next commit has reached the disk, it is
#: the one to go back to.
_KEPT = "treering-durable"

#: Age, in seconds, from which a file that never got its name is known to be nobody's.
_UNNAMED_S = 60.0

#: Rows a compacted fragment aims at. Larger ones make each compaction step, and so its memory, larger.
TARGET_ROWS_PER_FRAGMENT = 65_536
_WORTH_INDEXING = 4_096

#: How Lance treats an object store unless the caller's options say otherwise; a directory needs none of it.
_REMOTE = {"connect_timeout": "5s", "client_max_retries": "3", "client_retry_timeout": "20"}
#: Bytes of index and of metadata that all tables of one object store keep in memory, each.
_REMOTE_CACHE = 256 << 20


# The few filters there are; nothing else builds one, and no value from outside enters as bare text.
def created_up_to(version: int) -> str:
    """Rows that table version `version` already held."""
    return f"{CREATED_AT} <= {int(version)}"


def created_after(version: int) -> str:
    """Rows that came after table version `version`."""
    return f"{CREATED_AT} > {int(version)}"


def rows_between(low: int, high: int) -> str:
    """Rows whose stable row id lies in [low, high)."""
    return f"{ROW_ID} >= {int(low)} AND {ROW_ID} < {int(high)}"


def captured_after(version: int) -> str:
    """Rows that were captured under a later schema version."""
    return f"{SCHEMA_VERSION} > {int(version)}"


def rows_among(row_ids: RowIds) -> Iterator[str]:
    """Filters that together name these rows (ascending stable row ids), some thousand at a time; long runs by their ends."""
    runs = runs_of(row_ids)
    long = runs[runs[:, 1] >= _LONG_RUN]
    for first, length in long.tolist():
        yield rows_between(first, first + length)
    rest = row_ids[~inside(long, row_ids)]
    for start in range(0, len(rest), _DELETED_AT_ONCE):
        yield f"{ROW_ID} IN ({', '.join(map(str, rest[start : start + _DELETED_AT_ONCE].tolist()))})"


def text_in(column: str, values: Sequence[str]) -> str:
    """Rows whose `column` is one of `values`."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def is_conflict(exc: BaseException) -> bool:
    """Whether another writer came first. Other OSErrors (a full disk, say) must never be retried as conflicts."""
    if isinstance(exc, CommitConflictError):
        return True
    # merge_insert and compaction report a conflict as a plain OSError: its text is all there is to know it by.
    text = str(exc)
    return isinstance(exc, OSError | RuntimeError) and (
        "Too many concurrent writers" in text or "ommit conflict" in text or "concurrent transaction" in text
    )


@cache
def _session(options: str) -> Any:
    """One Lance session for all tables of one set of options (by fingerprint).

    It keeps connections and indices, so that opening a table anew costs 1 ms on a near object store and not 8.
    """
    return lance.Session(index_cache_size_bytes=_REMOTE_CACHE, metadata_cache_size_bytes=_REMOTE_CACHE)


def _open_file(path: str, columns: tuple[str, ...]) -> Any:
    from lance.file import LanceFileReader

    return LanceFileReader(path, columns=list(columns))._reader  # its Python half looks at every index once more


def _contents(path: str) -> FileContents:
    from lance.file import LanceFileReader

    metadata = LanceFileReader(path).metadata()
    return FileContents(tuple(metadata.schema.names), plain_layouts(metadata))


def _leaves(field: Any) -> tuple[int, ...]:
    children = field.children()
    return sum(map(_leaves, children), ()) if children else (int(field.id()),)


class LanceTable:
    """A Lance table in the store at the folder `path` (`tables/NAME.lance`), opened anew wherever the newest state counts."""

    def __init__(self, objects: Objects, path: str) -> None:
        location = objects.location
        self.name = PurePosixPath(path).stem
        self.uri = location.under(path)
        self._folder = location.under(PurePosixPath(path).parent.as_posix())
        self._objects = objects
        self._path = path
        #: The table's directory; None on an object store.
        self.root = self._root = None if location.root is None else location.root / path
        #: Options for Lance; None for a directory. They hold credentials: never print them.
        self._options = None if location.root is not None else {**_REMOTE, **location.options}
        self._synced: set[str] = set()  # immutable files this process knows to be on disk
        self._pinned: dict[tuple[int, str | None], Dataset] = {}
        self._poll: Dataset | None = None
        self._places: OrderedDict[tuple[str, int], RowPlaces] = OrderedDict()
        self._readers = FileReaders(_open_file, _contents)
        #: Writers pass it, so that they can be held up while files that no version names are removed.
        self._writers = Turnstile(None if location.root is None else location.root / "leases" / self.name)
        #: No version before this one can be the newest: a snapshot sealed it.
        self.floor = 1
        self._sound_manifest: tuple[int, tuple[int, int, int]] | None = None
        #: What is known of the newest version on this disk; None on an object store, where nothing is lost silently.
        self.witness: HeadWitness | None = None
        if location.root is not None:
            lock = location.root / "leases" / f"{self.name}.head.lock"
            self.witness = HeadWitness(location.root / "witness" / f"{self.name}.head", lock)

    def __repr__(self) -> str:
        return f"LanceTable({self.uri!r})"

    @property
    def address(self) -> dict[str, Any]:
        """JSON-ready: what a worker finds it by. Holds credentials: never print it."""
        location = self._objects.location
        return {"uri": location.uri, "options": dict(location.options), "path": self._path}

    def _open(self, version: int | None = None, branch: str | None = None) -> Dataset:
        uri = self.uri if branch is None else f"{self.uri}/{self._folder_of(branch)}"
        if self._options is None:
            return lance.dataset(uri, version=version)
        session = _session(self._objects.location.options.fingerprint)
        return lance.dataset(uri, version=version, storage_options=dict(self._options), session=session)

    @staticmethod
    def _folder_of(branch: str | None) -> str:
        """Where a branch's files lie, relative to the table; each branch has folders like those of the main one."""
        return "" if branch is None else f"tree/{branch}"

    def _folder_in(self, dataset: Dataset) -> str:
        """The same of the branch that a handle is on."""
        _, found, branch = str(dataset.uri).rstrip("/").partition(f"/{self.name}.lance/tree/")
        return f"tree/{branch}" if found else ""

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Engine errors become ours, here and nowhere else."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as exc:
            if is_conflict(exc):
                raise ConflictError(f"another writer came first while {what}", code="commit-conflict") from exc
            location = self._objects.location
            known = remote_failure(f"failed {what}", str(exc), location)
            if known is not None:
                raise known from exc
            reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
            hint = "free some space, then try again" if "No space left" in str(exc) else None
            raise StoreError(f"failed {what}: {location.options.scrub(reason)}", code="engine", hint=hint) from exc
        except BaseException as exc:
            if type(exc).__name__ != "PanicException":  # it has no name to catch it by, and isn't an Exception
                raise
            reason = str(exc).strip().splitlines()[0] if str(exc).strip() else "the engine gave up"
            raise StoreError(
                f"failed {what}: {reason}",
                code="engine",
                hint=f"see whether the files are damaged: treering verify --store {self._objects.location.uri}",
            ) from exc

    def create(self, schema: pa.Schema) -> None:
        """Make the table, empty, through the LanceDB catalogue, with stable row ids and an index on `id`.

        All columns but `id` may be null in it, whatever the records may: records of a later schema version may not have
        them, and the engine would refuse those.
        """
        import lancedb  # 1.5 s to import: only the rare call that needs the catalogue pays for it

        schema = pa.schema([field if field.name == "id" else field.with_nullable(True) for field in schema])
        with self._translated(f"creating the table {self.name}"):
            if self._root is not None:
                self._root.parent.mkdir(exist_ok=True)
                if self.is_unmade():
                    shutil.rmtree(self._root)
            catalogue = lancedb.connect(self._folder, storage_options=self._options)
            catalogue.create_table(
                self.name,
                schema=schema,
                storage_options={
                    **(self._options or {}),
                    "new_table_enable_stable_row_ids": "true",
                    "new_table_data_storage_version": "2.2",
                },
            )
            self._open().create_scalar_index("id", "BTREE")
            self.make_durable(self._open())
        if self._root is not None:
            for directory in (self._root.parent, self._root.parent.parent):
                sync_directory(directory)

    def is_unmade(self) -> bool:
        """Whether what is there is what a power cut left of a table that was being made: unwitnessed, and without a row."""
        if self.witness is None or self._root is None or self.witness.path.exists():
            return False
        return self._root.exists() and next((self._root / "data").glob("*.lance"), None) is None

    def head_if_made(self) -> Dataset | None:
        """A fresh handle on the newest version; None when the table has never been made, or never as a whole."""
        if self.is_unmade():
            return None
        with self._translated(f"opening {self.name}"):
            try:
                head = self._newest()
            except ValueError as exc:
                if "was not found" in str(exc):  # the engine has no error of its own for it
                    return None
                raise
        return None if self.is_unmade() else head  # somebody may have begun to make it meanwhile

    def head(self) -> Dataset:
        """A fresh handle on the newest version.

        Raises StoreError when the table was rolled back: versions that had reached the disk are gone, or another one
        stands in their place.
        """
        with self._translated(f"opening {self.name}"):
            return self._newest()

    def _newest(self) -> Dataset:
        # What is known comes first, the handle second: then the handle can't be older than what is known.
        seen = None if self.witness is None else self.witness.read()
        if seen is not None and seen.boot != boot_id():
            seen = self._take_back(seen)
        floor = self.floor  # of before: what is sealed from now on may be newer than the handle
        try:
            dataset = self._open()
        except (OSError, ValueError, RuntimeError):
            if seen is None or not self._drop_torn():
                raise
            dataset = self._open()
        if seen is not None:
            if dataset.version < seen.version and self._drop_torn():  # a manifest of zeros opens, as an empty version 0
                dataset = self._open()
            self._check_head(dataset, seen)
        if dataset.version < floor:
            raise self._rolled_back(int(dataset.version), floor)
        return dataset

    def check_floor(self, dataset: Dataset) -> None:
        """Raise StoreError when versions are missing, judging by a handle that was opened before the records were listed.

        One that is older than a snapshot may just have been opened before that was sealed: a fresh handle decides.
        """
        if dataset.version < self.floor:
            self.head()

    def _check_head(self, dataset: Dataset, seen: Seen) -> None:
        """Raise StoreError unless the newest version is the one that was noted, or came after it."""
        if dataset.version < seen.version:
            raise self._rolled_back(int(dataset.version), seen.version)
        assert self._root is not None
        manifest = self._root / self.manifest_path(seen.version)
        try:
            found = manifest.stat()
        except FileNotFoundError:
            return  # cleaned up: the newest one came after it
        stamp = (seen.version, (found.st_ino, found.st_size, found.st_mtime_ns))
        if self._sound_manifest == stamp:
            return
        with suppress(FileNotFoundError):
            if hashlib.sha256(manifest.read_bytes()).hexdigest() != seen.manifest_sha256:
                raise StoreError(
                    f"the manifest of version {seen.version} of {self.name} isn't the one that was committed",
                    code="manifest-changed",
                    hint=f"restore the store's files from a backup, or: {self._repair}",
                )
            self._sound_manifest = stamp

    @property
    def _repair(self) -> str:
        return f"treering doctor --repair --store {self._objects.location.uri}"

    def _rolled_back(self, found: int, known: int) -> StoreError:
        return StoreError(
            f"{self.name} was rolled back: its newest version is {found}, and version {known} had reached the disk",
            code="rolled-back",
            hint=f"restore the store's files from a backup, or go on without what is missing: {self._repair}",
        )

    def newest_manifests(self) -> list[int]:
        """Versions that have a manifest file, newest first; of a table in a directory."""
        assert self._root is not None
        names = os.listdir(self._root / "_versions") if (self._root / "_versions").is_dir() else []
        return sorted((2**64 - 1 - int(m[1]) for name in names if (m := _MANIFEST.fullmatch(name))), reverse=True)

    def _take_back(self, seen: Seen) -> Seen:
        """After a restart of the machine: forget versions that never reached the disk as a whole.

        The witness is an earlier boot's. What was committed after it and not synced may hold anything by now, and the
        engine would read it; its records wait in their spools, since nothing was acknowledged for it.
        """
        assert self.witness is not None
        assert self._root is not None
        try:
            with self.witness.held():
                seen = self.witness.read() or seen
                if seen.boot == boot_id():
                    return seen  # another process was faster
                versions = self.newest_manifests()
                if seen.version in versions:  # else there is nothing to go back to, and `_check_head` says so
                    self._forget([version for version in versions if version > seen.version])
                self.witness.write(replace(seen, boot=boot_id()))
                return self.witness.read() or seen
        except (StoreError, OSError):
            if max(self.newest_manifests(), default=0) <= seen.version:
                return seen  # a store that can't be written; there is nothing to take back
            raise

    def _forget(self, versions: Sequence[int]) -> None:
        """Remove manifests; the caller holds the witness."""
        assert self._root is not None
        if versions:
            for version in sorted(versions, reverse=True):
                (self._root / self.manifest_path(version)).unlink(missing_ok=True)
            (self._root / "_versions" / "latest_version_hint.json").unlink(missing_ok=True)
            sync_directory(self._root / "_versions")

    def bump(self, version: int) -> None:
        """Commit nothing until the newest version's number is beyond `version`: it was lost, and must not come back.

        For repairs, which look at the newest version that can be read and not at what was noted.
        """
        with self._translated(f"repairing {self.name}"):
            dataset = self._open()
            while True:
                nothing = LanceOperation.Append([])
                dataset = lance.LanceDataset.commit(self.uri, nothing, read_version=dataset.version)
                if dataset.version > version:
                    break
        self.make_durable(dataset)

    def orphans(self, sealed: Sequence[Dataset]) -> list[str]:
        """Data files that neither the newest version nor any of `sealed` refers to, relative to the table."""
        assert self._root is not None
        needed = {path for dataset in [self._open(), *sealed] for path in self.files(dataset)}
        found = [f"data/{path.name}" for path in sorted((self._root / "data").glob("*.lance"))]
        return [path for path in found if path not in needed]

    def read_orphan(self, path: str) -> pa.Table:
        """The rows of one data file as they are stored. Raises StoreError when it isn't whole."""
        from lance.file import LanceFileReader

        assert self._root is not None
        with self._translated(f"reading {path} of {self.name}"):
            return LanceFileReader(str(self._root / path)).read_all().to_table()

    def _drop_torn(self) -> bool:
        """Remove newest manifests that can't be read and were never made durable. Whether there were any.

        Raises StoreError when one that can't be read had been made durable: that one was damaged later.
        """
        if self.witness is None or self._root is None or not (versions := self.newest_manifests()):
            return False
        seen = self.witness.read()
        if seen is None or self.reads(versions[0]):
            return False
        if versions[0] <= seen.version:
            raise StoreError(
                f"the newest manifest of {self.name}, of version {versions[0]}, is damaged",
                code="manifest-damaged",
                hint=f"restore the store's files from a backup, or go back to the version before: {self._repair}",
            )
        with self.witness.held():
            torn = []
            for version in self.newest_manifests():
                if version <= seen.version or self.reads(version):
                    break
                torn.append(version)
            self._forget(torn)
        return bool(torn)

    def reads(self, version: int) -> bool:
        """Whether a version's manifest can be opened. Raises OSError when its file can't even be read."""
        assert self._root is not None
        with suppress(FileNotFoundError):
            (self._root / self.manifest_path(version)).read_bytes()
        try:
            return bool(self._open(version).version == version)
        except (OSError, ValueError, RuntimeError):
            return False

    def at(self, version: int, branch: str | None = None) -> Dataset:
        """A handle on one version of the main branch, or of another; versions never change, so handles are kept."""
        key = (version, branch)
        if key not in self._pinned:
            with self._translated(f"opening version {version} of {self.name}"):
                self._pinned[key] = self._open(version, branch)
        return self._pinned[key]

    def latest_version(self) -> int:
        """Number of the newest version; 0.01 ms, cheap enough to poll."""
        if self._poll is None:
            self._poll = self.head()
        with self._translated(f"looking at {self.name}"):
            return int(self._poll.latest_version)

    # --- writing -------------------------------------------------------------------------------------------------

    def insert_new(self, head: Dataset, rows: pa.Table) -> int:
        """Insert the rows whose `id` isn't in `head` yet; returns how many went in.

        Raises ConflictError when anybody committed since `head`: the caller must look again before it retries,
        because the engine's own retry plans anew behind whatever the caller checked.
        """
        with self._writers.passed(), self._translated(f"committing {len(rows)} records"):
            merge = head.merge_insert("id").when_not_matched_insert_all().conflict_retries(0)
            # Without the index: the engine's plan over it doesn't note which ids it inserts, so that two writers of the
            # same id don't conflict, and both insert it. (Nor is it faster: 165 ms against 81 for 24k new rows into 1M.)
            merge = merge.use_index(False)
            # One batch: of several the engine takes now the one first and now the other, and the order of records is theirs.
            return int(merge.execute(rows.combine_chunks())["num_inserted_rows"])

    def add_columns(self, head: Dataset, fields: Sequence[pa.Field]) -> None:
        """Add empty columns to `head` by metadata alone. Raises ConflictError when anybody committed since `head`."""
        with self._writers.passed(), self._translated("adding columns"):
            head.add_columns(list(fields))

    def append(self, rows: pa.Table) -> int:
        """Add rows at the end, whatever else is committed meanwhile; returns the version. For tables without a key."""
        with self._writers.passed(), self._translated(f"appending {len(rows)} rows to {self.name}"):
            options = None if self._options is None else dict(self._options)
            return int(lance.write_dataset(rows, self.uri, mode="append", storage_options=options).version)

    def write_files(self, head: Dataset, batches: Iterator[pa.RecordBatch]) -> list[Any]:
        """Write rows (of `head`'s columns) to data files that no version names yet; what `add_files` takes."""
        from lance.fragment import write_fragments

        with self._translated(f"writing rows of {self.name}"):
            found: list[Any] = write_fragments(
                pa.RecordBatchReader.from_batches(head.schema, batches),
                self.uri,
                schema=head.schema,
                mode="append",
                max_rows_per_file=TARGET_ROWS_PER_FRAGMENT,
                data_storage_version="2.2",
                enable_stable_row_ids=True,
                storage_options=None if self._options is None else dict(self._options),
            )
            return found

    @staticmethod
    def paths_of(files: Sequence[Any]) -> list[str]:
        """The paths, relative to the table, of what `write_files` gave."""
        return [f"data/{data.path}" for fragment in files for data in fragment.files]

    def add_files(self, head: Dataset, files: Sequence[Any]) -> int:
        """Add the rows of `write_files` to the table; returns the version that has them.

        It is the one after `head`, unless somebody committed in between: then it holds what they did too.
        """
        with self._translated("adding rows"):
            operation = LanceOperation.Append(list(files))
            options = None if self._options is None else dict(self._options)
            made = lance.LanceDataset.commit(
                self.uri, operation, read_version=head.version, storage_options=options, enable_stable_row_ids=True
            )
            return int(made.version)

    def delete_created_at(self, version: int) -> None:
        """Delete the rows that version `version` added."""
        with self._translated("taking rows out again"):
            self._open().delete(f"{CREATED_AT} = {int(version)}")

    def version_with(self, files: Sequence[str], since: int) -> int | None:
        """The first version after `since` that names one of these data files; None when there is none."""
        wanted = set(files)
        for version in range(since + 1, int(self.head().version) + 1):
            try:
                dataset = self._open(version)
            except (OSError, ValueError):  # cleaned up
                continue
            if any(f"data/{data.path}" in wanted for f in dataset.get_fragments() for data in f.metadata.files):
                return version
        return None

    def drop_fragments(self, head: Dataset, fragment_ids: list[int]) -> None:
        """Delete whole fragments of `head` by metadata alone. Raises ConflictError when they changed meanwhile."""
        with self._writers.passed(), self._translated("taking sealed fragments out of live"):
            operation = LanceOperation.Delete([], fragment_ids, "sealed")
            lance.LanceDataset.commit(self.uri, operation, read_version=head.version, storage_options=self._options)

    def delete_created_up_to(self, head: Dataset, version: int) -> None:
        """Delete the rows that `version` already held."""
        with self._writers.passed(), self._translated("taking sealed rows out of live"):
            head.delete(created_up_to(version))

    def compact(
        self, rows_per_fragment: int = TARGET_ROWS_PER_FRAGMENT, *, engine: Engine | None = None
    ) -> tuple[int, int]:
        """Join neighbours of fewer rows than that, and drop deleted rows' space; gives the fragments before and after.

        The id index is brought up to date as well, unless the fragments are small: that rewrites all of it, and a look-up
        reads some thousand ids more as quickly. Workers of an `engine` write the joined files; nothing names them before this
        process commits, and syncs them.
        """
        from lance.optimize import Compaction, RewriteResult

        with self._writers.passed(), self._translated(f"compacting {self.name}"):
            head = self._newest()
            before = len(head.get_fragments())  # now: the commit moves the handle on
            plan = Compaction.plan(head, {"target_rows_per_fragment": rows_per_fragment, "num_threads": 1})
            if engine is None:
                made = [task.execute(head) for task in plan.tasks]
            else:
                table, version = self.address, int(head.version)
                each = [{"table": table, "version": version, "task": task.json()} for task in plan.tasks]
                found = engine.map("treering.store.table:rewrite", each)
                made = [RewriteResult.from_json(one.decode()) for one in found]
            if made:
                Compaction.commit(head, made)
            if rows_per_fragment >= _WORTH_INDEXING:
                self._newest().optimize.optimize_indices()
        after = self.head()
        self.make_durable(after)
        return before, len(after.get_fragments())

    def clean_up(self, older_than_s: float, keep_versions: int = 1) -> int:
        """Remove files that only untagged versions need that are older than that and not among the newest ones.

        Returns the bytes freed.
        """
        from datetime import timedelta

        head = self.head()
        self.make_durable(head)
        with self._translated(f"cleaning up {self.name}"), self._kept(head):
            stats = self._newest().cleanup_old_versions(
                older_than=timedelta(seconds=older_than_s),
                retain_versions=keep_versions,
                error_if_tagged_old_versions=False,
            )
        return int(stats.bytes_removed) + self._clear_unnamed()

    def _clear_unnamed(self) -> int:
        """Remove manifests, tags and other small files that a kill kept from getting their names; returns the bytes freed.

        Lance's own cleanup passes over them. One that is being written meanwhile is younger than a minute.
        """
        if self._root is None:  # an object store names a whole object or none
            return 0
        freed = 0
        now = self._objects.now().timestamp()
        for folder in (f for f in self._root.iterdir() if f.is_dir() and f.name != "data"):
            for file in (f for f in folder.rglob("*") if "#" in f.name or ".tmp." in f.name):
                with suppress(FileNotFoundError):
                    found = file.stat()
                    if now - found.st_mtime > _UNNAMED_S:
                        file.unlink()
                        freed += found.st_size
        return freed

    @contextmanager
    def _kept(self, head: Dataset) -> Iterator[None]:
        """Let no cleanup take this version, which is on disk, before its successor is on disk too."""
        if self._root is None:
            yield
            return
        tags = head.tags
        if _KEPT in tags.list():  # of a process that was killed
            tags.delete(_KEPT)
        tags.create(_KEPT, int(head.version))
        try:
            yield
            self.make_durable(self._newest())
        finally:
            self._open().tags.delete(_KEPT)

    # --- erasing -------------------------------------------------------------------------------------------------

    def branches(self) -> list[str]:
        """The names of the branches beside the main one."""
        found = self._objects.list(f"{self._path}/_refs/branches")
        return [PurePosixPath(path).stem for path in found if path.endswith(".json")]

    def branch(self, name: str, version: int) -> None:
        """See to it that there is a branch of that name; a new one begins with `version` of the main branch."""
        if name in self.branches():
            return
        with self._writers.passed(), self._translated(f"making the branch {name}"):
            self.at(version).create_branch(name, version)

    def drop_branch(self, name: str) -> None:
        """Remove a branch that no tag names, with all its files; nothing happens when there is none."""
        if name not in self.branches():
            return
        with self._writers.passed(), self._translated(f"removing the branch {name}"):
            self._open().branches.delete(name)
        if self._root is not None:
            for directory in (self._root / "_refs" / "branches", self._root / "tree", self._root):
                sync_directory(directory)

    def branch_head(self, branch: str | None) -> Dataset:
        """A fresh handle on the newest version of a branch; None is the main one."""
        with self._translated(f"opening {self.name}"):
            return self._newest_of(branch)

    def _newest_of(self, branch: str | None) -> Dataset:
        return self._newest() if branch is None else self._open(branch=branch)

    def delete_rows(self, branch: str | None, row_ids: RowIds) -> None:
        """Delete rows by their ascending stable row ids: the engine keeps the predicate, so it may hold nothing else."""
        for where in rows_among(row_ids):
            with self._writers.passed(), self._translated("deleting rows"):
                self._newest_of(branch).delete(where)

    def holds_deleted(self, dataset: Dataset) -> bool:
        """Whether any fragment of the handle's version still holds deleted rows."""
        return any(fragment.metadata.deletion_file is not None for fragment in dataset.get_fragments())

    def drop_deleted(self) -> None:
        """Rewrite the main branch's fragments that hold deleted rows, however few, without them."""
        with self._writers.passed(), self._translated(f"compacting {self.name}"):
            self._newest().optimize.compact_files(
                target_rows_per_fragment=TARGET_ROWS_PER_FRAGMENT,
                materialize_deletions=True,
                materialize_deletions_threshold=0.0,
                num_threads=1,
            )

    def make_own(self, branch: str) -> None:
        """Rewrite those fragments of a branch that hold deleted rows or files of another branch, and those after them.

        Fragment by fragment, so that rows stay in their order. Afterwards the branch needs nobody else's files: the engine
        refers to another branch's by absolute paths, which a store that is moved or copied would no longer find.
        """
        from lance.optimize import Compaction, CompactionTask

        with self._translated(f"rewriting {branch} of {self.name}"):
            head = self._open(branch=branch)
            fragments = [fragment.metadata.to_json() for fragment in head.get_fragments()]
            stale = [
                fragment["deletion_file"] is not None
                or any(file.get("base_id") is not None for file in fragment["files"])
                for fragment in fragments
            ]
            if not any(stale):
                return
            made = []
            for fragment in fragments[stale.index(True) :]:
                task = {"task": {"fragments": [fragment]}, "read_version": head.version, "options": _REWRITE}
                made.append(CompactionTask.from_json(json.dumps(task)).execute(head))
            Compaction.commit(head, made)

    def indexed_row_ids(self, dataset: Dataset) -> Iterator[RowIds]:
        """The row ids in the id index that the handle's version refers to, whatever the version itself still holds."""
        from lance.file import LanceFileReader

        for path in self._index_files(dataset):
            if path.endswith("/page_data.lance"):
                with self._translated(f"reading the index of {self.name}"):
                    reader = LanceFileReader(f"{self.uri}/{path}", storage_options=self._options, columns=["ids"])
                    for batch in reader.read_all(batch_size=65_536).to_batches():
                        yield np.asarray(batch.column(0)).astype(np.int64)

    def index_names_gone(self, dataset: Dataset) -> bool:
        """Whether the id index still covers fragments that the handle's version doesn't hold. Metadata only."""
        held = {int(fragment.fragment_id) for fragment in dataset.get_fragments()}
        segments = [segment for index in dataset.describe_indices() for segment in index.segments]
        return any(not held.issuperset(map(int, segment.fragment_ids)) for segment in segments)

    def reindex(self, branch: str | None) -> None:
        """Make the id index anew: it holds the ids of the rows that are there, and no others."""
        with self._writers.passed(), self._translated(f"making the index of {self.name}"):
            self._newest_of(branch).create_scalar_index("id", "BTREE", replace=True)

    def purge(self, branches: Sequence[str], *, unnamed: bool) -> int:
        """Remove all files that only untagged versions need, of the main branch and of these; returns the bytes freed.

        The main branch comes twice: what a branch still needed of it is known once the branch has been cleaned. With
        `unnamed` also files that no version names: what killed writers left. Only while writers are held up.
        """
        from datetime import timedelta

        freed = 0
        for branch in [None, *branches, None]:
            if branch is None and not unnamed:  # beside writers
                freed += self.clean_up(0.0)
                continue
            with self._translated(f"cleaning up {self.name}"):
                stats = self._newest_of(branch).cleanup_old_versions(
                    older_than=timedelta(0), error_if_tagged_old_versions=False, delete_unverified=unnamed
                )
            freed += int(stats.bytes_removed)
        if self._root is not None:
            for folder, _, _ in os.walk(self._root):
                sync_directory(Path(folder))  # else a power cut could bring names back
        return freed

    def remove_left_behind(self, older_than_s: float) -> int:
        """Remove files that no version names and that are older than that by the store's clock; how many are younger.

        For object stores, where nobody can be held up: a younger one may belong to a commit that is under way.
        """
        now = self._objects.now()
        written = self._objects.written(self._path)  # first: what is committed meanwhile is either named or young
        named: set[str] = set()
        for branch in [None, *self.branches()]:
            with self._translated(f"looking at {self.name}"):
                for version in self._open(branch=branch).versions():
                    named.update(self.files(self._open(int(version["version"]), branch)))
        young = 0
        for path, moment in written.items():
            name = path.removeprefix(f"{self._path}/")
            if name in named or not {"data", "_deletions", "_indices"} & set(PurePosixPath(name).parts):
                continue
            if (now - moment).total_seconds() < older_than_s:
                young += 1
            else:
                self._objects.delete(path)
        return young

    def held_up(self, wait_s: float) -> AbstractContextManager[None]:
        """While it lasts, nobody on this host commits to the table. Raises ConflictError when somebody doesn't end."""
        return self._writers.closed(wait_s)

    # --- tags ----------------------------------------------------------------------------------------------------

    def tag(self, name: str, version: int, branch: str | None = None, *, moves: TagTarget | None = None) -> None:
        """Name a version; `moves` is what the name may have meant before.

        Raises StoreError when it names anything else.
        """
        wanted = (branch, version)
        if self._root is not None:
            with self._translated(f"tagging {name}"):
                self._drop_torn_tag(self._root / self.tag_path(name))
        found = self.tagged(name)
        if found is None:
            try:
                with self._translated(f"tagging {name}"):
                    self._open().tags.create(name, wanted)
            except (ConflictError, StoreError):
                found = self.tagged(name)  # another process did it
                if found is None:
                    raise
        if found is not None and found == moves:
            with self._translated(f"moving the tag {name}"):
                self._open().tags.update(name, wanted)
        elif found is not None and found != wanted:
            raise StoreError(
                f"tag {name} of {self.name} names {describe(found)}, its record says {describe(wanted)}",
                code="tag-moved",
                hint="somebody moved the tag; the record is what counts: treering doctor --repair",
            )
        if self._root is not None:
            tags = self._root / "_refs" / "tags"
            sync_file(tags / f"{name}.json")
            for directory in (tags, tags.parent, self._root):
                sync_directory(directory)

    def tagged(self, name: str) -> TagTarget | None:
        """(branch, version) that a tag names; None when there is no such tag."""
        try:
            data = self._objects.get(f"{self._path}/_refs/tags/{name}.json")
        except NotFoundError:
            return None
        try:
            found = json.loads(data)
            return (found.get("branch"), int(found["version"]))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise StoreError(
                f"the tag {name} of {self.name} can't be read", code="tag-damaged", hint="restore it from a backup"
            ) from exc

    @staticmethod
    def tag_path(name: str) -> str:
        """The file of a tag, relative to the table."""
        return f"_refs/tags/{name}.json"

    def tags(self) -> list[str]:
        """Names of all tags."""
        found = self._objects.list(f"{self._path}/_refs/tags")
        return [path.rpartition("/")[2].removesuffix(".json") for path in found if path.endswith(".json")]

    def untag(self, name: str) -> None:
        """Take a tag away; nothing happens when there is none."""
        with self._translated(f"removing the tag {name}"):
            try:
                self._open().tags.delete(name)
            except (ValueError, OSError):
                if name in self.tags():
                    raise
        if self._root is not None:
            sync_directory(self._root / "_refs" / "tags")

    def sizes(self) -> dict[str, int]:
        """Every file of the table, relative to it, with its bytes."""
        return {path.removeprefix(f"{self._path}/"): size for path, size in self._objects.sizes(self._path).items()}

    def read_tag(self, name: str) -> bytes | None:
        """The bytes of a tag's file; None when there is no such tag."""
        try:
            return self._objects.get(f"{self._path}/{self.tag_path(name)}")
        except NotFoundError:
            return None

    @staticmethod
    def _drop_torn_tag(path: Path) -> None:
        """Remove a tag that a power cut left half written: whoever has its record writes it again."""
        with suppress(FileNotFoundError):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                path.unlink()

    # --- durability ----------------------------------------------------------------------------------------------

    def note_sealed(self, number: int) -> None:
        """Note that the record of snapshot `number` is on disk: from now on it is an error when it is gone."""
        if self.witness is not None:
            self.witness.sealed(number)

    def manifest_path(self, version: int, branch: str | None = None) -> str:
        """The manifest file of a version, relative to the table (Lance's V2 naming: newest sorts first)."""
        name = f"_versions/{2**64 - 1 - version:020d}.manifest"
        return name if branch is None else f"{self._folder_of(branch)}/{name}"

    def manifest_sha256(self, version: int, branch: str | None = None) -> str:
        """SHA-256 (hex) of a version's manifest. Raises StoreError when it is gone."""
        try:
            return self.file_sha256(self.manifest_path(version, branch))
        except NotFoundError as exc:
            raise StoreError(
                f"the manifest of version {version} of {self.name} is missing", code="manifest-missing"
            ) from exc

    def file_sha256(self, path: str) -> str:
        """SHA-256 (hex) of one of the table's files, by its path relative to the table. Raises NotFoundError."""
        return self._objects.sha256(f"{self._path}/{path}")

    def path_of(self, path: str) -> str:
        """The path in the store of one of the table's files."""
        return f"{self._path}/{path}"

    def owners(self, dataset: Dataset) -> dict[str, int]:
        """Data and deletion file, relative to the table → the fragment whose rows it holds or deletes."""
        own = self._folder_in(dataset)
        found: dict[str, int] = {}
        for fragment in dataset.get_fragments():
            meta = fragment.metadata
            found |= {_joined(own, f"data/{data.path}"): int(meta.id) for data in meta.files}
            if meta.deletion_file is not None:
                found[_joined(own, meta.deletion_file.path(meta.id))] = int(meta.id)
        return found

    def stamp(self, path: str) -> tuple[str, int, int, int] | None:
        """What changes whenever one of the table's files does: path, inode, size, time; None on an object store."""
        if self._root is None:
            return None
        try:
            found = (self._root / path).stat()
        except FileNotFoundError as exc:
            raise NotFoundError(f"{path} of {self.name} isn't there", code="object-missing") from exc
        return str(self._root / path), found.st_ino, found.st_size, found.st_mtime_ns

    def certified(self, dataset: Dataset) -> list[str]:
        """The files that a certificate vouches for: `files`, and the transaction that made the version if it is kept."""
        with self._translated(f"looking at version {dataset.version} of {self.name}"):
            try:
                made = dataset.read_transaction(int(dataset.version))
            except TypeError:  # pylance can't show a compaction that touched the index; nothing reads it ever again
                made = None
        name = f"_transactions/{made.read_version}-{made.uuid}.txn" if made is not None else ""
        path = _joined(self._folder_in(dataset), name) if name else ""
        kept = [path] if path and self._objects.exists(f"{self._path}/{path}") else []
        return self.files(dataset) + kept

    def files(self, dataset: Dataset) -> list[str]:
        """Every file that the handle's version references, relative to the table."""
        own = self._folder_in(dataset)
        files = []
        for fragment in dataset.get_fragments():
            meta = fragment.metadata
            # A file with a base is one that a branch has from the main one, until it is made its own.
            files += [_joined(own if data.base_id is None else "", f"data/{data.path}") for data in meta.files]
            if meta.deletion_file is not None:
                files.append(_joined(own, meta.deletion_file.path(meta.id)))
        files += self._index_files(dataset)
        files.append(_joined(own, self.manifest_path(dataset.version)))
        return files

    def _index_files(self, dataset: Dataset) -> list[str]:
        own = self._folder_in(dataset)
        files = []
        for index in dataset.describe_indices():
            for segment in index.segments:
                folder = _joined(own if segment.base_id is None else "", f"_indices/{segment.uuid}")
                found = self._objects.list(f"{self._path}/{folder}")
                files += [path.removeprefix(f"{self._path}/") for path in found]
        return files

    def check_present(self, dataset: Dataset) -> None:
        """Raise StoreError when a data or deletion file of the handle's version is missing, or a data file of another size.

        Looks at metadata alone (2 µs a file). On an object store, where that is a request a file, it does nothing.
        """
        if self._root is None:
            return
        own = self._folder_in(dataset)
        sizes: dict[str, int | None] = {}
        for fragment in dataset.get_fragments():
            meta = fragment.metadata
            sizes |= {
                _joined(own, f"data/{data.path}"): data.file_size_bytes for data in meta.files if data.base_id is None
            }
            if meta.deletion_file is not None and meta.deletion_file.base_id is None:
                sizes[_joined(own, meta.deletion_file.path(meta.id))] = None
        for path, size in sizes.items():
            try:
                found = (self._root / path).stat().st_size
            except FileNotFoundError:
                wrong = "is missing"
            else:
                if size is None or size == found:
                    continue
                wrong = f"has {found:,} bytes, not {size:,}"
            raise StoreError(
                f"version {dataset.version} of {self.name}: {path} {wrong}",
                code="snapshot-damaged",
                hint="restore the store's files from a backup; what is damaged: treering verify "
                f"--store {self._objects.location.uri}",
            )

    def make_durable(self, dataset: Dataset) -> None:
        """Fsync every file that the handle's version references, whoever wrote it, and their directories.

        A neighbour's unsynced file would make the version unreadable after a power cut just as our own would. On an
        object store there is nothing to do: what a server has acknowledged, or shows, is durable.
        """
        if self._root is None:
            return
        root = self._root
        own = self._folder_in(dataset)
        with os.scandir(root / own / "_transactions") as found:
            transactions = {_joined(own, f"_transactions/{entry.name}") for entry in found}
        pending = (transactions | set(self.files(dataset))) - self._synced
        for path in pending:
            sync_file(root / path)
        directories = {(root / path).parent for path in pending} | {root / own / "_indices", root / own, root}
        if own:
            sync_file(root / "_refs" / "branches" / f"{own.removeprefix('tree/')}.json")
            directories |= {root / "tree", root / "_refs", root / "_refs" / "branches"}
        for directory in directories:
            sync_directory(directory)
        sync_file(root / own / "_versions" / "latest_version_hint.json")  # rewritten by every commit
        self._synced |= pending
        self.note(dataset)

    def note(self, dataset: Dataset) -> None:
        """Note that the handle's version is on disk: from now on an older one is an error."""
        if self.witness is not None and str(dataset.uri).rstrip("/") == self.uri:  # a branch numbers its own versions
            seen = self.witness.read()
            if seen is None or seen.version < dataset.version:
                self.witness.advance(int(dataset.version), self.manifest_sha256(int(dataset.version)))

    # --- reading -------------------------------------------------------------------------------------------------

    def scan(
        self,
        dataset: Dataset,
        columns: Sequence[str],
        where: str | None = None,
        *,
        row_ids: bool = False,
        fragments: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the rows that match, in table order; with `_rowid` as the last column if asked for.

        fragments: only these, by number.
        """
        with self._translated(f"reading {self.name}"):
            rows = _NARROW_ROWS if _NARROW.issuperset(columns) else _WIDE_ROWS
            among: dict[str, Any] = {}
            if fragments is not None:
                among["fragments"] = [dataset.get_fragment(number) for number in fragments]
            scanner = dataset.scanner(
                columns=list(columns), filter=where, with_row_id=row_ids, batch_size=rows, **_SCAN, **among
            )
            yield from scanner.to_batches()

    def count(self, dataset: Dataset, where: str | None = None) -> int:
        """Rows that match."""
        with self._translated(f"counting {self.name}"):
            return int(dataset.count_rows(where))

    def take(self, dataset: Dataset, row_ids: np.ndarray[Any, np.dtype[np.int64]], columns: Sequence[str]) -> pa.Table:
        """Rows by stable row id, in the order asked. Ids the version doesn't hold are left out, silently.

        Straight from the data files where that can be done. `_take_rows`, for the rest, is private to pylance, hence
        wrapped here alone: `take` by offsets falls to some hundred rows a second as soon as any fragment has a deletion.
        """
        with self._translated(f"reading rows of {self.name}"):
            found = None
            if self._root is not None:
                found = self._row_places(dataset).take(row_ids, tuple(columns), self._readers)
            return found if found is not None else dataset._take_rows(row_ids.astype(np.uint64), columns=list(columns))

    def fill(
        self,
        dataset: Dataset,
        row_ids: np.ndarray[Any, np.dtype[np.int64]],
        column: pa.Field,
        out: np.ndarray[Any, Any],
    ) -> bool:
        """Copy one column of these rows into `out` (rows, …), where its bytes stand in the data files just so.

        False when they don't, or not all of the rows are there; then `take` is the way.
        """
        if self._root is None:
            return False
        with self._translated(f"reading rows of {self.name}"):
            return self._row_places(dataset).fill(row_ids, column, out, self._readers)

    def release(self) -> None:
        """Close the data files that `take` keeps open; the next `take` opens them again."""
        self._readers.close()

    def _row_places(self, dataset: Dataset) -> RowPlaces:
        """Where the version's rows lie; kept. Looks at every row id once (10 ms a million)."""
        key = (str(dataset.uri), int(dataset.version))
        found = self._places.get(key)
        if found is None:
            batches = dataset.scanner(columns=[ROW_ID, ROW_ADDRESS], **_SCAN).to_batches()
            runs = row_runs((np.asarray(batch.column(0)), np.asarray(batch.column(1))) for batch in batches)
            leaves = {field.name(): _leaves(field) for field in dataset.lance_schema.fields()}
            found = self._places[key] = RowPlaces(runs, self._plain_files(dataset), leaves)
            while len(self._places) > _MOST_VERSIONS:
                self._places.popitem(last=False)
        return found

    def _plain_files(self, dataset: Dataset) -> dict[int, DataFile]:
        """Fragment → its data file, where that is one of this table's own directory and all there is to the fragment."""
        assert self._root is not None
        files = {}
        for fragment in dataset.get_fragments():
            meta = fragment.metadata
            if len(meta.files) == 1 and not meta.overlays:
                (file,) = meta.files
                if file.base_id is None and file.file_major_version == 2:
                    path = str(self._root / self._folder_in(dataset) / "data" / file.path)
                    files[int(meta.id)] = DataFile(path, tuple(file.fields), tuple(file.column_indices))
        return files

    def fragment_rows(self, dataset: Dataset) -> list[int]:
        """Rows in each fragment, deleted ones left out. Metadata only."""
        return [int(fragment.count_rows()) for fragment in dataset.get_fragments()]

    def last_row_id(self, dataset: Dataset) -> int:
        """The highest stable row id in the version; -1 when it is empty.

        Looks at every row (1.3 ms a million): compaction beside appends can leave later rows before earlier ones.
        """
        batches = self.scan(dataset, [ROW_ID])
        return max((int(np.asarray(batch.column(0)).max()) for batch in batches if len(batch)), default=-1)


def rewrite(table: Mapping[str, Any], version: int, task: str) -> bytes:
    """In a worker: join the fragments of one task of a compaction into files that nothing names yet; gives what to commit."""
    from lance.optimize import CompactionTask

    opened = LanceTable(objects_at(Location.parse(table["uri"], table["options"] or None)), table["path"])
    with opened._translated(f"compacting {opened.name}"):
        made: str = CompactionTask.from_json(task).execute(opened._open(version)).json()
        return made.encode()


def describe(target: TagTarget) -> str:
    """`version 7`, or `version 12 of branch v1-erased`."""
    branch, version = target
    return f"version {version}" if branch is None else f"version {version} of branch {branch}"


def _joined(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path


def retry_conflicts(attempt: Callable[[], bool], *, what: str, limit: int = 1_000) -> None:
    """Call `attempt` until it returns True; a ConflictError from it counts as False.

    The limit is far beyond any contention seen (8 writers: worst wait 3.2 s); it turns a livelock into an error.
    """
    for n in range(limit):
        try:
            if attempt():
                return
        except ConflictError:
            time.sleep(random.uniform(0, min(0.001 * 2 ** min(n, 7), 0.2)))
    raise ConflictError(f"other writers kept coming first while {what}", code="livelock", hint="try again")
