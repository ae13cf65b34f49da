"""The kinds of model that can be trained over a frozen base; what each of them adds to the head, and how it runs.

A kind is a small `torch.nn.Module` with one way forward (`Seen` in, `Out` out), its trainable tensors by their saved
names, and a way to take over the tensors of a smaller one: classes and domains only ever grow behind those of the parent.

    gated    one down/up pair per adapted place, shared by all domains; a gate vector per domain; memory grows by those and
             head rows alone. After "Parameter-Efficient Dual-Replay" (Hei, 2025), over the residual adapter of Houlsby et
             al., "Parameter-Efficient Transfer Learning for NLP" (2019)
    linear   the head alone, on the frozen features
    lora     low-rank changes of the top layers' linear maps (lora)
    full     copies of the top layers, every weight of them
    slda     a statistic of the frozen features that says what the head is (statistic); nothing by gradient

Does not train (loop), load or save (adapters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from treering.errors import UsageError
from treering.training.base import WHOLE, Base, mean_pool
from treering.training.config import Kind, TrainConfig
from treering.training.lora import (
    LAYER,
    LoraShape,
    attach,
    is_transposed,
    load_lora,
    lora_layers,
    lora_tensors,
    share,
    target_modules,
)
from treering.training.statistic import Statistic

__all__ = ["Header", "Net", "Out", "Seen", "header_for", "make_net"]

SCALE = 2.0  # root mean square of the features the head sees; chosen on CLINC150's validation split with lr 1e-3
ROUTER_WIDTH = 256  # hidden units of the learned router
CHUNK_ROWS = 64  # texts of like length that run through adapted layers together


@dataclass(frozen=True, slots=True)
class Seen:
    """What a net reads of n texts; states are there for nets that adapt layers."""

    pooled: Tensor  # (n, width) float32: pooled features of the frozen base
    states: Tensor | None = (
        None  # (n, length, width) below the adapted layers; for a whole model token ids (n, length, 1)
    )
    mask: Tensor | None = None  # (n, length) int64


@dataclass(frozen=True, slots=True)
class Out:
    """What a net says of n texts."""

    read: Callable[[], Tensor]  # gives `features`: few losses look at them, and they may cost as much as the logits
    answer: Tensor  # (n, classes): logits of the answer
    frozen: Tensor | None = None  # (n, classes): logits on the frozen features, where they route
    domains: Tensor | None = None  # (n, domains): logits of a learned router

    @property
    def features(self) -> Tensor:
        """What the head reads, (n, width)."""
        return self.read()


class Header(BaseModel):
    """What the tensors of an adapter mean; kept inside its safetensors file, so that they can't be parted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: str = Field(default="treering.adapter-weights/1", pattern=r"^treering\.adapter-weights/1$")
    kind: Kind = Field(default="gated", description="what is trained over the frozen base")
    base_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(ge=1, description="of the features that the head reads")
    feature_layers: int = Field(default=1, ge=1, description="how many hidden states they are the means of")
    bottleneck: int = Field(default=64, ge=1, description="gated: of its down and up projection")
    adapt_layers: int = Field(default=0, ge=0, description="how many of the top layers are adapted")
    whole: bool = Field(default=False, description="the base's layers can't be run one by one")
    gates: Literal["soft", "hard", "off"] = "soft"
    router: Literal["posterior", "mlp"] = "posterior"
    lora: LoraShape | None = None
    full: dict[str, list[int]] = Field(default_factory=dict, description="full: shapes of the weights it owns, by name")
    classes: list[str] = Field(min_length=1)
    domains: list[str] = Field(min_length=1)

    @property
    def places(self) -> int:
        """Where the gated adapter sits: on the pooled features, or after each adapted layer."""
        return max(1, self.adapt_layers)

    @property
    def depth(self) -> int:
        """What the activation cache has to hold for it: see `ActivationCache`."""
        return WHOLE if self.whole and self.kind in ("lora", "full") else self.adapt_layers

    def shape(self, *, grown: bool = False) -> dict[str, Any]:
        """The fields of a config that an adapter must share with its parent. grown: a LoRA's rank isn't one round's own."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "adapt_layers": self.adapt_layers,
            "feature_layers": self.feature_layers,
        }
        if self.kind == "gated":
            found["bottleneck"] = self.bottleneck
        if self.lora is not None:
            found["lora_scale"] = self.lora.alpha / self.lora.rank
            found |= {} if grown else {"rank": self.lora.rank}
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors, all float32 but the counts (int64)."""
        n, width, rank = self.places, self.width, self.bottleneck
        classes, domains = len(self.classes), len(self.domains)
        shapes: dict[str, tuple[int, ...]] = {
            "head.weight": (classes, width),
            "head.bias": (classes,),
            "counts": (classes, domains),  # training records drawn, over all rounds: which class is of which domain
        }
        if self.kind == "gated":
            shapes |= {
                "down.weight": (n, rank, width),
                "down.bias": (n, rank),
                "up.weight": (n, width, rank),
                "up.bias": (n, width),
                "gates": (n, domains, rank),
            }
            if self.router == "mlp":
                shapes |= {
                    "router.weight": (ROUTER_WIDTH, width),
                    "router.bias": (ROUTER_WIDTH,),
                    "router.out.weight": (domains, ROUTER_WIDTH),
                    "router.out.bias": (domains,),
                }
        if self.kind == "lora" and self.lora is not None:
            shapes |= self.lora.shapes()
        if self.kind == "full":
            shapes |= {f"full.{name}": tuple(shape) for name, shape in self.full.items()}
        if self.kind == "slda":
            shapes |= Statistic.shapes(classes, width)
        return shapes


def header_for(config: TrainConfig, base: Base, classes: list[str], domains: list[str], *, past: int = 0) -> Header:
    """The header of what `config` trains over `base`. past: rank of earlier rounds' subspaces that stay beside the new one.

    Raises UsageError when the base has fewer layers, or nothing that the kind could adapt.
    """
    kind = config.kind
    layers = config.adapt_layers
    features = min(config.feature_layers, base.layers)
    if features > 1 and (kind in ("lora", "full") or (kind == "gated" and layers)):
        raise UsageError(
            "features of several layers are those of the frozen base, and this config adapts its layers",
            code="bad-config",
            hint="set feature_layers=1, or adapt the pooled features (kind='gated', adapt_layers=0)",
        )
    lora, full = None, {}
    if kind in ("lora", "full"):
        top = layers or None
        modules = target_modules(base.model, top=top, targets=config.targets if kind == "lora" else "all")
        layers = layers or base.layers
        if kind == "lora":
            rank = config.rank + past
            turned = is_transposed(base.model, modules)
            lora = LoraShape(rank=rank, alpha=config.lora_scale * rank, modules=modules, transposed=turned)
        else:
            full = _owned(base, layers)
    elif kind != "gated":
        layers = 0
    elif layers:
        base.top(layers)
    return Header(
        kind=kind,
        base_digest=base.digest,
        width=base.width * features,
        feature_layers=features,
        bottleneck=config.bottleneck,
        adapt_layers=layers,
        whole=kind in ("lora", "full") and not base.layered,
        gates=config.gates,
        router=config.router,
        lora=lora,
        full=full,
        classes=classes,
        domains=domains,
    )


def make_net(header: Header, base: Base, *, generator: torch.Generator, past: int = 0) -> Net:
    """A fresh net of the header's kind; `past` as in `header_for`."""
    if header.kind == "gated":
        return GatedNet(header, base, generator=generator)
    if header.kind == "lora":
        return LoraNet(header, base, generator=generator, past=past)
    if header.kind == "full":
        return FullNet(header, base)
    return SldaNet(header, base) if header.kind == "slda" else Net(header, base)


class Net(nn.Module):
    """The head alone, on the frozen features: kind linear, and what all others add to."""

    def __init__(self, header: Header, base: Base) -> None:
        super().__init__()
        shapes = header.shapes()
        self.header = header
        self._frozen = (base,)  # in a tuple: a module here would be registered, moved and saved with the adapter
        self.head = nn.ParameterDict(
            {"weight": torch.zeros(shapes["head.weight"]), "bias": torch.zeros(shapes["head.bias"])}
        )
        self.register_buffer("counts", torch.zeros(shapes["counts"], dtype=torch.int64))

    @property
    def base(self) -> Base:
        """The frozen base."""
        return self._frozen[0]

    def forward(self, seen: Seen, noise: Tensor | None = None) -> Out:
        """What it says of n texts. noise: (n, width), added to the features; left out when predicting."""
        features = self.scaled(seen.pooled, noise)
        return Out(lambda: features, self.classify(features))

    def route(self, out: Out) -> Tensor:
        """Domain posterior (n, domains): class posteriors, each handed to the domains that its records came from."""
        return self.by_domain(out.answer)

    def by_domain(self, logits: Tensor) -> Tensor:
        """Class logits (n, classes) as a domain posterior (n, domains)."""
        counts: Tensor = self.get_buffer("counts").float()
        shares = counts / counts.sum(1, keepdim=True).clamp_min(1.0)
        route = logits.float().softmax(-1) @ shares
        return route / route.sum(-1, keepdim=True).clamp_min(1e-12)

    def scaled(self, pooled: Tensor, noise: Tensor | None) -> Tensor:
        """Features of one length, (n, width), with noise in units of their root mean square; each layer counts alike."""
        layers = self.header.feature_layers
        each = functional.normalize(pooled.view(len(pooled), layers, -1), dim=-1).flatten(1)
        features = each * (SCALE * math.sqrt(self.header.width / layers))
        return features if noise is None else features + SCALE * noise

    def classify(self, features: Tensor) -> Tensor:
        """Class logits (n, classes) of features (n, width)."""
        return functional.linear(features, self.head["weight"], self.head["bias"])

    def trainable(self) -> dict[str, Tensor]:
        """The tensors that training changes, by their saved names."""
        return {f"head.{name}": value for name, value in self.head.items()}

    def fixed(self) -> dict[str, Tensor]:
        """The other tensors that are saved."""
        return {"counts": self.get_buffer("counts")}

    def tensors(self) -> dict[str, Tensor]:
        """A copy of everything that is saved, on the CPU."""
        everything = {**self.trainable(), **self.fixed()}
        return {name: value.detach().cpu().clone().contiguous() for name, value in everything.items()}

    @torch.no_grad()
    def load(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of an adapter whose classes and domains are the first of these."""
        own = {**self.trainable(), **self.fixed()}
        for name in header.shapes():
            if name in own and name in tensors:
                value = tensors[name]
                own[name][tuple(slice(0, size) for size in value.shape)] = value.to(own[name].device)


class GatedNet(Net):
    """The gated shared adapter.

    A domain posterior mixes the gates; training takes the same way, so no domain is needed, or leaks in, at test time. It
    comes from the head itself, on the frozen features (class posteriors summed by domain), or from a learned router.
    """

    def __init__(self, header: Header, base: Base, *, generator: torch.Generator) -> None:
        super().__init__(header, base)
        shapes = header.shapes()
        down = torch.randn(shapes["down.weight"], generator=generator) / math.sqrt(header.width)
        self.down = nn.ParameterDict({"weight": down, "bias": torch.zeros(shapes["down.bias"])})
        # An up projection of 0 makes a fresh adapter the identity, gates of 1 make domains alike until they differ.
        self.up = nn.ParameterDict({"weight": torch.zeros(shapes["up.weight"]), "bias": torch.zeros(shapes["up.bias"])})
        self.gates = nn.Parameter(torch.ones(shapes["gates"]))
        self.router = nn.ParameterDict()
        if header.router == "mlp":
            first = torch.randn(shapes["router.weight"], generator=generator) / math.sqrt(header.width)
            self.router["weight"], self.router["bias"] = nn.Parameter(first), nn.Parameter(torch.zeros(ROUTER_WIDTH))
            self.router["out_weight"] = nn.Parameter(torch.zeros(shapes["router.out.weight"]))
            self.router["out_bias"] = nn.Parameter(torch.zeros(shapes["router.out.bias"]))

    def forward(self, seen: Seen, noise: Tensor | None = None) -> Out:
        """What it says of n texts; as `Net.forward`."""
        features = self.scaled(seen.pooled, noise)
        on_frozen = domains = None
        if self.header.router == "mlp":
            inner = functional.gelu(functional.linear(features, self.router["weight"], self.router["bias"]))
            domains = functional.linear(inner, self.router["out_weight"], self.router["out_bias"])
            route = domains.detach().softmax(-1)
        else:
            on_frozen = self.classify(features)
            route = self.by_domain(on_frozen.detach())
        if self.header.gates == "hard":
            route = functional.one_hot(route.argmax(-1), route.shape[-1]).float()
        if not self.header.adapt_layers:
            # The head is linear, so its answer is what it says of the frozen features, plus what it says of the change.
            frozen = self.classify(features) if on_frozen is None else on_frozen
            inner = self._inner(features, route, 0)
            up, bias = self.up["weight"][0], self.up["bias"][0]
            change = functional.linear(inner, self.head["weight"] @ up, self.head["weight"] @ bias)
            return Out(
                lambda: features + functional.linear(inner.to(up.dtype), up, bias), frozen + change, on_frozen, domains
            )
        assert seen.states is not None
        assert seen.mask is not None
        wide = route[:, None, :]
        hidden = self.base.run_top(
            self.header.adapt_layers, seen.states, seen.mask, after=lambda h, place: self._adapt(h, wide, place)
        )
        adapted = self.scaled(mean_pool(hidden, seen.mask), noise)
        return Out(lambda: adapted, self.classify(adapted), on_frozen, domains)

    def route(self, out: Out) -> Tensor:
        """Domain posterior (n, domains) that the gates are mixed by."""
        if out.domains is not None:
            return out.domains.float().softmax(-1)
        assert out.frozen is not None
        return self.by_domain(out.frozen)

    def _adapt(self, hidden: Tensor, route: Tensor, place: int) -> Tensor:
        """The residual bottleneck: hidden (…, width) and route (…, domains), the latter broadcast over tokens."""
        inner = self._inner(hidden, route, place)
        return hidden + functional.linear(inner, self.up["weight"][place], self.up["bias"][place])

    def _inner(self, hidden: Tensor, route: Tensor, place: int) -> Tensor:
        """What passes the bottleneck, gated: (…, rank)."""
        inner = functional.gelu(functional.linear(hidden, self.down["weight"][place], self.down["bias"][place]))
        return inner if self.header.gates == "off" else inner * (route @ self.gates[place])

    def trainable(self) -> dict[str, Tensor]:
        """The tensors that training changes, by their saved names."""
        found = super().trainable()
        for name, part in (("down", self.down), ("up", self.up)):
            found |= {f"{name}.{key}": value for key, value in part.items()}
        found["gates"] = self.gates
        found |= {f"router.{key.replace('_', '.')}": value for key, value in self.router.items()}
        return found


class EncoderNet(Net):
    """A copy of the base's model in which something of the top layers is trained; the head reads what it pools."""

    def __init__(self, header: Header, base: Base, model: nn.Module) -> None:
        super().__init__(header, base)
        self.model = model

    def forward(self, seen: Seen, noise: Tensor | None = None) -> Out:
        """What it says of n texts; as `Net.forward`."""
        assert seen.states is not None
        assert seen.mask is not None
        features = self.scaled(self._pooled(seen.states, seen.mask), noise)
        return Out(lambda: features, self.classify(features))

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pooled features (n, width). Texts of like length run together, so that little is spent on padding."""
        lengths = mask.sum(1)
        order = torch.argsort(lengths, stable=True)
        pooled = []
        for start in range(0, len(order), CHUNK_ROWS):
            rows = order[start : start + CHUNK_ROWS]
            longest = int(lengths[rows].max())
            pooled.append(self._run(states[rows, :longest], mask[rows, :longest]))
        return torch.cat(pooled)[torch.argsort(order)]

    def _run(self, states: Tensor, mask: Tensor) -> Tensor:
        if not self.header.whole:
            return mean_pool(self.base.run_top(self.header.adapt_layers, states, mask, self.model), mask)
        with self.base.autocast():
            out = self.model(input_ids=states[:, :, 0], attention_mask=mask)
        return mean_pool(out.last_hidden_state, mask)


class LoraNet(EncoderNet):
    """LoRA in the top layers; the first `past` rows of its rank are earlier rounds' and stay as they are."""

    def __init__(self, header: Header, base: Base, *, generator: torch.Generator, past: int = 0) -> None:
        assert header.lora is not None
        model = share(base.model)
        attach(model, header.lora, generator=generator, past=past)
        super().__init__(header, base, model)
        self.past = past

    def trainable(self) -> dict[str, Tensor]:
        """The tensors that training changes, by their saved names; of a rank with a past, the new rows alone."""
        found = super().trainable()
        for name, module in lora_layers(self.model):
            found[f"lora.{name}.A"] = module.lora_A["default"].weight
            found[f"lora.{name}.B"] = module.lora_B["default"].weight
        return found

    def tensors(self) -> dict[str, Tensor]:
        """A copy of everything that is saved, on the CPU; the past included."""
        whole = {name: value.detach().cpu().clone() for name, value in lora_tensors(self.model).items()}
        return {**super().tensors(), **whole}

    @torch.no_grad()
    def load(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Take over an adapter's tensors: as the past where there is one, else to train on."""
        super().load(header.model_copy(update={"lora": None}), tensors)
        load_lora(self.model, tensors)


class FullNet(EncoderNet):
    """Copies of the top layers, every weight of them trained; of a base that can't be run by layers, as by name."""

    def __init__(self, header: Header, base: Base) -> None:
        model = share(base.model, own=header.full)
        super().__init__(header, base, model)
        self._own = {name: p.requires_grad_(True) for name, p in model.named_parameters() if name in header.full}

    def trainable(self) -> dict[str, Tensor]:
        """The tensors that training changes, by their saved names."""
        return {**super().trainable(), **{f"full.{name}": value for name, value in self._own.items()}}


class SldaNet(Net):
    """A statistic of the frozen features, and the head that follows from it."""

    def __init__(self, header: Header, base: Base) -> None:
        super().__init__(header, base)
        self.statistic = Statistic(len(header.classes), header.width)

    def fixed(self) -> dict[str, Tensor]:
        """The tensors that are saved and not trained."""
        return {**super().fixed(), **self.statistic.tensors()}

    @torch.no_grad()
    def load(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Go on from an adapter's statistic."""
        super().load(header, tensors)
        self.statistic.load(tensors)

    @torch.no_grad()
    def settle(self, shrinkage: float) -> None:
        """Set the head to what the statistic says now."""
        weight, bias = self.statistic.head(shrinkage)
        self.head["weight"].copy_(weight)
        self.head["bias"].copy_(bias)


def _owned(base: Base, layers: int) -> dict[str, list[int]]:
    """Names and shapes of the parameters in the top `layers` layers of a base."""
    named = [(name, p, LAYER.search(name)) for name, p in base.model.named_parameters()]
    numbers = [int(found.group(1)) for _, _, found in named if found]
    first = 1 + max(numbers, default=-1) - layers
    owned = {name: list(p.shape) for name, p, found in named if found and int(found.group(1)) >= first}
    if not owned:
        raise UsageError(f"found no layers to train in {base.name}", code="bad-base", hint="use kind gated or linear")
    return owned
