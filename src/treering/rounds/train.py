"""Train a round: a mix in, a candidate adapter in the registry out, with its scores on every held-out slice so far.

Composes mixing, training, evaluation and registry over one store. How weights are fitted is training's, whether the
result is good enough is the gate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from treering.errors import NotFoundError, UsageError
from treering.evaluation import measure, snapshot_slices
from treering.mixing import Mix, MixLock
from treering.mixing.sources import TrainRows
from treering.registry import AdapterRecord, Registry, ScoreLog
from treering.registry.trained import covers, training_data
from treering.training import TrainConfig

if TYPE_CHECKING:
    from treering.mixing import Loader
    from treering.mixing.sources import SourceLike
    from treering.store import BaseStore
    from treering.training import Adapter, DivergedError, Draw, MixSource
    from treering.training.loop import Progress

__all__ = ["Run", "train"]

COLUMNS = ("text", "label", "domain", "id")
METRIC = "macro_f1"


@dataclass(frozen=True, slots=True)
class Run:
    """What one training left behind. `scores`: macro-F1 by held-out slice, fractions of 1."""

    adapter: AdapterRecord
    lock: MixLock
    scores: dict[str, float]
    config: TrainConfig


def train(
    store: BaseStore,
    mix: Mix | MixLock,
    config: TrainConfig | None = None,
    *,
    parent: str | Literal["auto"] | None = "auto",
    corpus: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train an adapter on a mix, add it to the registry as a candidate, and score it on all sealed held-out slices.

    mix: drawn as the config's strategy wants it: with weights of its own, what is replayed perhaps from a bounded
    selection (stored, and named in the run's lock), and with the general corpus that the config names. A lock is drawn just
    as it was locked, its batch size included, so that the same lock, config, base and parent give an adapter of the same
    digest.
    parent: the adapter to go on from: a ref, None for from scratch, or "auto": the one in production, else the newest
    candidate that no gate refused, else from scratch. A strategy that starts from scratch has none.
    corpus: whose registry the adapter goes to, by default the corpus of the mix's live or new source, else of the one with
    the largest share.

    Raises UsageError for a mix that can't be trained on, NotFoundError for a parent that isn't there, ConflictError for
    one on another base or a lock whose data isn't there any more, and DivergedError (its `.adapter` holds the last good
    weights, kept as a file too) when the loss stops being finite.
    """
    from treering.training import Adapter, DivergedError, fit, strategy

    if not isinstance(mix, Mix | MixLock):
        raise UsageError(
            f"train takes a mix or a mix lock, not {mix!r}",
            code="bad-mix",
            hint='mix sources first: store.mix("support@v1", "support@new", weights=[0.2, 0.8])',
        )
    config = config or TrainConfig()
    plan = strategy(config.strategy)
    if not plan.continues and parent not in ("auto", None):
        raise UsageError(
            f"strategy {config.strategy} starts from scratch, so it takes no parent",
            code="no-parent",
            hint="leave parent out, or train with strategy replay",
        )
    sources = mix.resolve(store) if isinstance(mix, MixLock) else mix.sources
    home = corpus or sources[mix.anchor].corpus
    before = _parent(store, home, parent) if plan.continues else None
    start = None
    if before is not None:
        registry = Registry.of(store, before.ref)
        start = Adapter.load(registry.weights(before.ref), registry.card(before.ref))
    config = plan.settle(config, start)
    # None: endless, `config.steps` says when to stop. What has no steps reads the mix once.
    epochs = None if plan.gradient else 1
    loader: Loader  # of this process alone, whatever launched it
    if isinstance(mix, MixLock):
        config = config.changed(batch_size=mix.batch_size)
        described = _described(store, sources, [float(one.units) for one in mix.sources], before, config.general)
        loader = mix.loader(store, columns=_columns(sources), epochs=epochs, rank=0, world_size=1)
    else:
        weights = list(mix.weights)
        if config.general:
            sources, weights = (*sources, store.load(config.general)), [*weights, 0.0]
        described = _described(store, sources, weights, before, config.general)
        chosen = _drawn(store, sources, plan.draw(described, config), mix.seed, before)
        loader = chosen.loader(config.batch_size, _columns(sources), epochs=epochs, rank=0, world_size=1)
    with loader:
        try:
            adapter = fit(loader, config, cache_dir=store.cache_dir, parent=start, sources=described, progress=progress)
        except DivergedError as exc:
            raise _kept(store, exc) from exc
    return _registered(store, home, adapter, loader.lock(), config, before)


def _registered(
    store: BaseStore, home: str, adapter: Adapter, lock: MixLock, config: TrainConfig, before: AdapterRecord | None
) -> Run:
    """Score the adapter, finish its card, add it."""
    slices = [piece for piece in snapshot_slices(store.corpus(home)) if piece.rows]
    scores = {piece.name: measure(METRIC, piece.labels, adapter.predict(list(piece.texts))) for piece in slices}
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
        metric=METRIC,
        scores=scores,
        stats={} if card.stats is None else card.stats.model_dump(mode="json"),
    )
    log = ScoreLog(store, record)
    for piece in slices:
        if piece.key is not None:  # measured once: the score matrix and the gate find it there
            log.put(piece.name, piece.key, METRIC, score=scores[piece.name], rows=piece.rows)
    return Run(record, lock, scores, config)


def _columns(sources: Sequence[SourceLike]) -> list[str]:
    """The columns to read. Raises UsageError for records without text and label."""
    for source in sources:
        missing = [name for name in COLUMNS[:2] if name not in source.schema.names]
        if missing:
            raise UsageError(
                f"{source.ref} has no column {' and '.join(missing)}, so no classifier can be trained on it",
                code="not-labelled",
                hint="the trainer reads records of type 'labelled'",
            )
    return [name for name in COLUMNS if all(name in source.schema.names for source in sources)]


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
    return None if number is None else registry.get(f"{corpus}:{number}")


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
    store: BaseStore, sources: Sequence[SourceLike], draws: Sequence[Draw], seed: int, before: AdapterRecord | None
) -> Mix:
    """The mix that a strategy wants: bounded sources as stored selections, which its lock will name."""
    chosen: list[Any] = []
    for source, draw in zip(sources, draws, strict=True):
        one: Any = source
        if draw.weight and (draw.rows is not None or draw.mb is not None):
            by = {"balanced": "label", "importance": "domain"}.get(draw.by)
            forgetting = _forgetting(store, before) if draw.by == "importance" else None
            one = one.select(rows=draw.rows, mb=draw.mb, strategy=draw.by, by=by, seed=seed, forgetting=forgetting)
        chosen.append(one.balanced(draw.balance) if draw.weight and draw.balance else one)
    return Mix(chosen, [draw.weight for draw in draws], seed)


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
