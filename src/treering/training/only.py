"""Touching up a part of an adapter: its head, or one domain's gates, and nothing else.

What alignment drift is cured by: the features still hold what was learnt, only the way from them to the answer is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from treering.errors import UsageError
from treering.training.config import TrainConfig

__all__ = ["only_these"]


def only_these(
    weights: Mapping[str, Tensor], config: TrainConfig, domains: list[str], *, has_parent: bool
) -> dict[str, Tensor]:
    """Those of a net's trainable tensors, by their saved names, that `config.only` leaves free; all when it says nothing.

    The others get no gradient. Of the gates, shape (places, domains, width), one domain's are left free: the gradient of
    the rest is 0. Raises UsageError without a parent, and for a domain or a kind of adapter that has no such part.
    """
    if config.only is None:
        return dict(weights)
    if not has_parent:
        raise UsageError(
            f"only={config.only!r} touches up an adapter, and there is no parent",
            code="no-parent",
            hint="name one: --parent ADAPTER",
        )
    part, _, domain = config.only.partition(":")
    free = {name: value for name, value in weights.items() if name.startswith("head." if part == "head" else "gates")}
    if not free:
        raise UsageError(
            f"an adapter of kind {config.kind} has no gates", code="no-such-part", hint="touch up its head: --only-head"
        )
    if part == "gate" and domain not in domains:
        raise UsageError(
            f"the adapter has no gate for domain {domain!r}",
            code="no-such-part",
            hint=f"its domains: {', '.join(domains)}",
        )
    for name, value in weights.items():
        value.requires_grad_(name in free)
        if part == "gate" and name in free:
            value.register_hook(_only_row(domains.index(domain)))  # type: ignore[no-untyped-call]
    return free


def _only_row(number: int) -> Callable[[Tensor], Tensor]:
    def masked(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[:, number] = gradient[:, number]
        return kept

    return masked
