"""Two mergers, a compactor and a snapshotter on one corpus at the same time."""

from __future__ import annotations

import pytest

import treering

from .harness import assert_each_in_one_place, said, start

STEPS = ["before-durable", "before-record", "after-record", "after-tag", "after-drop", "after-finish"]


def run_all(store: treering.Store, seconds: float, step: str, compactor: str = "compactor") -> None:
    writers = [
        start("merger", store, seconds, "a"),
        start("merger", store, seconds, "b"),
        start("adder", store, seconds, "c"),
    ]
    helpers = [start(compactor, store, seconds)]
    sealer = start("snapshotter", store, seconds, step)
    sealed = said(sealer, expect=9 if step else 0)
    second = said(start("snapshotter", store, seconds / 3)) if step else []
    captured = {i for w in writers for line in said(w) for i in line.get("captured", [])}
    assert any("compacted" in line for h in helpers for line in said(h))
    assert len(captured) > 100
    assert len(sealed) + len(second) >= 2
    assert_each_in_one_place(store, captured)
    names = [s.name for s in store.corpus("support").snapshots()]
    assert names == [f"v{i + 1}" for i in range(len(names))]


@pytest.mark.parametrize("compactor", ["compactor", "free_compactor"])
def test_every_record_is_in_exactly_one_place(store: treering.Store, support: treering.Corpus, compactor: str) -> None:
    run_all(store, 6, "", compactor)


@pytest.mark.parametrize("step", STEPS)
def test_a_snapshotter_killed_between_two_steps_loses_and_doubles_nothing(
    store: treering.Store, support: treering.Corpus, step: str
) -> None:
    run_all(store, 4, step)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compactor", ["compactor", "free_compactor"])
def test_every_record_is_in_exactly_one_place_after_a_minute(
    store: treering.Store, support: treering.Corpus, compactor: str
) -> None:
    run_all(store, 60, "", compactor)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", STEPS)
def test_a_minute_with_a_snapshotter_killed_between_two_steps(
    store: treering.Store, support: treering.Corpus, step: str
) -> None:
    run_all(store, 60, step)
