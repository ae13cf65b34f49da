"""A trained chat adapter as a value: it generates, measures, is saved and loaded. LoRA over a causal language model.

Any number of them share one base in memory, and each may be asked by many threads at once: an adapter runs in a copy of
the model's structure whose frozen weights are the base's own. Does not train (fit).
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from treering.errors import ConflictError, StoreError, UsageError
from treering.training.chat.base import ChatBase, token_losses
from treering.training.chat.card import ChatCard, ChatHeader
from treering.training.chat.packing import passes
from treering.training.chat.template import parse_reply
from treering.training.config import TrainConfig
from treering.training.conversation import Conversation, calls_json, message_text
from treering.training.lora import attach, load_lora, share, target_modules

__all__ = ["ChatAdapter"]

Talk = str | Conversation | Sequence[Mapping[str, Any]]  # a conversation; text is JSON of one
NEW_TOKENS = 256  # a reply is at most so long unless told otherwise


class ChatAdapter:
    """A trained chat adapter: tensors, what they mean, and the base they belong on. Immutable; threads may share it.

    `digest` is the SHA-256 of its safetensors bytes.
    """

    def __init__(
        self,
        header: ChatHeader,
        tensors: Mapping[str, Tensor],
        *,
        card: ChatCard | None = None,
        base: ChatBase | None = None,
    ) -> None:
        self.header = header
        self.tensors = dict(tensors)
        self._card = card
        self._base = base
        self._net: Any = None
        self._bytes: bytes | None = None
        self._preparing = threading.Lock()

    @classmethod
    def load(
        cls, weights: bytes, card: ChatCard | Mapping[str, Any] | bytes, *, base: ChatBase | None = None
    ) -> ChatAdapter:
        """The adapter of these safetensors bytes and model card; reads tensors and JSON, runs nothing.

        Raises StoreError for bytes that aren't a chat adapter or don't belong to the card. The base is loaded when first
        needed, and then raises as `ChatBase.load`, or ConflictError when it isn't the one that was trained on.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        card = card if isinstance(card, ChatCard) else ChatCard.parse(card if isinstance(card, bytes) else dict(card))
        try:
            tensors = load(weights)
            header = _read_header(weights)
        except (SafetensorError, ValueError, KeyError, UnicodeDecodeError) as exc:
            raise StoreError(
                "not an adapter: these weights aren't a treering safetensors file of a chat adapter",
                code="bad-adapter",
                hint="adapters are safetensors, never pickles; restore it or train again",
            ) from exc
        _check(header, tensors)
        digest = hashlib.sha256(weights).hexdigest()
        for what, here, there in (
            ("weights", digest, card.weights_digest),
            ("base", header.base_digest, card.base.digest),
        ):
            if here != there:
                raise StoreError(f"weights and model card don't belong together: {what} differ", code="bad-adapter")
        adapter = cls(header, tensors, card=card, base=base)
        adapter._bytes = bytes(weights)
        return adapter

    def to_bytes(self) -> bytes:
        """The safetensors file: the same adapter gives the same bytes."""
        if self._bytes is None:
            from safetensors.torch import save

            # One metadata entry, because safetensors writes several in an order that differs between processes.
            self._bytes = save(self.tensors, metadata={"treering": self.header.model_dump_json()})
        return self._bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the safetensors bytes, hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def kind(self) -> str:
        """`lora`: what is trained over the base."""
        return self.header.kind

    @property
    def card(self) -> ChatCard:
        """Its model card."""
        assert self._card is not None
        return self._card

    @property
    def config(self) -> TrainConfig:
        """What it was trained with."""
        return self.card.config

    @property
    def base(self) -> ChatBase:
        """Its base, loaded. Raises ConflictError when the base of that name is another one by now."""
        if self._base is None:
            said = self.card.base
            self._base = ChatBase.load(said.name, precision=said.precision, max_tokens=said.max_tokens)
        check_chat_base(self.header, self._base)
        return self._base

    def with_card(self, card: ChatCard) -> ChatAdapter:
        """The same weights with another card."""
        return ChatAdapter(self.header, self.tensors, card=card, base=self._base)

    def prepare(self) -> None:
        """Load the base and put the adapter over it, which the first question would otherwise wait for."""
        self._prepared()

    def generate(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, *, max_new_tokens: int = NEW_TOKENS
    ) -> dict[str, Any]:
        """The reply to a conversation as an assistant message: `role`, `content`, and `tool_calls` where it makes any.

        tools: those on offer, JSON schemas as chat templates take them. Takes the likeliest token each time, so the same
        question has the same answer. Stops at the end of the reply, after `max_new_tokens`, or where the context ends.
        Raises UsageError for what isn't a conversation, one that the template refuses, and one that fills the context.
        """
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}; it is a whole number ≥ 1", code="bad-argument")
        return parse_reply(self._generate(Conversation.of(messages, tools), max_new_tokens))

    def predict(self, texts: Sequence[Talk]) -> list[str]:
        """What it would say in place of each conversation's last reply, or after it where the last word isn't the assistant's.

        A conversation is JSON text of one, or a list of messages. The reply is its text, with calls of tools as JSON lines.
        """
        return [
            message_text(parse_reply(self._generate(one.prompt(), NEW_TOKENS)))
            for one in map(_conversation, _list(texts))
        ]

    def begin(self, texts: Sequence[Talk]) -> list[str]:
        """The first token of each reply, as text: what whoever asks waits for before something appears."""
        return [self._generate(one.prompt(), 1) for one in map(_conversation, _list(texts))]

    def calls(self, texts: Sequence[Talk]) -> tuple[list[str], list[str]]:
        """The tool calls that the assistant made and those that this model makes in their place: JSON arrays, one a reply.

        Of every reply that calls a tool; the model is shown what was really said before it. A prompt that fills the
        context, or that the template refuses, counts as answered without a call.
        """
        truth: list[str] = []
        made: list[str] = []
        for one in map(_conversation, _list(texts)):
            for number, message in one.replies():
                if message.get("tool_calls") and number:
                    truth.append(calls_json(message))
                    try:
                        made.append(calls_json(parse_reply(self._generate(one.before(number), NEW_TOKENS))))
                    except UsageError:
                        made.append("[]")
        return truth, made

    def loss(self, conversations: Sequence[Talk]) -> float:
        """Mean loss over all tokens that the assistant said in these conversations, in nats ≥ 0; exp of it is the perplexity.

        Each conversation is cut to the base's `max_tokens`, as in training. Raises UsageError when none of them has a
        reply.
        """
        nats, tokens = self.losses(conversations)
        if not tokens.sum():
            raise UsageError(
                "there is nothing that the assistant said in these conversations",
                code="empty-slice",
                hint="evaluate on conversations with replies, within max_tokens",
            )
        return float(nats.sum() / tokens.sum())

    @torch.inference_mode()
    def losses(self, conversations: Sequence[Talk]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Loss of each conversation's learnt tokens, summed, float64 (n,), and how many they are, int64 (n,).

        0 and 0 for a conversation without a reply, or that the template refuses.
        """
        base, net = self.base, self._prepared()
        ids, learn, owner = [], [], []
        for number, one in enumerate(map(_conversation, _list(conversations))):
            try:
                found, _ = base.rendered(one)
            except UsageError:
                continue
            ids += [part.ids for part in found]
            learn += [part.learn for part in found]
            owner += [number] * len(found)
        nats, tokens = np.zeros(len(conversations)), np.zeros(len(conversations), np.int64)
        packed = base.can_pack and self.config.packing
        for batch in passes(
            ids,
            learn,
            capacity=base.max_tokens,
            tokens_per_pass=self.config.tokens_per_pass,
            packing=packed,
            pad=base.pad,
        ):
            losses, sequence = token_losses(net, base, batch, packed=packed)
            whose = np.asarray(owner)[sequence.numpy()]
            np.add.at(nats, whose, losses.double().cpu().numpy())
            np.add.at(tokens, whose, 1)
        return nats, tokens

    @torch.inference_mode()
    def _generate(self, conversation: Conversation, max_new_tokens: int) -> str:
        from transformers import GenerationConfig

        base, net = self.base, self._prepared()
        prompt = torch.from_numpy(base.template.prompt(conversation).astype(np.int64))[None]
        room = base.context - prompt.shape[1]
        if room < 1:
            raise UsageError(
                f"the conversation has {prompt.shape[1]:,} tokens, and {base.name} looks back on {base.context:,}",
                code="too-long",
                hint="leave out its oldest messages",
            )
        how = GenerationConfig(
            max_new_tokens=min(max_new_tokens, room), do_sample=False, pad_token_id=base.pad, eos_token_id=base.stops
        )
        prompt = prompt.to(base.device)
        with base.autocast():
            out = net.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=how)
        said = out[0, prompt.shape[1] :].tolist()
        while said and said[-1] in base.stops:
            said.pop()
        # special tokens stay: some models begin a tool call by one
        return str(base.tokenizer.decode(said, skip_special_tokens=False))

    def _prepared(self) -> Any:
        with self._preparing:
            if self._net is None:
                self._net = net_of(self.base, self.header, self.tensors).eval().requires_grad_(False)
            return self._net


def net_of(base: ChatBase, header: ChatHeader, tensors: Mapping[str, Tensor], *, seed: int = 0, past: int = 0) -> Any:
    """The base's structure over the base's own weights, with this LoRA inside. Raises StoreError when it doesn't fit."""
    there = target_modules(base.model)
    for name, shape in header.lora.modules.items():
        if there.get(name) != shape:
            raise StoreError(f"not an adapter of {base.name}: it has no {name[:120]} of {shape}", code="bad-adapter")
    net = share(base.model)
    attach(net, header.lora, generator=torch.Generator().manual_seed(seed), past=past)
    if tensors:
        load_lora(net, tensors)
    return net


def check_chat_base(header: ChatHeader, base: ChatBase) -> None:
    """Raise ConflictError unless the adapter was trained on this very base."""
    if header.base_digest != base.digest:
        raise ConflictError(
            f"the adapter belongs on another base: {base.name} is {base.digest[:12]}…, "
            f"it was trained on {header.base_digest[:12]}…",
            code="other-base",
            hint="give the base it was trained on, with its chat template, or train from scratch (parent=None)",
        )


def _conversation(given: Talk) -> Conversation:
    if isinstance(given, Conversation):
        return given
    return Conversation.from_json(given) if isinstance(given, str) else Conversation.of(given)


def _list(given: Any) -> Sequence[Talk]:
    if isinstance(given, str | Mapping | Conversation):
        raise UsageError(
            "a chat model takes a list of conversations",
            code="bad-texts",
            hint='model.predict([[{"role": "user", …}]])',
        )
    return list(given)


def _read_header(weights: bytes) -> ChatHeader:
    length = int.from_bytes(weights[:8], "little")
    metadata = json.loads(weights[8 : 8 + length]).get("__metadata__") or {}
    try:
        return ChatHeader.model_validate_json(metadata["treering"])
    except ValidationError as exc:
        raise ValueError(str(exc)) from exc


def _check(header: ChatHeader, tensors: Mapping[str, Tensor]) -> None:
    """Raise StoreError unless the tensors are those the header tells of, and finite."""
    shapes = header.shapes()
    for name, shape in shapes.items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype != torch.float32:
            raise StoreError(f"not an adapter: tensor {name[:120]} isn't float32 {shape}", code="bad-adapter")
        if not torch.isfinite(found).all():
            raise StoreError(f"not an adapter: tensor {name[:120]} isn't finite", code="bad-adapter")
    if extra := sorted(set(tensors) - set(shapes)):
        raise StoreError(f"not an adapter: unknown tensor {extra[0][:120]}", code="bad-adapter")


def perplexity(loss: float) -> float:
    """Exp of a loss in nats; infinite where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf
