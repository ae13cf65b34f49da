"""What serving takes: measured one text at a time, held to the policy's lines, projected with its formula."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

import treering
from tests.rounds.test_round import TRAIN, grow
from tests.training.tiny import make_base
from treering.errors import UsageError
from treering.evaluation import Budget, GatePolicy, check
from treering.evaluation.budget import project
from treering.rounds import budget as measuring
from treering.rounds.budget import measure_budget


class Slow:
    """Takes so long for a text; counts them, and how many came at once."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = itertools.cycle(seconds or (0.0,))
        self.asked: list[list[str]] = []

    def predict(self, texts: list[str]) -> list[str]:
        self.asked.append(texts)
        time.sleep(next(self.seconds))
        return ["?"] * len(texts)


def test_texts_are_asked_one_by_one_after_a_warm_up() -> None:
    model = Slow()
    found = measure_budget(model, [str(n) for n in range(30)])
    assert found is not None
    assert (found.texts, found.passes) == (30, 1)
    assert all(len(texts) == 1 for texts in model.asked)
    assert len(model.asked) == 30 + measuring.WARM_UP
    assert 0 < found.p50_ms <= found.p99_ms
    assert 0.01 < found.memory_gb < 100
    assert found.projected is None  # nothing is known of its base
    assert measure_budget(model, []) is None


def test_the_p99_is_that_of_the_slow_ones() -> None:
    found = measure_budget(Slow(0.0, 0.0, 0.0, 0.0, 0.02), [str(n) for n in range(50)])
    assert found is not None
    assert found.p50_ms < 10
    assert found.p99_ms >= 20


def test_a_pass_that_misses_the_line_is_made_again_and_the_quickest_counts() -> None:
    model = Slow(*[0.0] * (measuring.WARM_UP + 20), *[0.03] * 20, *[0.0] * 20)
    texts = [str(n) for n in range(20)]
    next(itertools.islice(model.seconds, 19, None))  # so that the first pass is the slow one
    found = measure_budget(model, texts, enough_ms=25.0)
    assert found is not None
    assert found.passes >= 2
    assert found.p99_ms < 30


def test_a_projection_scales_with_parameters_and_width_and_shows_its_formula() -> None:
    found = project(10.0, 700_000_000, 1_000_000, 1_024)
    assert found.p99_ms == pytest.approx(100.0)
    assert found.memory_gb == pytest.approx(14.0 + 0.004)
    for words in ("10 ms × 7·10⁹ / 700,000,000", "2 bytes (bf16)", "4,096 / 1,024"):
        assert words in found.formula


def figures(p99_ms: float, memory_gb: float) -> Budget:
    return Budget(
        texts=200, passes=1, p50_ms=1.0, p99_ms=p99_ms, memory_gb=memory_gb, base_parameters=None, base_gb=0.5,
        adapter_mb=None, threads=1, machine="m",
    )  # fmt: skip


def test_the_gate_refuses_what_is_too_slow_or_too_large_and_says_by_how_much() -> None:
    scores = {"support@v1": 0.9}
    assert check(scores, budget=figures(99.0, 15.9)).passed
    verdict = check(scores, budget=figures(101.0, 17.0))
    assert verdict.reasons == [
        "p99 latency is 101 ms, above its maximum of 100 ms",
        "memory is 17 GB, above its maximum of 16 GB, of which the base's weights are 0.5 GB",
    ]
    assert [(row.what, row.unit, row.score, row.maximum) for row in verdict.rows[1:]] == [
        ("p99 latency", "ms", 101.0, 100.0),
        ("memory", "GB", 17.0, 16.0),
    ]
    assert verdict.budget is not None


def test_lines_that_are_off_are_not_asked() -> None:
    policy = GatePolicy.parse({"max_p99_ms": False, "max_memory_gb": 32})
    assert (policy.max_p99_ms, policy.max_memory_gb) == (None, 32.0)
    assert [row.what for row in check({"s": 0.9}, None, policy, budget=figures(1e6, 1.0)).rows] == ["s", "memory"]
    for bad in (0, -1, True, "fast", float("nan")):
        with pytest.raises(UsageError, match="max_p99_ms"):
            GatePolicy.parse({"max_p99_ms": bad})


def test_a_trained_adapter_is_measured_on_its_held_out_texts(support: treering.Corpus, tmp_path: Path) -> None:
    grow(support, "billing")
    support.snapshot()
    config = treering.TrainConfig(base=make_base(tmp_path / "base"), **{**TRAIN, "steps": 2})  # type: ignore[arg-type]
    run = treering.train(support.store, support.store.mix("support@v1"), config)
    verdict = treering.gate(support.store, run.adapter.ref, {"max_p99_ms": 10_000.0})
    found = verdict.budget
    assert found is not None
    assert found.texts == 8  # every held-out one
    assert found.projected is not None
    assert found.base_parameters
    assert 10_000 < found.base_parameters < 100_000
    assert found.base_gb == pytest.approx(4 * found.base_parameters / 1e9)
    assert support.store.adapters("support")[0].verdict == verdict
    off = treering.gate(support.store, run.adapter.ref, {"max_p99_ms": False, "max_memory_gb": False}, record=False)
    assert off.budget is None


def test_kept_activations_do_not_make_an_adapter_look_quick(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    evaluate = sys.modules["treering.rounds.evaluate"]
    grow(support, "billing")
    support.snapshot()
    config = treering.TrainConfig(base=make_base(tmp_path / "base"), **{**TRAIN, "steps": 2})  # type: ignore[arg-type]
    run = treering.train(support.store, support.store.mix("support@v1"), config)
    measured = []
    monkeypatch.setattr(evaluate, "measure_budget", lambda model, *_, **__: measured.append(model))
    treering.gate(support.store, run.adapter.ref)
    assert measured[0]._cache_dir is None
