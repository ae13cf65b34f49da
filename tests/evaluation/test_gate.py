import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import NotFoundError, UsageError
from treering.evaluation import GatePolicy, Verdict, check, load_policy

calm = settings(deadline=None)  # two busy cores make any time limit flaky


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [
        (0.900, 0.879, False),  # a drop of 0.021
        (0.900, 0.881, True),  # 0.019
        (0.920, 0.900, True),  # 0.02: a float makes it 0.020000000000000018
        (0.900, 0.880, True),
        (1.000, 0.980, True),
        (0.300, 0.280, True),
        (0.020, 0.000, True),
        (0.021, 0.000, False),
        (0.000, 0.000, True),
        (0.000, 1.000, True),
    ],
)
def test_a_drop_of_up_to_the_tolerance_passes_and_one_beyond_is_refused(before, after, passes) -> None:
    verdict = check({"support@v1": after}, {"support@v1": before})
    assert verdict.passed is passes
    assert bool(verdict.reasons) is not passes


@calm
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 100))
def test_float_noise_never_decides(before: int, after: int, tolerance: int) -> None:
    policy = GatePolicy(regression_tolerance=tolerance / 1000)
    assert check({"v1": after / 1000}, {"v1": before / 1000}, policy).passed is (before - after <= tolerance)


def test_a_previous_score_of_zero_counts_as_a_score() -> None:
    row = check({"support@v1": 0.0}, {"support@v1": 0.0}).rows[0]
    assert (row.previous, row.change, row.passed) == (0.0, 0.0, True)
    refused = check({}, {"support@v1": 0.0})
    assert not refused.passed
    assert "wasn't evaluated" in refused.reasons[0]


def test_a_slice_without_a_previous_score_is_new_and_only_needs_its_minimum() -> None:
    assert check({"support@v2": 0.1}, {}).passed
    assert check({"support@v2": 0.1}, {}).rows[0].previous is None
    assert not check({"support@v2": 0.1}, {}, GatePolicy(min_score=0.2)).passed


def test_what_was_scored_before_and_not_now_is_refused() -> None:
    assert not check({"a": 0.9}, {"a": 0.9, "b": 0.9}).passed
    assert not check({"a": math.nan}, {}).passed


def test_minimum_scores_hold_for_every_slice_one_slice_and_the_average() -> None:
    scores = {"a": 0.9, "b": 0.6}
    assert check(scores, {}, GatePolicy(min_score=0.6)).passed
    assert check(scores, {}, GatePolicy(min_score=0.61)).reasons == ["b scores 60.0, below its minimum of 61.0"]
    assert check(scores, {}, GatePolicy(slices={"a": 0.9})).passed
    assert not check(scores, {}, GatePolicy(slices={"a": 0.91})).passed
    assert check(scores, {}, GatePolicy(min_average=0.75)).passed
    assert check(scores, {}, GatePolicy(min_average=0.76)).reasons == ["average is 75.0, below its minimum of 76.0"]


def test_the_stricter_of_two_minimums_holds() -> None:
    assert not check({"a": 0.7}, {}, GatePolicy(min_score=0.8, slices={"a": 0.5})).passed
    assert not check({"a": 0.7}, {}, GatePolicy(min_score=0.5, slices={"a": 0.8})).passed


def test_a_slice_that_the_policy_names_must_have_been_evaluated() -> None:
    verdict = check({"a": 0.9}, {}, GatePolicy(slices={"b": 0.1}))
    assert verdict.reasons == ["b wasn't evaluated"]


def test_the_bwt_line_refuses_below_it_and_is_skipped_without_a_history() -> None:
    policy = GatePolicy(min_bwt=-0.05)
    assert check({"a": 0.9}, {}, policy, bwt=-0.05).passed
    assert not check({"a": 0.9}, {}, policy, bwt=-0.051).passed
    assert check({"a": 0.9}, {}, policy, bwt=math.nan).passed
    assert check({"a": 0.9}, {}, policy, bwt=None).passed


def test_every_reason_is_given_not_only_the_first() -> None:
    verdict = check({"a": 0.1, "b": 0.2}, {"a": 0.9}, GatePolicy(min_score=0.5, min_bwt=0.0), bwt=-0.4)
    assert len(verdict.reasons) == 3
    assert "a scores 10.0" in verdict.reasons[0]
    assert "a fell by 80.0 points, from 90.0 to 10.0; 2 are tolerated" in verdict.reasons[0]
    assert verdict.reasons[1].startswith("b scores 20.0")
    assert verdict.reasons[2].startswith("BWT is -40.0")


def test_a_fall_just_beyond_the_tolerance_does_not_read_like_the_tolerance() -> None:
    assert "fell by 2.01 points" in check({"a": 0.8799}, {"a": 0.9}).reasons[0]


def test_nothing_to_look_at_is_an_error_not_a_pass() -> None:
    with pytest.raises(UsageError, match="no slice to look at"):
        check({}, {})


@calm
@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1)),
    st.floats(0, 1),
)
def test_a_verdict_survives_json_and_passes_exactly_when_no_row_fails(scores, previous, minimum) -> None:
    verdict = check(scores, previous, GatePolicy(min_score=minimum), candidate="a:2", baseline="a:1")
    assert verdict.passed == all(row.passed for row in verdict.rows) == (not verdict.reasons)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(
        'metric = "accuracy"\nmin_score = 0\nregression_tolerance = 0.05\nby = ["snapshot", "domain"]\n'
        '[slices]\n"support@v1" = 0.85\n"support[domain=banking]" = 0.5\n'
    )
    assert load_policy(path) == load_policy(str(path))
    assert load_policy(path) == GatePolicy(
        metric="accuracy",
        min_score=0.0,
        regression_tolerance=0.05,
        by=["snapshot", "domain"],
        slices={"support@v1": 0.85, "support[domain=banking]": 0.5},
    )


def test_without_a_policy_only_the_regression_tolerance_holds() -> None:
    assert load_policy(None) == GatePolicy()
    assert GatePolicy().regression_tolerance == 0.02


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("min_scores = 0.5", "unknown key 'min_scores'"),
        ("a = 1\nb = 2", "unknown key 'a'; unknown key 'b'"),
        ("min_score = 85", "min_score: .*less than or equal to 1"),
        ('min_score = "0.5"', "min_score: .*valid number"),
        ("min_score = true", "min_score: .*valid number"),
        ("min_score = nan", "min_score: .*"),
        ("regression_tolerance = -0.1", "regression_tolerance: .*greater than or equal to 0"),
        ('metric = "f2"', "unknown metric 'f2'"),
        ('by = ["weekday"]', "by.0: "),
        ('[slices]\n"support@v1" = 2', "slices.support@v1: "),
        ("min_score = \n", "isn't TOML: .*line 1"),
    ],
)
def test_a_bad_policy_file_is_refused_by_the_name_of_the_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)


def test_a_policy_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no gate policy at"):
        load_policy(tmp_path / "gate.toml")
