"""Which snapshots to prune, who would miss them, and pruning them: composes the store, its adapters and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from treering.capture import flush_spools
from treering.errors import CheckFailedError, StoreError, UsageError
from treering.store.documents import SnapshotRecord
from treering.store.prune import age_of, bytes_of, heldout_rows, prune_snapshots
from treering.store.snapshot import listed

from .needs import drew_from, every_adapter, in_production
from .records import AdapterRecord
from .registry import Registry
from .scores import every_score

if TYPE_CHECKING:
    from treering.store import BaseCorpus

__all__ = ["PruneReport", "PrunedSnapshot", "Stillness", "prune", "stillness"]

#: `uninformative`: over so many rounds …
ROUNDS = 3
#: … the held-out score stayed within this (fractions of 1).
MOVES = 0.01


class PrunedSnapshot(BaseModel):
    """A snapshot that the rule picks, and what goes with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: str
    rows: int = Field(ge=0)
    heldout_rows: int = Field(ge=0)
    created_at: datetime
    bytes: int = Field(ge=0, description="Bytes of files that nobody else references.")
    adapters: list[str] = Field(description="Adapters whose locks can't be drawn again without it.")
    locks: list[str] = Field(description="Digests of those locks.")
    needed_by: list[str] = Field(description="Those of them that are in production, or that production continues from.")


class PruneReport(BaseModel):
    """What pruning takes, or took. `bytes` is the sum over `snapshots`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    rule: str
    dry_run: bool
    keep_heldout: bool
    snapshots: list[PrunedSnapshot] = Field(description="Oldest first.")
    kept: list[str] = Field(description="Snapshots that stay.")
    blocked: list[str] = Field(description="Snapshots that are needed in production: they are pruned by force alone.")
    bytes: int = Field(ge=0)
    freed: int | None = Field(description="Bytes that cleaning up removed at once; null for a dry run.")
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Stillness:
    """How the held-out score on one snapshot went over the last rounds; oldest first."""

    ref: str
    scores: tuple[float, ...]

    @property
    def is_still(self) -> bool:
        """Whether it stayed within `MOVES` over `ROUNDS` rounds."""
        last = self.scores[-ROUNDS:]
        return len(last) == ROUNDS and max(last) - min(last) <= MOVES


def stillness(corpus: BaseCorpus) -> list[Stillness]:
    """By snapshot, oldest first, its held-out scores over the rounds of one lineage since a round learnt it.

    The lineage is that of the adapter in production, else of the newest one; a round is an adapter of it. Scores are those
    that were measured when the adapter was trained, else those in the store, in the metric of the newest round.
    """
    registry = Registry(corpus.store, corpus.name)
    number = registry.state().leading
    lineage = registry.lineage(f"{corpus.name}:{number}") if number is not None else []
    metric = lineage[-1].metric if lineage else ""
    found = []
    for snapshot in corpus.snapshots():
        drew = [drew_from(adapter, corpus.name, snapshot.name, snapshot.row_ids) for adapter in lineage]
        since = lineage[drew.index(True) :] if True in drew else []
        scores = [_score(corpus, adapter, snapshot.ref, metric) for adapter in since]
        found.append(Stillness(snapshot.ref, tuple(score for score in scores if score is not None)))
    return found


def _score(corpus: BaseCorpus, adapter: AdapterRecord, ref: str, metric: str) -> float | None:
    if adapter.metric == metric and ref in adapter.scores:
        return adapter.scores[ref]
    stored = [one for one in every_score(corpus.store, adapter) if one.slice == ref and one.metric == metric]
    return max(stored, key=lambda one: one.created_at).score if stored else None


def prune(
    corpus: BaseCorpus,
    *,
    keep: int | None = None,
    older_than: timedelta | float | None = None,
    uninformative: bool = False,
    dry_run: bool = True,
    force: bool = False,
    keep_heldout: bool = False,
) -> PruneReport:
    """See `treering.Corpus.prune`."""
    while True:
        there = listed(corpus)
        records = [record for record, pruned in there if pruned is None]
        chosen, rule, notes = _chosen(corpus, records, keep, older_than, uninformative)
        try:
            found = _described(corpus, chosen)
            break
        except StoreError:
            if listed(corpus) == there:
                raise
            # Somebody else has pruned or rewritten what was looked at.
    names = {record.name for record in chosen}
    blocked = [one.ref for one in found if one.needed_by]
    if blocked and not dry_run and not force:
        needing = sorted({ref for one in found for ref in one.needed_by})
        raise CheckFailedError(
            f"nothing was pruned: {', '.join(blocked)} {'is' if len(blocked) == 1 else 'are'} needed by "
            f"{', '.join(needing)}, in production or what it continues from",
            code="snapshot-needed",
            hint="keep more, or prune by force: then those adapters can't be trained again from their locks",
        )
    freed = None
    if not dry_run:
        why = rule + (" by force" if blocked else "")
        sizes = {one.ref.rpartition("@")[2]: one.bytes for one in found}
        freed = 0
        if chosen:
            flush_spools(corpus)  # what was acknowledged is compared while there is something to compare it with
            names_in_order = [record.name for record in chosen]
            _, freed = prune_snapshots(corpus, names_in_order, why=why, keep=keep_heldout, sizes=sizes)
        _drop_caches(corpus)
    return PruneReport(
        corpus=corpus.name,
        rule=rule,
        dry_run=dry_run,
        keep_heldout=keep_heldout,
        snapshots=found,
        kept=[record.ref for record in records if record.name not in names],
        blocked=blocked,
        bytes=sum(one.bytes for one in found),
        freed=freed,
        notes=notes,
    )


def _chosen(
    corpus: BaseCorpus,
    records: Sequence[SnapshotRecord],
    keep: int | None,
    older_than: timedelta | float | None,
    uninformative: bool,
) -> tuple[list[SnapshotRecord], str, list[str]]:
    """What the rule picks, the rule in words, and what is to be said about it."""
    given = [keep is not None, older_than is not None, bool(uninformative)]
    if sum(given) != 1:
        raise UsageError(
            "say by one rule what to prune",
            code="bad-prune",
            hint="keep=N, older_than=DAYS or uninformative=True; on the command line --keep, --older-than, --uninformative",
        )
    if keep is not None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise UsageError(f"keep is {keep!r}; it is a whole number ≥ 0", code="bad-prune")
        return list(records[: max(0, len(records) - keep)]), f"keep {keep}", []
    if older_than is not None:
        age = _age(older_than)
        now = corpus.store.objects.now()
        return [r for r in records if age_of(corpus, r, now) > age], f"older than {_days(age)}", []
    return _uninformative(corpus, records)


def _age(given: Any) -> timedelta:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < 1e6:
        return timedelta(days=given)
    if isinstance(given, timedelta) and given >= timedelta(0):
        return given
    raise UsageError(f"older_than is {given!r}; it is a timedelta, or a number of days ≥ 0", code="bad-prune")


def _days(age: timedelta) -> str:
    return f"{age / timedelta(days=1):g} days"


def _uninformative(
    corpus: BaseCorpus, records: Sequence[SnapshotRecord]
) -> tuple[list[SnapshotRecord], str, list[str]]:
    found = {one.ref: one for one in stillness(corpus)}
    judged = {ref for ref, one in found.items() if len(one.scores) >= ROUNDS}
    if not judged:
        most = max((len(one.scores) for one in found.values()), default=0)
        raise CheckFailedError(
            f"whether a snapshot of {corpus.name} still tells anything can't be said yet: that takes its held-out scores "
            f"after {ROUNDS} rounds of one lineage, and there are {most} at most",
            code="too-few-rounds",
            hint="train more rounds, or prune by --keep or --older-than",
        )
    rule = f"uninformative: held-out scores within {MOVES:g} over {ROUNDS} rounds"
    notes = [
        f"{record.ref}: scored after {len(found[record.ref].scores)} of {ROUNDS} rounds, so it stays"
        for record in records
        if record.ref not in judged
    ]
    return [record for record in records if record.ref in judged and found[record.ref].is_still], rule, notes


def _described(corpus: BaseCorpus, chosen: Sequence[SnapshotRecord]) -> list[PrunedSnapshot]:
    if not chosen:
        return []
    sizes = bytes_of(corpus, chosen)
    adapters = every_adapter(corpus.store)
    production = {adapter.ref for adapter in in_production(corpus.store)}
    found = []
    for record in chosen:
        drew = [one for one in adapters if drew_from(one, corpus.name, record.name, record.row_ids)]
        found.append(
            PrunedSnapshot(
                ref=record.ref,
                rows=record.rows,
                heldout_rows=heldout_rows(corpus, record),
                created_at=record.created_at,
                bytes=sizes[record.name],
                adapters=[one.ref for one in drew],
                locks=list(dict.fromkeys(one.lock_digest for one in drew if one.lock_digest)),
                needed_by=[one.ref for one in drew if one.ref in production],
            )
        )
    return found


def _drop_caches(corpus: BaseCorpus) -> None:
    """Drop this host's cached columns of pruned snapshots. Elsewhere nobody reads them, and they give way to others."""
    from treering.mixing.cache import SnapshotCache

    gone = {(pruned.ref, pruned.incarnation) for pruned in corpus.pruned()}
    SnapshotCache(corpus.store.cache_dir).drop(
        lambda entry: (entry.ref.rpartition("#")[2], entry.incarnation) not in gone
    )
