"""Whom a replay budget goes to: orders over candidates, and how a choice compares with what it was taken from. Pure.

Every strategy is an order in which rows are taken until the budget is full. A keyed hash of each record's id stands for
chance: the same records have the same luck in any store, and a smaller budget's choice is part of a larger one's.

    reservoir   by hash: uniform without replacement (bottom-k sampling, Cohen & Kaplan, "Summarizing Data Using Bottom-k
                Sketches", 2007), of which k smallest are enough to remember
    balanced    groups in turn, each by hash: equal numbers, and what a small group can't fill goes to the others
    diverse     the same over finer groups
    importance  groups in turn by weight: row r of a group of weight w comes at (r + ½) / w (the divisor method of
                Sainte-Laguë: any prefix is within a row or so of the weights)

Within a group chance decides, or first the parts that its rows are spread over, in turn.

Numbers in, numbers out; knows no store.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from treering.errors import UsageError

__all__ = ["BottomK", "distances", "importance_shares", "in_turn", "within"]

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_PRUNE_ROWS = 262_144  # 32 bytes each


def in_turn(
    groups: Int64Array,
    hashes: UInt64Array,
    row_ids: Int64Array,
    weights: FloatArray,
    floor_rows: int = 0,
    parts: Int64Array | None = None,
) -> Int64Array:
    """Candidates in the order they are taken, as indices (m ≤ n,); those of groups of weight 0 only up to the floor.

    groups: number of each candidate's group (n,), into `weights` (G,) ≥ 0. floor_rows: rows that each group gets, as far
    as it has them, before any gets more. parts: number of what each candidate is one of within its group (n,), its label for
    instance: a group's rows are spread over them, by taking them in turn.
    """
    turns = np.zeros(len(groups), np.int64) if parts is None else _turns(groups, parts, hashes, row_ids)
    by_group = np.lexsort((row_ids, hashes, turns, groups))
    sizes = np.bincount(groups, minlength=len(weights))
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    weight = weights[groups[by_group]]
    with np.errstate(divide="ignore"):
        due = np.where(weight > 0, (rank + 0.5) / weight, np.inf)
    floor = rank < floor_rows
    due[floor] = rank[floor]
    order = np.lexsort((row_ids[by_group], hashes[by_group], due, ~floor))
    order = order[np.isfinite(due[order])]
    return np.asarray(by_group[order], dtype=np.int64)


def _turns(groups: Int64Array, parts: Int64Array, hashes: UInt64Array, row_ids: Int64Array) -> Int64Array:
    """How many of its part of its group come before each candidate: (n,)."""
    order = np.lexsort((row_ids, hashes, parts, groups))
    begins = np.ones(len(order), bool)
    begins[1:] = (np.diff(groups[order]) != 0) | (np.diff(parts[order]) != 0)
    first = np.flatnonzero(begins)
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return turn


def within(costs: Int64Array, budget: int) -> int:
    """How many of the rows, in this order, fit into the budget: taking ends with the first that doesn't."""
    return int(np.searchsorted(np.cumsum(costs), budget, side="right"))


class BottomK:
    """The rows of smallest hash whose costs fill a budget, from a stream; remembers about twice that many, and never fewer than 262,144."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: list[tuple[UInt64Array, Int64Array, Int64Array, Int64Array]] = []
        self._new = 0  # rows since the last pruning
        self._wait = _PRUNE_ROWS

    def add(self, hashes: UInt64Array, row_ids: Int64Array, groups: Int64Array, costs: Int64Array) -> None:
        """Some more candidates, each array (n,)."""
        self._kept.append((hashes, row_ids, groups, costs))
        self._new += len(hashes)
        if self._new > self._wait:
            self._prune()

    def _prune(self) -> int:
        """Sort, and keep the rows that fit and the first that doesn't, where taking ends; how many fit."""
        hashes, row_ids, groups, costs = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.lexsort((row_ids, hashes))
        fit = within(costs[order], self._budget)
        order = order[: fit + 1]
        self._kept = [(hashes[order], row_ids[order], groups[order], costs[order])]
        self._new, self._wait = 0, max(_PRUNE_ROWS, len(order))  # as many again: sorting stays linear in the stream
        return fit

    def rows(self) -> tuple[Int64Array, Int64Array, int]:
        """(row ids, groups, cost in all) of the rows kept."""
        if not self._kept:
            return np.empty(0, np.int64), np.empty(0, np.int64), 0
        fit = self._prune()
        _, row_ids, groups, costs = self._kept[0]
        return row_ids[:fit], groups[:fit], int(costs[:fit].sum())


def importance_shares(names: Sequence[str], forgetting: Mapping[str, float], floor: float) -> FloatArray:
    """The share of the budget that each group is to get: (G,), summing to 1.

    share_g = floor + (1 − G·floor) · F_g / ΣF, where F_g ≥ 0 is what was forgotten of group g (0 when it isn't named) and
    `floor` the share that every group gets whatever was forgotten; equal shares when nothing was. That domains which
    forget more get more of the replay budget is Dual-Replay's importance weighting, which gives no formula; mixing an
    even share into weights in proportion is that of Exp3 (Auer et al., "The Nonstochastic Multiarmed Bandit Problem",
    2002, with γ = G·floor). Sizes of groups don't enter. Raises UsageError for F that is negative, NaN or infinite, and for
    a floor that all groups together can't get.
    """
    for name, value in forgetting.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not isinstance(name, str) or not number or not 0 <= value < math.inf:
            raise UsageError(
                f"forgetting of {name!r} is {value!r}; it is a number ≥ 0 by the domain's name", code="bad-forgetting"
            )
    if forgetting and not set(forgetting) & set(names):
        raise UsageError(
            f"none of the domains that were forgotten ({', '.join(sorted(forgetting))[:80]}) is in the source",
            code="bad-forgetting",
            hint="domains there: " + ", ".join(names)[:120],
        )
    if floor * len(names) > 1:
        raise UsageError(
            f"{len(names)} domains can't each get {floor:g} of the budget",
            code="bad-floor",
            hint=f"at most {1 / len(names):.3g}",
        )
    lost = np.array([forgetting.get(name, 0.0) for name in names], dtype=np.float64)
    total = math.fsum(lost)
    if total == 0:
        return np.full(len(names), 1 / len(names))
    return floor + (1 - len(names) * floor) * lost / total


def distances(available: Int64Array, taken: Int64Array) -> tuple[float, float]:
    """(total variation, Jensen–Shannon divergence in bits) between two distributions given as counts (G,); both in [0, 1]."""
    p, q = available / available.sum(), taken / taken.sum()
    middle = (p + q) / 2

    def to_middle(x: FloatArray) -> float:
        some = x > 0
        return float(np.sum(x[some] * np.log2(x[some] / middle[some])))

    divergence = (to_middle(p) + to_middle(q)) / 2
    return min(1.0, float(np.abs(p - q).sum() / 2)), min(1.0, max(0.0, divergence))
