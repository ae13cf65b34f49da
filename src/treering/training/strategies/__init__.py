"""Strategies: what distinguishes one way of training a round from another. Each is a small class with few hooks.

    naive         new data only, from the parent on
    replay        the mix as given, over the gated adapter
    recommended   replay from everything ever sealed, balanced by class, on the features of three layers: start here
    joint         everything at once, from scratch: the upper bound
    full          sequential fine-tuning of the base's top layers, new data only
    lora          sequential LoRA, new data only
    lora-replay   LoRA and one reservoir buffer
    ewc           elastic weight consolidation, new data only
    lwf           learning without forgetting: distillation from the parent, new data only
    der           dark experience replay (DER++): the buffer keeps its logits
    o-lora        LoRA in subspaces orthogonal to those of earlier rounds, new data only
    slda          streaming linear discriminant analysis on frozen features, no gradient
    dual-replay   the gated adapter with a learned router, a domain stream and a general stream

One of your own subclasses `Strategy` and is named by `register`; `Strategy` shows one whole. The loop is the same for all.
"""

from __future__ import annotations

from treering.training.strategies.base import (
    Draw,
    MixSource,
    Records,
    Round,
    Step,
    Strategy,
    register,
    strategy,
)
from treering.training.strategies.plain import Full, Joint, Lora, LoraReplay, Naive, Recommended, Replay
from treering.training.strategies.regularised import Ewc, Lwf, OLora
from treering.training.strategies.rehearsal import Der, DualReplay
from treering.training.strategies.statistic import Slda

__all__ = [
    "Der",
    "Draw",
    "DualReplay",
    "Ewc",
    "Full",
    "Joint",
    "Lora",
    "LoraReplay",
    "Lwf",
    "MixSource",
    "Naive",
    "OLora",
    "Recommended",
    "Records",
    "Replay",
    "Round",
    "Slda",
    "Step",
    "Strategy",
    "register",
    "strategy",
]

for _one in (Der, DualReplay, Ewc, Full, Joint, Lora, LoraReplay, Lwf, Naive, OLora, Recommended, Replay, Slda):
    register(_one())
