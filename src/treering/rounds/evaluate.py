"""Evaluate the adapters of a store: on refs, as a score matrix over a lineage, and at the gate.

Composes the layers to the left over one store. What a number means is decided in evaluation, what happens to an adapter
in registry.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from treering.errors import NotFoundError, UsageError
from treering.evaluation import (
    METRICS,
    GatePolicy,
    HeldoutSlice,
    Metric,
    ScoreMatrix,
    Verdict,
    check,
    domain_slices,
    load_policy,
    measure,
    resolve_metric,
    slice_of,
    snapshot_slices,
)
from treering.registry import AdapterRecord, Registry, ScoreLog
from treering.registry.trained import overlaps
from treering.rounds.budget import measure_budget

if TYPE_CHECKING:
    from treering.store import BaseStore, Source

__all__ = ["Evaluation", "Model", "evaluate", "gate", "load_adapter", "score_matrix"]

By = Literal["snapshot", "domain"]


class Model(Protocol):
    """A loaded adapter over its base."""

    def predict(self, texts: list[str]) -> list[str]:
        """One label per text."""
        ...


class Evaluation(BaseModel):
    """Scores of one adapter; fractions of 1, by ref, with the number of held-out records behind each."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    adapter: str  # by number
    metric: str
    scores: dict[str, float]
    rows: dict[str, int]
    created_at: datetime


def load_adapter(store: BaseStore, adapter: str) -> Model:
    """The model that an adapter ref names, ready to `predict(list of texts) -> list of labels`.

    Weights are read from safetensors and checked against the digest they were added with; nothing in an adapter is run.
    Raises NotFoundError for an adapter or base that isn't there, StoreError for weights or a card that were changed.
    """
    registry = _registry(store, adapter)
    record = registry.get(adapter)
    return _load_model(store, registry, record, cached=False)


def evaluate(
    store: BaseStore,
    adapter: str,
    on: str | Source | Iterable[str | Source] | None = None,
    metric: str | Metric = "macro_f1",
    *,
    fresh: bool = False,
) -> Evaluation:
    """Score one adapter on the held-out records of refs; each ref is one slice, a range too.

    Without `on`: on every snapshot of the adapter's corpus that has held-out records. A built-in metric on sealed
    records is measured once and read from the store afterwards; `fresh=True` measures again. Raises NotFoundError for an
    adapter or ref that isn't there, UsageError for an unknown metric, unlabelled records or a ref without held-out ones.
    """
    name, _ = resolve_metric(metric)
    registry = _registry(store, adapter)
    record = registry.get(adapter)
    if on is None:
        slices = [s for s in snapshot_slices(store.corpus(record.corpus)) if s.rows]
    else:
        refs = [on] if isinstance(on, str) or not isinstance(on, Iterable) else list(on)
        if not refs:
            raise UsageError("there is nothing to evaluate on", code="no-slices", hint='name refs: on=["support@v1"]')
        slices = [slice_of(store.heldout(ref) if isinstance(ref, str) else _source(ref)) for ref in refs]
    if not slices:
        raise UsageError(
            f"{record.corpus} has no sealed held-out records to evaluate {record.ref} on",
            code="empty-slice",
            hint=f"seal some (treering snapshot live --to {record.corpus}), or name refs",
        )
    scores = _Scorer(store, metric, fresh=fresh).scores(record, slices)
    return Evaluation(
        adapter=record.ref,
        metric=name,
        scores=scores,
        rows={s.name: s.rows for s in slices},
        created_at=datetime.now(UTC),
    )


def score_matrix(
    store: BaseStore,
    corpus: str,
    *,
    adapter: str | None = None,
    metric: str | Metric = "macro_f1",
    by: By = "snapshot",
    full: bool = False,
    fresh: bool = False,
) -> ScoreMatrix:
    """The score matrix of one lineage: a round per adapter from the oldest parent on, a slice per snapshot or domain.

    The lineage is that of `adapter`, by default of the adapter in production, else of the newest one. Slices are those
    that the lineage was trained on; a cell is evaluated from the round that learnt its slice on, with `full=True`
    before it too. `metric` and `fresh` are as in `evaluate`. Raises NotFoundError without an adapter or a slice.
    """
    resolve_metric(metric)
    if by not in ("snapshot", "domain"):
        raise UsageError(f"a score matrix is by snapshot or by domain, not by {by!r}", code="bad-argument")
    store.corpus(corpus)  # says so if there is none
    registry = Registry(store, corpus)
    ref = adapter or _default_adapter(registry)
    lineage = registry.lineage(ref)
    found = _slices(store, corpus, [by])
    snapshot_rows = {s.ref: s.row_ids for s in store.corpus(corpus).evaluable()}
    learned_by = [_learned(record, snapshot_rows) for record in lineage]
    slices: list[HeldoutSlice] = []
    learned_in: list[int | None] = []
    notes = []
    for piece in found:
        round_ = next((i for i, refs in enumerate(learned_by) if not refs.isdisjoint(piece.parts)), None)
        if not piece.rows:
            notes.append(f"{piece.name} has no held-out records: left out")
        elif round_ is None:
            notes.append(f"{piece.name}: no adapter of this lineage was trained on it: left out")
        else:
            slices.append(piece)
            learned_in.append(round_)
    if not slices:
        raise NotFoundError(
            f"{ref} was trained on no snapshot of {corpus} that has held-out records",
            code="no-slices",
            hint=f"evaluate on a ref instead: treering eval {ref} --on {corpus}@live",
        )
    scorer = _Scorer(store, metric, fresh=fresh)
    values = np.full((len(lineage), len(slices)), math.nan)
    for i, record in enumerate(lineage):
        due = [j for j, first in enumerate(learned_in) if full or (first is not None and i >= first)]
        scores = scorer.scores(record, [slices[j] for j in due])
        for j in due:
            values[i, j] = scores[slices[j].name]
    return ScoreMatrix(
        rounds=tuple(record.ref for record in lineage),
        slices=tuple(piece.name for piece in slices),
        values=values,
        learned_in=tuple(learned_in),
        metric=scorer.name,
        notes=tuple(notes),
    )


def gate(
    store: BaseStore,
    adapter: str,
    policy: GatePolicy | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    record: bool = True,
    fresh: bool = False,
) -> Verdict:
    """Judge an adapter against the one in production (else against its parent, else by minimum scores alone).

    Both are scored on the held-out slices that either was trained on, and on those that the policy names; what was
    learnt from live and isn't sealed yet counts as the slice `NAME@live`. Where the policy has a line for latency or memory,
    the candidate answers up to 200 of those texts one by one, on this machine. The verdict goes into the registry unless
    `record=False`; `promote` asks for it. Raises as `evaluate` and `load_policy` do; a refusal is a verdict, not an
    error.
    """
    if not (policy is None or isinstance(policy, GatePolicy | Mapping | str | os.PathLike)):
        raise UsageError(f"a policy is a file, a table or a GatePolicy, not {policy!r}", code="bad-policy")
    rules = load_policy(policy if policy is None or isinstance(policy, GatePolicy | Mapping) else os.fspath(policy))
    registry = _registry(store, adapter)
    candidate = registry.get(adapter)
    baseline = _baseline(registry, candidate)
    slices = _gate_slices(store, registry, candidate, baseline, rules)
    scorer = _Scorer(store, rules.metric, fresh=fresh)
    scores = scorer.scores(candidate, slices)
    previous = scorer.scores(baseline, slices) if baseline is not None else {}
    bwt = None
    if rules.min_bwt is not None:
        bwt = score_matrix(store, candidate.corpus, adapter=candidate.ref, metric=rules.metric).bwt
    budget = None
    if rules.max_p99_ms is not None or rules.max_memory_gb is not None:
        model = _load_model(store, registry, candidate, cached=False)  # kept activations would answer too quickly
        budget = measure_budget(model, [text for piece in slices for text in piece.texts], enough_ms=rules.max_p99_ms)
    verdict = check(
        scores,
        previous,
        rules,
        bwt=bwt,
        budget=budget,
        candidate=candidate.ref,
        baseline=None if baseline is None else baseline.ref,
    )
    if record:
        registry.record_verdict(candidate.ref, verdict)
    return verdict


class _Scorer:
    """Scores adapters on slices, each adapter loaded at most once and only when a score isn't in the store yet."""

    def __init__(self, store: BaseStore, metric: str | Metric, *, fresh: bool) -> None:
        self._store = store
        self._metric = metric
        self._fresh = fresh
        self.name, function = resolve_metric(metric)
        self._known = METRICS.get(self.name) is function  # a caller's own callable isn't known by its name

    def scores(self, record: AdapterRecord, slices: Sequence[HeldoutSlice]) -> dict[str, float]:
        """Score by slice name. Raises UsageError for a slice without records."""
        log = ScoreLog(self._store, record)
        model: Model | None = None
        scores: dict[str, float] = {}
        for piece in slices:
            if not piece.rows:
                raise UsageError(
                    f"{piece.name} has no labelled held-out records",
                    code="empty-slice",
                    hint="capture more, or evaluate on another ref",
                )
            key = piece.key if self._known else None
            stored = None if key is None or self._fresh else log.get(piece.name, key, self.name)
            if stored is not None:
                scores[piece.name] = stored.score
                continue
            if model is None:
                model = _load_model(self._store, Registry(self._store, record.corpus), record, cached=True)
            # Slice by slice: how texts are batched must not depend on which scores happened to be in the store.
            score = measure(self._metric, piece.labels, model.predict(list(piece.texts)))
            if key is not None:
                log.put(piece.name, key, self.name, score=score, rows=piece.rows)
            scores[piece.name] = score
        return scores


def _load_model(store: BaseStore, registry: Registry, record: AdapterRecord, *, cached: bool) -> Model:
    """`cached`: keep activations of what is predicted beside the store; held-out texts come again after every round."""
    from treering.training import Adapter

    weights, card = registry.weights(record.ref), registry.card(record.ref)
    return Adapter.load(weights, card, cache_dir=store.cache_dir if cached else None)


def _default_adapter(registry: Registry) -> str:
    state = registry.state()
    number = state.production if state.production is not None else max(state.statuses, default=None)
    if number is None:
        raise NotFoundError(
            f"{registry.corpus} has no adapters yet", code="no-adapter", hint="train one: treering train"
        )
    return f"{registry.corpus}:{number}"


def _baseline(registry: Registry, candidate: AdapterRecord) -> AdapterRecord | None:
    production = registry.state().production
    if production is not None and production != candidate.number:
        return registry.get(f"{registry.corpus}:{production}")
    if candidate.parent_number is not None:
        return registry.get(f"{registry.corpus}:{candidate.parent_number}")
    return None


def _slices(store: BaseStore, corpus: str, by: Sequence[By]) -> list[HeldoutSlice]:
    found: list[HeldoutSlice] = []
    if "snapshot" in by:
        found += snapshot_slices(store.corpus(corpus))
    if "domain" in by:
        found += domain_slices(store.corpus(corpus))
    return found


def _learned(record: AdapterRecord, snapshot_rows: Mapping[str, tuple[int, int]]) -> set[str]:
    """Snapshots that one adapter drew from itself, as live included."""
    rows = [(lo, hi) for lo, hi in record.trained_rows.get(record.corpus, [])]
    return {ref for ref, row_ids in snapshot_rows.items() if ref in record.trained_on or overlaps(rows, row_ids)}


def _gate_slices(
    store: BaseStore, registry: Registry, candidate: AdapterRecord, baseline: AdapterRecord | None, policy: GatePolicy
) -> list[HeldoutSlice]:
    """Slices with records that the candidate's or the baseline's lineage learnt, then those that the policy names."""
    corpus = candidate.corpus
    snapshot_rows = {s.ref: s.row_ids for s in store.corpus(corpus).evaluable()}
    judged = [candidate] if baseline is None else [candidate, baseline]
    lineages = [record for one in judged for record in registry.lineage(one.ref)]
    learned = set().union(*(_learned(record, snapshot_rows) for record in lineages))
    slices = [s for s in _slices(store, corpus, policy.by) if s.rows and not learned.isdisjoint(s.parts)]
    sealed = max((hi for _, hi in snapshot_rows.values()), default=0)
    if any(hi > sealed for record in lineages for _, hi in record.trained_rows.get(corpus, [])):
        live = slice_of(store.live(corpus))
        slices += [live] if live.rows else []
    names = {s.name for s in slices}
    for name in policy.slices:
        if name not in names and (piece := _named_slice(store, corpus, name)) is not None and piece.rows:
            slices.append(piece)
    return slices


def _registry(store: BaseStore, adapter: str) -> Registry:
    registry = Registry.of(store, adapter)
    store.corpus(registry.corpus)  # says so if there is none
    return registry


def _source(given: Any) -> Source:
    if not hasattr(given, "heldout"):
        raise UsageError(f"{given!r} is neither a ref nor a source", code="bad-ref", hint='as in on=["support@v1"]')
    return given  # type: ignore[no-any-return]


def _named_slice(store: BaseStore, corpus: str, name: str) -> HeldoutSlice | None:
    """The slice that a policy names; None when there is none, which the gate refuses as "wasn't evaluated"."""
    if "[domain=" in name:
        home = name.partition("[")[0]
        try:
            return next((s for s in domain_slices(store.corpus(home or corpus)) if s.name == name), None)
        except (NotFoundError, UsageError):
            return None
    try:
        return slice_of(store.heldout(name))
    except (NotFoundError, UsageError):
        return None
