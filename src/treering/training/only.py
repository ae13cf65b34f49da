"""Touching up a part of an adapter: its head, or one domain's gates, and nothing else.

What alignment drift is cured by: the features still hold what was learnt, only the way from them to the answer is off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from treering.errors import UsageError
from treering.training.config import TrainConfig

__all__ = ["restrict"]


def restrict(net: nn.Module, config: TrainConfig, domains: list[str], *, has_parent: bool) -> None:
    """Freeze every parameter of `net` that `config.only` doesn't name; does nothing when it names none.

    Of the gates, shape (places, domains, width), one domain's are left free: the gradient of the others is 0. Raises
    UsageError without a parent, and for a domain or a kind of adapter that has no such part.
    """
    if config.only is None:
        return
    if not has_parent:
        raise UsageError(
            f"only={config.only!r} touches up an adapter, and there is no parent",
            code="no-parent",
            hint="name one: --parent ADAPTER",
        )
    part, _, domain = config.only.partition(":")
    wanted = "head." if part == "head" else "gates"
    free = [name for name, _ in net.named_parameters() if name.startswith(wanted)]
    if not free:
        raise UsageError(
            f"an adapter of this kind has no {part}s of its own" if part == "gate" else "this adapter has no head",
            code="no-such-part",
            hint="--only-head",
        )
    if part == "gate" and domain not in domains:
        raise UsageError(
            f"the adapter has no gate for domain {domain!r}",
            code="no-such-part",
            hint=f"its domains: {', '.join(domains)}",
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in free)
        if part == "gate" and name in free:
            parameter.register_hook(_only_row(domains.index(domain)))


def _only_row(number: int) -> Callable[[Tensor], Tensor]:
    def masked(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[:, number] = gradient[:, number]
        return kept

    return masked
