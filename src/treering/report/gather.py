"""What a report tells, gathered into one document: every figure of the page, and nothing that isn't on it.

Asks store, registry and rounds. Draws nothing (report). What can't be gathered leaves a note instead of its section.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

import treering
from treering import rounds
from treering.errors import NotFoundError, TreeringError, UsageError
from treering.evaluation.audit import Audit
from treering.evaluation.diagnosis import Diagnosis
from treering.evaluation.gate import Verdict
from treering.evaluation.matrix import ScoreMatrix, ScoreMatrixModel
from treering.mixing import MixLock
from treering.registry import AdapterRecord, Registry
from treering.rounds.documents import RoundResult
from treering.rounds.status import Status
from treering.store.certificate import find_certificate
from treering.store.ref import AdapterRef
from treering.store.selection import list_selections
from treering.store.snapshot import listed

from .answers import Answer, answers

if TYPE_CHECKING:
    from treering.store import BaseStore

__all__ = [
    "SEVERE",
    "AdapterFacts",
    "BufferFacts",
    "Curve",
    "Lines",
    "MixFacts",
    "NamedMatrix",
    "ReportData",
    "SnapshotFacts",
    "curve_of",
    "gather_report",
]

SEVERE = -0.05  # of BWT: the line below which the article calls forgetting severe
OTHER_RUNS = 3
Finite = Annotated[float, Field(allow_inf_nan=False)]
Found = TypeVar("Found")


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class AdapterFacts(_Document):
    """One adapter of the registry."""

    ref: str
    status: str
    parent: str | None
    strategy: str | None
    base: str | None
    run: str | None = Field(description="The round that made it.")
    trained_on: list[str]
    learnt_live: bool = Field(description="It drew from live, too.")
    passed: bool | None
    reasons: list[str]
    digest: str
    created_at: datetime


class SnapshotFacts(_Document):
    """One snapshot."""

    ref: str
    number: int
    rows: int
    training: int | None = Field(description="Null until its certificate is built.")
    message: str
    edition: int = Field(description="Above 1: records were erased.")
    pruned: bool
    learned_by: list[str] = Field(description="Adapters that drew from it.")
    created_at: datetime


class NamedMatrix(_Document):
    """The score matrix of one lineage."""

    name: str
    matrix: ScoreMatrixModel


class Curve(_Document):
    """One round of the lineage, by itself: what average and BWT were right after it."""

    adapter: str
    average: Finite | None
    bwt: Finite | None


class Lines(_Document):
    """What the gate asked, and what is severe."""

    min_average: Finite | None = None
    min_bwt: Finite | None = None
    tolerance: Finite | None = None
    severe: Finite = SEVERE


class MixFacts(_Document):
    """One source of the mix that the adapter was trained on."""

    ref: str
    kind: Literal["new", "replay", "general"]
    planned: Finite = Field(description="Share of each batch, by the lock.")
    served: Finite | None = Field(description="Share of the rows that were drawn; null where that wasn't counted.")
    rows: int | None


class BufferFacts(_Document):
    """One domain in a stored selection."""

    selection: str
    strategy: str
    domain: str
    available: int
    taken: int


class ReportData(_Document):
    """Everything on the page; scores are fractions of 1."""

    format: Literal["treering.report/1"] = "treering.report/1"
    corpus: str
    store: str
    version: str
    created_at: datetime
    adapter: AdapterFacts | None
    production: str | None
    adapters: list[AdapterFacts]
    snapshots: list[SnapshotFacts]
    matrices: list[NamedMatrix] = Field(description="That of the adapter first, then those of other lineages.")
    curve: list[Curve]
    lines: Lines
    verdict: Verdict | None
    diagnosis: Diagnosis | None
    mix: list[MixFacts]
    buffers: list[BufferFacts]
    status: Status | None
    audit: Audit | None
    rounds: list[RoundResult]
    answers: list[Answer]
    missing: list[str] = Field(description="What couldn't be gathered, and why.")


def gather_report(
    store: BaseStore, corpus: str, *, adapter: str | None = None, metric: str = "macro_f1", quick: bool = False
) -> ReportData:
    """The report on one adapter (by default the one in production, else the newest) and on the corpus it learns from.

    Scores that aren't in the store yet are measured. `quick`: leave out what reads records: diagnosis, drift and audit.
    Raises NotFoundError, UsageError.
    """
    home = store.corpus(corpus)
    registry = Registry(store, corpus)
    missing: list[str] = []
    records = registry.adapters()
    chosen = _chosen(registry, adapter)
    verdict = chosen.verdict if chosen else None

    def tried(what: str, make: Callable[[], Found]) -> Found | None:
        try:
            return make()
        except TreeringError as exc:
            missing.append(f"{what}: {exc.message}")
            return None

    matrices = _matrices(store, corpus, records, chosen, metric, tried)
    curve = curve_of(ScoreMatrix.from_model(matrices[0].matrix)) if matrices and chosen else []
    diagnosis: Diagnosis | None = None
    audit: Audit | None = None
    status: Status | None = None
    snapshots = _snapshots(store, corpus, records)
    if quick:
        missing.append("diagnosis, drift and audit: left out, as asked")
    else:
        if chosen is not None:
            diagnosis = tried("diagnosis", lambda: rounds.diagnose(store, chosen.ref))
        status = tried("status", lambda: rounds.status(store, corpus))
        readable = [one for one in snapshots if not one.pruned]
        if readable:
            audit = tried("audit", lambda: rounds.audit(store, readable[-1].ref))
    mix = tried("mix", lambda: _mix(store, registry, chosen)) if chosen else None
    data = ReportData(
        corpus=corpus,
        store=store.uri,
        version=treering.__version__,
        created_at=datetime.now(UTC),
        adapter=_facts(chosen) if chosen else None,
        production=next((one.ref for one in records if one.status == "production"), None),
        adapters=[_facts(one) for one in records],
        snapshots=snapshots,
        matrices=matrices,
        curve=curve,
        lines=_lines(verdict),
        verdict=verdict,
        diagnosis=diagnosis,
        mix=mix or [],
        buffers=[
            BufferFacts(
                selection=one.ref,
                strategy=one.strategy,
                domain=held.domain or "(none)",
                available=held.available,
                taken=held.rows,
            )
            for one in list_selections(home)[-2:]
            for held in one.report.domains[:60]
        ],
        status=status,
        audit=audit,
        rounds=tried("rounds", lambda: rounds.past_rounds(store, corpus)) or [],
        answers=[],
        missing=missing,
    )
    return data.model_copy(update={"answers": answers(data)})


def curve_of(matrix: ScoreMatrix) -> list[Curve]:
    """Average and BWT after each round, as they were then: over the slices that had been learnt by it."""
    found = []
    for last in range(len(matrix.rounds)):
        known = [j for j, r in enumerate(matrix.learned_in) if r is not None and r <= last]
        if not known:
            found.append(Curve(adapter=matrix.rounds[last], average=None, bwt=None))
            continue
        until = ScoreMatrix(
            rounds=matrix.rounds[: last + 1],
            slices=tuple(matrix.slices[j] for j in known),
            values=matrix.values[: last + 1, known],
            learned_in=tuple(matrix.learned_in[j] for j in known),
            metric=matrix.metric,
        )
        found.append(Curve(adapter=matrix.rounds[last], average=_plain(until.average), bwt=_plain(until.bwt)))
    return found


def _chosen(registry: Registry, adapter: str | None) -> AdapterRecord | None:
    if adapter is not None:
        if AdapterRef.parse(adapter).corpus != registry.corpus:
            raise UsageError(f"{adapter} isn't an adapter of {registry.corpus}", code="wrong-corpus")
        return registry.get(adapter)
    state = registry.state()
    number = state.production if state.production is not None else max(state.statuses, default=None)
    return None if number is None else registry.get(f"{registry.corpus}:{number}")


def _facts(record: AdapterRecord) -> AdapterFacts:
    return AdapterFacts(
        ref=record.ref,
        status=record.status,
        parent=record.parent,
        strategy=record.strategy,
        base=record.base,
        run=record.run,
        trained_on=list(record.trained_on),
        learnt_live=bool(record.trained_rows.get(record.corpus)),
        passed=record.verdict.passed if record.verdict else None,
        reasons=list(record.verdict.reasons) if record.verdict else [],
        digest=record.digest,
        created_at=record.created_at,
    )


def _snapshots(store: BaseStore, corpus: str, records: list[AdapterRecord]) -> list[SnapshotFacts]:
    home = store.corpus(corpus)
    found = []
    for record, pruned in listed(home):
        certificate = find_certificate(home, record)
        found.append(
            SnapshotFacts(
                ref=record.ref,
                number=record.number,
                rows=record.rows,
                training=certificate.counts["split"].get("train", 0) if certificate else None,
                message=record.message,
                edition=record.edition,
                pruned=pruned is not None,
                learned_by=[one.ref for one in records if record.ref in one.trained_on],
                created_at=record.created_at,
            )
        )
    return found


def _matrices(
    store: BaseStore, corpus: str, records: list[AdapterRecord], chosen: AdapterRecord | None, metric: str, tried: Any
) -> list[NamedMatrix]:
    """The adapter's lineage first, then the newest others: adapters that nobody continues and that it doesn't continue."""
    if chosen is None:
        return []
    parents = {one.parent for one in records}
    own = {one.ref for one in Registry(store, corpus).lineage(chosen.ref)}
    others = [one for one in reversed(records) if one.ref not in parents and one.ref not in own]
    found = []
    for one in [chosen, *others[:OTHER_RUNS]]:
        matrix = tried(
            f"score matrix of {one.ref}",
            lambda one=one: rounds.score_matrix(store, corpus, adapter=one.ref, metric=metric),
        )
        if matrix is not None:
            name = f"{one.ref}, {one.status}" + (f" ({one.strategy})" if one.strategy else "")
            found.append(NamedMatrix(name=name, matrix=matrix.to_model()))
        elif one is chosen:
            return []
    return found


def _lines(verdict: Verdict | None) -> Lines:
    if verdict is None:
        return Lines()
    policy = verdict.policy
    return Lines(min_average=policy.min_average, min_bwt=policy.min_bwt, tolerance=policy.regression_tolerance)


def _mix(store: BaseStore, registry: Registry, chosen: AdapterRecord) -> list[MixFacts]:
    """What the lock planned, and what was drawn."""
    stored = registry.lock(chosen.ref)
    if stored is None:
        raise NotFoundError(f"{chosen.ref} has no mix lock", code="no-lock")
    lock = MixLock.from_json(stored)
    counted = chosen.stats.get("rows_per_source")
    served: dict[str, int] = counted if isinstance(counted, dict) else {}
    total = sum(served.values())
    before: set[str] = set()
    if chosen.parent is not None:
        before = set(Registry.of(store, chosen.parent).trained_on(chosen.parent))
    found: dict[str, MixFacts] = {}
    for source, share in zip(lock.sources, lock.shares, strict=True):
        pin = source.pin
        names = {f"{pin.corpus}@{part.name}" for part in pin.segments}
        kind: Literal["new", "replay", "general"] = "replay" if names and names <= before else "new"
        if pin.corpus != registry.corpus:
            kind = "general"
        past = found.get(pin.ref)
        rows = served.get(pin.ref)
        found[pin.ref] = MixFacts(
            ref=pin.ref,
            kind=kind,
            planned=share + (past.planned if past else 0.0),
            served=rows / total if rows is not None and total else None,
            rows=rows,
        )
    return list(found.values())


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
