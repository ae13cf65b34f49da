"""Strategies: what distinguishes one way of training a round from another. Each is a small class with few hooks.

A strategy of your own subclasses `Strategy` and is named by `register`. The loop (loop) is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from treering.errors import UsageError

__all__ = ["Joint", "MixSource", "Naive", "Replay", "Step", "Strategy", "register", "strategy"]


@dataclass(frozen=True, slots=True)
class MixSource:
    """One source of a mix, as far as a strategy decides about it."""

    ref: str
    weight: float  # as given
    train_rows: int  # records that may be drawn
    replay: bool  # the parent, or one it descends from, was trained on all of it


@dataclass(frozen=True, slots=True)
class Step:
    """One update, as a loss sees it; n labelled records."""

    frozen: Tensor  # (n, classes) logits on the frozen features: they route
    answer: Tensor  # (n, classes) logits on the adapted features: they answer
    labels: Tensor  # (n,) int64
    sources: Tensor  # (n,) int64: number of the source each record came from
    log_prior: Tensor  # (classes,): log share of each class in the mix, -inf to leave it out of the softmax; 0 when off


class Strategy:
    """Base class. `continues`: start from the parent's weights; otherwise from scratch."""

    name: ClassVar[str]
    continues: ClassVar[bool] = True

    def weights(self, sources: Sequence[MixSource]) -> list[float]:
        """What to draw: one weight ≥ 0 per source of the mix. As given, unless a strategy says otherwise."""
        return [source.weight for source in sources]

    def loss(self, step: Step) -> Tensor:
        """The scalar to minimise: balanced softmax of the answer and, so that routing learns too, of the frozen logits.

        Logits are trained with the log share of their class added, so that what is left in them owes nothing to how
        often a class was drawn: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (2020).
        """
        return functional.cross_entropy(step.answer + step.log_prior, step.labels) + functional.cross_entropy(
            step.frozen + step.log_prior, step.labels
        )


class Naive(Strategy):
    """New data only, from the parent on: what sequential fine-tuning does, and why it forgets.

    McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks" (1989).
    """

    name = "naive"

    def weights(self, sources: Sequence[MixSource]) -> list[float]:
        """The given weights, but 0 for what the parent was trained on. Raises UsageError when nothing is left."""
        chosen = [0.0 if source.replay else source.weight for source in sources]
        if not any(chosen):
            raise UsageError(
                "strategy naive trains on new data only, and the parent has seen every source of this mix",
                code="nothing-new",
                hint="add new or live data to the mix, or train with strategy replay",
            )
        return chosen


class Replay(Strategy):
    """The mix as given, from the parent on.

    Rehearsal (Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", 1995) from everything ever sealed
    instead of from a buffer.
    """

    name = "replay"


class Joint(Strategy):
    """Everything at once, from scratch: the upper bound that continual training is measured against.

    Each record of the sources with a weight above 0 is as likely as any other.
    """

    name = "joint"
    continues = False

    def weights(self, sources: Sequence[MixSource]) -> list[float]:
        """As many as there are records; 0 stays 0."""
        return [float(source.train_rows) if source.weight else 0.0 for source in sources]


_STRATEGIES: dict[str, Strategy] = {s.name: s for s in (Joint(), Naive(), Replay())}


def register(one: Strategy) -> Strategy:
    """Make a strategy known by its name, for `TrainConfig(strategy=…)`. Raises UsageError when the name is taken."""
    if _STRATEGIES.setdefault(one.name, one) is not one:
        raise UsageError(f"there is a strategy {one.name!r} already", code="strategy-taken")
    return one


def strategy(name: str) -> Strategy:
    """The strategy of that name. Raises UsageError with the known ones."""
    if name not in _STRATEGIES:
        raise UsageError(
            f"unknown strategy {name!r}", code="unknown-strategy", hint=f"known: {', '.join(sorted(_STRATEGIES))}"
        )
    return _STRATEGIES[name]
