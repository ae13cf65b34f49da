"""Scores of predictions against the truth, as fractions of 1.

A metric is any callable `(truth, predicted) -> float` over two equally long sequences of labels. Knows nothing of
slices, adapters or the store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from treering.errors import UsageError

__all__ = ["METRICS", "Metric", "accuracy", "macro_f1", "measure", "resolve_metric"]

Metric = Callable[[Sequence[str], Sequence[str]], float]


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of records whose predicted label is the true one, in [0, 1].

    Raises UsageError when the sequences are empty or differ in length.
    """
    _check_lengths(truth, predicted)
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def macro_f1(truth: Sequence[str], predicted: Sequence[str], *, labels: Iterable[str] | None = None) -> float:
    """Unweighted mean over labels of F1 = 2·TP / (2·TP + FP + FN), in [0, 1].

    The mean runs over the labels that occur in `truth` unless `labels` says otherwise. So a wrong prediction costs its
    true label a miss, but a label from outside a slice doesn't enter the slice's mean as another zero: with a slice per
    domain and one head over all domains, that would count one stray prediction as heavily as a whole lost class. Where
    every label occurs in `truth` this is scikit-learn's `f1_score(average="macro")`; otherwise it is the same call with
    `labels=` given. A label that neither occurs nor is predicted scores 0 (scikit-learn's `zero_division=0`).

    Raises UsageError when the sequences are empty or differ in length, or when `labels` is empty.
    """
    _check_lengths(truth, predicted)
    wanted = list(dict.fromkeys(truth if labels is None else labels))
    if not wanted:
        raise UsageError("macro_f1 needs at least one label to average over", code="empty-labels")
    # A dict, not np.unique: numpy strings drop trailing NULs, which would merge two labels that differ.
    codes = {label: code for code, label in enumerate(wanted)}
    other = len(wanted)
    true = np.fromiter((codes.get(label, other) for label in truth), np.int64, len(truth))
    pred = np.fromiter((codes.get(label, other) for label in predicted), np.int64, len(predicted))
    hits = _count(true[true == pred], other)
    support, claimed = _count(true, other), _count(pred, other)
    # 2·TP + FP + FN = (TP + FN) + (TP + FP)
    return float(np.mean(2 * hits / np.maximum(support + claimed, 1)))


METRICS: Mapping[str, Metric] = MappingProxyType({"accuracy": accuracy, "macro_f1": macro_f1})


def resolve_metric(metric: str | Metric) -> tuple[str, Metric]:
    """Name and function of a metric given as a built-in name or as any callable.

    Raises UsageError for a name that isn't built in.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            known = ", ".join(sorted(METRICS))
            raise UsageError(
                f"unknown metric {metric!r}", code="unknown-metric", hint=f"built in: {known}; or pass a callable"
            )
        return metric, METRICS[metric]
    if not callable(metric):
        raise UsageError(f"a metric is a name or a callable, got {type(metric).__name__}", code="unknown-metric")
    return str(getattr(metric, "__name__", type(metric).__name__)), metric


def measure(metric: str | Metric, truth: Sequence[str], predicted: Sequence[str]) -> float:
    """One finite score. Raises UsageError when the metric is unknown or gives anything but a finite number."""
    name, function = resolve_metric(metric)
    _check_lengths(truth, predicted)
    value = function(truth, predicted)
    try:
        score = float(value)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"metric {name!r} gave {value!r}, not a number", code="bad-metric") from exc
    if not math.isfinite(score):
        raise UsageError(f"metric {name!r} gave {score}, not a finite number", code="bad-metric")
    return score


def _check_lengths(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted):
        raise UsageError(f"{len(predicted)} predictions for {len(truth)} records", code="length-mismatch")
    if len(truth) == 0:
        raise UsageError("no records to score", code="empty-slice", hint="evaluate on a ref with held-out records")


def _count(codes: npt.NDArray[np.int64], labels: int) -> npt.NDArray[np.int64]:
    """Occurrences of codes 0 … labels-1, shape (labels,); the code `labels` stands for every other label."""
    return np.bincount(codes, minlength=labels + 1)[:labels]
