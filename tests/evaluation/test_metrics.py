import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import UsageError
from treering.evaluation import METRICS, accuracy, macro_f1, measure, resolve_metric

calm = settings(deadline=None)  # two busy cores make any time limit flaky


labels = st.sampled_from(["refund", "balance", "greeting", "", "a\0", "a", "ü"])
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=60)


@calm
@given(pairs)
def test_accuracy_is_scikit_learns(rows: list[tuple[str, str]]) -> None:
    truth, predicted = zip(*rows, strict=True)
    assert accuracy(truth, predicted) == pytest.approx(
        sklearn.metrics.accuracy_score(_codes(truth), _codes(predicted)), abs=1e-12
    )


@calm
@given(pairs)
def test_macro_f1_is_scikit_learns_over_the_labels_that_occur(rows: list[tuple[str, str]]) -> None:
    truth, predicted = zip(*rows, strict=True)
    for labels in (None, sorted({*truth, *predicted}), ["refund", "never seen"]):
        wanted = sorted(set(truth)) if labels is None else labels
        assert macro_f1(truth, predicted, labels=labels) == pytest.approx(_sk(truth, predicted, wanted), abs=1e-12)


def test_macro_f1_of_a_stray_label_costs_a_miss_not_a_whole_class() -> None:
    truth = ["a"] * 10 + ["b"] * 10
    predicted = ["a"] * 9 + ["z"] + ["b"] * 10
    assert macro_f1(truth, predicted) == pytest.approx((18 / 19 + 1) / 2)
    assert macro_f1(truth, predicted, labels=["a", "b", "z"]) == pytest.approx((18 / 19 + 1 + 0) / 3)


def test_labels_that_differ_by_a_trailing_nul_are_different() -> None:
    assert macro_f1(["a\0", "a"], ["a", "a\0"]) == 0.0


def test_a_perfect_and_a_hopeless_model_score_one_and_zero() -> None:
    for metric in METRICS.values():
        assert metric(["a", "b"], ["a", "b"]) == 1.0
        assert metric(["a", "b"], ["b", "a"]) == 0.0


def test_an_empty_slice_is_refused() -> None:
    for metric in METRICS.values():
        with pytest.raises(UsageError, match="no records to score"):
            metric([], [])


def test_missing_predictions_are_refused() -> None:
    with pytest.raises(UsageError, match="1 predictions for 2 records"):
        macro_f1(["a", "b"], ["a"])


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"unknown metric 'f2'.*accuracy, macro_f1"):
        resolve_metric("f2")


def test_any_callable_is_a_metric_and_goes_by_its_name() -> None:
    def judge(truth: list[str], predicted: list[str]) -> float:
        return 0.25

    assert resolve_metric(judge)[0] == "judge"
    assert measure(judge, ["a"], ["b"]) == 0.25


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "high"])
def test_a_metric_that_gives_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"not a (finite )?number"):
        measure(lambda truth, predicted: value, ["a"], ["a"])  # type: ignore[arg-type,return-value]


def _codes(labels: tuple[str, ...]) -> list[int]:
    return [["refund", "balance", "greeting", "", "a\0", "a", "ü", "never seen"].index(label) for label in labels]


def _sk(truth: tuple[str, ...], predicted: tuple[str, ...], wanted: list[str]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = np.array(_codes(tuple(wanted)))
        return float(
            sklearn.metrics.f1_score(_codes(truth), _codes(predicted), labels=codes, average="macro", zero_division=0)
        )
