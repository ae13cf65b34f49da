"""Where a corpus stands: its records, what is new to the adapter in production, and whether it is time for a round."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from treering.capture import flush_spools, list_quarantine
from treering.evaluation.content import LABEL
from treering.evaluation.drift import column_drift
from treering.evaluation.due import NewData, RoundPolicy, Unseen, reasons
from treering.evaluation.policy import parse_policy
from treering.evaluation.profile import Profile
from treering.registry import Registry
from treering.rounds.records import counted_in
from treering.schema.evolution import Alignment
from treering.store.certificate import find_certificate
from treering.store.snapshot import list_records
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.registry import AdapterRecord
    from treering.store import BaseCorpus, BaseStore
    from treering.store.source import Segment

__all__ = ["Status", "status"]

_DAY_S = 86_400.0
_LISTED = 1_000


class Status(BaseModel):
    """Where a corpus stands. Rows are records, held-out and excluded ones included unless something else is said."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    corpus: str
    record_type: str
    live_rows: int
    live_fragments: int = Field(
        description="Files that live lies in, a few of which are normal; compaction joins them."
    )
    sealed_rows: int
    snapshots: int
    newest: str | None
    newest_at: datetime | None
    quarantined: int
    production: str | None
    production_at: datetime | None = Field(description="When it was trained.")
    production_days: float | None = Field(description="Since then.")
    candidate: str | None
    new: NewData
    due: bool
    reasons: list[str]
    policy: RoundPolicy
    uri: str


def status(
    store: BaseStore,
    name: str,
    policy: RoundPolicy | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    now: datetime | None = None,
    **changed: Any,
) -> Status:
    """Where the corpus `name` stands, and by a policy whether it is time for a round.

    New is every record of any snapshot or of live that the adapter in production, with those it continues, wasn't trained
    on: row by row, so that what it drew from live stays known once that is sealed. It is compared with the training records
    that it was trained on. `policy`: a `RoundPolicy`, a table or a TOML file; `changed`: single keys of it that win, as in
    `min_new=500`. `now`: what ages are counted to. Takes one pass over the records when something is new and an adapter is
    in production, else over what is new. Raises NotFoundError, UsageError.
    """
    rules = parse_policy(
        RoundPolicy, os.fspath(policy) if isinstance(policy, os.PathLike) else policy, "round policy", **changed
    )
    corpus: BaseCorpus = store.corpus(name)
    flush_spools(corpus)
    refused = list_quarantine(corpus)
    now = now or datetime.now(UTC)
    registry = Registry(store, name)
    adapters = registry.adapters()
    by_status = {adapter.status: adapter for adapter in adapters}  # the newest of each
    production = by_status.get("production")
    candidate = by_status.get("candidate")
    live = store.live(name)  # first: what is sealed right after it is in both lists below, and counted once
    snapshots = corpus.snapshots()
    sealed = [s for one in snapshots for s in store.load(one.ref).segments]
    end = snapshots[-1].row_ids[1] if snapshots else 0
    segments = [*sealed, *(s for s in live.segments if s.row_ids[0] >= end)]
    new = _new(registry, production, segments, rules, now)
    why = reasons(new, rules, production.ref if production else None)
    head = corpus.table.head()
    return Status(
        corpus=name,
        record_type=corpus.record_type.name,
        live_rows=corpus.live_rows(),
        live_fragments=len(corpus.table.fragment_rows(head)),
        sealed_rows=sum(snapshot.rows for snapshot in snapshots),
        snapshots=len(snapshots),
        newest=snapshots[-1].ref if snapshots else None,
        newest_at=snapshots[-1].created_at if snapshots else None,
        quarantined=len(refused),
        production=production.ref if production else None,
        production_at=production.created_at if production else None,
        production_days=_days(production.created_at, now) if production else None,
        candidate=candidate.ref if candidate else None,
        new=new,
        due=bool(why),
        reasons=why,
        policy=rules,
        uri=corpus.uri,
    )


def _days(since: datetime, now: datetime) -> float:
    return round(max((now - since).total_seconds(), 0.0) / _DAY_S, 2)


def _new(
    registry: Registry, production: AdapterRecord | None, segments: list[Segment], rules: RoundPolicy, now: datetime
) -> NewData:
    trained: set[str] = set()
    rows: list[tuple[int, int]] = []
    if production is not None:
        trained, rows = set(registry.trained_on(production.ref)), registry.trained_rows(production.ref)
    if not segments:
        return _said(None, None, rules, now)
    added = _added_since(segments, [s for s in segments if s.ref in trained])
    schema = pa.schema([field for field in segments[-1].schema if field.name not in added])
    seen, fresh = Profile(schema), Profile(schema)
    names = [*fresh.columns, ROW_ID]
    # New ones first: without any, nothing else is read.
    for segment in sorted(segments, key=lambda s: s.ref in trained):
        if segment.ref in trained and not fresh.rows:
            break
        for batch in counted_in(segment, names):
            known = np.full(len(batch), True) if segment.ref in trained else _within(batch, rows)
            fresh.update(batch.filter(pa.array(~known)).select(fresh.columns))
            training = np.asarray(pc.fill_null(pc.equal(batch.column("split"), "train"), False))
            seen.update(batch.filter(pa.array(known & training)).select(seen.columns))
    gone = trained - {segment.ref for segment in segments}
    _recall(segments[-1]._corpus, gone, seen)
    return _said(fresh, seen if production is not None else None, rules, now)


def _recall(corpus: BaseCorpus, gone: set[str], seen: Profile) -> None:
    """Take the labels and domains of snapshots that were pruned from what is left of them, their certificates.

    Without one nobody knows what production has seen, and nothing is called unseen.
    """
    for record in list_records(corpus) if gone else []:
        if record.ref in gone:
            certificate = find_certificate(corpus, record)
            for name in (LABEL, "domain"):
                seen.recall(name, certificate.counts.get(name) if certificate else None)  # type: ignore[call-overload]


def _added_since(segments: list[Segment], trained: list[Segment]) -> list[str]:
    """Columns that came after what was trained on was captured: there is nothing to compare them with."""
    before = max((version for segment in trained for version in segment.alignments()), default=0)
    if before in (0, segments[-1].schema_version):
        return []
    rules = Alignment.between(segments[-1]._corpus.versions, before, segments[-1].schema_version).describe()
    return [rule.column for rule in rules if rule.was is None]


def _within(batch: pa.RecordBatch, rows: list[tuple[int, int]]) -> Any:
    """Which records lie in the intervals of row ids: bool (n,)."""
    ids = np.asarray(batch.column(ROW_ID)).astype(np.int64)
    known = np.zeros(len(ids), bool)
    for low, high in rows:
        known |= (ids >= low) & (ids < high)
    return known


def _said(fresh: Profile | None, seen: Profile | None, rules: RoundPolicy, now: datetime) -> NewData:
    drift = None
    unseen = None
    if fresh is not None and seen is not None and seen.rows:
        drift = column_drift(seen, fresh, rules.lines)[0]
        unseen = []
        for name in (LABEL, "domain"):
            before, after = seen.values(name), fresh.values(name)
            if before is not None and after is not None:
                found = [(n, v) for v, n in after.items() if v is not None and not before.get(v)]
                unseen += [Unseen(column=name, value=v, rows=n) for n, v in sorted(found, key=lambda f: (-f[0], f[1]))]
    return NewData(
        rows=fresh.rows if fresh else 0,
        training_rows=fresh.splits["train"] if fresh else 0,
        first_ts=fresh.first_ts if fresh else None,
        last_ts=fresh.last_ts if fresh else None,
        oldest_days=_days(fresh.first_ts, now) if fresh and fresh.first_ts else None,
        unseen=None if unseen is None else unseen[:_LISTED],
        drift=drift,
    )
