"""PURE. Several runs of the same experiment (seeds, orderings of the domains) as mean and standard deviation.

Knows matrices. Does not train or evaluate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from treering.errors import UsageError

from .matrix import SUMMARY, ScoreMatrix, points

__all__ = ["Spread", "Summary", "summarise"]


class Spread(BaseModel):
    """One number over several runs."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    mean: float
    sd: float | None = Field(description="sample standard deviation (n − 1); null with one run")
    n: int = Field(ge=1)
    values: list[float] = Field(description="in the order of the runs")


class Summary(BaseModel):
    """What several score matrices have in common; fractions of 1, or nats for a loss.

    A number that one of the runs doesn't have is left out. `final`: scores after the last round, by slice, of the slices
    that every run has; under other orderings of the domains these were learnt in other rounds.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    metric: str
    better: str
    runs: int = Field(ge=1)
    numbers: dict[str, Spread]
    final: dict[str, Spread]

    def table(self) -> str:
        """The numbers as lines of text, `mean ± sd`; in points of 100, a loss in nats."""
        rows = [(name.replace("_", " "), spread) for name, spread in [*self.numbers.items(), *self.final.items()]]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{name.ljust(width)}  {self._shown(spread)}" for name, spread in rows]
        unit = "points of 100" if self.better == "higher" else "the lower the better"
        return "\n".join([*lines, "", f"{self.runs} runs, mean ± standard deviation   ({self.metric}, {unit})"])

    def _shown(self, spread: Spread) -> str:
        if self.better == "higher":
            return f"{points(spread.mean)} ± {points(spread.sd)}"
        return f"{spread.mean:.3f} ± {'·' if spread.sd is None else f'{spread.sd:.3f}'}"


def summarise(matrices: Iterable[ScoreMatrix] | Mapping[str, ScoreMatrix]) -> Summary:
    """Mean and standard deviation over the matrices of several runs, seeds or orderings.

    Raises UsageError without a matrix, and for matrices of different metrics.
    """
    given = list(matrices.values() if isinstance(matrices, Mapping) else matrices)
    if not given:
        raise UsageError("there is no score matrix to summarise", code="empty-matrix")
    metrics = {(matrix.metric, matrix.better) for matrix in given}
    if len(metrics) > 1:
        raise UsageError(
            f"matrices of different metrics can't be averaged: {', '.join(sorted(name for name, _ in metrics))}",
            code="bad-matrix",
        )
    common = [name for name in given[0].slices if all(name in matrix.slices for matrix in given)]
    numbers = {name: _spread([getattr(matrix, name) for matrix in given]) for name in SUMMARY}
    final = {name: _spread([float(m.values[-1, m.slices.index(name)]) for m in given]) for name in common}
    return Summary(
        metric=given[0].metric,
        better=given[0].better,
        runs=len(given),
        numbers={name: spread for name, spread in numbers.items() if spread is not None},
        final={name: spread for name, spread in final.items() if spread is not None},
    )


def _spread(values: list[float]) -> Spread | None:
    if any(map(math.isnan, values)):
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=sd, n=len(values), values=values)
