"""A plan costs the same at any size and any position: counted in operations and bytes, so that no clock is asked.

What is counted is `benchmarks/plan.py`'s own simulation: real readers over segments that hold row numbers and no rows.
"""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from treering.mixing import mix
from treering.mixing.plan import MixPlan, SourcePlan
from treering.mixing.reader import Share
from treering.testing import MemoryStore

from .conftest import records

TRILLION = 10**12
MILLION = 1_000_000


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "plan.py"
    spec = importlib.util.spec_from_file_location("bench_plan", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls_of(work: Callable[[], Any]) -> int:
    """How many Python and C functions `work` calls in this thread."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that `work` holds at a time (numpy's arrays are counted)."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many draws are asked of any source."""
    asked: list[int] = []
    real = SourcePlan.positions

    def counted(self: SourcePlan, draws: Any) -> Any:
        asked.append(len(draws))
        return real(self, draws)

    monkeypatch.setattr(SourcePlan, "positions", counted)
    return asked


def first_batch(simulation: ModuleType, rows: int, batch: int, **share: int) -> None:
    plan, found = simulation.simulated(rows, 32)
    with simulation.reader(plan, found, Share(start=batch, **share)) as reader:
        reader.read(batch)


@pytest.mark.parametrize("share", [{}, {"rank": 5, "world_size": 32, "worker": 0, "workers": 4}], ids=["all", "a rank"])
def test_a_resume_at_batch_a_million_costs_no_more_than_twice_the_first_batch(
    simulation: ModuleType, drawn: list[int], share: dict[str, int]
) -> None:
    first_batch(simulation, TRILLION, 0, **share)  # tables that are kept are made now
    costs = []
    for batch in (0, MILLION, 1_000 * MILLION):
        drawn.clear()
        calls = calls_of(lambda batch=batch: first_batch(simulation, TRILLION, batch, **share))  # type: ignore[misc]
        here = sum(drawn)
        memory = peak_bytes(lambda batch=batch: first_batch(simulation, TRILLION, batch, **share))  # type: ignore[misc]
        costs.append((calls, here, memory))
    for far in costs[1:]:
        assert all(cost <= 2 * at_first for cost, at_first in zip(far, costs[0], strict=True)), costs


def test_a_loader_resumed_at_batch_a_million_makes_one_batch_not_a_million(drawn: list[int]) -> None:
    store = MemoryStore()
    one, two = store.add("a@v1", records("a", 300)), store.add("a@v2", records("b", 200))
    loader = mix(one, two, weights=[1, 3]).loader(
        8, columns=["id"], epochs=None, chunk_rows=4, pool_rows=64, prefetch=0
    )

    def resumed(batch: int) -> tuple[int, int]:
        loader.load_state_dict({**loader.state_dict(), "batch": batch})
        drawn.clear()
        calls = calls_of(lambda: list(islice(loader, 1)))
        return calls, sum(drawn)

    resumed(0)
    calls, draws = resumed(0)
    far_calls, far_draws = resumed(MILLION)
    assert far_calls <= 2 * calls
    assert far_draws <= 2 * draws


def test_what_a_plan_holds_does_not_grow_with_its_sources(simulation: ModuleType) -> None:
    peak_bytes(lambda: first_batch(simulation, MILLION, 0))
    small = peak_bytes(lambda: first_batch(simulation, MILLION, 17))
    large = peak_bytes(lambda: first_batch(simulation, TRILLION, 17))
    assert large <= 1.3 * small


def test_a_trillion_rows_for_a_thousand_ranks_are_disjoint_and_exact_and_take_no_memory(simulation: ModuleType) -> None:
    figures: dict[str, Any] = {}

    def run() -> None:
        figures.update(simulation.simulate(TRILLION, 1_024, 8, batches=6, readers=8))

    assert peak_bytes(run) < 100e6
    assert figures["largest_share_error_rows"] <= 1
    assert figures["readers"] >= 3 * 8
    assert figures["mb_beyond_imports"] < 200


def test_the_checks_of_the_simulation_notice_what_they_are_for(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = simulation.simulated(TRILLION, 64)
    simulation.slices_are_disjoint(plan, 64, 5)
    owners = MixPlan.owner_ranks

    def wrong(self: MixPlan, source: int, low: int, high: int, world_size: int) -> Any:
        batches, ranks = owners(self, source, low, high, world_size)
        return batches, np.roll(ranks, 1)

    monkeypatch.setattr(MixPlan, "owner_ranks", wrong)
    with pytest.raises(AssertionError):
        simulation.slices_are_disjoint(plan, 64, 5)
