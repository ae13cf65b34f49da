"""Methods that keep nothing but weights: a term of the loss stands for what earlier rounds taught."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from treering.training.adapters import Adapter
from treering.training.lora import fresh_and_past
from treering.training.strategies.base import Round, Step
from treering.training.strategies.plain import LORA, PLAIN, Naive

__all__ = ["Ewc", "Lwf", "OLora"]


class Ewc(Naive):
    """Elastic weight consolidation: weights that mattered are held where they were, by how much they mattered.

    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (2017): λ/2 · Σ F (θ − θ*)² with the
    diagonal Fisher information F of earlier rounds. F is summed over rounds and θ* is the parent, as in the online form
    (Schwarz et al., "Progress & Compress", 2018, with γ = 1). λ is `strength`; with 0 this is `naive` to the byte.
    """

    name = "ewc"
    defaults: ClassVar[Mapping[str, Any]] = {**PLAIN, "strength": 10_000.0}

    def before(self, round_: Round) -> None:
        """Fisher information and former weights, grown to the new number of classes; of new ones the former is 0."""
        if not round_.config.strength or round_.parent is None:
            return
        former = []
        for name, value in round_.trainable.items():
            fisher, anchor = round_.state.get(f"fisher.{name}"), round_.parent.tensors.get(name)
            if fisher is not None and anchor is not None:
                former.append((value, _grown(fisher, value), _grown(anchor, value)))
        round_.memory["former"] = former

    def regulariser(self, round_: Round) -> Tensor | None:
        """λ/2 · Σ F (θ − θ*)², whose gradient is λ F (θ − θ*)."""
        former = round_.memory.get("former")
        if not former:
            return None
        terms = [(fisher * (value - anchor) ** 2).sum() for value, fisher, anchor in former]
        return 0.5 * round_.config.strength * torch.stack(terms).sum()

    def after(self, round_: Round) -> dict[str, Tensor]:
        """The diagonal Fisher information on this round's new records, plus that of earlier rounds."""
        if not round_.config.strength:
            return {}
        found = fisher_information(round_, round_.config.fisher_rows)
        for name, value in found.items():
            if (before := round_.state.get(f"fisher.{name}")) is not None:
                value += _grown(before, value)
        return {f"fisher.{name}": value for name, value in found.items()}


def fisher_information(round_: Round, rows: int) -> dict[str, Tensor]:
    """Diagonal Fisher information of each trained tensor, by name: mean square of ∂ log p(y|x) with y ~ p(·|x).

    On at most `rows` of the round's new records, labels drawn from the model as the definition asks (not the true ones).
    """
    new = round_.records.where(~round_.records.replay & (round_.records.labels >= 0))
    order = torch.randperm(len(new), generator=round_.generator)[:rows]
    weights = round_.trainable
    found = {name: torch.zeros_like(value, device="cpu") for name, value in weights.items()}
    for number in order.tolist():
        logits = round_.run(round_.net, new.texts[number : number + 1]).answer.float()
        drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=round_.generator)[0]
        loss = functional.cross_entropy(logits, drawn.to(logits.device))
        slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, slope in zip(weights, slopes, strict=True):
            if slope is not None:
                found[name] += slope.detach().cpu() ** 2 / len(order)
    return found


class Lwf(Naive):
    """Learning without forgetting: on new data, the parent's opinion of the classes it knew is kept.

    Li & Hoiem, "Learning without Forgetting" (2016): beside the cross-entropy a distillation loss T² · KL(parent ‖ net)
    over the parent's classes, at `temperature` T (Hinton et al., 2015), times `strength`.
    """

    name = "lwf"
    defaults: ClassVar[Mapping[str, Any]] = PLAIN

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy, and distillation where there is a parent to learn from."""
        loss = super().loss(step)
        round_ = step.round
        if round_.parent is None or not round_.config.strength:
            return loss
        with torch.no_grad():
            teacher = round_.run(round_.parent_net(), step.texts).answer.float()
        heat = round_.config.temperature
        said = step.out.answer[:, : teacher.shape[1]].float()  # the parent's classes come first
        kept = functional.kl_div(
            (said / heat).log_softmax(1), (teacher / heat).log_softmax(1), reduction="batchmean", log_target=True
        )
        return loss + round_.config.strength * heat**2 * kept


class OLora(Naive):
    """LoRA in a new subspace each round, orthogonal to those of earlier rounds, which stay as they are and in use.

    Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning" (2023): with A the new rows and A' the
    frozen ones of each map, λ · Σ ‖A' Aᵀ‖² is added to the loss; λ is `strength`. Rank and parameters grow with rounds.
    """

    name = "o-lora"
    kinds = ("lora",)
    defaults: ClassVar[Mapping[str, Any]] = {**LORA, "rank": 8, "strength": 0.5}

    def past(self, parent: Adapter | None) -> int:
        """All of the parent's rank."""
        return 0 if parent is None or parent.header.lora is None else parent.header.lora.rank

    def regulariser(self, round_: Round) -> Tensor | None:
        """λ · Σ ‖A' Aᵀ‖² over the adapted maps, whose gradient by A is 2λ A A'ᵀA'."""
        pairs = fresh_and_past(getattr(round_.net, "model", None))
        if not pairs or not round_.config.strength:
            return None
        return round_.config.strength * torch.stack([((past @ fresh.T) ** 2).sum() for fresh, past in pairs]).sum()


def _grown(former: Tensor, now: Tensor) -> Tensor:
    """A tensor of an earlier round at the size it has now, on its device; classes and domains grow at the end, with 0."""
    grown = torch.zeros_like(now)
    grown[tuple(slice(0, size) for size in former.shape)] = former.to(now.device)
    return grown.detach()
