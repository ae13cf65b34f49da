from __future__ import annotations

import numpy as np
import pytest

from treering.errors import UsageError
from treering.evaluation import fit_probe
from treering.evaluation.probe import probed, spurious_share


def clouds(rng: np.random.Generator, n: int, spread: float = 0.3) -> tuple[np.ndarray, list[str]]:
    """Three classes around three corners."""
    corners = np.array([[1.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 5.0], [0.0, 0.0, 1.0, 5.0]])
    codes = rng.integers(0, 3, n)
    return corners[codes] + spread * rng.standard_normal((n, 4)), ["abc"[code] for code in codes]


def test_a_fresh_head_finds_what_is_linearly_there() -> None:
    rng = np.random.default_rng(0)
    features, labels = clouds(rng, 600)
    asked, truth = clouds(rng, 300)
    right = np.mean([p == t for p, t in zip(fit_probe(features, labels).predict(asked), truth, strict=True)])
    assert right > 0.9


def test_a_fresh_head_finds_nothing_in_features_that_hold_nothing() -> None:
    rng = np.random.default_rng(0)
    _, labels = clouds(rng, 600)
    head = fit_probe(rng.standard_normal((600, 4)), labels)
    _, truth = clouds(rng, 300)
    predicted = head.predict(rng.standard_normal((300, 4)))
    assert np.mean([p == t for p, t in zip(predicted, truth, strict=True)]) < 0.5


def test_a_rare_class_counts_like_any_other() -> None:
    rng = np.random.default_rng(0)
    features, labels = clouds(rng, 1_000, spread=0.6)
    kept = [n for n, label in enumerate(labels) if label != "c" or n < 20]
    head = fit_probe(features[kept], [labels[n] for n in kept])
    asked, truth = clouds(rng, 600, spread=0.6)
    rare = [p for p, t in zip(head.predict(asked), truth, strict=True) if t == "c"]
    assert rare.count("c") / len(rare) > 0.6


def test_features_without_any_spread_are_told_by_the_nearest_mean() -> None:
    head = fit_probe(np.array([[0.0, 1.0], [1.0, 0.0]]), ["a", "b"])
    assert head.predict(np.array([[0.1, 0.9], [0.8, 0.3]])) == ["a", "b"]


def test_one_class_and_dead_features_do_not_break_it() -> None:
    assert fit_probe(np.zeros((5, 3)), ["a"] * 5).predict(np.zeros((2, 3))) == ["a", "a"]


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(UsageError, match="no records"):
        fit_probe(np.zeros((0, 3)), [])
    with pytest.raises(UsageError, match="for 2 labels"):
        fit_probe(np.zeros((3, 3)), ["a", "b"])


def test_the_share_of_drift_is_what_comes_back_of_all_drops() -> None:
    back = probed("v1", learned=0.9, final=0.5, probe=0.85)
    assert (back.drop, back.recovered, back.cause) == (pytest.approx(0.4), pytest.approx(0.35), "alignment drift")
    gone = probed("v2", learned=0.9, final=0.5, probe=0.45)  # a probe that does worse recovers nothing
    assert (gone.recovered, gone.lost, gone.cause) == (0.0, pytest.approx(0.4), "knowledge loss")
    more = probed("v3", learned=0.6, final=0.5, probe=0.9)  # nor more than was lost
    assert more.recovered == pytest.approx(0.1)
    assert spurious_share([back, gone, more]) == pytest.approx((0.35 + 0.0 + 0.1) / 0.9)
    assert spurious_share([]) is None


def test_how_often_a_class_comes_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    features, labels = clouds(rng, 90)
    often = [n for n, label in enumerate(labels) for _ in range(5 if label == "a" else 1)]
    once, five_times = fit_probe(features, labels), fit_probe(features[often], [labels[n] for n in often])
    assert np.allclose(once.weight, five_times.weight)
    assert np.allclose(once.bias, five_times.bias)
