from __future__ import annotations

import math

import numpy as np
import pytest

from treering.errors import UsageError
from treering.evaluation import ScoreMatrix, summarise


def matrix(last: float, names: tuple[str, str] = ("s@v1", "s@v2"), **more: object) -> ScoreMatrix:
    values = np.array([[0.9, math.nan], [last, 0.8]])
    return ScoreMatrix(rounds=("s:1", "s:2"), slices=names, values=values, **more)  # type: ignore[arg-type]


def test_seeds_are_summed_up_as_mean_and_sample_standard_deviation() -> None:
    found = summarise([matrix(0.5), matrix(0.7), matrix(0.9)])
    bwt = found.numbers["bwt"]
    assert (bwt.mean, bwt.sd, bwt.n) == (pytest.approx(-0.2), pytest.approx(0.2), 3)
    assert bwt.values == pytest.approx([-0.4, -0.2, 0.0])
    assert found.final["s@v1"].mean == pytest.approx(0.7)
    assert found.final["s@v2"].sd == 0.0
    assert "bwt         -20.0 ± 20.0" in found.table()
    assert found.table().endswith("3 runs, mean ± standard deviation   (macro_f1, points of 100)")


def test_orderings_are_matched_by_slice_and_not_by_position() -> None:
    other = ScoreMatrix(("s:1", "s:2"), ("s@v2", "s@v1"), np.array([[0.9, math.nan], [0.4, 0.6]]))
    assert summarise([matrix(0.5), other]).final["s@v2"].values == [0.8, 0.4]


def test_a_number_that_one_run_lacks_is_left_out() -> None:
    one_round = ScoreMatrix(("s:1",), ("s@v1",), np.array([[0.9]]))
    found = summarise({"a": matrix(0.5), "b": one_round})
    assert set(found.numbers) == {"average"}
    assert set(found.final) == {"s@v1"}


def test_one_run_has_no_deviation() -> None:
    assert summarise([matrix(0.5)]).numbers["average"].sd is None


def test_nothing_and_different_metrics_cannot_be_summed_up() -> None:
    with pytest.raises(UsageError, match="no score matrix"):
        summarise([])
    with pytest.raises(UsageError, match="different metrics"):
        summarise([matrix(0.5), matrix(0.5, metric="accuracy")])
