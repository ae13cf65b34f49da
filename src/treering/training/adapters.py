"""The trained adapter as a value: loads, predicts, is saved. Does not train (loop); what it runs is in nets."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from treering.errors import ConflictError, StoreError, UsageError
from treering.training.base import Base
from treering.training.cache import ActivationCache
from treering.training.card import BaseCard, ModelCard
from treering.training.config import TrainConfig
from treering.training.nets import Header, Net, Seen, make_net

__all__ = ["STATE", "Adapter"]

STATE = "state."  # begins the names of tensors that only the next round's training reads
PREDICT_ROWS = 1_024  # texts answered together; with adapted layers a quarter of it


class Adapter:
    """A trained adapter: tensors, what they mean, and the base they belong on. Immutable; threads may share it.

    `digest` is the SHA-256 of its safetensors bytes.
    """

    def __init__(
        self,
        header: Header,
        tensors: Mapping[str, Tensor],
        *,
        card: ModelCard | None = None,
        base: Base | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.header = header
        self.tensors = dict(tensors)
        self._card = card
        self._base = base
        self._cache_dir = cache_dir
        self._cache: ActivationCache | None = None
        self._net: Net | None = None
        self._preparing = threading.Lock()
        self._bytes: bytes | None = None

    @classmethod
    def load(
        cls,
        weights: bytes,
        card: ModelCard | Mapping[str, Any] | bytes,
        *,
        base: Base | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Adapter:
        """The adapter of these safetensors bytes and model card; reads tensors and JSON, runs nothing.

        cache_dir: keep the activations of predicted texts there; for evaluation, where the same texts come again.
        Raises StoreError for bytes that aren't an adapter or don't belong to the card. The base is loaded when first
        needed, and then raises as `Base.load`, or ConflictError when it isn't the one that was trained on.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        card = card if isinstance(card, ModelCard) else ModelCard.parse(card if isinstance(card, bytes) else dict(card))
        try:
            tensors = load(weights)
            header = _read_header(weights)
        except (SafetensorError, ValueError, KeyError, UnicodeDecodeError) as exc:
            raise StoreError(
                "not an adapter: these weights aren't a treering safetensors file",
                code="bad-adapter",
                hint="adapters are safetensors, never pickles; restore it or train again",
            ) from exc
        _check(header, tensors)
        digest = hashlib.sha256(weights).hexdigest()
        for what, here, there in (
            ("weights", digest, card.weights_digest),
            ("classes", header.classes, card.classes),
            ("domains", header.domains, card.domains),
            ("base", header.base_digest, card.base.digest),
        ):
            if here != there:
                raise StoreError(f"weights and model card don't belong together: {what} differ", code="bad-adapter")
        adapter = cls(header, tensors, card=card, base=base, cache_dir=cache_dir)
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
    def card(self) -> ModelCard:
        """Its model card."""
        assert self._card is not None
        return self._card

    @property
    def config(self) -> TrainConfig:
        """What it was trained with."""
        return self.card.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels it can answer with."""
        return tuple(self.header.classes)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains it has gates for."""
        return tuple(self.header.domains)

    @property
    def base(self) -> Base:
        """Its base, loaded. Raises ConflictError when the base of that name is another one by now."""
        if self._base is None:
            said: BaseCard = self.card.base
            self._base = Base.load(said.name, precision=said.precision, max_tokens=said.max_tokens)
        check_base(self.header, self._base)
        return self._base

    def with_card(self, card: ModelCard) -> Adapter:
        """The same weights with another card."""
        return Adapter(self.header, self.tensors, card=card, base=self._base, cache_dir=self._cache_dir)

    def prepare(self) -> None:
        """Load the base and put the adapter over it, which the first text would otherwise wait for."""
        self.net(self.base)

    @property
    def state(self) -> dict[str, Tensor]:
        """What the strategy left for the next round, by name."""
        return {name.removeprefix(STATE): value for name, value in self.tensors.items() if name.startswith(STATE)}

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most likely class of each text."""
        return [self.header.classes[n] for n in self._run(texts)[0].argmax(1).tolist()]

    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Class posteriors, float32 (n, classes), in the order of `classes`, under equal class priors."""
        return np.asarray(self._run(texts)[0].softmax(1).numpy(), dtype=np.float32)

    def route(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Domain posteriors by which the gates are mixed, float32 (n, domains), in the order of `domains`."""
        return np.asarray(self._run(texts)[1].numpy(), dtype=np.float32)

    def features(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """What the head reads, float32 (n, width): `features @ weight.T + bias` are the logits."""
        return np.asarray(self._run(texts)[2].numpy(), dtype=np.float32)

    @property
    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The linear head: weight, float32 (classes, width), and bias, float32 (classes,)."""
        return self.tensors["head.weight"].numpy().copy(), self.tensors["head.bias"].numpy().copy()

    @torch.inference_mode()
    def _run(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, classes), domain posteriors (n, domains) and the head's features (n, width), on the CPU."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("a model predicts a list of texts", code="bad-texts", hint='model.predict(["…"])')
        net = self.net(self.base)
        cache = self._activations()
        numbers = cache.numbers(texts)
        size = PREDICT_ROWS // 4 if self.header.depth else PREDICT_ROWS
        logits = torch.empty((len(texts), len(self.header.classes)))
        routes = torch.empty((len(texts), len(self.header.domains)))
        features = torch.empty((len(texts), self.header.width))
        for start in range(0, len(texts), size):
            rows = slice(start, start + size)
            out = net(seen(cache, numbers[rows], self.base))
            logits[rows], routes[rows] = out.answer.float().cpu(), net.route(out).cpu()
            features[rows] = out.features.float().cpu()
        return logits, routes, features

    def net(self, base: Base) -> Net:
        """What runs, frozen, over its loaded base."""
        with self._preparing:
            if self._net is None:
                try:
                    net = make_net(self.header, base, generator=torch.Generator().manual_seed(0))
                    found = {name: tuple(value.shape) for name, value in net.tensors().items()}
                except (ValueError, KeyError) as exc:  # PEFT's, for maps that aren't in this base
                    raise _misfit() from exc
                if found != self.header.shapes():
                    raise _misfit()
                net.load(self.header, self.tensors)
                self._net = net.eval().requires_grad_(False).to(base.device)
            return self._net

    def _activations(self) -> ActivationCache:
        """Kept between calls when on disk; in memory it would grow with every text ever asked."""
        if self._cache_dir is None:
            return ActivationCache(self.base, depth=self.header.depth, layers=self.header.feature_layers)
        if self._cache is None:
            self._cache = ActivationCache(
                self.base, self._cache_dir, depth=self.header.depth, layers=self.header.feature_layers
            )
        return self._cache


def seen(cache: ActivationCache, numbers: npt.NDArray[np.int64], base: Base) -> Seen:
    """What a net reads of these texts, on the base's device."""
    pooled = cache.pooled(numbers).to(base.device)
    if not cache.depth:
        return Seen(pooled)
    states, mask = cache.states(numbers)
    return Seen(pooled, states.to(base.device), mask.to(base.device))


def check_base(header: Header, base: Base) -> None:
    """Raise ConflictError unless the adapter was trained on this very base."""
    if header.base_digest != base.digest:
        raise ConflictError(
            f"the adapter belongs on another base: {base.name} is {base.digest[:12]}…, "
            f"it was trained on {header.base_digest[:12]}…",
            code="other-base",
            hint="give the base it was trained on, or train from scratch (parent=None)",
        )


def _read_header(weights: bytes) -> Header:
    length = int.from_bytes(weights[:8], "little")
    metadata = json.loads(weights[8 : 8 + length]).get("__metadata__") or {}
    try:
        return Header.model_validate_json(metadata["treering"])
    except ValidationError as exc:
        raise ValueError(str(exc)) from exc


def _check(header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Raise StoreError unless the tensors are those the header tells of, and finite."""
    if (header.kind == "lora") != (header.lora is not None):
        raise StoreError(f"not an adapter: of kind {header.kind}, and lora is {header.lora}", code="bad-adapter")
    shapes = header.shapes()
    for name, shape in shapes.items():
        found = tensors.get(name)
        kind = torch.int64 if name == "counts" else torch.float32
        if found is None or tuple(found.shape) != shape or found.dtype != kind:
            raise StoreError(f"not an adapter: tensor {name} isn't {kind} {shape}", code="bad-adapter")
    for name, value in tensors.items():
        if name not in shapes and not name.startswith(STATE):
            raise StoreError(f"not an adapter: unknown tensor {name}", code="bad-adapter")
        if not torch.isfinite(value).all():
            raise StoreError(f"not an adapter: tensor {name} isn't finite", code="bad-adapter")


def _misfit() -> StoreError:
    return StoreError("the adapter names parts that its base doesn't have", code="bad-adapter", hint="train it again")
