"""From a spool into the table: each record once, however often it was sent.

Records are stored as the schema version they were captured under, whatever has come after it; they are compared as the
newest.
Order matters: open the table, *then* list the snapshots and ask their id filters, then merge with the engine's own
retry switched off. Any conflict starts over at opening. A commit is trimmed from the spool only when it is durable.
What was erased is dropped: the denylist is asked after the table was opened and once more after the commit, since an
erasure that was decided in between could neither be known here nor see what was being committed there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, groupby, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import to_json

from treering.capture import quarantine
from treering.capture.spool import Entry, Spool
from treering.errors import ConflictError, Problem, StoreError, TreeringError
from treering.schema import Alignment, Version
from treering.schema.evolution import SCHEMA_VERSION, History, as_stored
from treering.store.certificate import id_filter
from treering.store.corpus import BaseCorpus
from treering.store.denylist import Denylist, denylist
from treering.store.documents import SnapshotRecord
from treering.store.erase import Wanted, erase
from treering.store.idfilter import IdFilter
from treering.store.place import Place, head_of, sealed_in
from treering.store.prune import pruned_ids
from treering.store.schemas import add_columns
from treering.store.snapshot import Listed, listed
from treering.store.table import Dataset, created_up_to, retry_conflicts, text_in

__all__ = [
    "FILTERS",
    "GIVEN",
    "Committed",
    "comparable",
    "drain",
    "encode_row",
    "erase_again",
    "look_up",
    "same_content",
    "spool_schema",
]

#: Fields that are filled in, and the spool-only columns that say whether they came with the record: what was filled in
#: doesn't make a resent record differ.
GIVEN = {"ts": "_ts_given", "split": "_split_given"}
#: Metadata of a spooled batch: the number of the schema version that its records were captured under.
_CAPTURED = b"treering:schema-version"

#: Rows a commit: large enough to pay for a commit's ~20 ms, small enough to stay a few dozen MB in memory.
_MAX_ROWS = 65_536
_MAX_BYTES = 64 << 20
#: Rows that stood alone in a spool and become one batch: as Python objects they take ten times their bytes.
_GATHERED = 4_096
#: ids an index look-up; 4 ms a thousand.
_LOOK_UP = 1_000


@dataclass
class Committed:
    """What became of drained records. `conflicts` are those whose id is taken by other content."""

    stored: int = 0
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)
    refused: int = 0
    erased: int = 0  # dropped, because they were erased before


class _DenylistGrewError(Exception):
    """Something was erased since the rows were looked at: look again."""


class _Filters:
    """Id filters of the snapshots of one corpus, kept while the process lives."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], IdFilter] = {}

    def of(self, corpus: BaseCorpus, record: SnapshotRecord) -> IdFilter | None:
        key = (corpus.uri, record.path())  # the path holds the incarnation
        if key not in self._known:
            found = id_filter(corpus, record)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]


#: The one of this process.
FILTERS = _Filters()


def spool_schema(version: Version) -> pa.Schema:
    """Columns of a spooled batch of records of one schema version."""
    schema = version.schema
    for name in GIVEN.values():
        schema = schema.append(pa.field(name, pa.bool_()))
    return schema.with_metadata({_CAPTURED: str(version.number).encode()})


def _captured(batch: pa.RecordBatch) -> int:
    return int((batch.schema.metadata or {}).get(_CAPTURED, b"1"))


def encode_row(number: int, row: dict[str, Any]) -> bytes:
    """A spooled record of one schema version as JSON; `row` has all columns of its spool schema that aren't null.

    Making Arrow data of one record takes longer than a sync of it: `drain` does so for thousands. An Arrow stream begins
    otherwise than with `{`. Raises ValueError for text that isn't Unicode.
    """
    return b'{"version":%d,"row":%b}' % (number, to_json(row, inf_nan_mode="constants"))


def _is_row(entry: Entry) -> bool:
    return isinstance(entry.payload, bytes) and entry.payload.startswith(b"{")


def _batches(corpus: BaseCorpus, entries: Sequence[Entry]) -> Iterator[pa.RecordBatch]:
    """What was spooled, in order: rows that stand alone are gathered."""
    for are_rows, group in groupby(entries, _is_row):
        if not are_rows:
            for entry in group:
                yield from pa.ipc.open_stream(entry.payload)
            continue
        while some := [json.loads(entry.payload) for entry in islice(group, _GATHERED)]:
            for number, rows in groupby(some, lambda one: int(one["version"])):
                schema = spool_schema(corpus.known_versions(number)[number - 1])
                columns = pa.array([one["row"] for one in rows], pa.struct(list(schema))).flatten()
                yield pa.RecordBatch.from_arrays(columns, schema=schema)


def drain(corpus: BaseCorpus, spool: Spool, done: Committed, *, up_to: int | None = None) -> None:
    """Move what the spool holds now to the table or to quarantine, and add up in `done` what became of it.

    Of records only those of entries up to number `up_to`, if given. What comes in meanwhile waits for the next call. What can't be
    moved stays in the spool. Raises StoreError, ConflictError.
    """
    last = spool.last("refused")
    while entries := spool.read("refused", last, 10_000, _MAX_BYTES):
        denied = denylist(corpus)
        for refused in entries:
            payload, dropped = _without_denied(refused.payload, denied)
            done.erased += dropped
            if payload is not None:
                quarantine.put_aside(corpus, payload)
        if denylist(corpus).known != denied.known:
            continue  # put aside twice is once
        spool.trim("refused", entries[-1].seq)
    last = spool.last("batches") if up_to is None else up_to
    while entries := spool.read("batches", last, _MAX_ROWS, _MAX_BYTES):
        for number, group in groupby(_batches(corpus, entries), _captured):
            version = corpus.known_versions(number)[number - 1]
            _commit_or_refuse(corpus, pa.Table.from_batches(group, spool_schema(version)), version, done)
        spool.trim("batches", entries[-1].seq)


def _commit_or_refuse(corpus: BaseCorpus, rows: pa.Table, version: Version, done: Committed) -> None:
    """Commit the rows. What fails by what it holds is found by halving and put aside: it must not block the rest."""
    try:
        _commit(corpus, rows, version, done)
    except TreeringError:
        raise  # the disk, the engine, other writers: not the rows' fault
    except (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as exc:
        if len(rows) > 1:
            middle = len(rows) // 2
            _commit_or_refuse(corpus, rows.slice(0, middle), version, done)
            _commit_or_refuse(corpus, rows.slice(middle), version, done)
            return
        problem = Problem((), "bad-value", f"expected values that can be stored and compared, got: {exc}")
        quarantine.put_aside(corpus, quarantine.encode([quarantine.entry(str(rows.column("id")[0]), [problem])]))
        done.refused += 1


def _without_denied(payload: bytes, denied: Denylist) -> tuple[bytes | None, int]:
    """(encoded refused records without those that name what was erased, None when none is left; how many those are)."""
    if not denied:
        return payload, 0
    entries = quarantine.decode(payload)
    kept = [entry for entry in entries if not denied.mentions(entry.record)]
    if len(kept) == len(entries):
        return payload, 0
    return quarantine.encode(kept) if kept else None, len(entries) - len(kept)


def _commit(corpus: BaseCorpus, rows: pa.Table, version: Version, done: Committed) -> None:
    """Store what wasn't erased before; what was erased meanwhile leaves the table again."""
    while True:
        denied = denylist(corpus, look=False)  # `_commit_allowed` looks, once the table is open
        hit = pa.array(denied.denies(rows.column("id"), rows.column("subject")))
        dropped, allowed = rows.filter(hit), rows
        if len(dropped):  # filtering copies
            allowed = rows.filter(pc.invert(hit))
        try:
            _commit_allowed(corpus, allowed, version, done, denied)
        except _DenylistGrewError:
            continue
        break
    now = denylist(corpus)
    late = allowed.slice(0, 0)
    if now.known != denied.known:
        late = allowed.filter(pa.array(now.denies(allowed.column("id"), allowed.column("subject"))))
    done.erased += len(dropped) + len(late)
    # Dropped ones too: a process that didn't know may have committed them, and died before it looked again.
    ids = [*dropped.column("id").to_pylist(), *late.column("id").to_pylist()]
    erase_again(corpus, ids)


def erase_again(corpus: BaseCorpus, ids: Sequence[str]) -> None:
    """Erase those of these records, erased before, that got into the table all the same. Raises ConflictError."""
    if not ids:
        return
    history = corpus.known_versions()
    there = _rows_with(head_of(corpus, history), ids) | _sealed_with(corpus, history, ids)[0]
    if there:
        erase(corpus, Wanted(ids=tuple(sorted(there)), reason="committed while an erasure was under way"))


def _commit_allowed(corpus: BaseCorpus, rows: pa.Table, version: Version, done: Committed, denied: Denylist) -> None:
    """Store each row whose id is new, and make that durable; put aside those whose id is taken by other content.

    Raises _DenylistGrewError when something was erased since `denied`; nothing was stored then.
    """
    if not len(rows):
        return
    rows, again, originals = _first_of_each_id(rows)
    stored = 0
    known: dict[str, dict[str, Any]] = {}  # rows that were there before, by id, as the newest version
    gone: set[str] = set()  # ids of pruned records: what comes again under one is a late retry, whatever it says
    history: History = ()

    def attempt() -> bool:
        head = corpus.table.head()
        if denylist(corpus).known != denied.known:
            raise _DenylistGrewError
        records = listed(corpus)
        try:
            return merge(head, records)
        except StoreError as exc:
            # Files that an erasure or a cleanup has removed meanwhile: another writer was ahead.
            moved = corpus.table.head().version != head.version or listed(corpus) != records
            if exc.code == "engine" and moved:
                raise ConflictError("the table was rewritten meanwhile", code="commit-conflict") from exc
            raise

    def merge(head: Dataset, records: Listed) -> bool:
        nonlocal stored, known, gone, history
        # Asked after the head was opened: then no record in it is of a later version.
        history = corpus.known_versions()
        known, gone = _sealed_with(corpus, history, rows.column("id").to_pylist(), records)
        corpus.table.check_floor(head)
        fresh = rows.filter(pc.invert(_has_id_of(rows, [*known, *gone]))) if known or gone else rows
        stored = 0
        if len(fresh):
            to_store = as_stored(_sorted_by_split(fresh), version, head.schema)
            if to_store is None:  # whoever evolved the schema didn't get to it
                add_columns(corpus, head, history)
                return False
            before = int(head.version)  # the merge moves `head` on to the version that it makes
            stored = corpus.table.insert_new(head, to_store)
            if stored < len(fresh):
                # Some ids were in live already, in the very version that the merge looked at.
                place = Place(corpus, head, history, where=f"{corpus.name}@live")
                known |= _rows_with(place, fresh.column("id").to_pylist(), up_to=before)
        return True

    retry_conflicts(attempt, what=f"committing to {corpus.name}")
    corpus.table.make_durable(corpus.table.head())
    duplicates, clashes = 0, []
    if gone:
        kept = pc.invert(_has_id_of(rows, gone)), pc.invert(_has_id_of(again, gone))
        duplicates = len(rows) + len(again) - sum(pc.sum(one).as_py() or 0 for one in kept)
        rows, again = rows.filter(kept[0]), again.filter(kept[1])
    resent = pa.concat_tables([rows.filter(_has_id_of(rows, known)) if known else rows.slice(0, 0), again])
    if len(resent):
        first = {row["id"]: row for row in comparable(history, version, originals)} | known
        for position, row in enumerate(comparable(history, version, resent)):
            if same_content(row, first[row["id"]], history):
                duplicates += 1
            else:  # put aside as it came
                clashes += resent.slice(position, 1).drop_columns(list(GIVEN.values())).to_pylist()
    if clashes:
        problem = Problem(("id",), "id-conflict", "expected the record stored under this id, got other content")
        # Dated by the record, not by the clock: a drain that is cut short and repeated puts the same bytes aside.
        entries = [quarantine.entry(row, [problem], at=row["ts"]) for row in clashes]
        quarantine.put_aside(corpus, quarantine.encode(entries))
    done.stored += stored
    done.duplicates += duplicates
    done.conflicts += [row["id"] for row in clashes]


def _first_of_each_id(rows: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The first row of each id, every other row, and the first rows of those. Merging alone would insert every repeat."""
    ids = rows.column("id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return rows, rows.slice(0, 0), rows.slice(0, 0)
    first: dict[str, int] = {}
    repeats: list[int] = []
    repeated: set[int] = set()
    for position, record_id in enumerate(ids.to_pylist()):
        if first.setdefault(record_id, position) != position:
            repeats.append(position)
            repeated.add(first[record_id])
    return rows.take(sorted(first.values())), rows.take(repeats), rows.take(sorted(repeated))


def comparable(history: History, version: Version, rows: pa.Table) -> list[dict[str, Any]]:
    """Captured rows of one version as the newest one, for `same_content`: with what was given, and their version."""
    aligned = Alignment.between(history, version.number, len(history)).apply(rows, [*history[-1].schema.names])
    for name in GIVEN.values():
        aligned = aligned.append_column(name, rows.column(name))
    return [{**row, SCHEMA_VERSION: version.number} for row in aligned.to_pylist()]


def _has_id_of(rows: pa.Table, known: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(rows.column("id"), pa.array(list(known), pa.string()))


def same_content(row: dict[str, Any], known: dict[str, Any], history: History) -> bool:
    """Whether a row that came again says what the known one says, both as the newest version and with their own.

    What was filled in for it doesn't count, nor does a column that one of them couldn't have and the other leaves empty.
    """
    ignored = {SCHEMA_VERSION, *GIVEN.values()}
    ignored |= {name for name, given in GIVEN.items() if not (row[given] and known.get(given, True))}
    if row[SCHEMA_VERSION] != known[SCHEMA_VERSION]:
        older = history[min(row[SCHEMA_VERSION], known[SCHEMA_VERSION]) - 1].by_key
        added = [column.name for column in history[-1].columns if column.key not in older]
        ignored |= {name for name in added if row[name] is None or known[name] is None}
    # As text: NaN equals itself there.
    mine, theirs = (
        json.dumps({k: v for k, v in r.items() if k not in ignored}, sort_keys=True, default=repr) for r in (row, known)
    )
    return mine == theirs


def _sorted_by_split(rows: pa.Table) -> pa.Table:
    """Training rows first: then they are one run a commit, and finding them takes no list of positions."""
    train = pc.fill_null(pc.equal(rows.column("split"), "train"), False)
    if pc.all(train).as_py():
        return rows
    return pa.concat_tables([rows.filter(train), rows.filter(pc.invert(train))])


def _sealed_with(
    corpus: BaseCorpus, history: History, ids: Sequence[str], records: Listed | None = None
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Rows of any snapshot that have one of the ids, and those of the ids that a pruned one had."""
    records = listed(corpus) if records is None else records
    found: dict[str, dict[str, Any]] = {}
    gone: set[str] = set()
    for record, pruned in records:
        denies = FILTERS.of(corpus, record)
        maybe = ids if denies is None else list(compress(ids, denies.may_hold(ids)))
        if not maybe:
            continue
        if pruned is None:
            try:
                found.update(_rows_with(sealed_in(corpus, record, history), maybe))
                continue
            except StoreError:
                pruned = {one.name: said for one, said in listed(corpus)}.get(record.name)  # meanwhile
                if pruned is None:
                    raise
        gone |= pruned_ids(corpus, pruned, maybe)
    return found, gone - set(found)


def _rows_with(place: Place, ids: Sequence[str], *, up_to: int | None = None) -> dict[str, dict[str, Any]]:
    """Rows of one table version by id, through the index; with the version they were captured under.

    `up_to`: only those that were there at that earlier version.
    """
    old = "" if up_to is None else f" AND {created_up_to(up_to)}"
    return {
        row["id"]: row
        for chunk in _chunks(ids)
        for batch in place.scan([*place.columns, SCHEMA_VERSION], text_in("id", chunk) + old)
        for row in batch.to_pylist()
    }


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _LOOK_UP):
        yield ids[start : start + _LOOK_UP]


def look_up(corpus: BaseCorpus, history: History, record_id: str) -> dict[str, Any] | None:
    """The stored row with this id, in live or in any snapshot, as the newest version in `history`."""
    found = _rows_with(head_of(corpus, history), [record_id]) or _sealed_with(corpus, history, [record_id])[0]
    return found.get(record_id)
