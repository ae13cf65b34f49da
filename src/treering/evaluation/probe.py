"""PURE. A linear probe: whether what a model knew is in its features still, though its answers have gone wrong.

After Zheng et al., "Spurious Forgetting in Continual Learning of Language Models" (2025): freeze everything, fit a fresh
linear head on the features, and compare. Ours is fitted in closed form, as linear discriminant analysis: class means
under one pooled covariance, shrunk towards a sphere (Ledoit & Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004, gives the form; the amount is fixed here). Does not compute features (training).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treering.errors import UsageError

from .diagnosis import ProbedSlice

__all__ = ["LinearProbe", "fit_probe", "probed", "spurious_share"]

SHRINK = 0.05  # share of the covariance that becomes a sphere of the same trace: classes of few records stay invertible
MOSTLY = 0.5  # of a drop: from here on its cause is what most of it is

Features = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """A linear head. weight: float64 (classes, width); bias: float64 (classes,); no class is likelier than another."""

    classes: tuple[str, ...]
    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    def predict(self, features: Features) -> list[str]:
        """The class of each row of features (n, width)."""
        best = (np.asarray(features, np.float64) @ self.weight.T + self.bias).argmax(1)
        return [self.classes[n] for n in best.tolist()]


def fit_probe(features: Features, labels: Sequence[str]) -> LinearProbe:
    """Fit a fresh head on features (n, width) of n labelled records, every class counting alike.

    Raises UsageError without records, or when features and labels differ in number.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) != len(labels):
        raise UsageError(f"features of shape {x.shape} for {len(labels)} labels", code="length-mismatch")
    if not len(x):
        raise UsageError("there are no records to fit a probe on", code="empty-slice")
    classes = tuple(sorted(set(labels)))
    number = {label: n for n, label in enumerate(classes)}
    codes = np.fromiter((number[label] for label in labels), np.int64, len(labels))
    counts = np.bincount(codes, minlength=len(classes))
    sums = np.zeros((len(classes), x.shape[1]))
    np.add.at(sums, codes, x)
    means = sums / counts[:, None]
    scaled = (x - means[codes]) / np.sqrt(counts[codes])[:, None]  # each class weighs the same in the covariance
    covariance = scaled.T @ scaled / len(classes)
    spread = float(np.trace(covariance)) / x.shape[1]
    floor = max(spread, 1e-12 * max(1.0, float(np.square(x).mean())))  # without any spread: the nearest class mean
    covariance = (1.0 - SHRINK) * covariance + SHRINK * floor * np.eye(x.shape[1])
    weight = np.linalg.solve(covariance, means.T).T
    return LinearProbe(classes, weight, -0.5 * np.einsum("cw,cw->c", weight, means))


def probed(name: str, *, learned: float, final: float, probe: float) -> ProbedSlice:
    """How much of one slice's drop a fresh head gets back. Scores are fractions of 1, better the higher."""
    drop = max(0.0, learned - final)
    recovered = min(drop, max(0.0, probe - final))
    return ProbedSlice(
        slice=name,
        learned=learned,
        final=final,
        probe=probe,
        drop=drop,
        recovered=recovered,
        lost=drop - recovered,
        cause="alignment drift" if recovered > MOSTLY * drop else "knowledge loss",
    )


def spurious_share(slices: Sequence[ProbedSlice]) -> float | None:
    """Share of all drops that is alignment drift: Σ recovered / Σ drop over the slices that dropped; None if none did."""
    drops = sum(one.drop for one in slices)
    return sum(one.recovered for one in slices) / drops if drops > 0 else None
