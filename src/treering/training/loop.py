"""Training one round: read the mix through the frozen base, then fit the adapter and the head on what it said.

Is handed a loader and never opens a store. What is drawn and what is minimised are the strategy's to say.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treering.errors import CheckFailedError, UsageError
from treering.training.adapters import Adapter, AdapterNet, Header, check_base, inputs
from treering.training.base import Base
from treering.training.cache import ActivationCache
from treering.training.card import BaseCard, ModelCard, TrainStats
from treering.training.config import TrainConfig
from treering.training.only import restrict
from treering.training.strategies import Step, strategy

__all__ = ["DivergedError", "Progress", "fit"]

NO_DOMAIN = "(none)"  # records that name no domain still share one
READ_BATCHES = 32  # batches whose texts are encoded together
Batch = Mapping[str, Any]
Progress = Callable[[str, int, int], None]  # ("read" | "train", done, of how many updates)
OnStep = Callable[[int, Adapter], str | None]  # (updates done, the adapter as it is) → why to stop, None to go on


class DivergedError(CheckFailedError):
    """The loss stopped being finite. `.adapter` holds the last weights whose loss was, None when none were."""

    default_code = "diverged"

    def __init__(self, message: str, adapter: Adapter | None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.adapter = adapter


def fit(
    loader: Iterable[Batch],
    config: TrainConfig,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    parent: Adapter | None = None,
    base: Base | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> Adapter:
    """Train an adapter on `config.steps` batches of `loader`; the same batches, config, base and parent give the same bytes.

    A batch is a dict of lists `text`, `label` (None: can't be learnt from, left out) and, if known, `domain`, with
    `_ref`, the source numbers, if there are sources; a loader that ends early is begun again. cache_dir: where
    activations of the frozen base are kept (in memory when None). parent: whose weights, classes and domains to go on
    from, unless the strategy starts from scratch. on_step: asked every `config.eval_every` updates; what it says other than
    None ends the run there. While it runs, torch uses one thread.

    Raises UsageError for batches without texts or labels and an unknown strategy, ConflictError for a parent on another
    base, DivergedError when the loss isn't finite any more; and as `Base.load`.
    """
    plan = strategy(config.strategy)
    if base is None:
        base = Base.load(config.base, precision=config.precision, max_tokens=config.max_tokens)
    if parent is not None and not plan.continues:
        parent = None
    if parent is not None:
        _check_parent(parent, config, base)
    cache = ActivationCache(base, cache_dir, depth=config.adapt_layers)

    started = time.perf_counter()
    data = _read(loader, config.steps, cache, parent, progress)
    read = time.perf_counter()

    header = Header(
        base_digest=base.digest,
        width=base.width,
        bottleneck=config.bottleneck,
        adapt_layers=config.adapt_layers,
        classes=data.classes,
        domains=data.domains,
    )
    random = torch.Generator().manual_seed(config.seed)
    net = AdapterNet(header, base, generator=random)
    if parent is not None:
        net.load(parent)
    counts = data.counts()
    net.get_buffer("counts").add_(counts)
    net.to(base.device)
    restrict(net, config, data.domains, has_parent=parent is not None)
    log_prior = _log_prior(counts.sum(1), config).to(base.device)
    optimizer = _optimizer(net, config)

    losses: list[float] = []
    stopped: str | None = None
    good = net.tensors()  # the last weights that are known to give a finite loss, once there is one
    with _one_thread():
        for number in range(config.steps):
            batch = data.batch(number)
            pooled, states, mask = inputs(cache, batch.texts, base)
            noise = torch.randn(pooled.shape, generator=random).to(base.device) if config.feature_noise else None
            frozen, answer = net(pooled, states, mask, None if noise is None else config.feature_noise * noise)
            labels, sources = torch.from_numpy(batch.labels), torch.from_numpy(batch.sources)
            loss = plan.loss(Step(frozen, answer, labels.to(base.device), sources, log_prior))

            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise _diverged(number, losses, Adapter(header, good, base=base), config, parent)
            good = net.tensors()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(number, config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if progress is not None:
                progress("train", number + 1, config.steps)
            if on_step is not None and config.eval_every and (number + 1) % config.eval_every == 0:
                now = Adapter(header, net.tensors(), base=base, cache_dir=cache_dir)
                if (stopped := on_step(number + 1, now)) is not None:
                    break
    tensors = net.tensors()
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise _diverged(config.steps, losses, Adapter(header, good, base=base), config, parent)

    adapter = Adapter(header, tensors, base=base, cache_dir=cache_dir)
    tenth = max(1, len(losses) // 10)
    stats = TrainStats(
        steps=len(losses),
        rows_drawn=data.drawn,
        rows_distinct=len(np.unique(data.texts)),
        rows_unlabelled=data.unlabelled,
        rows_per_source=data.per_source(list(getattr(loader, "refs", []))),
        texts_encoded=cache.encoded,
        texts_cut=cache.cut,
        trainable_parameters=sum(p.numel() for p in net.parameters() if p.requires_grad),
        loss_first=float(np.mean(losses[:tenth])),
        loss_last=float(np.mean(losses[-tenth:])),
        seconds_encode=read - started,
        seconds_train=time.perf_counter() - read,
        stopped=stopped,
    )
    return adapter.with_card(_card(adapter, config, base, counts, stats))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Labelled records of one update, all int64 (n,)."""

    texts: npt.NDArray[np.int64]  # numbers in the activation cache
    labels: npt.NDArray[np.int64]
    domains: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Data:
    """What the loader gave, as numbers: a run of any length costs 32 bytes a record, whatever its texts weigh."""

    classes: list[str]
    domains: list[str]
    batches: list[_Rows]
    unlabelled: int

    def batch(self, number: int) -> _Rows:
        """The rows of an update; from the first on again when there were fewer batches than updates."""
        return self.batches[number % len(self.batches)]

    @property
    def drawn(self) -> int:
        return sum(len(batch.labels) for batch in self.batches)

    @property
    def texts(self) -> npt.NDArray[np.int64]:
        return np.concatenate([batch.texts for batch in self.batches])

    def counts(self) -> Tensor:
        """Records drawn by class and domain: int64 (classes, domains)."""
        counts = np.zeros((len(self.classes), len(self.domains)), np.int64)
        for batch in self.batches:
            np.add.at(counts, (batch.labels, batch.domains), 1)
        return torch.from_numpy(counts)

    def per_source(self, refs: Sequence[str]) -> dict[str, int]:
        """Records drawn by ref; sources of one ref are added up."""
        found: Counter[str] = Counter()
        for batch in self.batches:
            for number, rows in Counter(batch.sources.tolist()).items():
                if number < len(refs):
                    found[refs[number]] += rows
        return dict(found)


def _read(
    loader: Iterable[Batch], steps: int, cache: ActivationCache, parent: Adapter | None, progress: Progress | None
) -> _Data:
    """Draw the batches of the run, encode their texts, and keep numbers. Classes grow from the parent's."""
    classes = _Names(parent.header.classes if parent else [])
    domains = _Names(parent.header.domains if parent else [])
    batches: list[_Rows] = []
    unlabelled = 0
    for chunk in _chunks(loader, steps):
        texts = cache.numbers([text for batch in chunk for text in batch.texts])
        start = 0
        for batch in chunk:
            stop = start + len(batch.texts)
            unlabelled += batch.unlabelled
            if batch.texts:
                batches.append(
                    _Rows(
                        texts[start:stop], classes.numbers(batch.labels), domains.numbers(batch.domains), batch.sources
                    )
                )
            start = stop
        if progress is not None:
            progress("read", min(len(batches), steps), steps)
    if not batches:
        raise UsageError(
            "there is nothing to train on: the mix gave no labelled records",
            code="no-labels",
            hint="capture records with a label, or annotate them",
        )
    # Names in order of first appearance would hang on the batch order; sorted, the file tells the same story each time.
    return _Data(*_settle(classes, domains, batches, parent), unlabelled)


def _settle(
    classes: _Names, domains: _Names, batches: list[_Rows], parent: Adapter | None
) -> tuple[list[str], list[str], list[_Rows]]:
    """The parent's names first, as they were, then the new ones sorted; labels and domains numbered anew."""
    new_classes, class_of = classes.settled(len(parent.header.classes) if parent else 0)
    new_domains, domain_of = domains.settled(len(parent.header.domains) if parent else 0)
    rows = [_Rows(b.texts, class_of[b.labels], domain_of[b.domains], b.sources) for b in batches]
    return new_classes, new_domains, rows


class _Names:
    """Numbers names in order of first appearance."""

    def __init__(self, known: Sequence[str]) -> None:
        self._number = {name: n for n, name in enumerate(known)}

    def numbers(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.fromiter((self._number.setdefault(n, len(self._number)) for n in names), np.int64, len(names))

    def settled(self, fixed: int) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The first `fixed` names, then the others sorted; and the new number of each old one."""
        names = list(self._number)
        final = names[:fixed] + sorted(names[fixed:])
        place = {name: n for n, name in enumerate(final)}
        return final, np.fromiter((place[name] for name in names), np.int64, len(names))


@dataclass(frozen=True, slots=True)
class _Texts:
    """The labelled records of a batch as they came."""

    texts: list[str]
    labels: list[str]
    domains: list[str]
    sources: npt.NDArray[np.int64]
    unlabelled: int

    @classmethod
    def of(cls, batch: Batch) -> _Texts:
        """Raises UsageError when there is no text or label column."""
        missing = [name for name in ("text", "label") if name not in batch]
        if missing:
            raise UsageError(
                f"a batch has no column {' and '.join(missing)}; the trainer reads text and label",
                code="not-labelled",
                hint="train on records of type 'labelled'",
            )
        n = len(batch["text"])
        domains = batch.get("domain") or [None] * n
        sources = np.asarray(batch["_ref"], np.int64) if "_ref" in batch else np.zeros(n, np.int64)
        kept = [k for k in range(n) if batch["text"][k] is not None and batch["label"][k] is not None]
        return cls(
            texts=[batch["text"][k] for k in kept],
            labels=[str(batch["label"][k]) for k in kept],
            domains=[NO_DOMAIN if domains[k] is None else str(domains[k]) for k in kept],
            sources=sources[kept],
            unlabelled=n - len(kept),
        )


def _chunks(loader: Iterable[Batch], steps: int) -> Iterator[list[_Texts]]:
    """At most `steps` batches, `READ_BATCHES` at a time."""
    chunk: list[_Texts] = []
    iterator = iter(loader)
    try:
        for _ in range(steps):
            batch = next(iterator, None)
            if batch is None:
                break
            chunk.append(_Texts.of(batch))
            if len(chunk) == READ_BATCHES:
                yield chunk
                chunk = []
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
    if chunk:
        yield chunk


def _log_prior(counts: Tensor, config: TrainConfig) -> Tensor:
    """Log share of each class in the mix, float32 (classes,), as the config wants it; see `Strategy.loss`."""
    absent = counts == 0
    if config.prior_correction:
        # A class the parent knew and the mix lacks counts as one record, so that it still competes.
        prior = counts.clamp_min(1).double()
        prior = (prior / prior.sum()).log().float()
    else:
        prior = torch.zeros(len(counts))
    return prior.masked_fill(absent, -math.inf) if config.absent_classes == "protect" else prior


def _optimizer(net: AdapterNet, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) with two peak learning rates: the head's, and a fraction of it for the adapter."""
    head = [p for name, p in net.named_parameters() if name.startswith("head.")]
    adapter = [p for name, p in net.named_parameters() if not name.startswith("head.")]
    groups: list[dict[str, Any]] = [
        {"params": head, "peak": config.lr},
        {"params": adapter, "peak": config.lr * config.adapter_lr_scale},
    ]
    # Of gates that aren't trained only the gradient is 0: decay would move them all the same.
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0 if config.only else config.weight_decay)


def _schedule(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at an update: linear warm-up times a cosine down to 0."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return rise * 0.5 * (1.0 + math.cos(math.pi * step / config.steps))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: sums in one order, so the same bits on any number of cores; and small matrices gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_parent(parent: Adapter, config: TrainConfig, base: Base) -> None:
    check_base(parent.header, base)
    for name in ("bottleneck", "adapt_layers"):
        theirs, ours = getattr(parent.header, name), getattr(config, name)
        if theirs != ours:
            raise UsageError(
                f"the parent has {name} {theirs}, the config {ours}",
                code="other-shape",
                hint=f"set {name}={theirs}, or train from scratch",
            )


def _diverged(
    step: int, losses: list[float], last_good: Adapter, config: TrainConfig, parent: Adapter | None
) -> DivergedError:
    finite = sum(map(math.isfinite, losses))
    return DivergedError(
        f"training diverged: the loss isn't finite after {step} of {config.steps} updates",
        last_good if finite or parent is not None else None,
        hint=f"lower lr (it is {config.lr:g}); the last good weights are kept"
        if finite
        else "look at the base's output",
    )


def _card(adapter: Adapter, config: TrainConfig, base: Base, counts: Tensor, stats: TrainStats) -> ModelCard:
    return ModelCard(
        base=BaseCard(
            name=base.name,
            digest=base.digest,
            precision=base.precision,
            max_tokens=base.max_tokens,
            width=base.width,
            layers=base.layers,
        ),
        config=config,
        classes=adapter.header.classes,
        domains=adapter.header.domains,
        weights_digest=adapter.digest,
        class_counts=dict(zip(adapter.header.classes, counts.sum(1).tolist(), strict=True)),
        stats=stats,
    )
