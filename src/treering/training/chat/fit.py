"""Training one round of a chat adapter: conversations of the mix in, LoRA over the frozen language model out.

Is handed a loader and never opens a store. What is drawn is the strategy's to say; what is minimised is the loss of what
the assistant said, and the strategy's own term where it has one.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treering.errors import UsageError
from treering.training.card import BaseCard
from treering.training.chat.adapter import ChatAdapter, check_chat_base, net_of
from treering.training.chat.base import ChatBase, token_losses
from treering.training.chat.card import ChatCard, ChatHeader, ChatStats
from treering.training.chat.packing import Packed, passes
from treering.training.chat.template import Rendered
from treering.training.config import TrainConfig
from treering.training.conversation import Conversation
from treering.training.loop import Batch, DivergedError, Progress, _one_thread, _schedule
from treering.training.lora import LoraShape, is_transposed, load_lora, lora_layers, lora_tensors, target_modules
from treering.training.strategies import Strategy, strategy

__all__ = ["CHAT_DEFAULTS", "CHAT_STRATEGIES", "chat_config", "chat_strategy", "fit_chat"]

#: Strategies that mean something without classes. What they draw is as for classifiers; what is trained is always LoRA.
CHAT_STRATEGIES = ("ewc", "joint", "lora", "lora-replay", "naive", "o-lora", "replay")

#: What a field of TrainConfig is for conversations when it isn't given.
CHAT_DEFAULTS: Mapping[str, Any] = {
    "strategy": "replay",
    "kind": "lora",
    "steps": 200,
    "batch_size": 16,
    "lr": 2e-4,
    "weight_decay": 0.0,
    "max_tokens": 1_024,
}
STATE = "state."  # of tensor names: what the strategy keeps for the next round


def chat_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises UsageError with those that train on conversations when it isn't one of them."""
    if name not in CHAT_STRATEGIES:
        raise UsageError(
            f"strategy {name!r} doesn't train on conversations",
            code="unknown-strategy",
            hint=f"for records of type chat: {', '.join(CHAT_STRATEGIES)}",
        )
    return strategy(name)


def chat_config(config: TrainConfig) -> TrainConfig:
    """The config with every field given: those that weren't as the strategy and conversations want them.

    `recommended` is `replay` here: from the whole store. Raises UsageError for a strategy that isn't for conversations, and
    for a kind of adapter other than LoRA.
    """
    if config.strategy == "recommended":
        config = config.changed(strategy="replay")
    said = chat_strategy(config.strategy).defaults
    own = {name: said[name] for name in ("replay_rows", "rank") if name in said}  # the others are for classifiers
    settled = config.settled({**CHAT_DEFAULTS, **own})
    if settled.kind != "lora":
        raise UsageError(
            f"conversations are learnt by LoRA, not by an adapter of kind {settled.kind}",
            code="bad-config",
            hint='leave kind out, or set kind="lora"',
        )
    return settled


def fit_chat(
    loader: Iterable[Batch],
    config: TrainConfig,
    *,
    parent: ChatAdapter | None = None,
    base: ChatBase | None = None,
    progress: Progress | None = None,
    on_step: Callable[[int, Any], str | None] | None = None,
) -> ChatAdapter:
    """Train a chat adapter on `config.steps` batches of `loader`.

    The same batches, config, base and parent give the same bytes on a CPU, of which it takes one thread. A batch is a dict
    with `messages`, a list of conversations, and if known `tools`, with `_ref`, the source numbers, if there are sources; a loader that ends early is begun again. An update takes in a whole batch: conversations are packed
    into rows of `max_tokens`, and gradients accumulated over passes of `tokens_per_pass` positions, so memory doesn't
    depend on the batch size. Its loss is the mean over all tokens that the assistant said in it. on_step: asked every
    `config.eval_every` updates; what it says other than None ends the run, with the weights as they were when it last said None.

    Raises UsageError for batches without messages, with nothing to learn in any of them, and for a strategy that isn't
    for conversations; ConflictError for a parent on another base; DivergedError when the loss isn't finite any more; and
    as `ChatBase.load`.
    """
    config = chat_config(config)
    plan = chat_strategy(config.strategy)
    if base is None:
        base = ChatBase.load(config.base, precision=config.precision, max_tokens=config.max_tokens)
    if parent is not None and not plan.continues:
        parent = None
    past = plan.past(parent)  # type: ignore[arg-type]  # reads the LoRA of its header alone
    header = ChatHeader(base_digest=base.digest, lora=_shape(config, base, parent, past))
    net = net_of(base, header, {} if parent is None else parent.tensors, seed=config.seed, past=past)
    net.train()
    trained = _trained(net)
    optimizer = torch.optim.AdamW(trained.values(), lr=config.lr, weight_decay=config.weight_decay)
    kept = {} if parent is None else {n.removeprefix(STATE): parent.tensors[n] for n in parent.header.state}
    round_: Any = _ChatRound(SimpleNamespace(model=net), parent, config, kept, trained)
    plan.before(round_)
    packed = config.packing and base.can_pack
    reader = _Reader(loader, base)
    good = _copied(net)  # the last weights that are known to give a finite loss, once there is one

    losses: list[float] = []
    last: list[Rendered] = []
    stopped: str | None = None
    looked: Mapping[str, Tensor] = good  # the weights at the last look that found nothing; at first what it starts from
    number_of_passes, positions, seconds_read, started = 0, 0, 0.0, time.perf_counter()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for number in range(config.steps):
            before = time.perf_counter()
            update = reader.update()
            batches = _passes(update, config, base, packed)
            seconds_read += time.perf_counter() - before
            optimizer.zero_grad()
            loss = _backward(net, base, batches, packed)
            term = plan.regulariser(round_)
            if term is not None:
                term.backward()  # type: ignore[no-untyped-call]
                loss += float(term.detach())
            losses.append(loss)
            if not math.isfinite(loss):
                raise _diverged(number, losses, ChatAdapter(header, good, base=base), config, parent)
            good = _copied(net)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained.values(), config.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule(number, config)
            optimizer.step()
            number_of_passes += len(batches)
            positions += sum(batch.ids.size for batch in batches)
            if config.strategy == "ewc":
                last = [*last, *update][-config.fisher_rows :]
            if progress is not None:
                progress("train", number + 1, config.steps)
            if on_step is not None and config.eval_every and (number + 1) % config.eval_every == 0:
                now = ChatAdapter(ChatHeader(base_digest=base.digest, lora=header.lora), _copied(net), base=base)
                now = now.with_card(_card(now, config, base, None))
                if (stopped := on_step(number + 1, now)) is not None:
                    break
                looked = now.tensors
        if stopped is not None:
            load_lora(net, looked)
        tensors = _copied(net)
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise _diverged(config.steps, losses, ChatAdapter(header, good, base=base), config, parent)
        net.eval()
        left = _fisher(net, base, last, round_) if config.strategy == "ewc" and config.strength else {}
        tensors.update({STATE + name: value.contiguous() for name, value in left.items()})
    state = {name: list(value.shape) for name, value in tensors.items() if name.startswith(STATE)}
    header = header.model_copy(update={"state": state})
    seconds = time.perf_counter() - started
    tenth = max(1, len(losses) // 10)
    stats = ChatStats(
        steps=len(losses),
        packed=packed,
        fill=reader.tokens_drawn / positions,
        passes=number_of_passes,
        template="default" if base.template.is_default else "tokenizer",
        trainable_parameters=sum(value.numel() for value in trained.values()),
        loss_first=float(np.mean(losses[:tenth])),
        loss_last=float(np.mean(losses[-tenth:])),
        seconds_read=seconds_read,
        seconds_train=max(0.0, seconds - seconds_read),
        stopped=stopped,
        **reader.told(list(getattr(loader, "refs", []))),
    )
    adapter = ChatAdapter(header, tensors, base=base)
    return adapter.with_card(_card(adapter, config, base, stats))


def _passes(update: Sequence[Rendered], config: TrainConfig, base: ChatBase, packed: bool) -> list[Packed]:
    return passes(
        [one.ids for one in update],
        [one.learn for one in update],
        capacity=base.max_tokens,
        tokens_per_pass=config.tokens_per_pass,
        packing=packed,
        pad=base.pad,
    )


def _backward(net: Any, base: ChatBase, batches: Sequence[Packed], packed: bool) -> float:
    """Gradients of the mean loss over all learnt tokens of these passes, added up; and that loss."""
    learnt = sum(int((batch.targets >= 0).sum()) for batch in batches)
    whole = 0.0
    for batch in batches:
        losses, _ = token_losses(net, base, batch, packed=packed)
        part = losses.sum() / learnt
        part.backward()  # type: ignore[no-untyped-call]
        whole += float(part.detach())
    return whole


@dataclass
class _Reader:
    """Draws the updates of a run and counts what was in them. A conversation that comes again isn't rendered again."""

    loader: Iterable[Batch]
    base: ChatBase
    tokens_drawn: int = 0
    _counts: Counter[str] = field(default_factory=Counter)
    _rows: Counter[int] = field(default_factory=Counter)
    _tokens: Counter[int] = field(default_factory=Counter)
    _known: dict[bytes, tuple[list[Rendered], int] | str] = field(default_factory=dict)
    _iterator: Iterator[Batch] | None = None
    _refusal: str = ""

    def update(self) -> list[Rendered]:
        """The sequences of the next update that holds anything to learn.

        Raises UsageError when a whole pass over the loader, or 100 batches of it, held nothing.
        """
        begun = 0
        for _ in range(100):
            if self._iterator is None:
                self._iterator, begun = iter(self.loader), begun + 1
                if begun > 1:
                    break
            batch = next(self._iterator, None)
            if batch is None:
                self._iterator = None
                continue
            if found := self._rendered(batch):
                return found
        raise UsageError(
            "there is nothing to train on: the mix gave no conversation in which the assistant says something"
            + (f"; {self._refusal}" if self._refusal else f" within {self.base.max_tokens} tokens"),
            code="no-replies",
            hint="raise max_tokens, or capture conversations with replies",
        )

    def told(self, refs: Sequence[str]) -> dict[str, Any]:
        """The counts, as the fields of ChatStats."""
        by_ref = [
            {ref: sum(counts[n] for n, name in enumerate(refs) if name == ref) for ref in dict.fromkeys(refs)}
            for counts in (self._rows, self._tokens)
        ]
        named = ("rows_drawn", "rows_refused", "rows_without_reply", "texts_cut", "tokens_cut", "tokens_learnt")
        return {
            **{name: self._counts[name] for name in named},
            "rows_distinct": len(self._known),
            "tokens_drawn": self.tokens_drawn,
            "rows_per_source": {ref: rows for ref, rows in by_ref[0].items() if rows},
            "tokens_per_source": {ref: tokens for ref, tokens in by_ref[1].items() if tokens},
        }

    def _rendered(self, batch: Batch) -> list[Rendered]:
        if "messages" not in batch:
            raise UsageError(
                "a batch has no column messages; a chat model learns from conversations",
                code="not-chat",
                hint="train on records of type 'chat'",
            )
        n = len(batch["messages"])
        tools: list[Any] = [None] * n if batch.get("tools") is None else list(batch["tools"])
        sources = np.asarray(batch["_ref"], np.int64) if "_ref" in batch else np.zeros(n, np.int64)
        update: list[Rendered] = []
        for messages, offered, source in zip(list(batch["messages"]), tools, sources.tolist(), strict=True):
            found = self._of(messages, offered)
            self._counts["rows_drawn"] += 1
            self._rows[source] += 1
            if isinstance(found, str):
                self._counts["rows_refused"] += 1
                self._refusal = self._refusal or found
                continue
            sequences, cut = found
            self._counts["texts_cut"] += bool(cut)
            self._counts["tokens_cut"] += cut
            self._counts["rows_without_reply"] += not sequences
            tokens = sum(len(one.ids) for one in sequences)
            self.tokens_drawn += tokens
            self._tokens[source] += tokens
            self._counts["tokens_learnt"] += sum(int(one.learn[1:].sum()) for one in sequences)
            update += sequences
        return update

    def _of(self, messages: Any, tools: Any) -> tuple[list[Rendered], int] | str:
        """The sequences of one conversation and the tokens cut off; or why the template refuses it."""
        try:
            conversation = Conversation.of(messages, tools)
        except UsageError as exc:
            return exc.message
        key = hashlib.blake2b(conversation.to_json().encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self._known:
            try:
                self._known[key] = self.base.rendered(conversation)
            except UsageError as exc:
                self._known[key] = exc.message
        return self._known[key]


@dataclass
class _ChatRound:
    """One run as the hooks of a strategy see it that look at weights alone; the like of `strategies.Round`."""

    net: SimpleNamespace  # `.model`: the copy of the language model with the LoRA inside
    parent: ChatAdapter | None
    config: TrainConfig
    state: Mapping[str, Tensor]  # what the parent's round left, by name
    trainable: Mapping[str, Tensor]
    memory: dict[str, Any] = field(default_factory=dict)


def _fisher(net: Any, base: ChatBase, sequences: Sequence[Rendered], round_: _ChatRound) -> dict[str, Tensor]:
    """What EWC keeps: the diagonal Fisher information of these sequences, per token, added to that of earlier rounds.

    The empirical one: the mean over sequences of the squared gradient of a sequence's loss, divided by its tokens. (Drawing
    what is said from the model, as for labels, would take a generation for each.)
    """
    weights = round_.trainable
    found = {name: torch.zeros_like(value, device="cpu") for name, value in weights.items()}
    for one in sequences:
        batch = passes([one.ids], [one.learn], capacity=len(one.ids), tokens_per_pass=1, packing=False, pad=base.pad)[0]
        losses, _ = token_losses(net, base, batch, packed=False)
        slopes = torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
        for name, slope in zip(weights, slopes, strict=True):
            if slope is not None:
                found[name] += slope.detach().cpu() ** 2 / (len(sequences) * len(losses))
    for name, value in found.items():
        if (before := round_.state.get(f"fisher.{name}")) is not None:
            value += before
    return {f"fisher.{name}": value for name, value in found.items()}


def _shape(config: TrainConfig, base: ChatBase, parent: ChatAdapter | None, past: int) -> LoraShape:
    """Which maps the LoRA sits on and its rank: the config's and what is past, or else the parent's own must be it."""
    modules = target_modules(base.model, top=config.adapt_layers or None, targets=config.targets)
    turned = is_transposed(base.model, modules)
    shape = LoraShape(rank=config.rank, alpha=config.rank * config.lora_scale, modules=modules, transposed=turned)
    shape = shape.grown(past)
    if parent is None:
        return shape
    check_chat_base(parent.header, base)
    theirs = parent.header.lora
    if theirs.grown(shape.rank - theirs.rank if past else 0) != shape:
        raise UsageError(
            f"the parent has LoRA of rank {theirs.rank} and alpha {theirs.alpha:g} on {len(theirs.modules)} maps, the config "
            f"of rank {shape.rank} and alpha {shape.alpha:g} on {len(shape.modules)}",
            code="other-shape",
            hint=f"set rank={theirs.rank} and the parent's lora_scale, targets and adapt_layers, or train from scratch",
        )
    return shape


def _trained(net: Any) -> dict[str, Tensor]:
    """The tensors that training changes, by their saved names; of a rank with a past, the new rows alone."""
    return {
        f"lora.{name}.{part}": getattr(module, f"lora_{part}")["default"].weight
        for name, module in lora_layers(net)
        for part in ("A", "B")
    }


def _copied(net: Any) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in lora_tensors(net).items()}


def _diverged(
    step: int, losses: list[float], last_good: ChatAdapter, config: TrainConfig, parent: ChatAdapter | None
) -> DivergedError:
    finite = sum(map(math.isfinite, losses))
    return DivergedError(
        f"training diverged: the loss isn't finite after {step} of {config.steps} updates",
        last_good if finite or parent is not None else None,  # type: ignore[arg-type]
        hint=f"lower lr (it is {config.lr:g}); the last good weights are kept"
        if finite
        else "look at the base's output",
    )


def _card(adapter: ChatAdapter, config: TrainConfig, base: ChatBase, stats: ChatStats | None) -> ChatCard:
    return ChatCard(
        base=BaseCard.of(base),
        config=config,
        weights_digest=adapter.digest,
        stats=stats,
    )
