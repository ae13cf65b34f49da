"""Lineage, both ways: from a record or a ref to the adapters that saw it, from an adapter or a lock to its data.

Knows what the store, its locks and its registries say. What another store's adapters were trained on it can't know.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from treering.errors import NotFoundError, UsageError
from treering.mixing.lock import MixLock
from treering.store.certificate import find_certificate, id_filter
from treering.store.documents import PruneRecord, SnapshotRecord
from treering.store.place import head_of, sealed_in
from treering.store.prune import pruned_ids
from treering.store.ref import AdapterRef, Ref
from treering.store.selection import find_selection, list_selections, row_ids_in
from treering.store.snapshot import listed
from treering.store.source import Narrowing, Segment
from treering.store.table import ROW_ID

from .needs import ancestry, drew_from, every_adapter
from .records import AdapterRecord
from .registry import Registry
from .scores import every_score
from .trained import overlaps

if TYPE_CHECKING:
    from treering.store import BaseCorpus, BaseStore

__all__ = ["AdapterLineage", "Lineage", "LockLineage", "RecordLineage", "RefLineage", "lineage"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Word(_View):
    """One annotation."""

    key: str
    value: JsonValue
    by: str | None
    note: str | None
    ts: datetime


class SeenBy(_View):
    """An adapter that was trained on what is asked about."""

    adapter: str
    status: str = Field(description="candidate, refused, production or retired")
    promoted: bool = Field(description="Whether it is or was in production.")
    lock: str | None = Field(description="Digest of the lock it was trained from.")
    through: str | None = Field(description="The ref that it was drawn through.")
    known_by: Literal["lock", "snapshot"] = Field(
        description="lock: its lock says so of these very rows; snapshot: it drew from the snapshot, no more is known"
    )


class RecordAt(_View):
    """One place where a record with this id lies, or lay."""

    corpus: str
    where: Literal["live", "snapshot", "pruned", "quarantine"]
    ref: str | None = Field(description="support@v1, support@live; null in quarantine")
    row_id: int | None = Field(description="Stable row id; null where the row is gone, or never was.")
    split: str | None
    readable: bool = Field(description="False once the snapshot was pruned, unless its held-out records were kept.")
    problems: list[str] = Field(description="Why it waits in quarantine.")
    excluded: bool = Field(description="Whether annotations exclude it now.")
    annotations: list[Word] = Field(description="Everything said about it, in order.")
    selections: list[str]
    adapters: list[SeenBy] = Field(description="Adapters whose training drew from it.")


class RecordLineage(_View):
    """Where a record went. Held-out and excluded records have no adapters: nothing draws them."""

    kind: Literal["record"] = "record"
    id: str
    places: list[RecordAt]


class ScoreOn(_View):
    """A held-out score."""

    adapter: str
    slice: str
    metric: str
    score: float


class PartLineage(_View):
    """A snapshot, or live, and who was trained on it."""

    ref: str
    rows: int
    row_ids: tuple[int, int]
    digest: str | None = Field(description="Null for live, and before the certificate is there.")
    created_at: datetime | None
    message: str | None
    parents: list[str] = Field(description="The snapshots before it, newest first.")
    pruned_at: datetime | None
    adapters: list[SeenBy]
    descendants: list[str] = Field(description="Adapters that continue from one of those.")
    selections: list[str]
    scores: list[ScoreOn] = Field(description="What adapters scored on its held-out records.")


class RefLineage(_View):
    """What a ref's parts come from, and what was made with them."""

    kind: Literal["ref"] = "ref"
    ref: str
    chosen_from: str | None = Field(description="Of a selection: the ref it was chosen from.")
    parts: list[PartLineage]


class LockedPart(_View):
    """One segment of a locked source, and whether it is still there."""

    name: str
    digest: str | None
    row_ids: tuple[int, int]
    sealed_as: list[str] = Field(description="Of what was live: the snapshots that hold its rows by now.")
    pruned: list[str] = Field(description="Those of its snapshots that were pruned: the lock can't be drawn again.")


class LockedSourceView(_View):
    """A source of a lock."""

    ref: str
    share: float
    train_rows: int
    selection: str | None
    annotations: int | None = Field(description="Version of the annotations that it is pinned to.")
    parts: list[LockedPart]


class VerdictView(_View):
    """What the gate said."""

    passed: bool
    baseline: str | None
    reasons: list[str]
    at: datetime


class AdapterLineage(_View):
    """What an adapter was made from, and what came of it."""

    kind: Literal["adapter"] = "adapter"
    ref: str
    status: str
    created_at: datetime
    base: str | None
    strategy: str | None
    weights_sha256: str
    lock: str | None
    sources: list[LockedSourceView]
    trained_on: list[str]
    parents: list[str] = Field(description="The adapters that it continues from, newest first.")
    descendants: list[str]
    scores: list[ScoreOn]
    verdicts: list[VerdictView]
    events: list[str] = Field(description="promote, rollback and retire, in order, with their times.")


class LockLineage(_View):
    """What a lock draws from, and who was trained from it."""

    kind: Literal["lock"] = "lock"
    digest: str
    sources: list[LockedSourceView]
    adapters: list[str]


Lineage = RecordLineage | RefLineage | AdapterLineage | LockLineage


def lineage(store: BaseStore, what: str | os.PathLike[str], *, record: bool = False) -> Lineage:
    """Where something comes from and what was made with it.

    `what`, tried in this order: the file of a mix lock, or a lock's digest (64 hex digits), which is a run; an adapter
    (`support:production`, `support:12`) or a ref (`support@v1`, `support@v1..v3`, `support@live`, `support@new`,
    `support/NAME`) of a corpus that is there; else the id of a record, looked for in every corpus. `record=True`: the id of
    a record, whatever it looks like. A record's adapters are those whose lock holds its row among what may be drawn.

    Raises NotFoundError for what isn't there, UsageError.
    """
    text = os.fspath(what)
    if not isinstance(text, str) or not text:
        raise UsageError("name a record, a ref, an adapter or a lock", code="bad-lineage")
    if record:
        return _of_record(store, text)
    if _DIGEST.fullmatch(text):
        found = [one for one in every_adapter(store) if one.lock_digest == text]
        if found:
            lock = _lock_of(store, found[0])
            return LockLineage(
                digest=text, sources=_sources(store, lock) if lock else [], adapters=[one.ref for one in found]
            )
    if not isinstance(what, str) or text.endswith(".json") or os.sep in text:
        if Path(text).is_file():
            lock = MixLock.load(text)
            adapters = [one.ref for one in every_adapter(store) if one.lock_digest == lock.digest]
            return LockLineage(digest=lock.digest, sources=_sources(store, lock), adapters=adapters)
        if not isinstance(what, str):
            raise NotFoundError(f"there is no mix lock at {text}", code="no-lock")
    here = {corpus.name for corpus in store.corpora()}
    adapter, ref = _parsed(AdapterRef, text), _parsed(Ref, text)
    if adapter is not None and adapter.corpus in here:
        return _of_adapter(store, text)
    if ref is not None and (ref.store is not None or ref.corpus in here):
        return _of_ref(store, ref)
    return _of_record(store, text)


def _parsed(kind: Any, text: str) -> Any | None:
    try:
        return kind.parse(text)
    except UsageError:
        return None


# --- adapters and locks -----------------------------------------------------------------------------------------


def _lock_of(store: BaseStore, adapter: AdapterRecord) -> MixLock | None:
    data = Registry(store, adapter.corpus).lock(adapter.ref)
    return None if data is None else MixLock.from_json(data)


def _sources(store: BaseStore, lock: MixLock) -> list[LockedSourceView]:
    return [
        LockedSourceView(
            ref=source.pin.ref,
            share=share,
            train_rows=source.train_rows,
            selection=source.pin.selection.name if source.pin.selection else None,
            annotations=source.pin.annotations.version if source.pin.annotations else None,
            parts=list(_parts(store, lock, number)),
        )
        for number, (source, share) in enumerate(zip(lock.sources, lock.shares, strict=True))
    ]


def _parts(store: BaseStore, lock: MixLock, number: int) -> Iterator[LockedPart]:
    pin = lock.sources[number].pin
    snapshots: list[tuple[SnapshotRecord, PruneRecord | None]] = []
    if "#" not in pin.corpus and any(corpus.name == pin.corpus for corpus in store.corpora()):
        snapshots = listed(store.corpus(pin.corpus))
    for segment in pin.segments:
        low, high = segment.row_ids
        if segment.name == "live":
            high = max([high, *(growth.end for growth in lock.growths(number))])
        held = [
            (record, pruned)
            for record, pruned in snapshots
            if overlaps([(low, high)], record.row_ids) and record.incarnation == segment.incarnation
        ]
        yield LockedPart(
            name=segment.name,
            digest=segment.digest,
            row_ids=(low, high),
            sealed_as=[record.ref for record, _ in held] if segment.name == "live" else [],
            pruned=[record.ref for record, pruned in held if pruned is not None],
        )


def _of_adapter(store: BaseStore, text: str) -> AdapterLineage:
    registry = Registry.of(store, text)
    adapter = registry.get(text)
    lock = _lock_of(store, adapter)
    events = [event for event in registry.events() if event.adapter == adapter.number]
    return AdapterLineage(
        ref=adapter.ref,
        status=adapter.status,
        created_at=adapter.created_at,
        base=adapter.base,
        strategy=adapter.strategy,
        weights_sha256=adapter.weights_sha256,
        lock=adapter.lock_digest,
        sources=_sources(store, lock) if lock else [],
        trained_on=adapter.trained_on,
        parents=[one.ref for one in ancestry(store, adapter.ref)[1:]],
        descendants=_descendants(every_adapter(store), {adapter.ref}),
        scores=_scores(store, [adapter]),
        verdicts=[
            VerdictView(
                passed=event.verdict.passed,
                baseline=event.verdict.baseline,
                reasons=[str(reason) for reason in event.verdict.reasons],
                at=event.at,
            )
            for event in events
            if event.verdict is not None
        ],
        events=[f"{event.event} {event.at:%Y-%m-%dT%H:%M:%SZ}" for event in events if event.event != "verdict"],
    )


def _descendants(adapters: Sequence[AdapterRecord], of: Iterable[str]) -> list[str]:
    """Adapters that continue from any of these, directly or not, without themselves; in the order given."""
    known, before = set(of), -1
    while len(known) != before:
        before = len(known)
        known |= {one.ref for one in adapters if one.parent in known}
    return [one.ref for one in adapters if one.ref in known - set(of)]


def _scores(store: BaseStore, adapters: Sequence[AdapterRecord], ref: str | None = None) -> list[ScoreOn]:
    """Scores right after training, then those that were measured later; on one slice, if asked."""
    found: dict[tuple[str, str, str], ScoreOn] = {}
    for one in adapters:
        said = [(name, one.metric, score) for name, score in one.scores.items()]
        said += [(stored.slice, stored.metric, stored.score) for stored in every_score(store, one)]
        for name, metric, score in said:
            if ref in (None, name):
                view = ScoreOn(adapter=one.ref, slice=name, metric=metric, score=score)
                found.setdefault((one.ref, name, metric), view)
    return list(found.values())


def _seen(store: BaseStore, adapter: AdapterRecord, through: str | None, known_by: Any) -> SeenBy:
    events = Registry(store, adapter.corpus).events()
    promoted = any(event.adapter == adapter.number and event.event in ("promote", "rollback") for event in events)
    return SeenBy(
        adapter=adapter.ref,
        status=adapter.status,
        promoted=promoted,
        lock=adapter.lock_digest,
        through=through,
        known_by=known_by,
    )


# --- refs -------------------------------------------------------------------------------------------------------


def _of_ref(store: BaseStore, ref: Ref) -> RefLineage:
    if ref.store is not None:
        store = store.neighbour(ref.store)
    corpus = store.corpus(ref.corpus)
    snapshots = {record.name: (record, pruned) for record, pruned in listed(corpus)}
    chosen_from = None
    spans: list[tuple[str, tuple[int, int], int]] = []
    if ref.kind in ("snapshot", "range"):  # by their records: a pruned one has a lineage too
        for number in range(ref.first, ref.last + 1):
            if f"v{number}" not in snapshots:
                raise NotFoundError(f"there is no snapshot {ref.corpus}@v{number}", code="no-snapshot")
            record = snapshots[f"v{number}"][0]
            spans.append((record.name, record.row_ids, record.rows))
    elif ref.kind == "selection":
        selection = find_selection(corpus, ref.name)
        pinned: Any = selection.source
        chosen_from = str(pinned["ref"])
        spans = [(part["name"], (part["row_ids"][0], part["row_ids"][1]), part["rows"]) for part in pinned["segments"]]
    else:
        source = store.load(str(Ref(ref.corpus, ref.kind)))
        spans = [(segment.name, segment.row_ids, segment.rows) for segment in source.segments]
    adapters = every_adapter(store)
    parts = [_part(store, corpus, snapshots, adapters, *span) for span in spans]
    return RefLineage(ref=str(ref), chosen_from=chosen_from, parts=parts)


def _part(
    store: BaseStore,
    corpus: BaseCorpus,
    snapshots: dict[str, tuple[SnapshotRecord, PruneRecord | None]],
    adapters: Sequence[AdapterRecord],
    name: str,
    row_ids: tuple[int, int],
    rows: int,
) -> PartLineage:
    record, pruned = snapshots.get(name, (None, None))
    ref = f"{corpus.name}@{name}"
    drew = [one for one in adapters if drew_from(one, corpus.name, name, row_ids)]
    certificate = find_certificate(corpus, record) if record is not None else None
    selections = []
    for selection in list_selections(corpus):
        ids = row_ids_in(corpus, selection)
        low, high = np.searchsorted(ids, row_ids)
        selections += [selection.ref] if high > low else []
    parents = []
    before = record.parent if record is not None else None
    while before is not None:
        parents.append(f"{corpus.name}@{before}")
        before = snapshots[before][0].parent if before in snapshots else None
    return PartLineage(
        ref=ref,
        rows=rows,
        row_ids=row_ids,
        digest=certificate.digest if certificate else None,
        created_at=record.created_at if record else None,
        message=record.message if record else None,
        parents=parents,
        pruned_at=pruned.pruned_at if pruned else None,
        adapters=[
            _seen(store, one, ref if ref in one.trained_on else f"{corpus.name}@live", "snapshot") for one in drew
        ],
        descendants=_descendants(adapters, {one.ref for one in drew}),
        selections=selections,
        scores=_scores(store, adapters, ref) if name != "live" else [],
    )


# --- records ----------------------------------------------------------------------------------------------------


def _of_record(store: BaseStore, record_id: str) -> RecordLineage:
    from treering.capture import flush_spools, list_quarantine

    places: list[RecordAt] = []
    adapters = every_adapter(store)
    locks: dict[str, MixLock | None] = {}
    for corpus in store.corpora():
        flush_spools(corpus)  # acknowledged, and on its way into the table
        for home, row_id, split in _rows(corpus, record_id):
            places.append(_at(store, corpus, record_id, home, None, row_id, split, adapters, locks))
        for past, pruned in listed(corpus):
            if pruned is not None and pruned_ids(corpus, pruned, [record_id]):
                kept = _kept(corpus, past, pruned, record_id)
                places.append(_at(store, corpus, record_id, past, pruned, *kept, adapters, locks))
        for entry in list_quarantine(corpus):
            if isinstance(entry.record, dict) and entry.record.get("id") == record_id:
                problems = [str(problem) for problem in entry.problems]
                places.append(_in_quarantine(corpus, problems))
    if not places:
        raise NotFoundError(
            f"no corpus of {store.uri} has or had a record {record_id!r}",
            code="no-record",
            hint="a ref, an adapter or a lock is named as CORPUS@v1, CORPUS:1, FILE.json",
        )
    return RecordLineage(id=record_id, places=places)


def _rows(corpus: BaseCorpus, record_id: str) -> Iterator[tuple[SnapshotRecord | None, int, str | None]]:
    """Where the record's rows are: in a snapshot, or in live (None)."""
    head = head_of(corpus)  # first: what is sealed right after it is found in its snapshot
    snapshots = listed(corpus)
    sealed = max((record.row_ids[1] for record, _ in snapshots), default=0)
    columns = ["id", "split", ROW_ID]
    for record, pruned in snapshots:
        if pruned is not None:
            continue
        denies = id_filter(corpus, record)
        if denies is None or denies.may_hold([record_id])[0]:
            for batch in sealed_in(corpus, record).within(columns, *record.row_ids, ids=[record_id]):
                for row in batch.to_pylist():
                    yield record, int(row[ROW_ID]), row["split"]
    for batch in head.within(columns, sealed, 2**62, ids=[record_id]):
        for row in batch.to_pylist():
            yield None, int(row[ROW_ID]), row["split"]


def _kept(
    corpus: BaseCorpus, record: SnapshotRecord, pruned: PruneRecord, record_id: str
) -> tuple[int | None, str | None]:
    if pruned.heldout:
        segment = Segment(corpus, record.name, record.row_ids, record.rows)
        row_ids, _ = segment.find_ids([record_id])
        if len(row_ids):
            return int(row_ids[0]), "heldout"
    return None, None


def _at(
    store: BaseStore,
    corpus: BaseCorpus,
    record_id: str,
    record: SnapshotRecord | None,
    pruned: PruneRecord | None,
    row_id: int | None,
    split: str | None,
    adapters: Sequence[AdapterRecord],
    locks: dict[str, MixLock | None],
) -> RecordAt:
    log = corpus.annotation_log
    said = log.read(log.version(), ids=[record_id], history=True).to_pylist()
    words = [Word(key=w["key"], value=json.loads(w["value"]), by=w["by"], note=w["note"], ts=w["ts"]) for w in said]
    exclude = [word.value for word in words if word.key == "exclude"]
    seen = []
    for adapter in adapters:
        if adapter.ref not in locks:
            locks[adapter.ref] = _lock_of(store, adapter)
        lock = locks[adapter.ref]
        if split == "heldout":
            continue
        if lock is not None and row_id is not None and pruned is None:
            through = _drawn_through(corpus, lock, row_id)
            seen += [_seen(store, adapter, through, "lock")] if through is not None else []
        elif record is not None and drew_from(adapter, corpus.name, record.name, record.row_ids):
            seen.append(_seen(store, adapter, record.ref, "snapshot"))
        elif record is None and row_id is not None:
            live = overlaps(adapter.trained_rows.get(corpus.name, []), (row_id, row_id + 1))
            seen += [_seen(store, adapter, f"{corpus.name}@live", "snapshot")] if live else []
    selections = [
        one.ref
        for one in list_selections(corpus)
        if row_id is not None and np.isin(row_id, row_ids_in(corpus, one), assume_unique=True)
    ]
    return RecordAt(
        corpus=corpus.name,
        where="pruned" if pruned is not None else "live" if record is None else "snapshot",
        ref=record.ref if record is not None else f"{corpus.name}@live",
        row_id=row_id,
        split=split,
        readable=pruned is None or row_id is not None,
        problems=[],
        excluded=bool(exclude and exclude[-1]),
        annotations=words,
        selections=selections,
        adapters=seen,
    )


def _in_quarantine(corpus: BaseCorpus, problems: list[str]) -> RecordAt:
    return RecordAt(
        corpus=corpus.name,
        where="quarantine",
        ref=None,
        row_id=None,
        split=None,
        readable=True,
        problems=problems,
        excluded=False,
        annotations=[],
        selections=[],
        adapters=[],
    )


def _drawn_through(corpus: BaseCorpus, lock: MixLock, row_id: int) -> str | None:
    """The ref of the first source of a lock from which this row could be drawn; None when from none."""
    for number, source in enumerate(lock.sources):
        weights: list[float] = [
            source.units,
            *(event.units[number] for event in lock.events if event.kind == "weights"),
        ]
        weights += [point.weights[number] for point in lock.schedule.points] if lock.schedule else []
        pin = source.pin
        if not any(weights) or pin.corpus != corpus.name:
            continue
        chosen = None
        if pin.selection is not None:
            chosen = row_ids_in(corpus, find_selection(corpus, pin.selection.name))
        said = pin.annotations.version if pin.annotations else 0
        spans = [
            (part.name, part.row_ids, said) for part in pin.segments if part.incarnation == corpus.record.incarnation
        ]
        reached = pin.segments[-1].row_ids[1] if pin.segments else 0
        for growth in lock.growths(number):
            spans.append(("live", (reached, growth.end), growth.annotations))
            reached = max(reached, growth.end)
        for name, (low, high), version in spans:
            if not low <= row_id < high:
                continue
            where = tuple((column, tuple(values)) for column, values in sorted((pin.where or {}).items()))
            only = Segment(
                corpus.at_schema(pin.schema_version),
                name,
                (row_id, row_id + 1),
                1,
                Narrowing(where, chosen, version),
            )
            if any(len(batch) for batch in only.scan(["id"], "train")):
                return pin.ref
    return None
