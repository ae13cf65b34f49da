"""Draw a source's rows by weight, exactly: pure functions of position over integer weights.

An epoch of n draws is a systematic sample (Madow & Madow, "On the Theory of Systematic Sampling", 1944). Lay the rows
end to end, each as long as its weight w of W in all; position p of epoch e is the point (p·W + φ_e) / n, and draws the
row it falls on. So each row comes ⌊n·w/W⌋ or ⌈n·w/W⌉ times an epoch. φ_e turns by the golden ratio from epoch to epoch,
so that over many epochs each comes in proportion. All in integers: the same rows on any machine. (Within one epoch rows
that stand at a fixed distance may come together or not at all; over epochs that evens out.)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treering.errors import UsageError
from treering.mixing.permute import Int64Array, hash64

__all__ = ["MAX_SAMPLED_ROWS", "Sampled", "balanced_weights", "integer_weights", "weighted_rows"]

MAX_SAMPLED_ROWS = 2**31  # p·(W mod n) has to stay below 2⁶³
_MOST = 2**62  # of W
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / the golden ratio


@dataclass(frozen=True, eq=False)
class Sampled:
    """How one source is drawn by weight: the end of each row on the line, int64 (n,), and the digest of that."""

    cumulative: Int64Array

    @classmethod
    def of(cls, kind: str, values: Any) -> Sampled:
        """From group numbers ("balanced", int64) or weights ("weighted", float64), one per training row (n,).

        Raises UsageError for weights that are negative, NaN, infinite or all 0, and for more than 2³¹ rows.
        """
        if len(values) > MAX_SAMPLED_ROWS:
            raise UsageError(
                f"{len(values):,} rows can't be drawn by weight; {MAX_SAMPLED_ROWS:,} can", code="too-many-rows"
            )
        weights = balanced_weights(values) if kind == "balanced" else integer_weights(values)
        return cls(np.cumsum(weights, dtype=np.int64))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the cumulative weights: what decides which rows come."""
        return hashlib.sha256(self.cumulative.astype("<i8").tobytes()).hexdigest()


def balanced_weights(groups: Int64Array) -> Int64Array:
    """Weights that give every group the same total: int64 (n,), from the number of each row's group (n,).

    Exact where the least common multiple of the groups' sizes allows it, else to one part in 2³¹ or better.
    """
    if not len(groups):
        return np.empty(0, np.int64)
    sizes = np.bincount(groups)
    present = sizes[sizes > 0]
    multiple = 1
    for size in np.unique(present).tolist():
        multiple = math.lcm(multiple, size)
        if multiple * len(present) >= _MOST:
            return integer_weights(1 / sizes[groups])
    shares = np.zeros(len(sizes), np.int64)
    shares[sizes > 0] = multiple // present
    return shares[groups]


def integer_weights(weights: npt.NDArray[np.float64]) -> Int64Array:
    """Weights as integers that add up to no more than 2⁶²: int64 (n,). A weight above 0 stays above 0.

    Whole numbers stay as they are where they fit; others are rounded, the largest to about 2⁶²/n, so by elementwise
    arithmetic alone, which gives the same on any machine.
    """
    weights = np.asarray(weights, np.float64)
    if not len(weights):
        return np.empty(0, np.int64)
    if not np.isfinite(weights).all() or weights.min() < 0:
        bad = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise UsageError(f"a row has the weight {bad}; weights are finite numbers ≥ 0", code="bad-weights")
    largest = float(weights.max())
    if largest == 0:
        raise UsageError("all rows have the weight 0: there is nothing to draw", code="bad-weights")
    bits = 62 - len(weights).bit_length()
    if largest <= 2**bits and bool((weights == np.floor(weights)).all()):
        return weights.astype(np.int64)
    whole = np.rint(weights / largest * float(2**bits)).astype(np.int64)
    return np.where(weights > 0, np.maximum(whole, 1), 0)


def weighted_rows(positions: Int64Array, epochs: Int64Array, cumulative: Int64Array, key: int) -> Int64Array:
    """The row that each virtual position p (0 ≤ p < n) of its epoch draws: int64 (k,).

    `cumulative`: the ends of the rows (n,), as in `Sampled`. `key` decides where the turning begins.
    """
    n, total = len(cumulative), int(cumulative[-1])
    start = hash64(np.array(0), key)[0]
    turn = np.asarray(epochs, np.int64).astype(np.uint64) * _GOLDEN + start  # a fraction of 2⁶⁴, wrapping
    phase = ((turn >> np.uint64(11)).astype(np.float64) * 2.0**-53 * float(total)).astype(np.int64)
    phase = np.minimum(phase, total - 1)
    # ⌊(p·W + φ) / n⌋ without leaving 64 bits: W = a·n + b, φ = c·n + d.
    a, b = divmod(total, n)
    c, d = np.divmod(phase, n)
    point = positions * a + c + (positions * b + d) // n
    return np.asarray(np.searchsorted(cumulative, point, side="right"), dtype=np.int64)
