"""Training one round: read the mix through the frozen base, then fit what is trainable on what it said.

Is handed a loader and never opens a store. What is drawn, minimised and remembered are the strategy's to say; what is
trained is the net's (nets).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treering.errors import CheckFailedError, UsageError
from treering.training.adapters import STATE, Adapter, check_base, seen
from treering.training.base import Base
from treering.training.cache import ActivationCache
from treering.training.card import BaseCard, ModelCard, TrainStats
from treering.training.config import TrainConfig
from treering.training.nets import Net, Out, Seen, header_for, make_net
from treering.training.only import only_these
from treering.training.strategies import MixSource, Records, Round, Step, Strategy, strategy

__all__ = ["DivergedError", "Progress", "fit"]

NO_DOMAIN = "(none)"  # records that name no domain still share one
READ_BATCHES = 32  # batches whose texts are encoded together
Batch = Mapping[str, Any]
T = TypeVar("T")
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
    sources: Sequence[MixSource] = (),
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> Adapter:
    """Train an adapter on `config.steps` batches of `loader`; the same batches, config, base and parent give the same bytes.

    A batch is a dict of lists `text`, `label` (None: can't be learnt from, left out) and, if known, `domain` and `id`,
    with `_ref`, the source numbers, if there are sources; a loader that ends early is begun again (a strategy without
    gradient reads it once, to its end). cache_dir: where activations of the frozen base are kept (in memory when None).
    parent: whose weights, classes and domains to go on from, unless the strategy starts from scratch. sources: by number,
    which of them the parent was trained on; none, when left out. on_step: asked every `config.eval_every` updates; what it
    says other than None ends the run, with the weights as they were when it last said None. While it runs, torch uses one thread.

    Raises UsageError for batches without texts or labels, an unknown strategy and a kind that isn't for it, ConflictError
    for a parent on another base, DivergedError when the loss isn't finite any more; and as `Base.load`.
    """
    plan = strategy(config.strategy)
    config = plan.settle(config, parent)
    _check_kind(plan, config)
    if base is None:
        base = Base.load(config.base, precision=config.precision, max_tokens=config.max_tokens)
    if parent is not None and not plan.continues:
        parent = None
    past = plan.past(parent)
    shape = header_for(config, base, ["?"], ["?"], past=past)
    if parent is not None:
        _check_parent(parent, config, base, past)
    cache = ActivationCache(base, cache_dir, depth=shape.depth, layers=shape.feature_layers)

    started = time.perf_counter()
    data = _read(loader, config.steps if plan.gradient else None, cache, parent, sources, plan.unlabelled, progress)
    read = time.perf_counter()

    header = header_for(config, base, data.classes, data.domains, past=past)
    random = torch.Generator().manual_seed(config.seed)
    net = make_net(header, base, generator=random, past=past)
    if parent is not None:
        net.load(parent.header, parent.tensors)
    counts = data.counts()
    net.get_buffer("counts").add_(counts)
    net.to(base.device)
    log_prior = _log_prior(counts.sum(1), config).to(base.device)
    weights = only_these(net.trainable(), config, data.domains, has_parent=parent is not None)
    optimizer = _optimizer(weights, config)
    losses: list[float] = []
    stopped: str | None = None
    looked = _Kept(weights)  # the weights at the last look that found nothing; at first those that it starts from
    good = _Kept(weights)  # the last weights that are known to give a finite loss, once there is one
    round_ = Round(
        net=net,
        parent=parent,
        config=config,
        records=data.records(),
        state={} if parent is None else parent.state,
        run=lambda one, numbers: one(seen(cache, numbers, base)),
        parent_net=functools.cache(lambda: _parent_net(parent, base)),
        generator=random,
    )
    with _one_thread(), _plain_attention(base):
        plan.before(round_)
        inputs = _ahead(_inputs(cache, data, config, base, random), config.steps if plan.gradient else 0)
        for number, (batch, texts, noise) in enumerate(inputs):
            with base.autocast():
                out = net(texts, noise)
            loss = plan.loss(_step(round_, out, batch, texts, data, log_prior))
            if (penalty := plan.regulariser(round_)) is not None:
                loss = loss + penalty

            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise _diverged(number, losses, Adapter(header, good.tensors(net), base=base), config, parent)
            good.keep()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(number, config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if progress is not None:
                progress("train", number + 1, config.steps)
            if on_step is not None and config.eval_every and (number + 1) % config.eval_every == 0:
                stopped = on_step(number + 1, Adapter(header, net.tensors(), base=base, cache_dir=cache_dir))
                if stopped is not None:
                    looked.tensors(net)
                    break
                looked.keep()
        tensors = net.tensors()
        if not _finite(tensors):
            raise _diverged(config.steps, losses, Adapter(header, good.tensors(net), base=base), config, parent)
        state = {name: value.detach().cpu().contiguous() for name, value in plan.after(round_).items()}
        if not _finite(state):
            raise _diverged(config.steps, losses, Adapter(header, tensors, base=base), config, parent)
    tensors |= {f"{STATE}{name}": value for name, value in state.items()}

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
        trainable_parameters=sum(p.numel() for p in weights.values()) if plan.gradient else 0,
        state_bytes=sum(value.nbytes for name, value in tensors.items() if name.startswith((STATE, "stat."))),
        loss_first=float(np.mean(losses[:tenth])) if losses else 0.0,
        loss_last=float(np.mean(losses[-tenth:])) if losses else 0.0,
        seconds_encode=read - started,
        seconds_train=time.perf_counter() - read,
        stopped=stopped,
    )
    return adapter.with_card(_card(adapter, config, base, counts, stats))


def _inputs(
    cache: ActivationCache, data: _Data, config: TrainConfig, base: Base, random: torch.Generator
) -> Callable[[int], tuple[_Rows, Seen, Tensor | None]]:
    """What makes the inputs of an update by its number, called for one after the other."""
    # A chance of its own: the strategy draws from the run's meanwhile.
    noises = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=random)))

    def make(number: int) -> tuple[_Rows, Seen, Tensor | None]:
        batch = data.batch(number)
        texts = seen(cache, batch.texts, base)
        if not config.feature_noise:
            return batch, texts, None
        noise = torch.randn(texts.pooled.shape, generator=noises).mul_(config.feature_noise)
        return batch, texts, noise.to(base.device)

    return make


def _ahead(make: Callable[[int], T], n: int) -> Iterator[T]:
    """make(0) … make(n - 1); each in a second thread, while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="treering-inputs") as pool:
        coming = [pool.submit(make, number) for number in range(min(n, 1))]
        for number in range(1, n + 1):
            made = coming.pop().result()
            if number < n:
                coming.append(pool.submit(make, number))
            yield made


def _step(round_: Round, out: Out, batch: _Rows, texts: Seen, data: _Data, log_prior: Tensor) -> Step:
    """One batch as a loss sees it."""
    device = texts.pooled.device
    return Step(
        round=round_,
        out=out,
        labels=torch.from_numpy(batch.labels).to(device),
        domains=torch.from_numpy(batch.domains).to(device),
        sources=torch.from_numpy(batch.sources).to(device),
        replayed=torch.from_numpy(data.replayed(batch)).to(device),
        texts=batch.texts,
        keys=batch.keys,
        seen=texts,
        log_prior=log_prior,
    )


class _Kept:
    """A copy of the trained weights, taken again and again in the same memory."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = [value.detach() for value in weights.values()]
        self._copy = [value.clone() for value in self._weights]

    def keep(self) -> None:
        """Take them as they are now."""
        for copy, value in zip(self._copy, self._weights, strict=True):
            copy.copy_(value)

    def tensors(self, net: Net) -> dict[str, Tensor]:
        """All tensors of the net, with the weights that were kept: put back into it."""
        for copy, value in zip(self._copy, self._weights, strict=True):
            value.copy_(copy)
        return net.tensors()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Records of one update, all int64 (n,) but the keys."""

    texts: npt.NDArray[np.int64]  # numbers in the activation cache
    labels: npt.NDArray[np.int64]  # -1: none, which only some strategies are given
    domains: npt.NDArray[np.int64]  # -1 likewise
    sources: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]  # (n, 2): 128-bit hashes of the record ids


@dataclass(frozen=True, slots=True)
class _Data:
    """What the loader gave, as numbers: a run of any length costs 48 bytes a record, whatever its texts weigh."""

    classes: list[str]
    domains: list[str]
    batches: list[_Rows]
    unlabelled: int
    replay: npt.NDArray[np.bool_]  # by source number; sources beyond it are new

    def batch(self, number: int) -> _Rows:
        """The rows of an update; from the first on again when there were fewer batches than updates."""
        return self.batches[number % len(self.batches)]

    @property
    def drawn(self) -> int:
        return sum(len(batch.labels) for batch in self.batches)

    @property
    def texts(self) -> npt.NDArray[np.int64]:
        return np.concatenate([batch.texts for batch in self.batches])

    def replayed(self, batch: _Rows) -> npt.NDArray[np.bool_]:
        """Which rows are of a source that the parent was trained on, bool (n,)."""
        known = batch.sources < len(self.replay)
        return known & self.replay[np.where(known, batch.sources, 0)] if len(self.replay) else known & False

    def records(self) -> Records:
        """The distinct records."""
        keys = np.concatenate([batch.keys for batch in self.batches])
        first = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        return Records(
            texts=self.texts[first],
            labels=np.concatenate([batch.labels for batch in self.batches])[first],
            keys=keys[first],
            replay=np.concatenate([self.replayed(batch) for batch in self.batches])[first],
        )

    def counts(self) -> Tensor:
        """Labelled records drawn by class and domain: int64 (classes, domains)."""
        counts = np.zeros((len(self.classes), len(self.domains)), np.int64)
        for batch in self.batches:
            some = batch.labels >= 0
            np.add.at(counts, (batch.labels[some], batch.domains[some]), 1)
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
    loader: Iterable[Batch],
    steps: int | None,
    cache: ActivationCache,
    parent: Adapter | None,
    sources: Sequence[MixSource],
    unlabelled: bool,
    progress: Progress | None,
) -> _Data:
    """Draw the batches of the run, encode their texts, and keep numbers. Classes grow from the parent's.

    steps: how many, None for all there are. unlabelled: keep records without a label.
    """
    classes = _Names(parent.header.classes if parent else [])
    domains = _Names(parent.header.domains if parent else [])
    general = {number for number, source in enumerate(sources) if source.general}
    batches: list[_Rows] = []
    without = 0
    for chunk in _chunks(loader, steps, unlabelled):
        texts = cache.numbers([text for batch in chunk for text in batch.texts])
        start = 0
        for batch in chunk:
            stop = start + len(batch.texts)
            without += batch.unlabelled
            if batch.texts:
                # What the general corpus calls its texts is no class here.
                labels = [None if n in general else label for n, label in zip(batch.sources, batch.labels, strict=True)]
                named = [None if label is None else name for name, label in zip(batch.domains, labels, strict=True)]
                rows = texts[start:stop], classes.numbers(labels), domains.numbers(named)
                batches.append(_Rows(*rows, batch.sources, batch.keys))
            start = stop
        if progress is not None:
            progress("read", min(len(batches), steps or len(batches)), steps or len(batches))
    if not any((batch.labels >= 0).any() for batch in batches):
        raise UsageError(
            "there is nothing to train on: the mix gave no labelled records",
            code="no-labels",
            hint="capture records with a label, or annotate them",
        )
    # Names in order of first appearance would hang on the batch order; sorted, the file tells the same story each time.
    settled = _settle(classes, domains, batches, parent)
    return _Data(*settled, without, np.array([source.replay for source in sources], np.bool_))


def _settle(
    classes: _Names, domains: _Names, batches: list[_Rows], parent: Adapter | None
) -> tuple[list[str], list[str], list[_Rows]]:
    """The parent's names first, as they were, then the new ones sorted; labels and domains numbered anew."""
    new_classes, class_of = classes.settled(len(parent.header.classes) if parent else 0)
    new_domains, domain_of = domains.settled(len(parent.header.domains) if parent else 0)
    rows = [_Rows(b.texts, class_of[b.labels], domain_of[b.domains], b.sources, b.keys) for b in batches]
    return new_classes, new_domains, rows


class _Names:
    """Numbers names in order of first appearance; None is -1."""

    def __init__(self, known: Sequence[str]) -> None:
        self._number = {name: n for n, name in enumerate(known)}

    def numbers(self, names: Sequence[str | None]) -> npt.NDArray[np.int64]:
        known = self._number
        return np.fromiter((-1 if n is None else known.setdefault(n, len(known)) for n in names), np.int64, len(names))

    def settled(self, fixed: int) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The first `fixed` names, then the others sorted; and the new number of each old one, -1 (its last) for -1."""
        names = list(self._number)
        final = names[:fixed] + sorted(names[fixed:])
        place = {name: n for n, name in enumerate(final)}
        return final, np.array([*(place[name] for name in names), -1], np.int64)


@dataclass(frozen=True, slots=True)
class _Texts:
    """The labelled records of a batch as they came."""

    texts: list[str]
    labels: list[str | None]
    domains: list[str]
    sources: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    unlabelled: int

    @classmethod
    def of(cls, batch: Batch, keep_unlabelled: bool) -> _Texts:
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
        labels = batch["label"]
        texts = batch["text"]
        kept = [k for k in range(n) if texts[k] is not None and (keep_unlabelled or labels[k] is not None)]
        ids = batch.get("id") or [None] * n
        return cls(
            texts=[texts[k] for k in kept],
            labels=[None if labels[k] is None else str(labels[k]) for k in kept],
            domains=[NO_DOMAIN if domains[k] is None else str(domains[k]) for k in kept],
            sources=sources[kept],
            keys=_keys([f"{labels[k]}\0{texts[k]}" if ids[k] is None else str(ids[k]) for k in kept]),
            unlabelled=sum(labels[k] is None for k in range(n)),
        )


def _keys(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """128-bit hashes, int64 (n, 2): they tell records apart, and don't tell who they were."""
    digests = b"".join(hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=16).digest() for one in ids)
    return np.frombuffer(digests, np.int64).reshape(-1, 2)


def _chunks(loader: Iterable[Batch], steps: int | None, unlabelled: bool) -> Iterator[list[_Texts]]:
    """At most `steps` batches, `READ_BATCHES` at a time."""
    chunk: list[_Texts] = []
    iterator = iter(loader)
    try:
        for _ in itertools.count() if steps is None else range(steps):
            batch = next(iterator, None)
            if batch is None:
                break
            chunk.append(_Texts.of(batch, unlabelled))
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


def _optimizer(weights: Mapping[str, Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) with two peak learning rates: the head's, and a fraction of it for the rest.

    A learned router learns at the head's: it is a head of its own, over the same features.
    """
    quick = [value for name, value in weights.items() if name.startswith(("head.", "router."))]
    slow = [value for name, value in weights.items() if not name.startswith(("head.", "router."))]
    groups: list[dict[str, Any]] = [
        {"params": quick, "peak": config.lr},
        {"params": slow, "peak": config.lr * config.adapter_lr_scale},
    ]
    # Of gates that aren't trained only the gradient is 0: decay would move them all the same.
    decay = 0.0 if config.only else config.weight_decay
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, weight_decay=decay, fused=True)


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


@contextlib.contextmanager
def _plain_attention(base: Base) -> Iterator[None]:
    """On a processor attention by plain products: over a dozen tokens the blocked kernel's backward takes five times as long."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if base.device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _check_kind(plan: Strategy, config: TrainConfig) -> None:
    if plan.kinds and config.kind not in plan.kinds:
        raise UsageError(
            f"strategy {config.strategy} trains kind {' or '.join(plan.kinds)}, the config says {config.kind}",
            code="bad-config",
            hint="leave kind out",
        )
    if plan.gradient and config.kind == "slda":
        raise UsageError("kind slda learns nothing by gradient", code="bad-config", hint="use strategy slda")


def _check_parent(parent: Adapter, config: TrainConfig, base: Base, past: int) -> None:
    """Raise ConflictError for a parent on another base, UsageError for one of another shape than the config's."""
    check_base(parent.header, base)
    theirs, ours = parent.header, header_for(config, base, ["?"], ["?"])
    same = ["kind", "adapt_layers", "feature_layers"]
    same += ["bottleneck"] if config.kind == "gated" else []
    for name in same:
        if getattr(theirs, name) != getattr(ours, name):
            raise _other_shape(name, getattr(theirs, name), getattr(ours, name))
    if theirs.lora is None or ours.lora is None:
        return
    if theirs.lora.modules != ours.lora.modules:
        raise _other_shape("targets", "others", config.targets)
    for name, wanted in (("lora_scale", config.lora_scale), *([] if past else [("rank", config.rank)])):
        found = theirs.lora.rank if name == "rank" else theirs.lora.alpha / theirs.lora.rank
        if not math.isclose(found, wanted):
            raise _other_shape(name, found, wanted)


def _other_shape(name: str, theirs: object, ours: object) -> UsageError:
    return UsageError(
        f"the parent has {name} {theirs}, the config {ours}",
        code="other-shape",
        hint=f"set {name}={theirs}, or train from scratch",
    )


def _parent_net(parent: Adapter | None, base: Base) -> Net:
    assert parent is not None
    return parent.net(base)


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


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
        base=BaseCard.of(base),
        config=config,
        classes=adapter.header.classes,
        domains=adapter.header.domains,
        weights_digest=adapter.digest,
        class_counts=dict(zip(adapter.header.classes, counts.sum(1).tolist(), strict=True)),
        stats=stats,
    )
