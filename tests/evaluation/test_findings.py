"""What crosses a line and what doesn't, and that every remedy is a command that treering understands."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace

import pytest
import typer.main

from treering.cli.app import app
from treering.evaluation import DomainFacts, Finding, RoundFacts, findings
from treering.evaluation.probe import probed

REMEDIES = findings.Remedies(
    corpus="support",
    adapter="support:3",
    learned=("support@v1..v3",),
    past=("support@v1..v2",),
    newest="support@v3",
    parent="support:2",
    gated=True,
)


def rounds(*bwt: float | None) -> list[RoundFacts]:
    return [RoundFacts(adapter=f"support:{n}", average=0.8, bwt=one) for n, one in enumerate(bwt, 1)]


def domain(name: str, rows: int = 1_000, **more: object) -> DomainFacts:
    fields = {"train_rows": rows, "live_rows": 0, "heldout_rows": 1_000, "group": "middle", "score": 0.9, **more}
    return DomainFacts(domain=name, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bwt", "ok"),
    [
        ((None, -0.06, -0.07), False),
        ((None, -0.07, -0.04), True),
        ((None, -0.04, -0.30), True),  # not sustained yet: the difference to the parent tells
        ((None, -0.30), None),
        ((None, -0.02), True),
        ((None,), None),
    ],
)
def test_forgetting_is_severe_when_it_lasts_for_two_rounds(bwt: tuple[float | None, ...], ok: bool | None) -> None:
    assert findings.severe_forgetting(rounds(*bwt), [], REMEDIES).ok is ok


def test_what_cures_severe_forgetting_depends_on_where_it_comes_from() -> None:
    lost = [probed("support@v1", learned=0.9, final=0.5, probe=0.5)]
    drifted = [probed("support@v1", learned=0.9, final=0.5, probe=0.9)]
    more_replay = findings.severe_forgetting(rounds(None, -0.2, -0.3), lost, REMEDIES).remedy
    assert more_replay == "treering train support@v1..v2=0.5 support@v3=0.5 --parent support:2"
    naive = replace(REMEDIES, replays=False)
    assert (
        findings.severe_forgetting(rounds(None, -0.2, -0.3), lost, naive).remedy == f"{more_replay} --strategy replay"
    )
    only_head = findings.severe_forgetting(rounds(None, -0.2, -0.3), drifted, REMEDIES).remedy
    assert only_head == "treering train support@v1..v3=1 --parent support:3 --only-head --strategy replay"


def test_drift_is_cured_at_the_head_and_of_one_domain_may_be_at_its_gates() -> None:
    slices = [
        probed("support@v1", learned=0.9, final=0.5, probe=0.9),
        probed("support@v2", learned=0.9, final=0.88, probe=0.9),
    ]
    domains = {"support@v1": "the billing desk", "support@v2": "travel", "support@v3": "food"}
    found = findings.spurious_forgetting(slices, 0.9, REMEDIES, domains)
    assert (found.ok, found.figure) == (False, 0.9)
    assert found.remedy == "treering train support@v1..v3=1 --parent support:3 --only-head --strategy replay"
    assert "support@v1 by 40.0 points, is alignment drift: 40.0 come back, 0.0 are lost" in found.says
    assert found.says.endswith("--only-gate 'the billing desk' would leave all other domains as they are")


def test_lost_knowledge_is_not_called_drift() -> None:
    slices = [probed("support@v1", learned=0.9, final=0.5, probe=0.52)]
    found = findings.spurious_forgetting(slices, 0.05, REMEDIES, {"support@v1": None})
    assert found.ok
    assert "is knowledge loss: 2.0 come back, 38.0 are lost" in found.says
    assert findings.spurious_forgetting([], None, REMEDIES, {}).ok


@pytest.mark.parametrize(("tail", "ok"), [(0.84, False), (0.86, True)])
def test_head_and_tail_may_lie_five_points_apart(tail: float, ok: bool) -> None:
    domains = [domain("a", group="head", score=0.9), domain("b"), domain("c", group="tail", score=tail)]
    found = findings.head_tail_gap(domains, REMEDIES, 500)
    assert found.ok is ok
    assert found.figure == pytest.approx(0.9 - tail)


def test_domains_are_grouped_in_thirds_by_traffic() -> None:
    assert findings.groups_by_traffic({"a": 9, "b": 5, "c": 1}) == {"a": "head", "b": "middle", "c": "tail"}
    assert findings.groups_by_traffic({"a": 9, "b": 5}) == {"a": "head", "b": "tail"}
    assert findings.groups_by_traffic({"a": 9}) == {"a": "middle"}
    many = findings.groups_by_traffic({f"d{n:02}": 100 - n for n in range(60)})
    assert [list(many.values()).count(group) for group in ("head", "tail")] == [10, 10]


def test_a_domain_that_the_buffer_evicted_starves() -> None:
    domains = [domain("a", buffer_rows=90), domain("b", buffer_rows=8), domain("c", rows=4, buffer_rows=4)]
    found = findings.buffer_occupancy(domains, "support/replay", REMEDIES, 102)
    assert (found.ok, found.figure) == (False, pytest.approx(8 / 34))  # c has all it can have
    assert "b has 8 of the 102 rows in support/replay" in found.says
    assert findings.buffer_occupancy(domains, None, REMEDIES, 0).ok


def test_one_vector_a_domain_is_constant_and_one_matrix_a_domain_is_not() -> None:
    def shared(domains: int, classes: int) -> tuple[int, int]:
        parameters = 2 * 384 * 64 + 64 * domains + 385 * classes
        return parameters, 4 * parameters

    def each_its_own(domains: int, classes: int) -> tuple[int, int]:
        parameters = 2 * 384 * 64 * domains + 385 * classes
        return parameters, 4 * parameters

    one = findings.growth_of(shared, domains=10, classes=150, head=385)
    assert (one.order, one.per_domain, one.per_class) == ("O(1)", 64, 385)
    assert [p.domains for p in one.projected] == [50, 500]
    assert one.projected[0].parameters == 2 * 384 * 64 + 64 * 50 + 385 * 750
    assert findings.parameter_growth(one, REMEDIES).ok
    other = findings.growth_of(each_its_own, domains=10, classes=150, head=385)
    assert (other.order, other.per_domain) == ("O(K)", 2 * 384 * 64)
    assert findings.parameter_growth(other, REMEDIES).ok is False


@pytest.mark.parametrize(
    ("production", "training", "share", "gap"),
    [
        ((8, 50), (0, 50), False, False),  # 16 % and none
        ((8, 50), (2, 50), True, False),  # 16 % and 4 %: taught some, but 12 points apart
        ((4, 50), (0, 50), True, True),
        ((4, 50), (0, 0), True, True),  # whatever was taught, it can't be far
        ((8, 50), (0, 0), None, None),
        ((0, 0), (0, 50), None, None),
    ],
)
def test_several_intents_at_once_are_compared_with_what_was_taught(
    production: tuple[int, int], training: tuple[int, int], share: bool | None, gap: bool | None
) -> None:
    found = findings.multi_intent(production, training, REMEDIES)
    assert [one.ok for one in found] == [share, gap]


def test_the_router_has_to_be_right_in_96_of_100() -> None:
    assert findings.router_accuracy(96, 100, REMEDIES).ok
    assert findings.router_accuracy(95, 100, REMEDIES).ok is False
    assert findings.router_accuracy(0, 0, REMEDIES).ok is None
    assert findings.router_drift(0.80, 0.90, 100, REMEDIES).ok is False
    assert findings.router_drift(0.88, 0.90, 100, REMEDIES).ok
    assert findings.router_drift(None, 0.90, 0, REMEDIES).ok is None


def test_a_thousand_held_out_records_a_domain() -> None:
    found = findings.heldout_size([domain("a"), domain("b/c", heldout_rows=999)], REMEDIES)
    assert (found.ok, found.figure) == (False, 999)
    assert found.remedy == "treering eval support:3 --matrix --by domain --extra b_c=b_c.jsonl"
    assert findings.heldout_size([domain("a")], REMEDIES).ok


def test_the_worst_slice_is_compared_with_the_parent() -> None:
    found = findings.baseline_diff({"v1": 0.8, "v2": 0.9, "v3": 1.0}, {"v1": 0.9, "v2": 0.8}, REMEDIES, "support:2")
    assert (found.ok, found.figure) == (False, pytest.approx(-0.1))
    assert findings.baseline_diff({"v1": 0.8}, {}, REMEDIES, None).ok is None


def test_a_fresh_baseline_is_a_month_old_at_most() -> None:
    assert findings.fresh_baseline("support:9", 29.0, 0.01, REMEDIES).ok
    assert findings.fresh_baseline("support:9", 31.0, 0.01, REMEDIES).ok is False
    assert findings.fresh_baseline(None, None, None, REMEDIES).ok is False


def every_finding() -> list[Finding]:
    """Each of them in its worst case, for an adapter with a past and for one without."""
    domains = [
        domain("a b", group="head", buffer_rows=9),
        domain("$c", group="tail", score=0.1, buffer_rows=0, heldout_rows=3),
    ]
    growth = findings.growth_of(lambda d, c: (100 * d + c, 4 * (100 * d + c)), domains=2, classes=4, head=1)
    slices = [probed("support@v1", learned=0.9, final=0.5, probe=0.9)]
    found: list[Finding] = []
    bare = findings.Remedies("support", "support:1", (), (), None, None)
    for cure in (REMEDIES, bare):
        found += [findings.severe_forgetting(rounds(None, -0.2, -0.3), one, cure) for one in (slices, [])]
        found += [
            findings.spurious_forgetting(slices, 1.0, cure, {"support@v1": "$c", "support@v2": "x"}),
            findings.head_tail_gap(domains, cure, 500),
            findings.buffer_occupancy(domains, "support/replay", cure, 9),
            findings.parameter_growth(growth, cure),
            *findings.multi_intent((9, 9), (0, 9), cure),
            *findings.multi_intent((9, 9), (0, 0), cure),
            *findings.multi_intent((0, 0), (0, 0), cure),
            findings.router_accuracy(1, 9, cure),
            findings.router_drift(0.1, 0.9, 9, cure),
            findings.heldout_size(domains, cure),
            findings.baseline_diff({"v1": 0.1}, {"v1": 0.9}, cure, "support:2"),
            findings.fresh_baseline(None, None, None, cure),
        ]
    return found


def test_every_remedy_parses_as_a_command_of_treering() -> None:
    command = typer.main.get_command(app)
    remedies = [one.remedy for one in every_finding()]
    assert None not in remedies
    for remedy in remedies:
        words = shlex.split(remedy or "")
        assert words[0] == "treering"
        with command.make_context("treering", words[1:]) as context:  # type: ignore[attr-defined]
            name, verb, rest = command.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
            assert verb.make_context(name, rest, parent=context)


def test_what_is_well_needs_no_remedy_and_what_is_not_has_one() -> None:
    assert all(one.remedy for one in every_finding() if one.ok is False)
    assert findings.router_accuracy(100, 100, REMEDIES).remedy is None
    checks = list(dict.fromkeys(one.check for one in every_finding()))
    assert len(checks) == len(list(itertools.chain(checks))) == 12
