import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import UsageError
from treering.evaluation import (
    METRICS,
    Metric,
    Uniform,
    accuracy,
    better_of,
    log_loss,
    macro_f1,
    measure,
    resolve_metric,
    score_answers,
    tool_call_match,
)

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
    for metric in (accuracy, macro_f1):
        assert metric(["a", "b"], ["a", "b"]) == 1.0
        assert metric(["a", "b"], ["b", "a"]) == 0.0
    assert log_loss(["a", "b"], np.eye(2), ["a", "b"]) == 0.0
    assert log_loss(["a", "b"], np.eye(2), ["b", "a"]) == pytest.approx(-math.log(1e-7))


def test_an_empty_slice_is_refused() -> None:
    for metric in METRICS.values():
        with pytest.raises(UsageError, match="no records to score"):
            score_answers(metric, [], [], Uniform(["a"]))


def test_missing_predictions_are_refused() -> None:
    with pytest.raises(UsageError, match="1 predictions for 2 records"):
        macro_f1(["a", "b"], ["a"])


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"unknown metric 'f2'.*accuracy, loss, macro_f1"):
        resolve_metric("f2")


def test_any_callable_is_a_metric_and_goes_by_its_name() -> None:
    def judge(truth: list[str], predicted: list[str]) -> float:
        return 0.25

    assert resolve_metric(judge).name == "judge"
    assert measure(judge, ["a"], ["b"]) == 0.25


@calm
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.floats(0.01, 1), min_size=3, max_size=3)), min_size=1))
def test_loss_is_scikit_learns(rows: list[tuple[str, list[float]]]) -> None:
    truth = [label for label, _ in rows]
    given_ = np.array([weights for _, weights in rows])
    probabilities = given_ / given_.sum(1, keepdims=True)
    expected = sklearn.metrics.log_loss(truth, probabilities, labels=list("abc"))
    assert log_loss(truth, probabilities, list("abc")) == pytest.approx(expected)


def test_a_label_that_the_model_does_not_know_costs_16_nats() -> None:
    assert log_loss(["z"], np.array([[0.5, 0.5]]), ["a", "b"]) == pytest.approx(16.118, abs=1e-3)


def test_a_metric_of_probabilities_asks_for_probabilities_and_one_of_texts_sees_them() -> None:
    class Model:
        classes = ("a", "b")

        def predict(self, texts: list[str]) -> list[str]:
            return ["a"] * len(texts)

        def probabilities(self, texts: list[str]) -> np.ndarray:
            return np.array([[0.25, 0.75]] * len(texts))

    assert score_answers("loss", ["x"], ["b"], Model()) == pytest.approx(-math.log(0.75))
    seen = []

    def judge(texts: list[str], truth: list[str], predicted: list[str]) -> float:
        seen.append((texts, truth, predicted))
        return 0.5

    assert score_answers(Metric("judge", judge, reads="texts"), ["x"], ["b"], Model()) == 0.5
    assert seen == [(["x"], ["b"], ["a"])]
    assert score_answers("accuracy", ["x", "y"], ["b", "a"], Model()) == 0.5


def test_a_model_of_labels_alone_has_no_loss() -> None:
    class Labels:
        def predict(self, texts: list[str]) -> list[str]:
            return ["a"] * len(texts)

    with pytest.raises(UsageError, match="reads probabilities, and this model gives labels alone"):
        score_answers("loss", ["x"], ["a"], Labels())
    with pytest.raises(UsageError, match="which predictions alone don't tell"):
        measure("loss", ["a"], ["a"])


def test_the_uniform_model_knows_nothing_and_answers_the_same_every_time() -> None:
    texts = [f"text {n}" for n in range(4_000)]
    model = Uniform(["a", "b", "c", "d"])
    assert model.predict(texts) == Uniform(["d", "c", "b", "a"]).predict(texts)
    assert score_answers("accuracy", texts, ["a"] * 4_000, model) == pytest.approx(0.25, abs=0.03)
    assert score_answers("loss", texts, ["a"] * 4_000, model) == pytest.approx(math.log(4), rel=1e-6)


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


# -- tool calls


def calls(*made: tuple[str, object]) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in made])


@pytest.mark.parametrize(
    ("truth", "made", "score"),
    [
        ([calls(("f", {"a": 1, "b": [True]}))], [calls(("f", {"b": [True], "a": 1.0}))], 1.0),
        ([calls(("f", {"a": 1}))], [calls(("f", {"a": True}))], 0.0),
        ([calls(("f", {"a": 1}))], [calls(("g", {"a": 1}))], 0.0),
        ([calls(("f", {"a": "1"}))], [calls(("f", {"a": 1}))], 0.0),
        ([calls(("f", {}), ("g", {}))], [calls(("g", {}), ("f", {}))], 1.0),  # in any order
        ([calls(("f", {}))], [calls(("f", {}), ("f", {}))], 0.5),  # one too many
        ([calls(("f", {}), ("f", {}))], [calls(("f", {}))], 0.5),  # one too few
        ([calls(("f", {})), calls(("g", {}))], ["[]", calls(("g", {}))], 0.5),
        ([calls(("f", {}))], ["nonsense"], 0.0),
        ([calls(("f", {}))], ['{"name": "f", "arguments": {}}'], 0.0),
        ([calls(("f", "{oops"))], [calls(("f", "{oops"))], 1.0),  # arguments that were no JSON, alike
    ],
)
def test_a_tool_call_matches_by_name_and_by_arguments_that_are_equal_as_json(
    truth: list[str], made: list[str], score: float
) -> None:
    assert tool_call_match(truth, made) == score


def test_without_any_tool_call_there_is_no_match_to_speak_of() -> None:
    for truth in ([], ["[]"]):
        with pytest.raises(UsageError):
            tool_call_match(truth, truth)


class Talker:
    """A chat model as far as metrics ask it."""

    def predict(self, texts: list[str]) -> list[str]:
        return texts

    def loss(self, texts: list[str]) -> float:
        return 2.0

    def calls(self, texts: list[str]) -> tuple[list[str], list[str]]:
        return [calls(("f", {}))], [calls(("f", {}))]


def test_a_chat_model_is_scored_by_its_loss_its_perplexity_its_calls_and_by_judges_of_replies() -> None:
    given = (["a", "b"], ["a", "c"], Talker())
    assert score_answers("loss", *given) == 2.0
    assert score_answers("perplexity", *given) == pytest.approx(math.exp(2.0))
    assert score_answers("tool_call_match", *given) == 1.0
    assert score_answers("accuracy", *given) == 0.5
    with pytest.raises(UsageError, match="no list of labels"):
        score_answers("macro_f1", *given)
    assert [better_of(name) for name in ("loss", "perplexity", "tool_call_match", "my_own")] == [
        "lower",
        "lower",
        "higher",
        "higher",
    ]


def test_a_classifier_makes_no_tool_calls_and_has_a_perplexity() -> None:
    model = Uniform(["a", "b"])
    with pytest.raises(UsageError, match="predicts labels"):
        score_answers("tool_call_match", ["x"], ["a"], model)
    assert score_answers("perplexity", ["x"], ["a"], model) == pytest.approx(2.0)
