"""Real processes that prune, killed between two steps; whoever comes next completes or forgets it."""

from __future__ import annotations

import pytest

import treering

from .harness import said, start

STEPS = ["after-prune-ids", "before-prune", "after-prune", "after-untag"]


def kill_a_pruner(store: treering.Store, step: str) -> None:
    corpus = store.corpus("support")
    with corpus.capture() as live:
        for number in range(3):
            live.extend([{"id": f"{number}-{n}", "text": "t", "label": "l"} for n in range(50)])
            live.flush()
            corpus.snapshot()
    said(start("pruner", store, 0, step), expect=9)
    begun = STEPS.index(step) >= STEPS.index("after-prune")
    names = ["v2", "v3"] if begun else ["v1", "v2", "v3"]
    again = treering.open(store.uri, create=False).corpus("support")
    assert [s.name for s in again.snapshots()] == names
    again.compact()  # any maintenance
    assert sorted(again.table.tags()) == names
    for snapshot in again.snapshots():
        assert len(store.load(snapshot.ref).to_table(["id"])) == 50
    with again.capture() as live:
        live.extend([{"id": f"0-{n}", "text": "t", "label": "l"} for n in range(50)])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (0, 50)
    said(start("pruner", store, 0, ""))
    assert [s.name for s in again.snapshots()] == (["v3"] if begun else ["v2", "v3"])


@pytest.mark.parametrize("step", ["before-prune", "after-prune"])
def test_a_pruner_killed_between_two_steps_loses_nothing_that_stays(
    store: treering.Store, support: treering.Corpus, step: str
) -> None:
    kill_a_pruner(store, step)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_pruner_killed_at_each_step(store: treering.Store, support: treering.Corpus, step: str) -> None:
    kill_a_pruner(store, step)
