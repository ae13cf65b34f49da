"""The gated shared adapter, its growing class head, and the trained adapter as a value that loads and predicts.

One down/up pair per adapted place is shared by all domains; a domain owns one gate vector per place and the head rows
of its classes, so memory grows by those alone. The idea of gating one shared bottleneck by domain is that of
"Parameter-Efficient Dual-Replay" (Hei, 2025), over the residual adapter of Houlsby et al., "Parameter-Efficient
Transfer Learning for NLP" (2019). Does not train (loop).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from treering.errors import ConflictError, StoreError, UsageError
from treering.training.base import Base, mean_pool
from treering.training.cache import ActivationCache
from treering.training.card import BaseCard, ModelCard
from treering.training.config import TrainConfig

__all__ = ["Adapter", "AdapterNet", "Header"]

SCALE = 2.0  # root mean square of the features the head sees; chosen on CLINC150's validation split with lr 1e-3
PREDICT_ROWS = 1_024  # texts answered together; with adapted layers a quarter of it


class Header(BaseModel):
    """What the tensors of an adapter mean; kept inside its safetensors file, so that they can't be parted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: str = Field(default="treering.adapter-weights/1", pattern=r"^treering\.adapter-weights/1$")
    kind: Literal["gated"] = Field(default="gated", description="what is trained over the frozen base")
    base_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(ge=1)
    bottleneck: int = Field(ge=1)
    adapt_layers: int = Field(ge=0)
    classes: list[str] = Field(min_length=1)
    domains: list[str] = Field(min_length=1)

    @property
    def places(self) -> int:
        """Where the adapter sits: on the pooled features, or after each adapted layer."""
        return max(1, self.adapt_layers)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors, all float32 but the counts (int64)."""
        n, width, rank = self.places, self.width, self.bottleneck
        classes, domains = len(self.classes), len(self.domains)
        return {
            "down.weight": (n, rank, width),
            "down.bias": (n, rank),
            "up.weight": (n, width, rank),
            "up.bias": (n, width),
            "gates": (n, domains, rank),
            "head.weight": (classes, width),
            "head.bias": (classes,),
            "counts": (classes, domains),  # training records drawn, over all rounds: which class is of which domain
        }


class AdapterNet(nn.Module):
    """The trainable part over a frozen base.

    One head answers twice. On the frozen features it says which class, and so, summed by domain, which domain it takes
    the text for: that posterior mixes the gates. On the adapted features it gives the answer. Training takes the same
    way, so no domain is needed, or leaks in, at test time.
    """

    def __init__(self, header: Header, base: Base, *, generator: torch.Generator) -> None:
        super().__init__()
        shapes = header.shapes()
        self.header = header
        self._frozen = (base,)  # in a tuple: a module here would be registered, moved and saved with the adapter
        down = torch.randn(shapes["down.weight"], generator=generator) / math.sqrt(header.width)
        self.down = nn.ParameterDict({"weight": down, "bias": torch.zeros(shapes["down.bias"])})
        # An up projection of 0 makes a fresh adapter the identity, gates of 1 make domains alike until they differ.
        self.up = nn.ParameterDict({"weight": torch.zeros(shapes["up.weight"]), "bias": torch.zeros(shapes["up.bias"])})
        self.gates = nn.Parameter(torch.ones(shapes["gates"]))
        self.head = nn.ParameterDict(
            {"weight": torch.zeros(shapes["head.weight"]), "bias": torch.zeros(shapes["head.bias"])}
        )
        self.register_buffer("counts", torch.zeros(shapes["counts"], dtype=torch.int64))

    def forward(
        self, pooled: Tensor, states: Tensor | None = None, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class logits (n, classes) on the frozen features, and on the adapted ones: the answer. As in `adapted`."""
        frozen, features = self.adapted(pooled, states, mask, noise)
        return frozen, self.classify(features)

    def adapted(
        self, pooled: Tensor, states: Tensor | None = None, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class logits (n, classes) on the frozen features, and the adapted features (n, width) that the head reads.

        pooled: (n, width). states, mask: (n, length, width) and (n, length), for adapted layers. noise: (n, width),
        added to the features in both; left out when predicting.
        """
        features = self._features(pooled, noise)
        frozen = self.classify(features)
        route = self.route(frozen.detach())
        if self.header.adapt_layers == 0:
            return frozen, self._adapt(features, route, 0)
        assert states is not None
        assert mask is not None
        base = self._frozen[0]
        with base.autocast():
            dtype = torch.bfloat16 if base.precision == "bf16" else torch.float32
            hidden = states
            additive = (1.0 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
            for place, layer in enumerate(base.top(self.header.adapt_layers)):
                out = layer(hidden, attention_mask=additive)
                hidden = self._adapt(out[0] if isinstance(out, tuple) else out, route[:, None, :], place)
        return frozen, self._features(mean_pool(hidden, mask), noise)

    def route(self, frozen: Tensor) -> Tensor:
        """Domain posterior (n, domains): class posteriors, each handed to the domains that its records came from."""
        counts: Tensor = self.get_buffer("counts").float()
        shares = counts / counts.sum(1, keepdim=True).clamp_min(1.0)
        route = frozen.softmax(-1) @ shares
        return route / route.sum(-1, keepdim=True).clamp_min(1e-12)

    def _features(self, pooled: Tensor, noise: Tensor | None) -> Tensor:
        features = functional.normalize(pooled, dim=-1) * (SCALE * math.sqrt(self.header.width))
        return features if noise is None else features + SCALE * noise

    def _adapt(self, hidden: Tensor, route: Tensor, place: int) -> Tensor:
        """The residual bottleneck: hidden (…, width) and route (…, domains), the latter broadcast over tokens."""
        gate = route @ self.gates[place]
        inner = functional.gelu(functional.linear(hidden, self.down["weight"][place], self.down["bias"][place]))
        return hidden + functional.linear(inner * gate, self.up["weight"][place], self.up["bias"][place])

    def classify(self, features: Tensor) -> Tensor:
        """Class logits (n, classes) of features (n, width)."""
        return functional.linear(features, self.head["weight"], self.head["bias"])

    def load(self, adapter: Adapter) -> None:
        """Take over the weights of an adapter whose classes and domains are a part of these."""
        rows = torch.tensor([self.header.classes.index(name) for name in adapter.header.classes])
        columns = torch.tensor([self.header.domains.index(name) for name in adapter.header.domains])
        own = dict(self.state_dict())
        with torch.no_grad():
            for name, value in adapter.tensors.items():
                if name.startswith("head."):
                    own[name][rows] = value
                elif name == "gates":
                    own[name][:, columns] = value
                elif name == "counts":
                    own[name][rows[:, None], columns[None, :]] = value
                else:
                    own[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """A copy of everything that is saved."""
        return {name: value.detach().cpu().clone().contiguous() for name, value in self.state_dict().items()}


class Adapter:
    """A trained adapter: tensors, what they mean, and the base they belong on. Immutable.

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
        self._net: AdapterNet | None = None
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
        net = self._prepared()
        cache = self._activations()
        numbers = cache.numbers(texts)
        size = PREDICT_ROWS // 4 if self.header.adapt_layers else PREDICT_ROWS
        logits = torch.empty((len(texts), len(self.header.classes)))
        routes = torch.empty((len(texts), len(self.header.domains)))
        features = torch.empty((len(texts), self.header.width))
        for start in range(0, len(texts), size):
            rows = slice(start, start + size)
            frozen, found = net.adapted(*inputs(cache, numbers[rows], self.base))
            logits[rows], routes[rows] = net.classify(found).float().cpu(), net.route(frozen).cpu()
            features[rows] = found.float().cpu()
        return logits, routes, features

    def _prepared(self) -> AdapterNet:
        if self._net is None:
            net = AdapterNet(self.header, self.base, generator=torch.Generator().manual_seed(0))
            net.load_state_dict(self.tensors)
            self._net = net.eval().requires_grad_(False).to(self.base.device)
        return self._net

    def _activations(self) -> ActivationCache:
        """Kept between calls when on disk; in memory it would grow with every text ever asked."""
        if self._cache_dir is None:
            return ActivationCache(self.base, depth=self.header.adapt_layers)
        if self._cache is None:
            self._cache = ActivationCache(self.base, self._cache_dir, depth=self.header.adapt_layers)
        return self._cache


def inputs(
    cache: ActivationCache, numbers: npt.NDArray[np.int64], base: Base
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the net reads of these texts: pooled features, and states with their mask where layers are adapted."""
    pooled = cache.pooled(numbers).to(base.device)
    if not cache.depth:
        return pooled, None, None
    states, mask = cache.states(numbers)
    return pooled, states.to(base.device), mask.to(base.device)


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
    for name, shape in header.shapes().items():
        found = tensors.get(name)
        kind = torch.int64 if name == "counts" else torch.float32
        if found is None or tuple(found.shape) != shape or found.dtype != kind:
            raise StoreError(f"not an adapter: tensor {name} isn't {kind} {shape}", code="bad-adapter")
        if not torch.isfinite(found).all():
            raise StoreError(f"not an adapter: tensor {name} isn't finite", code="bad-adapter")
    if extra := sorted(set(tensors) - set(header.shapes())):
        raise StoreError(f"not an adapter: unknown tensor {extra[0]}", code="bad-adapter")
