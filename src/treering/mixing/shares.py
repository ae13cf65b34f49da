"""Divide batches among sources: whole rows, exact in every batch and in the long run.

Weights become integers with a small sum S. A source gets ⌊share⌋ rows of every batch, and the rows that are left over
are scheduled like tasks on processors (Pfair scheduling by the PD² rules), so that after every batch every source
stands within one row of its share, and exactly on it after each period. Largest-remainder rounding can't do this:
at 1:8:8:8 in batches of 8 it would owe a batch −1 rows.
"""

from __future__ import annotations

import heapq
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from treering.errors import UsageError
from treering.mixing.permute import Int64Array

__all__ = ["MAX_UNITS", "ShareTable", "quantise", "share_table"]

MAX_UNITS = 10_000  # bounds the table to as many rows; a share is off by at most 1/20,000, and the lock shows it


_MOST = 1e30  # far from where sums of floats overflow, float32 ones too


def quantise(weights: Sequence[float], *, passing: bool = False) -> tuple[int, ...]:
    """Weights as integers with the smallest sum S ≤ 10,000 that says the same; 0 stays 0.

    When no such sum is exact (a weight of 1/π), the nearest at S = 10,000. Raises UsageError for a weight that is NaN,
    infinite or negative, for weights that are all 0, and for a positive one so small that it would round to 0 rows
    in 10,000. passing: weights on their way from 0 or to it, as a schedule's are: such a one is 0 then.
    """
    if len(weights) == 0:
        raise UsageError("a mix needs at least one source", code="no-sources")
    for number, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
            raise UsageError(f"weight number {number} is {weight!r}; a weight is a number ≥ 0", code="bad-weight")
        if not 0 <= weight <= _MOST:  # NaN isn't either
            raise UsageError(f"weight number {number} is {weight}; it lies between 0 and {_MOST:g}", code="bad-weight")
    weights = [float(weight) for weight in weights]
    total = math.fsum(weights)
    if total == 0:
        raise UsageError(
            "all weights are 0, so there is nothing to draw",
            code="zero-weights",
            hint="give at least one source a positive weight",
        )
    shares = np.array([weight / total for weight in weights])
    sums = np.arange(1, MAX_UNITS + 1, dtype=np.float64)
    exact = sums[:, None] * shares
    fits = np.abs(exact - np.rint(exact)).max(axis=1) < 1e-7  # 0.1 + 0.2 isn't 0.3; 1e-7 of a unit isn't a row
    good = np.flatnonzero(fits & ((np.rint(exact) > 0) | (shares == 0)).all(axis=1))
    if good.size:
        return tuple(int(unit) for unit in np.rint(exact[good[0]]))
    units = np.floor(shares * MAX_UNITS).astype(np.int64)
    rest = shares * MAX_UNITS - units
    for number in np.argsort(-rest, kind="stable")[: MAX_UNITS - int(units.sum())]:
        units[number] += 1
    lost = [number for number, unit in enumerate(units) if unit == 0 and weights[number] > 0]
    if lost and not passing:
        raise UsageError(
            f"weight {lost[0]} is {weights[lost[0]]}, a share of {shares[lost[0]]:.2g}; "
            f"the smallest share that can be kept exactly is 1/{MAX_UNITS}",
            code="weight-too-small",
            hint="raise it, or set it to 0",
        )
    return _reduced(int(unit) for unit in units)


def _reduced(units: Iterable[int]) -> tuple[int, ...]:
    values = tuple(units)
    divisor = math.gcd(*values)
    return tuple(value // divisor for value in values)


@dataclass(frozen=True, eq=False)
class ShareTable:
    """How many rows of each batch come from each source, for one set of weights."""

    units: tuple[int, ...]  # integer weights, sum S
    batch_size: int
    prefix: Int64Array  # (period + 1, sources): rows drawn before each batch of a period; the last row is the period's

    @property
    def period(self) -> int:
        """Batches after which every share is exact and the table starts over: S / gcd(S, batch size)."""
        return len(self.prefix) - 1

    def taken(self, batches: Int64Array) -> Int64Array:
        """Rows drawn from each source before batch t, for each t ≥ 0 of `batches` (k,): int64 (k, sources)."""
        whole, rest = np.divmod(batches, self.period)
        counts: Int64Array = whole[:, None] * self.prefix[-1] + self.prefix[rest]
        return counts


@lru_cache(maxsize=64)
def share_table(units: tuple[int, ...], batch_size: int) -> ShareTable:
    """Build the table for integer weights, and check it: floor or ceiling in each batch, never a whole row off.

    Raises UsageError when the batch size isn't a positive integer.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; it is a whole number of rows ≥ 1", code="bad-batch-size")
    total = sum(units)
    period = total // math.gcd(total, batch_size)
    base = np.array([unit * batch_size // total for unit in units], dtype=np.int64)
    extra = [unit * batch_size % total for unit in units]  # the fractions of a row, in units of 1/total
    counts = np.tile(base, (period, 1)) + _schedule(extra, total, period)
    prefix = np.zeros((period + 1, len(units)), dtype=np.int64)
    np.cumsum(counts, axis=0, out=prefix[1:])
    _check(units, batch_size, prefix)
    prefix.setflags(write=False)
    return ShareTable(units, batch_size, prefix)


def _schedule(extra: Sequence[int], total: int, period: int) -> Int64Array:
    """Which sources get one more row in which batch: 0 or 1, shape (period, sources).

    Source s is a task of rate extra[s] / total < 1, its i-th extra row has the window
    [⌊(i−1)/rate⌋, ⌈i/rate⌉), and the rates sum to the whole number of extra rows a batch. Earliest deadline first
    fills every window, provided ties go by PD²'s rules: first the task whose next window overlaps this one, then the
    one with the later group deadline (plain earliest-deadline misses windows from three extra rows a batch on).
    """
    plan = np.zeros((period, len(extra)), dtype=np.int64)
    width = sum(extra) // total
    if width == 0:
        return plan
    waiting = [(0, s, 1) for s, rate in enumerate(extra) if rate]  # (release, source, which of its rows)
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int, int, int]] = []
    for t in range(period):
        while waiting and waiting[0][0] <= t:
            _, s, i = heapq.heappop(waiting)
            rate = extra[s]
            deadline = -(-i * total // rate)
            overlap = deadline - i * total // rate
            heapq.heappush(ready, (deadline, -overlap, -_group_deadline(deadline, rate, total), s, i))
        for _ in range(min(width, len(ready))):
            _, _, _, s, i = heapq.heappop(ready)
            plan[t, s] = 1
            heapq.heappush(waiting, (max(i * total // extra[s], t + 1), s, i + 1))
    return plan


def _group_deadline(deadline: int, rate: int, total: int) -> int:
    """End of the run of tight windows that one late row would push along; 0 for rates below a half (PD²)."""
    if 2 * rate < total:
        return 0
    idle = total - rate
    inner = -(-deadline * idle // total)
    return -(-inner * total // idle)


def _check(units: Sequence[int], batch_size: int, prefix: Int64Array) -> None:
    total = sum(units)
    shares = np.array(units, dtype=np.int64) * batch_size
    counts = np.diff(prefix, axis=0)
    error = np.abs(prefix * total - np.arange(len(prefix), dtype=np.int64)[:, None] * shares)
    fair = (counts >= shares // total).all() and (counts <= -(-shares // total)).all()
    if not (fair and (counts.sum(axis=1) == batch_size).all() and (error < total).all() and not error[-1].any()):
        raise AssertionError(f"share table for {tuple(units)} in batches of {batch_size} is not fair: please report it")
