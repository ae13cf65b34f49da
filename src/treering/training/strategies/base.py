"""What a strategy is: its hooks, and what each of them is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from treering.errors import UsageError
from treering.training.adapters import Adapter
from treering.training.config import TrainConfig
from treering.training.nets import Net, Out, Seen

__all__ = ["Draw", "MixSource", "Records", "Round", "Step", "Strategy", "register", "strategy"]


@dataclass(frozen=True, slots=True)
class MixSource:
    """One source of a mix, as far as a strategy decides about it."""

    ref: str
    weight: float  # as given
    train_rows: int  # records that may be drawn
    replay: bool  # the parent, or one it descends from, was trained on all of it
    general: bool = False  # `TrainConfig.general`: not what is to be learnt


@dataclass(frozen=True, slots=True)
class Draw:
    """What to draw of one source."""

    weight: float  # ≥ 0, relative to the others
    rows: int | None = None  # from a selection of at most so many records; None: from all
    mb: float | None = None  # the same in 10⁶ bytes
    by: Literal["reservoir", "balanced", "importance"] = "reservoir"  # how that selection is made
    spread: str = ""  # column whose values each of its groups is spread over
    balance: str = ""  # column whose values come equally often


@dataclass(frozen=True, slots=True)
class Records:
    """Distinct records, in the order they were first drawn."""

    texts: npt.NDArray[np.int64]  # (n,): numbers in the activation cache
    labels: npt.NDArray[np.int64]  # (n,); -1 for none
    keys: npt.NDArray[np.int64]  # (n, 2): 128-bit hashes of their ids
    replay: npt.NDArray[np.bool_]  # (n,): the parent has been trained on them

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, chosen: npt.NDArray[Any]) -> Records:
        """Some of them, by mask or by number."""
        return Records(self.texts[chosen], self.labels[chosen], self.keys[chosen], self.replay[chosen])


@dataclass(slots=True)
class Round:
    """One training run, as hooks see it."""

    net: Net  # what is trained
    parent: Adapter | None  # what it started from
    config: TrainConfig
    records: Records  # all that will be drawn
    state: Mapping[str, Tensor]  # what the parent's `after` left, by name
    run: Callable[[Net, npt.NDArray[np.int64]], Out]  # a net on texts by number, without noise
    parent_net: Callable[[], Net]  # the parent, frozen, with its own classes and domains
    generator: torch.Generator  # the run's chance
    memory: dict[str, Any] = field(default_factory=dict)  # a strategy's own, for as long as the run lasts

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The tensors that are trained, by their saved names."""
        return self.net.trainable()


@dataclass(frozen=True, slots=True)
class Step:
    """One update, as a loss sees it: n records. All but `texts` are on the net's device."""

    round: Round
    out: Out  # what the net says of them
    labels: Tensor  # (n,) int64; -1 for records of the general stream
    domains: Tensor  # (n,) int64; -1 likewise
    sources: Tensor  # (n,) int64: number of the source each record came from
    replayed: Tensor  # (n,) bool: from a source that the parent has been trained on
    texts: npt.NDArray[np.int64]  # (n,): numbers in the activation cache
    keys: npt.NDArray[np.int64]  # (n, 2): 128-bit hashes of the record ids
    seen: Seen  # what the net read of them
    log_prior: Tensor  # (classes,): log share of each class in the mix, -inf to leave it out of the softmax; 0 when off

    @property
    def pooled(self) -> Tensor:
        """Frozen features as the head would read them, without noise: (n, width)."""
        return self.round.net.scaled(self.seen.pooled, None)


class Strategy:
    """Base class of all strategies, and itself plain training on the mix as given.

    Hooks return values, and the loop calls them; each has a default that does the plain thing. `defaults` are the values
    of config fields that aren't given. A strategy of your own, whole:

        class Focal(Strategy):
            '''Focal loss: what is answered well already counts less. Lin et al. (2017).'''

            name = "focal"
            defaults = {"strength": 2.0, "prior_correction": False}

            def loss(self, step: Step) -> Tensor:
                log_p = step.out.answer.log_softmax(1).gather(1, step.labels[:, None])[:, 0]
                return -((1.0 - log_p.exp()) ** step.round.config.strength * log_p).mean()

        register(Focal())
        treering.train(store, mix, treering.TrainConfig(strategy="focal"))
    """

    name: ClassVar[str]
    continues: ClassVar[bool] = True  # start from the parent's weights; otherwise from scratch
    gradient: ClassVar[bool] = True  # False: no updates; the mix is read once, and `before` does it all
    kinds: ClassVar[Sequence[str]] = ()  # of adapter that it can train; empty: all
    unlabelled: ClassVar[bool] = False  # records without a label are of use to it
    defaults: ClassVar[Mapping[str, Any]] = {}

    def draw(self, sources: Sequence[MixSource], config: TrainConfig) -> list[Draw]:
        """What to draw of each source of the mix: as given, what is replayed within the config's replay budget.

        A budget is shared by several replay sources by their sizes, as one reservoir over all of them would be.
        """
        past = sum(source.train_rows for source in sources if source.replay)
        found = []
        for source in sources:
            if not source.replay:
                found.append(Draw(0.0 if source.general else source.weight))
                continue
            share = source.train_rows / past if past else 0.0
            rows = max(1, round(config.replay_rows * share)) if config.replay_rows else None
            found.append(
                Draw(
                    source.weight,
                    rows=None if rows is None or rows >= source.train_rows else rows,
                    mb=config.replay_mb * share if config.replay_mb and not config.replay_rows else None,
                    by=config.replay_by,
                    spread=config.replay_spread,
                    balance=config.replay_balance,
                )
            )
        return found

    def settle(self, config: TrainConfig, parent: Adapter | None = None) -> TrainConfig:
        """The config with every field given: those that weren't as the parent is shaped, else by `defaults`, else plainly.

        So a lineage may go on with another strategy. What the strategy says of `kind` itself stands.
        """
        defaults = dict(self.defaults)
        if parent is not None and self.continues:
            shape = parent.header.shape(grown=self.past(parent) > 0)
            kind = config.kind if "kind" in config.model_fields_set else defaults.setdefault("kind", shape["kind"])
            if kind == shape["kind"]:
                defaults |= shape
        return config.settled(defaults)

    def past(self, parent: Adapter | None) -> int:
        """How much of a LoRA's rank is frozen, as earlier rounds left it; the round's own comes beside it."""
        return 0

    def before(self, round_: Round) -> None:
        """Called once, before the first update: to prepare what `loss` needs, in `round_.memory`."""

    def loss(self, step: Step) -> Tensor:
        """The scalar to minimise: balanced softmax of the answer, and of what routes, so that it learns too.

        Logits are trained with the log share of their class added, so that what is left in them owes nothing to how
        often a class was drawn: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (2020).
        """
        return self.classify(step, step.out.answer) + self.routing(step)

    def classify(self, step: Step, logits: Tensor) -> Tensor:
        """Cross-entropy of class logits (n, classes), the class shares of the mix taken into account."""
        return _cross_entropy(logits + step.log_prior, step.labels)

    def routing(self, step: Step) -> Tensor:
        """The loss of what mixes the gates: the head on frozen features, or a learned router. 0 where nothing does."""
        total = step.out.answer.new_zeros(())
        if step.out.frozen is not None:
            total = total + self.classify(step, step.out.frozen)
        if step.out.domains is not None:
            total = total + _cross_entropy(step.out.domains, step.domains)
        return total

    def regulariser(self, round_: Round) -> Tensor | None:
        """A scalar of the weights alone, added to each update's loss; None: nothing."""
        return None

    def after(self, round_: Round) -> dict[str, Tensor]:
        """What the next round has to know, by name: finite tensors, kept in the adapter's file. Never texts."""
        return {}


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows that have a target; 0 when none has one, as in a small batch of the general stream alone."""
    some = targets >= 0
    if bool(some.all()):
        return functional.cross_entropy(logits, targets)
    return functional.cross_entropy(logits[some], targets[some]) if bool(some.any()) else 0.0 * logits.sum()


_STRATEGIES: dict[str, Strategy] = {}


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
