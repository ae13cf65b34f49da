"""Weights that move: schedules, and a controller that follows evaluations. Pure: numbers in, numbers out.

Says which weights should hold from a batch on. What the loader makes of them (an event, a plan) is decided elsewhere.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import UsageError
from treering.mixing.shares import quantise

__all__ = ["ReplayController", "Schedule", "SchedulePoint", "regroup"]


class SchedulePoint(BaseModel):
    """From this batch on (or at it, when weights are interpolated) these weights hold."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    batch: int = Field(ge=0)
    weights: tuple[float, ...]


class Schedule(BaseModel):
    """Weights as a function of the batch: `Schedule.of({0: [0.5, 0.5], 10_000: [0.2, 0.8]})`.

    "linear" goes straight from one point to the next, "step" jumps at each; after the last point its weights stay.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    points: tuple[SchedulePoint, ...] = Field(min_length=1)
    kind: Literal["linear", "step"] = "linear"

    @classmethod
    def of(cls, points: Mapping[int, Sequence[float]], kind: Literal["linear", "step"] = "linear") -> Schedule:
        """A schedule from batch → weights. Raises UsageError unless it begins at batch 0 with valid weights throughout."""
        if not isinstance(points, Mapping) or 0 not in points:
            raise UsageError("a schedule maps batches to weights, and begins at batch 0", code="bad-schedule")
        try:
            listed = tuple(SchedulePoint(batch=b, weights=tuple(map(float, points[b]))) for b in sorted(points))
            schedule = cls(points=listed, kind=kind)
        except (ValidationError, TypeError, ValueError) as exc:
            raise UsageError(f"the schedule doesn't hold: {exc}", code="bad-schedule") from exc
        if len({len(point.weights) for point in listed}) > 1:
            raise UsageError("each point of a schedule gives one weight per source", code="bad-schedule")
        for point in listed:
            quantise(point.weights)
        return schedule

    def at(self, batch: int) -> tuple[float, ...]:
        """The weights that hold at a batch."""
        after = bisect_right([point.batch for point in self.points], batch)
        left = self.points[max(0, after - 1)]
        if self.kind == "step" or after == len(self.points):
            return left.weights
        right = self.points[after]
        part = (batch - left.batch) / (right.batch - left.batch)
        return tuple(a + (b - a) * part for a, b in zip(left.weights, right.weights, strict=True))


def regroup(weights: Sequence[float], replayed: Sequence[bool], share: float) -> tuple[float, ...]:
    """Weights whose replayed sources together have `share`, and whose others have the rest; in their old proportions.

    Raises UsageError when the share isn't in [0, 1] or one of the groups has no weight to scale.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UsageError(f"the share of replay is {share!r}; it lies in [0, 1]", code="bad-share")
    past = sum(weight for weight, old in zip(weights, replayed, strict=True) if old)
    new = sum(weights) - past
    if (share > 0 and not past) or (share < 1 and not new):
        missing = "replayed" if not past else "new"
        raise UsageError(
            f"no {missing} source of the mix has a weight that could be scaled",
            code="bad-share",
            hint="give one a weight first: loader.reweigh([…])",
        )
    return tuple(
        weight * (share / past if old else (1 - share) / new) if weight else 0.0
        for weight, old in zip(weights, replayed, strict=True)
    )


@dataclass
class ReplayController:
    """How much to replay, from evaluations as they come: more when the past slips, less when the new is learned slowly.

    The share is `base` (0.3); `on_regression` (0.5) while any past slice stands more than `tolerance` below the best
    score it had; else `on_slow` (0.2) while the score on the new data rose by less than `min_gain` since the last
    evaluation. Scores are fractions of 1. The thresholds of 30, 50 and 20 % are those of the articles this project
    was created from.
    """

    base: float = 0.3
    on_regression: float = 0.5
    on_slow: float = 0.2
    tolerance: float = 0.02
    min_gain: float = 0.005
    share: float = field(init=False)
    reason: str = field(init=False, default="no evaluation yet")
    _best: dict[str, float] = field(init=False, default_factory=dict, repr=False)
    _new: float | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("base", "on_regression", "on_slow"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                raise UsageError(f"{name} is {share!r}; it is a share in [0, 1)", code="bad-share")
        self.share = self.base

    def update(self, past: Mapping[str, float], new: float) -> float:
        """The share of replay to train with from here on, given the scores of past slices and of the new data.

        `reason` says why. A slice is compared with the best score that this controller has seen for it. A score that is
        NaN (of a model that diverged, say) is the deepest fall there is, and nothing to be compared with later.
        """
        slipped = {
            name: math.inf if math.isnan(score) else self._best[name] - score
            for name, score in past.items()
            if name in self._best
        }
        worst = max(slipped, key=lambda name: slipped[name], default=None)
        gain = None if self._new is None or math.isnan(new) else new - self._new
        if worst is not None and slipped[worst] > self.tolerance:
            self.share, self.reason = self.on_regression, _fell(worst, slipped[worst])
        elif gain is not None and gain < self.min_gain:
            self.share, self.reason = self.on_slow, f"new rose by {gain:.3f} only"
        else:
            self.share, self.reason = self.base, "neither regression nor slow learning"
        for name, score in past.items():
            if not math.isnan(score):
                self._best[name] = max(score, self._best.get(name, score))
        self._new = self._new if math.isnan(new) else new
        return self.share


def _fell(name: str, by: float) -> str:
    return f"{name} has no score any more" if math.isinf(by) else f"{name} fell by {by:.3f}"
