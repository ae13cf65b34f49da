"""Class means and one pooled covariance of frozen features: a classifier without any gradient. PURE.

Streaming linear discriminant analysis, Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant
Analysis" (2020). Batches are merged by the exact update of Chan, Golub & LeVeque, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances" (1979), so neither their sizes nor their order matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Statistic"]


class Statistic:
    """What is known of the features of each class: how many, their mean, and the scatter about it, pooled.

    Sums are kept in float64, and given out as float32.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.means = torch.zeros((classes, width), dtype=torch.float64)
        self.scatter = torch.zeros((width, width), dtype=torch.float64)  # Σ (x − mean of its class)(…)ᵀ

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in records: features (n, width), labels int64 (n,)."""
        features = features.double()
        classes = len(self.counts)
        counts = torch.bincount(labels, minlength=classes).double()
        sums = torch.zeros_like(self.means).index_add_(0, labels, features)
        means = sums / counts.clamp_min(1.0)[:, None]
        centred = features - means[labels]
        shift = means - self.means
        total = self.counts + counts
        weight = self.counts * counts / total.clamp_min(1.0)  # 0 unless the class was there before and comes now
        self.scatter += centred.T @ centred + (shift * weight[:, None]).T @ shift
        self.means += shift * (counts / total.clamp_min(1.0))[:, None]
        self.counts = total

    def head(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """The discriminant as a linear head, under equal class priors: weight (classes, width), bias (classes,), float32.

        shrinkage: share of a multiple of 1, of the same trace, in the covariance; above 0 it can always be inverted. A
        class without records gets a bias so low that it is never the answer.
        """
        width = len(self.scatter)
        freedom = max(1.0, float(self.counts.sum()) - float((self.counts > 0).sum()))
        covariance = self.scatter / freedom
        level = max(float(covariance.trace()) / width, 1e-12)
        covariance = (1.0 - shrinkage) * covariance + (shrinkage * level + 1e-9 * level) * torch.eye(width).double()
        weight = torch.linalg.solve(covariance, self.means.T).T
        bias = -0.5 * (weight * self.means).sum(1)
        bias[self.counts == 0] = -1e9
        return weight.float().contiguous(), bias.float().contiguous()

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, float32."""
        return {
            "stat.counts": self.counts.float(),
            "stat.means": self.means.float(),
            "stat.scatter": self.scatter.float(),
        }

    @staticmethod
    def shapes(classes: int, width: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `tensors`."""
        return {"stat.counts": (classes,), "stat.means": (classes, width), "stat.scatter": (width, width)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved tensors, whose classes are the first of these."""
        known = len(tensors["stat.counts"])
        self.counts[:known] = tensors["stat.counts"].double()
        self.means[:known] = tensors["stat.means"].double()
        self.scatter = tensors["stat.scatter"].double()
