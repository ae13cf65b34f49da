"""Train a round: a mix in, a candidate adapter in the registry out, with its scores on every held-out slice so far.

Composes mixing, training, evaluation and registry over one store. How weights are fitted is training's, whether the
result is good enough is the gate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from treering.errors import NotFoundError, UsageError
from treering.evaluation import HeldoutSlice, resolve_metric, score_answers, snapshot_slices
from treering.evaluation.matrix import points
from treering.mixing import Mix, MixLock
from treering.mixing.sources import TrainRows
from treering.registry import AdapterRecord, Registry, ScoreLog
from treering.registry.trained import covers, overlaps, training_data
from treering.rounds.forms import Form, form_of, load_weights
from treering.rounds.tracking import Tracker, tracked
from treering.training import TrainConfig

if TYPE_CHECKING:
    from treering.mixing import Loader
    from treering.mixing.sources import SourceLike
    from treering.store import BaseStore
    from treering.training import DivergedError, Draw, MixSource
    from treering.training.loop import Progress

__all__ = ["Run", "train", "with_weights"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one training left behind. `scores`: macro-F1 by held-out slice, fractions of 1; of chat models the loss in nats.

    `stopped`: why it ended early, None when it didn't. The adapter is then as it was at the last look without a drop.
    """

    adapter: AdapterRecord
    lock: MixLock
    scores: dict[str, float]
    config: TrainConfig
    stopped: str | None = None


def train(
    store: BaseStore,
    mix: Mix | MixLock,
    config: TrainConfig | None = None,
    *,
    parent: str | Literal["auto"] | None = "auto",
    corpus: str | None = None,
    run: str | None = None,
    track: str | Tracker | None = None,
    progress: Progress | None = None,
    baseline: bool = False,
) -> Run:
    """Train an adapter on a mix, add it to the registry as a candidate, and score it on all sealed held-out slices.

    mix: drawn as the config's strategy wants it: with weights of its own, what is replayed perhaps from a bounded
    selection (stored, and named in the run's lock), and with the general corpus that the config names. A lock is drawn just
    as it was locked, its batch size included, so that the same lock, config, base and parent give an adapter of the same
    digest.
    parent: the adapter to go on from: a ref, None for from scratch, or "auto": the one in production, else the newest
    candidate that no gate refused, else from scratch; of one that was trained elsewhere the nearest ancestor that wasn't. A strategy that starts from scratch has none.
    corpus: whose registry the adapter goes to, by default the corpus of the mix's live or new source, else of the one with
    the largest share.
    baseline: what is trained is there to compare with, and no candidate.
    run: the round that this belongs to, `support/3`, for the adapter's record.
    track: where figures go besides the registry: "mlflow:URI", "trackio:PROJECT" or a `Tracker` of your own.

    With `config.eval_every` the held-out slices that the parent's lineage learnt are looked at while it trains, and a drop
    beyond `config.eval_tolerance` ends the run.

    Raises UsageError for a mix that can't be trained on, NotFoundError for a parent that isn't there, ConflictError for
    one on another base or a lock whose data isn't there any more, and DivergedError (its `.adapter` holds the last good
    weights, kept as a file too) when the loss stops being finite.
    """
    from treering.training import DivergedError

    if not isinstance(mix, Mix | MixLock):
        raise UsageError(
            f"train takes a mix or a mix lock, not {mix!r}",
            code="bad-mix",
            hint='mix sources first: store.mix("support@v1", "support@new", weights=[0.2, 0.8])',
        )
    config = config or TrainConfig()
    sources = mix.resolve(store) if isinstance(mix, MixLock) else mix.sources
    form = form_of(sources)
    plan = form.strategy(config)
    if not plan.continues and parent not in ("auto", None):
        raise UsageError(
            f"strategy {config.strategy} starts from scratch, so it takes no parent",
            code="no-parent",
            hint="leave parent out, or train with strategy replay",
        )
    home = corpus or sources[mix.anchor].corpus
    before = _parent(store, home, parent) if plan.continues else None
    start = None
    if before is not None:
        registry = Registry.of(store, before.ref)
        if before.external is not None:
            raise UsageError(
                f"{before.ref} was trained elsewhere: it has no weights here to go on from",
                code="external-adapter",
                hint="--parent ADAPTER for one that was trained here, or --parent none",
            )
        start = _start(registry, before, form)
    config = form.settled(config, start)
    canaries = None
    if start is not None and before is not None and config.eval_every:
        canaries = _Canaries(_past(store, before), start, config.eval_tolerance, form.metric)
    # None: endless, `config.steps` says when to stop. What has no steps reads the mix once.
    epochs = None if plan.gradient else 1
    loader: Loader  # of this process alone, whatever launched it
    if isinstance(mix, MixLock):
        config = config.changed(batch_size=mix.batch_size)
        described = _described(store, sources, [float(one.units) for one in mix.sources], before, config.general)
        loader = mix.loader(store, columns=_columns(form, sources), epochs=epochs, rank=0, world_size=1)
    else:
        weights = list(mix.weights)
        if config.general:
            sources, weights = (*sources, store.load(config.general)), [*weights, 0.0]
        described = _described(store, sources, weights, before, config.general)
        chosen = _drawn(store, sources, plan.draw(described, config), mix, before, by_rows=not plan.continues)
        loader = chosen.loader(config.batch_size, _columns(form, sources), epochs=epochs, rank=0, world_size=1)
    with tracked(track, run or f"{home} {config.strategy}", config.model_dump(mode="json")) as log:
        with loader:
            try:
                adapter = form.fit(
                    loader,
                    config,
                    cache_dir=store.cache_dir,
                    parent=start,
                    sources=described,
                    progress=progress,
                    on_step=canaries,
                )
            except DivergedError as exc:
                raise _kept(store, exc) from exc
        done = _registered(store, home, adapter, loader.lock(), config, before, run, baseline, form.metric)
        _logged(log, done)
    return done


def _past(store: BaseStore, before: AdapterRecord) -> list[HeldoutSlice]:
    """The held-out slices of what an adapter's lineage was trained on."""
    registry = Registry.of(store, before.ref)
    refs, rows = set(registry.trained_on(before.ref)), registry.trained_rows(before.ref)
    corpus = store.corpus(before.corpus)
    learned = refs | {snapshot.ref for snapshot in corpus.evaluable() if overlaps(rows, snapshot.row_ids)}
    return [piece for piece in snapshot_slices(corpus) if piece.rows and piece.name in learned]


class _Canaries:
    """Looks at past slices while an adapter is trained, and says when one has dropped."""

    def __init__(self, slices: Sequence[HeldoutSlice], parent: Any, tolerance: float, metric: str) -> None:
        self._slices = slices
        self._tolerance = tolerance
        self._metric = resolve_metric(metric)
        self._before = self._scores(parent)

    def _scores(self, adapter: Any) -> dict[str, float]:
        return {s.name: score_answers(self._metric, s.texts, s.labels, adapter) for s in self._slices}

    def __call__(self, step: int, adapter: Any) -> str | None:
        higher = self._metric.better == "higher"
        drops = {
            name: self._before[name] - score if higher else score - self._before[name]
            for name, score in self._scores(adapter).items()
        }
        fallen = [
            f"{name} by {points(drop)} points" if higher else f"{name} by {drop:.3f} nats"
            for name, drop in drops.items()
            if drop > self._tolerance + 1e-9
        ]
        return f"after {step} updates held-out scores had dropped: {', '.join(fallen)}" if fallen else None


def _registered(
    store: BaseStore,
    home: str,
    adapter: Any,
    lock: MixLock,
    config: TrainConfig,
    before: AdapterRecord | None,
    run: str | None,
    baseline: bool,
    metric: str,
) -> Run:
    """Score the adapter, finish its card, add it."""
    slices = [piece for piece in snapshot_slices(store.corpus(home)) if piece.rows]
    scores = {piece.name: score_answers(metric, piece.texts, piece.labels, adapter) for piece in slices}
    drawn = [source.pin for source in lock.sources if source.units]
    trained_on, trained_rows = training_data(pin.model_dump(mode="json") for pin in drawn)
    parent = None if before is None else before.ref
    card = adapter.card.model_copy(
        update={
            "parent": parent,
            "trained_on": list(dict.fromkeys(pin.ref for pin in drawn)),
            "lock_digest": lock.digest,
            "scores": scores,
        }
    )
    record = Registry(store, home).add(
        weights=adapter.to_bytes(),
        card=card,
        lock=lock.to_json().encode(),
        lock_digest=lock.digest,
        parent=parent,
        base=card.base.name,
        base_digest=card.base.digest,
        strategy=config.strategy,
        config=config.model_dump(mode="json"),
        trained_on=trained_on,
        trained_rows=trained_rows,
        metric=metric,
        scores=scores,
        stats={} if card.stats is None else card.stats.model_dump(mode="json"),
        baseline=baseline,
        run=run,
    )
    log = ScoreLog(store, record)
    for piece in slices:
        if piece.key is not None:  # measured once: the score matrix and the gate find it there
            log.put(piece.name, piece.key, metric, score=scores[piece.name], rows=piece.rows)
    return Run(record, lock, scores, config, stopped=card.stats.stopped if card.stats else None)


def _logged(log: Tracker, done: Run) -> None:
    """What a training came to, at the steps it was known from."""
    stats = done.adapter.stats
    names = ("rows_drawn", "rows_distinct", "trainable_parameters", "seconds_encode", "seconds_train")
    log.log(0, {"loss": float(stats["loss_first"])} if "loss_first" in stats else {})
    last = {"loss": float(stats["loss_last"])} if "loss_last" in stats else {}
    last |= {name: float(stats[name]) for name in names if name in stats}
    last |= {f"{done.adapter.metric}/{name}": score for name, score in done.scores.items()}
    log.log(done.config.steps, last)


def _columns(form: Form, sources: Sequence[SourceLike]) -> list[str]:
    """The columns to read."""
    return [name for name in form.columns if all(name in source.schema.names for source in sources)]


def _start(registry: Registry, before: AdapterRecord, form: Form) -> Any:
    """The parent's weights. Raises UsageError when it was trained on records of another form."""
    if before.metric != form.metric:
        raise UsageError(
            f"{before.ref} was trained on records of another type than this mix holds",
            code="other-form",
            hint="name another parent, or none to start from scratch",
        )
    return load_weights(registry.weights(before.ref), registry.card(before.ref))


def _parent(store: BaseStore, corpus: str, parent: str | None) -> AdapterRecord | None:
    """The adapter to go on from."""
    if parent is None:
        return None
    if parent != "auto":
        return Registry.of(store, parent).get(parent)
    registry = Registry(store, corpus)
    state = registry.state()
    candidates = [number for number, status in state.statuses.items() if status == "candidate"]
    number = state.production if state.production is not None else max(candidates, default=None)
    return None if number is None else with_weights(registry, registry.get(f"{corpus}:{number}"))


def with_weights(registry: Registry, record: AdapterRecord) -> AdapterRecord | None:
    """The nearest of an adapter and its ancestors that was trained here, so that training can go on from it."""
    found: AdapterRecord | None = record
    while found is not None and found.external is not None:
        found = None if found.parent is None else registry.get(found.parent)
    return found


def _described(
    store: BaseStore,
    sources: Sequence[SourceLike],
    weights: Sequence[float],
    before: AdapterRecord | None,
    general: str,
) -> list[MixSource]:
    """The sources of a mix as strategies see them: which of them the parent has been trained on."""
    from treering.training import MixSource

    refs: set[str] = set()
    rows: list[tuple[int, int]] = []
    if before is not None:
        registry = Registry.of(store, before.ref)
        refs, rows = set(registry.trained_on(before.ref)), registry.trained_rows(before.ref)
    apart = set() if not general else {store.load(general).ref}
    described = []
    for source, weight in zip(sources, weights, strict=True):
        pin = source.pin()
        seen = [_seen(pin["corpus"], part, before, refs, rows) for part in pin["segments"]]
        aside = source.ref in apart
        replay = bool(seen) and all(seen) and not aside
        described.append(MixSource(source.ref, weight, TrainRows.of(source).size, replay=replay, general=aside))
    return described


def _drawn(
    store: BaseStore,
    sources: Sequence[SourceLike],
    draws: Sequence[Draw],
    like: Mix,
    before: AdapterRecord | None,
    *,
    by_rows: bool,
) -> Mix:
    """The mix that a strategy wants: bounded sources as stored selections, which its lock will name.

    Weights are shares of tokens where they were in the mix that was given, unless the strategy counts rows.
    """
    chosen: list[Any] = []
    seed = like.seed
    for source, draw in zip(sources, draws, strict=True):
        one: Any = source
        if draw.weight and (draw.rows is not None or draw.mb is not None):
            by = {"balanced": "label", "importance": "domain"}.get(draw.by)
            forgetting = _forgetting(store, before) if draw.by == "importance" else None
            spread = draw.spread if draw.by == "importance" and draw.spread in source.schema.names else None
            choose = partial(one.select, rows=draw.rows, mb=draw.mb, strategy=draw.by, by=by, seed=seed, spread=spread)
            try:
                one = choose(forgetting=forgetting)
            except UsageError as exc:
                if exc.code != "bad-forgetting":
                    raise
                # Nothing of this source's own domains was forgotten, only of others': even shares.
                one = choose(forgetting={})
        chosen.append(one.balanced(draw.balance) if draw.weight and draw.balance else one)
    share_by: Literal["rows", "tokens"] = "rows" if by_rows else like.share_by
    weights = [draw.weight for draw in draws]
    return Mix(chosen, weights, seed, share_by=share_by, count_tokens=like.count_tokens)


def _forgetting(store: BaseStore, before: AdapterRecord | None) -> dict[str, float]:
    """How much of each domain the parent's lineage has forgotten, from its score matrix; nothing when there is none yet."""
    from treering.rounds.evaluate import score_matrix

    if before is None:
        return {}
    try:
        return score_matrix(store, before.corpus, adapter=before.ref, by="domain").domain_forgetting()
    except NotFoundError:  # nothing held out: no domain is known to be forgotten more than another
        return {}


def _seen(
    corpus: str, part: dict[str, Any], before: AdapterRecord | None, refs: set[str], rows: list[tuple[int, int]]
) -> bool:
    """Whether the parent's lineage was trained on one segment: by name, or by its rows from when they were live."""
    if before is None:
        return False
    lo, hi = part["row_ids"]
    return f"{corpus}@{part['name']}" in refs or (corpus == before.corpus and covers(rows, (int(lo), int(hi))))


def _kept(store: BaseStore, error: DivergedError) -> DivergedError:
    """The same error, its last good weights on disk and the place in its hint."""
    from treering.training import DivergedError

    if error.adapter is None:
        return error
    path = store.cache_dir / "diverged" / f"{error.adapter.digest}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(error.adapter.to_bytes())
    return DivergedError(error.message, error.adapter, hint=f"{error.hint}: {path}")
