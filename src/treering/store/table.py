"""One Lance table: the only module that talks to Lance and LanceDB.

Offers what the store needs of the engine and turns its errors into ours. Does not know corpora, snapshots or records.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation
from lance.commit import CommitConflictError

from treering.errors import ConflictError, StoreError
from treering.store.durable import sync_directory, sync_file
from treering.store.rows import DataFile, FileReaders, RowPlaces, row_runs

__all__ = ["CREATED_AT", "ROW_ID", "Dataset", "LanceTable", "created_after", "created_up_to", "rows_between", "text_in"]

Dataset = Any  # lance.LanceDataset; pylance ships no types

ROW_ID = "_rowid"
CREATED_AT = "_row_created_at_version"
_ROW_ADDRESS = "_rowaddr"

_MOST_VERSIONS = 16  # versions whose rows' places are kept

#: A scan with Lance's defaults peaks at 550 MB (1M rows of 1 kB); these bound it. With one fragment at a time a table of
#: five would take 1.3 times as long to scan as the same in one.
_SCAN = {"batch_readahead": 2, "fragment_readahead": 2, "io_buffer_size": 16 << 20}

#: Rows a compacted fragment aims at. Larger ones make each compaction step, and so its memory, larger.
TARGET_ROWS_PER_FRAGMENT = 65_536


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


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Engine errors become ours, here and nowhere else."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as exc:
        if is_conflict(exc):
            raise ConflictError(f"another writer came first while {what}", code="commit-conflict") from exc
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        hint = "free some space, then try again" if "No space left" in str(exc) else None
        raise StoreError(f"failed {what}: {reason}", code="engine", hint=hint) from exc


def _open_file(path: str, columns: tuple[str, ...]) -> Any:
    from lance.file import LanceFileReader

    return LanceFileReader(path, columns=list(columns))._reader  # its Python half looks at every index once more


def _file_columns(path: str) -> Sequence[str]:
    from lance.file import LanceFileReader

    return tuple(LanceFileReader(path).metadata().schema.names)


def _leaves(field: Any) -> tuple[int, ...]:
    children = field.children()
    return sum(map(_leaves, children), ()) if children else (int(field.id()),)


class LanceTable:
    """A Lance table at `path`, opened anew wherever the newest state counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = str(path)
        self._synced: set[str] = set()  # immutable files this process knows to be on disk
        self._pinned: dict[int, Dataset] = {}
        self._places: OrderedDict[tuple[str, int], RowPlaces] = OrderedDict()
        self._readers = FileReaders(_open_file, _file_columns)

    def create(self, schema: pa.Schema) -> None:
        """Make the table, empty, through the LanceDB catalogue, with stable row ids and an index on `id`."""
        import lancedb  # 1.5 s to import: only the rare call that needs the catalogue pays for it

        with _translated(f"creating the table {self.path.stem}"):
            catalogue = lancedb.connect(str(self.path.parent))
            catalogue.create_table(
                self.path.stem,
                schema=schema,
                storage_options={
                    "new_table_enable_stable_row_ids": "true",
                    "new_table_data_storage_version": "2.2",
                },
            )
            dataset = lance.dataset(self.uri)
            dataset.create_scalar_index("id", "BTREE")
            self.make_durable(lance.dataset(self.uri))

    def head(self) -> Dataset:
        """A fresh handle on the newest version."""
        with _translated(f"opening {self.path.stem}"):
            return lance.dataset(self.uri)

    def at(self, version: int) -> Dataset:
        """A handle on one version; versions never change, so handles are kept."""
        if version not in self._pinned:
            with _translated(f"opening version {version} of {self.path.stem}"):
                self._pinned[version] = lance.dataset(self.uri, version=version)
        return self._pinned[version]

    # --- writing -------------------------------------------------------------------------------------------------

    def insert_new(self, head: Dataset, rows: pa.Table) -> int:
        """Insert the rows whose `id` isn't in `head` yet; returns how many went in.

        Raises ConflictError when anybody committed since `head`: the caller must look again before it retries,
        because the engine's own retry plans anew behind whatever the caller checked.
        """
        with _translated(f"committing {len(rows)} records"):
            merge = head.merge_insert("id").when_not_matched_insert_all().conflict_retries(0)
            return int(merge.execute(rows)["num_inserted_rows"])

    def drop_fragments(self, head: Dataset, fragment_ids: list[int]) -> None:
        """Delete whole fragments of `head` by metadata alone. Raises ConflictError when they changed meanwhile."""
        with _translated("taking sealed fragments out of live"):
            operation = LanceOperation.Delete([], fragment_ids, "sealed")
            lance.LanceDataset.commit(self.uri, operation, read_version=head.version)

    def delete_created_up_to(self, head: Dataset, version: int) -> None:
        """Delete the rows that `version` already held."""
        with _translated("taking sealed rows out of live"):
            head.delete(created_up_to(version))

    def compact(self, rows_per_fragment: int = TARGET_ROWS_PER_FRAGMENT) -> None:
        """Join neighbours of fewer rows than that, drop deleted rows' space, bring the id index up to date."""
        with _translated(f"compacting {self.path.stem}"):
            head = lance.dataset(self.uri)
            head.optimize.compact_files(target_rows_per_fragment=rows_per_fragment, num_threads=1)
            lance.dataset(self.uri).optimize.optimize_indices()
        self.make_durable(self.head())

    def clean_up(self, older_than_s: float) -> int:
        """Remove files that only untagged versions older than that need; returns the bytes freed."""
        from datetime import timedelta

        with _translated(f"cleaning up {self.path.stem}"):
            stats = lance.dataset(self.uri).cleanup_old_versions(
                older_than=timedelta(seconds=older_than_s), error_if_tagged_old_versions=False
            )
        return int(stats.bytes_removed)

    def tag(self, name: str, version: int) -> None:
        """Name a version. Raises StoreError when the name already names another one."""
        with _translated(f"tagging {name}"):
            dataset = lance.dataset(self.uri)
            found = self.tags().get(name)
            if found is None:
                try:
                    dataset.tags.create(name, version)
                except (OSError, ValueError, RuntimeError):
                    found = self.tags().get(name)
                    if found is None:
                        raise
        if found is not None and found != version:
            raise StoreError(
                f"tag {name} of {self.path.stem} names version {found}, its record says {version}",
                code="tag-moved",
                hint="somebody moved the tag; the record is what counts",
            )
        tags = self.path / "_refs" / "tags"
        sync_file(tags / f"{name}.json")
        for directory in (tags, tags.parent, self.path):
            sync_directory(directory)

    def tags(self) -> dict[str, int]:
        """Tag name → version."""
        return {name: int(tag["version"]) for name, tag in lance.dataset(self.uri).tags.list().items()}

    # --- durability ----------------------------------------------------------------------------------------------

    def manifest_path(self, version: int) -> Path:
        """The manifest file of a version (Lance's V2 naming: newest sorts first)."""
        return self.path / "_versions" / f"{2**64 - 1 - version:020d}.manifest"

    def manifest_sha256(self, version: int) -> str:
        """SHA-256 (hex) of a version's manifest. Raises StoreError when it is gone."""
        try:
            return hashlib.sha256(self.manifest_path(version).read_bytes()).hexdigest()
        except FileNotFoundError as exc:
            raise StoreError(
                f"the manifest of version {version} of {self.path.stem} is missing", code="manifest-missing"
            ) from exc

    def files(self, dataset: Dataset) -> list[Path]:
        """Every file that the handle's version references."""
        files = []
        for fragment in dataset.get_fragments():
            meta = fragment.metadata
            files += [self.path / "data" / data.path for data in meta.files]
            if meta.deletion_file is not None:
                files.append(self.path / meta.deletion_file.path(meta.id))
        for index in dataset.describe_indices():
            for segment in index.segments:
                files += sorted((self.path / "_indices" / str(segment.uuid)).glob("*"))
        files.append(self.manifest_path(dataset.version))
        return files

    def make_durable(self, dataset: Dataset) -> None:
        """Fsync every file that the handle's version references, whoever wrote it, and their directories.

        A neighbour's unsynced file would make the version unreadable after a power cut just as our own would.
        """
        pending = [path for path in self.files(dataset) if str(path) not in self._synced]
        transactions = self.path / "_transactions"
        pending += [path for path in transactions.glob("*.txn") if str(path) not in self._synced]
        for path in pending:
            sync_file(path)
        directories = {path.parent for path in pending} | {self.path / "_indices", self.path}
        for directory in directories:
            sync_directory(directory)
        sync_file(self.path / "_versions" / "latest_version_hint.json")  # rewritten by every commit
        self._synced.update(map(str, pending))

    # --- reading -------------------------------------------------------------------------------------------------

    def scan(
        self, dataset: Dataset, columns: Sequence[str], where: str | None = None, *, row_ids: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the rows that match, in table order; with `_rowid` as the last column if asked for."""
        with _translated(f"reading {self.path.stem}"):
            scanner = dataset.scanner(columns=list(columns), filter=where, with_row_id=row_ids, **_SCAN)
            yield from scanner.to_batches()

    def count(self, dataset: Dataset, where: str | None = None) -> int:
        """Rows that match."""
        with _translated(f"counting {self.path.stem}"):
            return int(dataset.count_rows(where))

    def take(self, dataset: Dataset, row_ids: np.ndarray[Any, np.dtype[np.int64]], columns: Sequence[str]) -> pa.Table:
        """Rows by stable row id, in the order asked. Ids the version doesn't hold are left out, silently.

        Straight from the data files where that can be done. `_take_rows`, for the rest, is private to pylance, hence
        wrapped here alone: `take` by offsets falls to some hundred rows a second as soon as any fragment has a deletion.
        """
        with _translated(f"reading rows of {self.path.stem}"):
            found = self._row_places(dataset).take(row_ids, tuple(columns), self._readers)
            return found if found is not None else dataset._take_rows(row_ids.astype(np.uint64), columns=list(columns))

    def release(self) -> None:
        """Close the data files that `take` keeps open; the next `take` opens them again."""
        self._readers.close()

    def _row_places(self, dataset: Dataset) -> RowPlaces:
        """Where the version's rows lie; kept. Looks at every row id once (10 ms a million)."""
        key = (str(dataset.uri), int(dataset.version))
        found = self._places.get(key)
        if found is None:
            batches = dataset.scanner(columns=[ROW_ID, _ROW_ADDRESS], **_SCAN).to_batches()
            runs = row_runs((np.asarray(batch.column(0)), np.asarray(batch.column(1))) for batch in batches)
            leaves = {field.name(): _leaves(field) for field in dataset.lance_schema.fields()}
            found = self._places[key] = RowPlaces(runs, self._plain_files(dataset), leaves)
            while len(self._places) > _MOST_VERSIONS:
                self._places.popitem(last=False)
        return found

    def _plain_files(self, dataset: Dataset) -> dict[int, DataFile]:
        """Fragment → its data file, where that is one of this table's own directory and all there is to the fragment."""
        files = {}
        for fragment in dataset.get_fragments():
            meta = fragment.metadata
            if len(meta.files) == 1 and not meta.overlays:
                (file,) = meta.files
                if file.base_id is None and file.file_major_version == 2:
                    path = str(self.path / "data" / file.path)
                    files[int(meta.id)] = DataFile(path, tuple(int(one) for one in file.fields))
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
