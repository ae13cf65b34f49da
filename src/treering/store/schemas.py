"""The schema versions of a corpus: kept, found again, and made.

A version is a document, and creating it if absent is all that evolving takes: the stored records stay as they are. What
is left then, adding the (empty) columns that its records will need to the table, is repeatable, and done by whoever
comes first: the process that evolved, or one that has a record of that version to store. Columns of the table are only
ever added, so a writer of an older version goes on as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from treering.errors import AlreadyExistsError, ConflictError, StoreError, TreeringError, UsageError
from treering.schema import RecordType, SchemaSpec
from treering.schema.evolution import SCHEMA_VERSION, Alignment, History, evolved, newest_held
from treering.store.documents import CorpusRecord, SchemaVersion

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.table import Dataset

__all__ = ["add_columns", "evolve", "newer_versions", "read_versions", "version_path"]


def version_path(record: CorpusRecord, number: int) -> str:
    """The object that holds a version of a corpus's schema."""
    return f"corpora/{record.name}/schemas/{record.incarnation}-{number}.json"


def read_versions(store: BaseStore, record: CorpusRecord) -> History:
    """All versions of a corpus's schema. Raises StoreError when one is missing or damaged."""
    prefix = version_path(record, 0).removesuffix("0.json")
    paths = store.objects.list(prefix.rpartition("/")[0])
    numbers = [path.removeprefix(prefix).removesuffix(".json") for path in paths if path.startswith(prefix)]
    count = len(numbers)
    if not count or {int(number) for number in numbers if number.isdigit()} != set(range(1, count + 1)):
        raise StoreError(
            f"a version of the schema of corpus {record.name!r} is missing",
            code="document-damaged",
            hint="restore the store's files from a backup",
        )
    return tuple(store.read_document(SchemaVersion, version_path(record, n + 1)).columns() for n in range(count))


def newer_versions(store: BaseStore, record: CorpusRecord, known: History) -> History:
    """`known` and what has come after it: one look-up when nothing has."""
    found = list(known)
    while store.objects.exists(path := version_path(record, len(found) + 1)):
        found.append(store.read_document(SchemaVersion, path).columns())
    return tuple(found)


def evolve(
    corpus: BaseCorpus,
    schema: SchemaSpec,
    renames: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    dry_run: bool = False,
) -> Alignment:
    """See `Corpus.evolve`."""
    for what, given in (("renames", renames), ("defaults", defaults)):
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UsageError(f"{what} is {given!r}; it maps names of columns", code="bad-evolution")
    if not all(isinstance(to, str) for to in renames.values()):
        raise UsageError(f"renames is {renames!r}; it maps a name to a new one", code="bad-evolution")
    new, base = RecordType.of(schema), corpus.versions
    _check_newest(corpus, base)
    version = evolved(base, new, renames, defaults)
    history = base if version is base[-1] else (*base, version)
    if not dry_run:
        with corpus.lease():
            if version is not base[-1]:
                _check_newest(corpus, base)
                corpus.step("before-schema")
                path = version_path(corpus.record, version.number)
                try:
                    corpus.store.objects.create(path, SchemaVersion.of(version, datetime.now(UTC)).to_json())
                except AlreadyExistsError as exc:
                    raise _raced(corpus) from exc
            corpus.step("after-schema")
            # From here on it has happened, so a table that can't be changed just now is no reason to say it failed.
            with suppress(TreeringError):
                _add_all(corpus, history)
        corpus.step("after-columns")
        corpus.adopt(RecordType(new.name, version.schema, new.model, new.given), history)
    return Alignment.between(history, len(base), len(history))


def _add_all(corpus: BaseCorpus, versions: History) -> None:
    from treering.store.table import retry_conflicts  # Lance takes half a second to import

    def attempt() -> bool:
        add_columns(corpus, corpus.table.head(), versions)
        return True

    retry_conflicts(attempt, what=f"adding columns to {corpus.name}", limit=50)
    corpus.table.make_durable(corpus.table.head())


def add_columns(corpus: BaseCorpus, head: Dataset, versions: History) -> None:
    """Add to the table the stored columns of these versions that `head` lacks, by metadata alone.

    Raises ConflictError when another writer came first.
    """
    if newest_held(versions, head.schema) == len(versions):
        return
    wanted = {SCHEMA_VERSION: pa.int32()}
    wanted |= {column.stored: column.field.type for version in versions for column in version.columns}
    missing = [pa.field(name, kind) for name, kind in wanted.items() if name not in head.schema.names]
    corpus.table.add_columns(head, missing)


def _check_newest(corpus: BaseCorpus, base: History) -> None:
    if len(newer_versions(corpus.store, corpus.record, base)) > len(base):
        raise _raced(corpus)


def _raced(corpus: BaseCorpus) -> ConflictError:
    return ConflictError(
        f"the schema of {corpus.name} evolved meanwhile: version {corpus.versions[-1].number} isn't the newest any more",
        code="schema-raced",
        hint=f"look at it (treering schema {corpus.name}), then open the corpus anew and evolve that",
    )
