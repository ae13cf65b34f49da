import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import UsageError
from treering.evaluation import ScoreMatrix

calm = settings(deadline=None)  # two busy cores make any time limit flaky


NAN = math.nan


def square(values: list[list[float]]) -> ScoreMatrix:
    n = len(values)
    return ScoreMatrix(
        rounds=tuple(f"support:{i + 1}" for i in range(n)),
        slices=tuple(f"support@v{j + 1}" for j in range(n)),
        values=np.array(values),
    )


scores = st.floats(0, 1, allow_nan=False)
squares = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(scores, min_size=n, max_size=n), min_size=n, max_size=n).map(square)
)


def test_the_three_numbers_of_a_small_matrix() -> None:
    matrix = square([[0.9, NAN, NAN], [0.95, 0.8, NAN], [0.6, 0.7, 1.0]])
    assert matrix.average == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert matrix.bwt == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert matrix.forgetting == pytest.approx(((0.95 - 0.6) + (0.8 - 0.7)) / 2)


@calm
@given(squares)
def test_bwt_is_the_mean_over_earlier_slices_of_last_minus_diagonal(matrix: ScoreMatrix) -> None:
    r, last = matrix.values, len(matrix.rounds) - 1
    assert matrix.bwt == pytest.approx(sum(r[last, j] - r[j, j] for j in range(last)) / last)


@calm
@given(squares)
def test_forgetting_is_never_below_minus_bwt(matrix: ScoreMatrix) -> None:
    assert matrix.forgetting >= -matrix.bwt - 1e-12


@calm
@given(squares)
def test_a_matrix_that_never_changes_forgets_nothing(matrix: ScoreMatrix) -> None:
    same = square([matrix.values[0].tolist()] * len(matrix.rounds))
    assert same.bwt == 0.0
    assert same.forgetting == 0.0


@calm
@given(squares, st.booleans())
def test_json_gives_the_same_matrix_to_the_last_bit(matrix: ScoreMatrix, lower: bool) -> None:
    values = np.where(np.tri(len(matrix.rounds), dtype=bool), matrix.values, NAN) if lower else matrix.values
    matrix = square(values.tolist())
    text = matrix.to_json()
    assert ScoreMatrix.from_json(text) == matrix
    assert ScoreMatrix.from_model(json.loads(text)) == matrix
    assert json.loads(text)["bwt"] == matrix.bwt


def test_json_says_null_where_nothing_was_evaluated() -> None:
    document = json.loads(square([[0.5, NAN], [NAN, 0.5]]).to_json())
    assert document["values"] == [[0.5, None], [None, 0.5]]
    assert document["bwt"] is None
    assert document["average"] is None


def test_one_round_has_no_backward_transfer() -> None:
    matrix = square([[0.7]])
    assert matrix.average == 0.7
    assert math.isnan(matrix.bwt)
    assert math.isnan(matrix.forgetting)


def test_a_missing_cell_makes_the_number_missing_rather_than_better() -> None:
    assert math.isnan(square([[0.9, NAN], [NAN, 0.8]]).average)
    assert math.isnan(square([[NAN, NAN], [0.9, 0.8]]).bwt)
    assert math.isnan(square([[NAN, NAN, NAN], [0.9, 0.8, NAN], [0.1, 0.1, 0.1]]).forgetting)


def test_forgetting_passes_over_a_round_between_that_was_not_evaluated() -> None:
    assert square([[0.9, NAN, NAN], [NAN, 0.8, NAN], [0.5, 0.8, 1.0]]).forgetting == pytest.approx(0.2)


def test_a_round_may_learn_two_slices_or_none() -> None:
    matrix = ScoreMatrix(
        rounds=("a:1", "a:2", "a:3"),
        slices=("a@v1", "a@v2", "a@v3", "a@v4"),
        values=np.array([[0.9, 0.8, NAN, NAN], [0.7, 0.7, NAN, NAN], [0.6, 0.6, 0.9, 0.1]]),
        learned_in=(0, 0, 2, None),
    )
    assert matrix.bwt == pytest.approx(((0.6 - 0.9) + (0.6 - 0.8)) / 2)
    assert matrix.average == pytest.approx((0.6 + 0.6 + 0.9) / 3)  # v4 wasn't learnt by anyone yet


def test_the_table_prints_points_of_100_and_a_dot_for_what_was_not_evaluated() -> None:
    assert square([[0.901, NAN], [0.1, 1.0]]).table() == (
        "           support@v1  support@v2\n"
        "support:1        90.1           ·\n"
        "support:2        10.0       100.0\n"
        "\n"
        "average 55.0   BWT -80.1   forgetting 80.1   (macro_f1, points of 100)\n"
        "BWT: mean of R[T,j] − R[l,j];\n"
        "forgetting: mean of max over l≤i<T of R[i,j] − R[T,j];\n"
        "R[i,j] is slice j after round i, l the round that learnt it, T the last"
    )


def test_a_matrix_cannot_be_changed_and_does_not_freeze_its_source() -> None:
    values = np.array([[0.5]])
    matrix = ScoreMatrix(("a:1",), ("a@v1",), values)
    values[0, 0] = 0.9
    assert matrix.values[0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        matrix.values[0, 0] = 1.0


def test_row_leaves_out_what_was_not_evaluated() -> None:
    matrix = square([[0.9, NAN], [0.8, 0.7]])
    assert matrix.row("support:1") == {"support@v1": 0.9}
    assert matrix.row("support:2") == {"support@v1": 0.8, "support@v2": 0.7}
    with pytest.raises(UsageError, match="no round 'support:9'"):
        matrix.row("support:9")


@pytest.mark.parametrize(
    ("rounds", "slices", "values", "learned"),
    [
        ((), ("a",), np.zeros((0, 1)), ()),
        (("r",), ("a", "b"), [[0.1]], ()),
        (("r",), ("a", "a"), [[0.1, 0.2]], ()),
        (("r",), ("a",), [[math.inf]], ()),
        (("r",), ("a",), [[0.1]], (1,)),
        (("r",), ("a",), [[0.1]], (0, 0)),
    ],
)
def test_a_matrix_that_does_not_fit_together_is_refused(rounds, slices, values, learned) -> None:
    with pytest.raises(UsageError):
        ScoreMatrix(rounds, slices, np.array(values), learned_in=learned)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rounds": 3}'])
def test_text_that_is_not_a_matrix_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a score matrix"):
        ScoreMatrix.from_json(text)


def test_rows_of_different_lengths_are_refused() -> None:
    document = square([[0.1, 0.2], [0.3, 0.4]]).to_model().model_dump()
    document["values"][1].pop()
    with pytest.raises(UsageError, match="different lengths"):
        ScoreMatrix.from_model(document)


def test_forgetting_by_slice_averages_to_forgetting_where_nothing_got_better() -> None:
    nan = np.nan
    matrix = ScoreMatrix(
        rounds=("1", "2", "3"),
        slices=("support[domain=billing]", "support[domain=x[y]=z]", "support[domain=new]", "support[domain=gap]"),
        values=np.array([[0.9, nan, nan, 0.4], [0.95, 0.5, nan, 0.4], [0.7, 0.6, 0.8, nan]]),
        learned_in=(0, 1, 2, 0),
    )
    lost = matrix.forgetting_by_slice()
    assert lost == {"support[domain=billing]": pytest.approx(0.25), "support[domain=x[y]=z]": 0.0}
    assert matrix.domain_forgetting() == {"billing": pytest.approx(0.25), "x[y]=z": 0.0}


def test_a_matrix_by_snapshot_knows_no_domains() -> None:
    matrix = ScoreMatrix(rounds=("1",), slices=("support@v1",), values=np.array([[0.5]]))
    with pytest.raises(UsageError, match="no slice of a domain"):
        matrix.domain_forgetting()


FULL = [[0.9, 0.3, 0.2], [0.8, 0.7, 0.4], [0.6, 0.5, 1.0]]


def test_forward_transfer_is_what_was_known_before_learning_above_chance() -> None:
    matrix = replace(square(FULL), chance=(0.1, 0.1, 0.1))
    assert matrix.forward_transfer == pytest.approx(((0.3 - 0.1) + (0.4 - 0.1)) / 2)
    assert math.isnan(square(FULL).forward_transfer)  # without a baseline
    assert math.isnan(replace(square([[0.9, NAN], [0.8, 0.7]]), chance=(0.1, 0.1)).forward_transfer)


def test_intransigence_is_what_a_fresh_baseline_scores_above_the_round_that_learnt_it() -> None:
    matrix = replace(square(FULL), reference=(0.95, 0.9, 1.0), reference_name="support:9")
    assert matrix.intransigence == pytest.approx((0.05 + 0.2 + 0.0) / 3)
    assert math.isnan(square(FULL).intransigence)
    lines = matrix.table().splitlines()
    assert lines[4] == "support:9 (fresh)        95.0        90.0       100.0"
    assert "intransigence +8.3" in lines[6]
    assert "intransigence: mean of fresh[j] − R[l,j]" in lines[-2]
    assert max(map(len, lines)) <= 80


def test_a_loss_that_grows_is_forgetting_too() -> None:
    grown = replace(square([[0.1, NAN, NAN], [0.2, 0.3, NAN], [0.7, 0.4, 0.2]]), metric="loss", better="lower")
    assert grown.bwt == pytest.approx(-((0.7 - 0.1) + (0.4 - 0.3)) / 2)
    assert grown.forgetting == pytest.approx(((0.7 - 0.1) + (0.4 - 0.3)) / 2)
    lines = grown.table().splitlines()
    assert lines[3] == "support:3       0.700       0.400       0.200"
    assert lines[5] == "average 0.433   BWT -0.350   forgetting 0.350   (loss, the lower the better)"
    assert "min over l≤i<T" in lines[-2]


def test_backward_transfer_is_told_for_every_round() -> None:
    matrix = square([[0.9, NAN, NAN], [0.8, 0.7, NAN], [0.6, 0.5, 1.0]])
    bwt = matrix.bwt_by_round()
    assert math.isnan(bwt[0])
    assert bwt[1:] == pytest.approx([-0.1, -0.25])
    assert matrix.until(2).learned_in == (0, 1, None)
    assert matrix.until(2).average == pytest.approx(0.75)


def test_a_matrix_with_baselines_survives_json() -> None:
    matrix = replace(
        square(FULL), chance=(0.1, NAN, 0.2), reference=(0.9, 0.9, NAN), reference_name="support:9", better="lower"
    )
    assert ScoreMatrix.from_json(matrix.to_json()) == matrix


def test_baselines_of_another_length_are_refused() -> None:
    with pytest.raises(UsageError, match="reference must be a finite number or NaN for each of 3 slices"):
        replace(square(FULL), reference=(0.9,))
