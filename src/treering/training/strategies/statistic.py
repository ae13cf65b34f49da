"""A classifier without a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from treering.training.nets import SldaNet
from treering.training.strategies.base import Round
from treering.training.strategies.plain import Naive

__all__ = ["Slda"]


class Slda(Naive):
    """Streaming linear discriminant analysis on the frozen features: each new record is looked at once, and none replayed.

    Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis" (2020). The order and the
    batches of the records don't matter (statistic). `shrinkage` is the one setting. A method that trains and doesn't beat
    this hasn't earned its gradient.
    """

    name = "slda"
    gradient = False
    kinds = ("slda",)
    defaults: ClassVar[Mapping[str, Any]] = {"kind": "slda"}

    def before(self, round_: Round) -> None:
        """Take in the new records, each once, and let the head follow."""
        net = round_.net
        assert isinstance(net, SldaNet)
        new = round_.records.where(~round_.records.replay & (round_.records.labels >= 0))
        with torch.no_grad():
            features = round_.run(net, new.texts).features.cpu()
        net.statistic.add(features, torch.from_numpy(new.labels))
        net.settle(round_.config.shrinkage)
