"""Evaluate the adapters of a store: on refs, as a score matrix over a lineage, and at the gate.

Composes the layers to the left over one store. What a number means is decided in evaluation, what happens to an adapter
in registry.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from treering.engine import engine_of
from treering.errors import NotFoundError, UsageError
from treering.evaluation import (
    METRICS,
    Answers,
    GatePolicy,
    HeldoutSlice,
    Metric,
    MetricLike,
    Predictions,
    ScoreMatrix,
    Uniform,
    Verdict,
    check,
    domain_slices,
    extra_slices,
    load_policy,
    resolve_metric,
    score_answers,
    slice_of,
    snapshot_slices,
)
from treering.evaluation.predictions import read_predictions
from treering.registry import AdapterRecord, CanaryLog, CanaryLook, Registry, ScoreLog
from treering.registry.scores import every_score
from treering.registry.trained import overlaps
from treering.rounds.answering import elsewhere
from treering.rounds.budget import measure_budget
from treering.rounds.serving import Served
from treering.store.ref import Ref

if TYPE_CHECKING:
    from treering.engine import Engine
    from treering.store import BaseStore, Source

__all__ = ["Evaluation", "Model", "each_snapshot", "evaluate", "gate", "load_adapter", "score_matrix"]

By = Literal["snapshot", "domain"]
Extra = Mapping[str, "str | HeldoutSlice"]  # test sets from elsewhere by name: path, URL, or a slice at hand
NOISE = 1e-9  # sums of floats differ by less; a record of any slice that fits on this planet counts for more


class Model(Protocol):
    """A loaded adapter over its base."""

    def predict(self, texts: list[str]) -> list[str]:
        """One label per text."""
        ...


class Evaluation(BaseModel):
    """Scores of one adapter; fractions of 1, by ref, with the number of held-out records behind each.

    As a canary (with a tolerance) it also says what the scores were before, and which slices have dropped since.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    adapter: str  # by number
    metric: str
    scores: dict[str, float]
    rows: dict[str, int]
    before: dict[str, float] = Field(
        default_factory=dict,
        description="the best right after a training of its lineage, else when last looked at; a new slice has none",
    )
    tolerance: float | None = None
    skipped: list[str] = Field(default_factory=list, description="of a canary's slices, those that hold no records now")
    dropped: list[str] = Field(default_factory=list, description="slices worse than before by more than the tolerance")
    created_at: datetime


def load_adapter(store: BaseStore, adapter: str) -> Served:
    """The model that an adapter ref names, ready to answer, from any number of threads at once.

    Of a classifier `predict(list of texts) -> list of labels`, of a chat model `generate(messages, tools)` as well.
    `refresh()` looks what the ref names by now and lets that answer from then on: after a promotion, without a restart.

    Weights are read from safetensors and checked against the digest they were added with; nothing in an adapter is run.
    Raises NotFoundError for an adapter or base that isn't there, StoreError for weights or a card that were changed,
    UsageError for a model that was trained elsewhere.
    """
    registry = _registry(store, adapter)

    def load(record: AdapterRecord) -> Model:
        if record.external is not None:
            raise UsageError(
                f"{record.ref} was trained elsewhere, as {record.external}: its weights aren't in this store",
                code="external-adapter",
                hint="load it where it was trained; here it is scored by predictions: "
                f"treering eval {record.ref} --predictions FILE",
            )
        return _load_model(store, registry, record, cached=False)

    return Served(lambda: registry.get(adapter), load)


def evaluate(
    store: BaseStore,
    adapter: str,
    on: str | Source | Iterable[str | Source] | None = None,
    metric: MetricLike | None = None,
    *,
    fresh: bool = False,
    extra: Extra | None = None,
    predictions: str | None = None,
    tolerance: float | None = None,
    engine: str | Engine | None = None,
) -> Evaluation:
    """Score one adapter on the held-out records of refs; each ref is one slice, a range too (see `each_snapshot`).

    Without `on`: on every snapshot of the adapter's corpus that has held-out records. A built-in metric on sealed
    records is measured once and read from the store afterwards; `fresh=True` measures again.
    metric: "accuracy", "macro_f1", "loss", "perplexity", of chat models "tool_call_match", a `Metric`, or any callable
        `(truth, predicted) -> float`; left out, what the adapter was scored by when it was trained: macro-F1, or of chat
        models the loss.
    extra: test sets from elsewhere, {name: path, URL or `HeldoutSlice`}; see `evaluation.file_slice`.
    predictions: a file (JSONL, CSV, Parquet) of what a model that was trained elsewhere says of just these records: id,
        predicted and perhaps probability. It is kept, so that score matrix and gate find it too.
    tolerance: look as a canary does: measure anew, and compare each slice with the best score that it had right after a
        training of the adapter's lineage, else with the last look. What is worse by more than this is `.dropped`; slices
        without records are `.skipped` as long as there are others. The look is remembered.
    engine: who answers, this process by default; "local" (worker processes), "ray", or an engine at hand: a slice each, each worker
        with the model loaded. The scores are the same.

    Raises NotFoundError for an adapter, ref or file that isn't there, UsageError for an unknown metric, unlabelled records
    or a slice without records, InvalidRecordError for predictions with missing, doubled or unknown ids.
    """
    chosen = resolve_metric(_registry(store, adapter).get(adapter).metric if metric is None else metric)
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 <= tolerance < math.inf):
        raise UsageError(f"a tolerance of {tolerance!r} can't be meant", code="bad-tolerance", hint="0.02 is 2 points")
    registry = _registry(store, adapter)
    record = registry.get(adapter)
    if on is None:
        slices = [s for s in snapshot_slices(store.corpus(record.corpus)) if s.rows]
    else:
        refs = [on] if isinstance(on, str) or not isinstance(on, Iterable) else list(on)
        if not refs:
            raise UsageError("there is nothing to evaluate on", code="no-slices", hint='name refs: on=["support@v1"]')
        slices = [slice_of(store.heldout(ref) if isinstance(ref, str) else _source(ref)) for ref in refs]
    slices += extra_slices(extra)
    _check_names(slices)
    # A canary is asked every day, also on the day after a seal, when live is empty.
    skipped = [s.name for s in slices if not s.rows] if tolerance is not None and any(s.rows for s in slices) else []
    slices = [s for s in slices if s.name not in skipped]
    if not slices:
        raise UsageError(
            f"{record.corpus} has no sealed held-out records to evaluate {record.ref} on",
            code="empty-slice",
            hint=f"seal some (treering snapshot live --to {record.corpus}), or name refs",
        )
    if predictions is not None:
        _take_predictions(store, registry, record, predictions, slices)
    before = {} if tolerance is None else _before(store, record, slices, chosen)
    with engine_of(engine, *([] if engine is None else [store.uri])) as workers:
        scores = Scorer(store, chosen, fresh=fresh or tolerance is not None, engine=workers).scores(record, slices)
    worse = 1.0 if chosen.better == "lower" else -1.0
    found = Evaluation(
        adapter=record.ref,
        metric=chosen.name,
        scores=scores,
        rows={s.name: s.rows for s in slices},
        before=before,
        tolerance=None if tolerance is None else float(tolerance),
        skipped=skipped,
        dropped=[
            name for name, was in before.items() if worse * (scores[name] - was) > (tolerance or 0.0) + NOISE
        ],
        created_at=datetime.now(UTC),
    )  # fmt: skip
    if tolerance is not None:
        CanaryLog(store, record).add(
            CanaryLook(adapter=record.ref, metric=chosen.name, scores=scores, rows=found.rows, at=found.created_at)
        )
    return found


def each_snapshot(on: str | Iterable[str]) -> list[str]:
    """Refs that may be separated by commas, each range spelt out: `support@v1..v3,support@live` is four of them.

    Raises UsageError for what isn't a ref.
    """
    texts = [part.strip() for text in ([on] if isinstance(on, str) else on) for part in text.split(",")]
    refs: list[str] = []
    for ref in map(Ref.parse, texts):
        if ref.kind == "range":
            refs += [str(Ref(ref.corpus, "snapshot", n, n, ref.store)) for n in range(ref.first, ref.last + 1)]
        else:
            refs.append(str(ref))
    return list(dict.fromkeys(refs))


def score_matrix(
    store: BaseStore,
    corpus: str,
    *,
    adapter: str | None = None,
    metric: MetricLike | None = None,
    by: By = "snapshot",
    full: bool = False,
    fresh: bool = False,
    extra: Extra | None = None,
    fresh_baseline: bool = False,
    engine: str | Engine | None = None,
) -> ScoreMatrix:
    """The score matrix of one lineage: a round per adapter from the oldest parent on, a slice per snapshot or domain.

    The lineage is that of `adapter`, by default of the adapter in production, else of the newest one. Slices are those
    that the lineage was trained on; a cell is evaluated from the round that learnt its slice on, with `full=True`
    before it too, which forward transfer is read off. `metric`, `fresh` and `extra` are as in `evaluate`.
    extra: test sets count as learnt in the first round whose adapter can answer with all of their labels, as learnt by none
        if there is no such round.
    fresh_baseline: compare with an adapter that is trained on all of these snapshots at once, from scratch, with the base
        and config of the newest round and as many updates as all rounds together (strategy `joint`). It takes that long;
        it stays in the registry, marked as a baseline, and is found there the next time.
    engine: who answers, as in `evaluate`; a baseline is trained here all the same.

    Raises NotFoundError without an adapter or a slice.
    """
    if metric is not None:
        resolve_metric(metric)
    if by not in ("snapshot", "domain"):
        raise UsageError(f"a score matrix is by snapshot or by domain, not by {by!r}", code="bad-argument")
    store.corpus(corpus)  # says so if there is none
    registry = Registry(store, corpus)
    ref = adapter or _default_adapter(registry)
    lineage = registry.lineage(ref)
    chosen = resolve_metric(lineage[-1].metric if metric is None else metric)
    found = _slices(store, corpus, [by])
    snapshot_rows = {s.ref: s.row_ids for s in store.corpus(corpus).evaluable()}
    learned_by = [learned_snapshots(record, snapshot_rows) for record in lineage]
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
    answers = [_answerable(registry, record) for record in lineage] if extra else []
    for piece in extra_slices(extra):
        slices.append(piece)
        learned_in.append(next((i for i, labels in enumerate(answers) if labels.issuperset(piece.labels)), None))
    _check_names(slices)
    if not slices:
        raise NotFoundError(
            f"{ref} was trained on no snapshot of {corpus} that has held-out records",
            code="no-slices",
            hint=f"evaluate on a ref instead: treering eval {ref} --on {corpus}@live",
        )
    reference: AdapterRecord | None = None
    compared: dict[str, float] = {}
    values = np.full((len(lineage), len(slices)), math.nan)
    with engine_of(engine, *([] if engine is None else [store.uri])) as workers:
        scorer = Scorer(store, chosen, fresh=fresh, engine=workers)
        for i, record in enumerate(lineage):
            due = [j for j, first in enumerate(learned_in) if full or first is None or i >= first]
            scores = scorer.scores(record, [slices[j] for j in due])
            for j in due:
                values[i, j] = scores[slices[j].name]
        if fresh_baseline:
            from treering.rounds.baseline import baseline_for

            reference = baseline_for(store, lineage[-1].ref)
            compared = scorer.scores(reference, slices)
    labels = [label for piece in slices for label in piece.labels]
    unlearned = Uniform(labels) if full and lineage[-1].metric != "loss" else None  # a chat model draws no labels
    return ScoreMatrix(
        rounds=tuple(record.ref for record in lineage),
        slices=tuple(piece.name for piece in slices),
        values=values,
        learned_in=tuple(learned_in),
        metric=scorer.name,
        notes=tuple(notes),
        better=chosen.better,
        chance=tuple(score_answers(chosen, s.texts, s.labels, unlearned) for s in slices) if unlearned else (),
        reference=() if reference is None else tuple(compared[s.name] for s in slices),
        reference_name=None if reference is None else reference.ref,
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
    rules = rules.by_metric(candidate.metric)
    assert rules.metric is not None
    baseline = _baseline(registry, candidate)
    slices = _gate_slices(store, registry, candidate, baseline, rules)
    scorer = Scorer(store, rules.metric, fresh=fresh)
    scores = scorer.scores(candidate, slices)
    previous = scorer.scores(baseline, slices) if baseline is not None else {}
    bwt = None
    if rules.min_bwt is not None:
        with suppress(NotFoundError):  # nothing held out in what its lineage learnt: no BWT, and no line to miss
            bwt = score_matrix(store, candidate.corpus, adapter=candidate.ref, metric=rules.metric).bwt
    budget = None
    serves_here = candidate.external is None  # what serving a model from elsewhere takes is measured where it is served
    if serves_here and (rules.max_p99_ms is not None or rules.max_memory_gb is not None):
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


class Scorer:
    """Scores adapters on slices, each adapter loaded at most once and only when a score isn't in the store yet.

    With an `engine` adapters answer in its workers, as many slices at once as there are slots. Does not choose the slices.
    """

    def __init__(self, store: BaseStore, metric: MetricLike, *, fresh: bool, engine: Engine | None = None) -> None:
        self._engine = engine
        self._store = store
        self._metric: Metric = resolve_metric(metric)
        self._fresh = fresh
        self.name = self._metric.name
        self._known = METRICS.get(self.name) is self._metric  # a caller's own callable isn't known by its name
        self._models: dict[str, Model | Predictions] = {}

    def model(self, record: AdapterRecord) -> Model | Predictions:
        """Who answers for an adapter: itself, or what was predicted where it was trained."""
        if record.ref not in self._models:
            registry = Registry(self._store, record.corpus)
            if record.external is not None:
                self._models[record.ref] = registry.predictions(record.ref)
            elif self._engine is not None:
                card = registry.card(record.ref)
                self._models[record.ref] = elsewhere(self._engine, self._store, record, card)
            else:
                self._models[record.ref] = _load_model(self._store, registry, record, cached=True)
        return self._models[record.ref]

    def scores(self, record: AdapterRecord, slices: Sequence[HeldoutSlice]) -> dict[str, float]:
        """Score by slice name. Raises UsageError for a slice without records."""
        log = ScoreLog(self._store, record)
        known: dict[str, float] = {}
        due: list[tuple[HeldoutSlice, str | None]] = []
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
                known[piece.name] = stored.score
            else:
                due.append((piece, key))
        if due:
            self.model(record)  # once, before any thread asks for it

        def score(one: tuple[HeldoutSlice, str | None]) -> float:
            piece, _ = one
            model = self.model(record)
            if not isinstance(model, Predictions) and piece.chat != hasattr(model, "generate"):
                raise UsageError(
                    f"{piece.name} holds {'conversations' if piece.chat else 'labelled texts'}, and {record.ref} learnt "
                    f"{'from labelled texts' if piece.chat else 'from conversations'}",
                    code="other-form",
                    hint="evaluate on records of the type that it was trained on",
                )
            answers: Answers = model.of(piece) if isinstance(model, Predictions) else model
            # Slice by slice: how texts are batched must not depend on which scores happened to be in the store.
            return score_answers(self._metric, piece.texts, piece.labels, answers)

        with ThreadPoolExecutor(
            1 if self._engine is None else max(1, min(self._engine.slots, len(due)))
        ) as side_by_side:
            found = map(score, due) if self._engine is None else side_by_side.map(score, due)
            for (piece, key), value in zip(due, found, strict=True):
                if key is not None:
                    log.put(piece.name, key, self.name, score=value, rows=piece.rows)
                known[piece.name] = value
        return {piece.name: known[piece.name] for piece in slices}


def _load_model(store: BaseStore, registry: Registry, record: AdapterRecord, *, cached: bool) -> Model:
    """`cached`: keep activations of what is predicted beside the store; held-out texts come again after every round."""
    from treering.rounds.forms import load_weights

    weights, card = registry.weights(record.ref), registry.card(record.ref)
    return load_weights(weights, card, cache_dir=store.cache_dir if cached else None)


def _default_adapter(registry: Registry) -> str:
    number = registry.state().leading
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


def learned_snapshots(record: AdapterRecord, snapshot_rows: Mapping[str, tuple[int, int]]) -> set[str]:
    """Snapshots that one adapter drew from itself, as live included."""
    rows = [(lo, hi) for lo, hi in record.trained_rows.get(record.corpus, [])]
    return {ref for ref, row_ids in snapshot_rows.items() if ref in record.trained_on or overlaps(rows, row_ids)}


def _gate_slices(
    store: BaseStore, registry: Registry, candidate: AdapterRecord, baseline: AdapterRecord | None, policy: GatePolicy
) -> list[HeldoutSlice]:
    """Slices with records that either lineage learnt, the policy's test sets, then those that it names."""
    corpus = candidate.corpus
    snapshot_rows = {s.ref: s.row_ids for s in store.corpus(corpus).evaluable()}
    judged = [candidate] if baseline is None else [candidate, baseline]
    lineages = [record for one in judged for record in registry.lineage(one.ref)]
    learned = set().union(*(learned_snapshots(record, snapshot_rows) for record in lineages))
    slices = [s for s in _slices(store, corpus, policy.by) if s.rows and not learned.isdisjoint(s.parts)]
    sealed = max((hi for _, hi in snapshot_rows.values()), default=0)
    if any(hi > sealed for record in lineages for _, hi in record.trained_rows.get(corpus, [])):
        live = slice_of(store.live(corpus))
        slices += [live] if live.rows else []
    slices += extra_slices(policy.extra)
    _check_names(slices)
    names = {s.name for s in slices}
    for name in policy.slices:
        if name not in names and (piece := _named_slice(store, corpus, name)) is not None and piece.rows:
            slices.append(piece)
    return slices


def _check_names(slices: Sequence[HeldoutSlice]) -> None:
    """Raise UsageError when two slices go by one name."""
    names = [piece.name for piece in slices]
    doubled = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if doubled:
        raise UsageError(f"two slices are called {doubled[0]}", code="doubled-slice", hint="name each once")


def _answerable(registry: Registry, record: AdapterRecord) -> set[str]:
    """The labels that an adapter can answer with; of a model from elsewhere, those that it has."""
    if record.external is not None:
        return set(registry.predictions(record.ref).predicted.values())
    return set(registry.card(record.ref).get("classes", []))


def _take_predictions(
    store: BaseStore, registry: Registry, record: AdapterRecord, source: str, slices: Sequence[HeldoutSlice]
) -> None:
    """Check a file of predictions against the slices it is about, and keep it."""
    nameless = [piece.name for piece in slices if not piece.ids]
    if nameless:
        raise UsageError(
            f"{nameless[0]} has no ids, so predictions can't be told of its records",
            code="no-ids",
            hint="add a column `id` to the test set",
        )
    held = {part for piece in slices for part in piece.parts if Ref.parse(part).kind == "snapshot"}
    unlabelled = {name for ref in sorted(held) for name in store.heldout(ref).to_table(["id"]).column("id").to_pylist()}
    wanted = {piece.name: piece.ids for piece in slices}
    registry.add_predictions(record.ref, read_predictions(source, record.ref, wanted, also=unlabelled))


def _before(
    store: BaseStore, record: AdapterRecord, slices: Sequence[HeldoutSlice], metric: Metric
) -> dict[str, float]:
    """What each slice scored right after training, the best of the lineage; else when it was last looked at.

    Of each adapter of the lineage: what it scored when it was trained, else what was measured of it later.
    """
    known: dict[str, list[float]] = {}
    for one in Registry.of(store, record.ref).lineage(record.ref):
        after_training = one.scores if one.metric == metric.name else {}
        stored = {score.slice: score.score for score in every_score(store, one) if score.metric == metric.name}
        for piece in slices:
            was = after_training.get(piece.name, stored.get(piece.name) if piece.key else None)
            if was is not None:
                known.setdefault(piece.name, []).append(was)
    best = min if metric.better == "lower" else max
    found = {name: best(scores) for name, scores in known.items()}
    looks = CanaryLog(store, record)
    for piece in slices:
        if piece.name not in found and (last := looks.last(piece.name, metric.name)) is not None:
            found[piece.name] = last
    return found


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
