"""Two mergers, a compactor and a snapshotter on one corpus at the same time."""

from __future__ import annotations

import time

import pytest

import treering

from .harness import assert_each_in_one_place, ids_by_place, said, start

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
    assert len(sealed) + len(second) >= 1
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


def evolve_beside_all(store: treering.Store, seconds: float, step: str) -> None:
    writers = [start("merger", store, seconds, "a"), start("adder", store, seconds, "c")]
    helpers = [start("compactor", store, seconds), start("snapshotter", store, seconds)]
    seen: set[str] = set()
    while seen != {"a", "c"}:  # both have begun, so both write version 1 to the end
        time.sleep(0.1)
        seen |= {i[0] for ids in ids_by_place(store).values() for i in ids}
    evolved = said(start("evolver", store, seconds, step), expect=9 if step else 0)
    if step:
        assert sum("evolved" in line for line in said(start("evolver", store, seconds / 3))) >= 1
    captured = {i for w in writers for line in said(w) for i in line.get("captured", [])}
    for helper in helpers:
        said(helper)
    assert sum("evolved" in line for line in evolved) >= 2
    assert_each_in_one_place(store, captured)
    assert store.corpus("support").quarantine() == []
    for ref in ("support@live", *(snapshot.ref for snapshot in store.corpus("support").snapshots())):
        # Whatever the columns are called by now: the one that came first still says of whom it is.
        source = store.load(ref)
        column = next(c.name for c in store.corpus("support").versions[-1].columns if c.key == 9)
        for row in source.to_table(["id", column]).to_pylist():
            assert row[column] == f"text of {row['id']}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", ["", "before-schema", "after-schema", "after-columns"])
def test_a_corpus_that_evolves_beside_everybody_loses_and_doubles_nothing(
    store: treering.Store, support: treering.Corpus, step: str
) -> None:
    evolve_beside_all(store, 15, step)


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
