"""From a model's answers to the records of one slice to one number.

A metric reads predictions, probabilities, or the texts as well: `Metric` says which. A bare callable
`(truth, predicted) -> float` over two equally long sequences of labels is one of predictions, better the higher. Knows
nothing of slices, adapters or the store.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from treering.errors import UsageError

__all__ = [
    "METRICS",
    "Answers",
    "Metric",
    "MetricLike",
    "Uniform",
    "accuracy",
    "better_of",
    "log_loss",
    "macro_f1",
    "measure",
    "resolve_metric",
    "score_answers",
    "tool_call_match",
]

LEAST = 1e-7  # probability that a loss takes for none: about what float32 can tell from 0 beside 1
FloatArray = npt.NDArray[np.floating[Any]]


class Answers(Protocol):
    """What a metric may ask a model for. `probabilities` and `classes` are asked of only by metrics that read them."""

    def predict(self, texts: list[str]) -> list[str]:
        """One label per text."""
        ...


@dataclass(frozen=True, slots=True)
class Metric:
    """How a model's answers become one finite number.

    `reads` says what `function` is called with, all of n records:
    "predictions": `(truth, predicted)`, two sequences of labels.
    "probabilities": `(truth, probabilities, classes)`, the second an array (n, classes), as `Adapter.probabilities` gives.
    "texts": `(texts, truth, predicted)`: for a judge that reads what was asked, a language model or a person.
    "loss": `(loss,)`, the loss in nats: of labels, or per token of what an assistant said.
    "calls": `(truth, made)` of chat models: JSON arrays of tool calls, one a reply that calls a tool.
    `better`: whether a higher or a lower number is the better one; scores that are fractions of 1 are better the higher.
    """

    name: str
    function: Callable[..., float]
    reads: Literal["predictions", "probabilities", "texts", "loss", "calls"] = "predictions"
    better: Literal["higher", "lower"] = "higher"

    def __call__(self, *answers: Any) -> float:
        """What `function` makes of the answers that it reads."""
        return self.function(*answers)


MetricLike = str | Metric | Callable[[Sequence[str], Sequence[str]], float]


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


def log_loss(truth: Sequence[str], probabilities: FloatArray, classes: Sequence[str]) -> float:
    """Mean of −ln p(true label), in nats, ≥ 0, better the lower. probabilities: (n, classes).

    A label that isn't among the classes, and one of less probability, counts as 1e-7: 16.1 nats. Raises UsageError when
    shapes don't fit.
    """
    given = np.asarray(probabilities, np.float64)
    if given.shape != (len(truth), len(classes)):
        raise UsageError(
            f"probabilities of shape {given.shape} for {len(truth)} records and {len(classes)} classes",
            code="length-mismatch",
        )
    if not len(truth):
        raise _no_records()
    number = {label: n for n, label in enumerate(classes)}
    at = np.fromiter((number.get(label, -1) for label in truth), np.int64, len(truth))
    p = np.where(at >= 0, given[np.arange(len(at)), at], 0.0)
    return float(np.mean(-np.log(np.clip(p, LEAST, 1.0)))) + 0.0  # + 0.0: never -0.0


def tool_call_match(truth: Sequence[str], made: Sequence[str]) -> float:
    """Share of tool calls that are right, in [0, 1]: the same name and arguments that are equal as JSON.

    Both are JSON arrays of {"name", "arguments"}, one a reply; the order of the calls in a reply doesn't count, and each
    counts once. A call too many costs as much as one that is missing: the sum of right calls over the sum of the greater
    number of calls of each reply. What isn't such an array holds no calls. Raises UsageError without any call.
    """
    _check_lengths(truth, made)
    right = whole = 0
    for wanted, found in zip(map(_calls, truth), map(_calls, made), strict=True):
        left = list(found)
        for call in wanted:
            if call in left:
                left.remove(call)
                right += 1
        whole += max(len(wanted), len(found))
    if not whole:
        raise UsageError("there are no tool calls to match", code="empty-slice", hint="evaluate by loss instead")
    return right / whole


def _calls(text: str) -> list[str]:
    """The calls of one reply, each as text that is the same for what is equal as JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [json.dumps([one.get("name"), _plain(one.get("arguments"))], sort_keys=True) for one in calls]


def _plain(value: Any) -> Any:
    """The same with whole numbers as such: 1 and 1.0 are one number in JSON, and true is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("accuracy", accuracy),
        "loss": Metric("loss", log_loss, reads="probabilities", better="lower"),
        "macro_f1": Metric("macro_f1", macro_f1),
        "perplexity": Metric("perplexity", _perplexity, reads="loss", better="lower"),
        "tool_call_match": Metric("tool_call_match", tool_call_match, reads="calls"),
    }
)


def resolve_metric(metric: MetricLike) -> Metric:
    """The metric that a built-in name, a `Metric` or any callable `(truth, predicted) -> float` stands for.

    Raises UsageError for a name that isn't built in.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            known = ", ".join(sorted(METRICS))
            raise UsageError(
                f"unknown metric {metric!r}", code="unknown-metric", hint=f"built in: {known}; or pass a callable"
            )
        return METRICS[metric]
    if not callable(metric):
        raise UsageError(f"a metric is a name or a callable, got {type(metric).__name__}", code="unknown-metric")
    return Metric(str(getattr(metric, "__name__", type(metric).__name__)), metric)


def better_of(name: str) -> Literal["higher", "lower"]:
    """Whether a higher or a lower score of a metric is the better one; higher, of one that isn't built in."""
    return METRICS[name].better if name in METRICS else "higher"


def measure(metric: MetricLike, truth: Sequence[str], predicted: Sequence[str]) -> float:
    """One finite score of predictions.

    Raises UsageError when the metric is unknown, reads more than predictions, or gives anything but a finite number.
    """
    found = resolve_metric(metric)
    if found.reads != "predictions":
        raise UsageError(
            f"metric {found.name!r} reads {found.reads}, which predictions alone don't tell", code="bad-metric"
        )
    _check_lengths(truth, predicted)
    return _finite(found, truth, predicted)


def score_answers(metric: MetricLike, texts: Sequence[str], truth: Sequence[str], model: Answers) -> float:
    """One finite score of what a model answers to these texts; all of length n.

    Raises UsageError as `measure` does, and for a metric of probabilities when the model gives none.
    """
    found = resolve_metric(metric)
    if not len(texts):
        raise _no_records()
    told: Any = model
    if found.reads == "loss":
        return _finite(found, score_answers(METRICS["loss"], texts, truth, model))
    if found.reads == "calls":
        if not hasattr(told, "calls"):
            raise UsageError(
                f"metric {found.name!r} reads tool calls, and this model predicts labels", code="no-calls",
                hint="evaluate by accuracy or macro_f1",
            )  # fmt: skip
        return _finite(found, *told.calls(list(texts)))
    if hasattr(told, "loss") and found in (METRICS["loss"], METRICS["macro_f1"]):
        if found is METRICS["macro_f1"]:
            raise UsageError(
                "macro_f1 is a score of labels, and a chat model says what no list of labels holds",
                code="no-labels",
                hint="evaluate by loss, perplexity or tool_call_match, or pass a callable that judges replies",
            )
        return _finite(Metric("loss", float), told.loss(list(texts)))
    if found.reads == "probabilities":
        if not hasattr(told, "probabilities") or not hasattr(told, "classes"):
            raise UsageError(
                f"metric {found.name!r} reads probabilities, and this model gives labels alone",
                code="no-probabilities",
                hint="evaluate by accuracy or macro_f1; predictions from elsewhere may bring a column `probability`",
            )
        return _finite(found, truth, told.probabilities(list(texts)), list(told.classes))
    predicted = model.predict(list(texts))
    _check_lengths(truth, predicted)
    if found.reads == "texts":
        return _finite(found, list(texts), truth, predicted)
    return _finite(found, truth, predicted)


class Uniform:
    """A model that knows the labels and nothing else: every label of each text is as likely as any other.

    What it answers is drawn from a hash of the text, so it answers the same every time. The baseline of forward transfer.
    """

    def __init__(self, classes: Iterable[str]) -> None:
        self.classes = tuple(sorted(set(classes)))
        if not self.classes:
            raise UsageError("a baseline needs at least one label to draw from", code="empty-labels")

    def predict(self, texts: Sequence[str]) -> list[str]:
        """One label per text."""
        drawn = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
        return [self.classes[int.from_bytes(one, "big") % len(self.classes)] for one in drawn]

    def probabilities(self, texts: Sequence[str]) -> FloatArray:
        """Float32 (n, classes)."""
        return np.full((len(texts), len(self.classes)), 1.0 / len(self.classes), np.float32)


def _finite(metric: Metric, *arguments: Any) -> float:
    value = metric.function(*arguments)
    try:
        score = float(value)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"metric {metric.name!r} gave {value!r}, not a number", code="bad-metric") from exc
    if not math.isfinite(score):
        raise UsageError(f"metric {metric.name!r} gave {score}, not a finite number", code="bad-metric")
    return score


def _check_lengths(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted):
        raise UsageError(f"{len(predicted)} predictions for {len(truth)} records", code="length-mismatch")
    if len(truth) == 0:
        raise _no_records()


def _no_records() -> UsageError:
    return UsageError("no records to score", code="empty-slice", hint="evaluate on a ref with held-out records")


def _count(codes: npt.NDArray[np.int64], labels: int) -> npt.NDArray[np.int64]:
    """Occurrences of codes 0 … labels-1, shape (labels,); the code `labels` stands for every other label."""
    return np.bincount(codes, minlength=labels + 1)[:labels]
