"""Lineage: from a record or a ref to the adapters that saw it, and from an adapter or a lock to its data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.errors import NotFoundError, UsageError
from treering.registry import Registry, ScoreLog, training_data
from treering.registry.trace import AdapterLineage, LockLineage, RecordAt, RecordLineage, RefLineage

from .test_registry import verdict


def fill(corpus: treering.Corpus, prefix: str, rows: int = 30, **fields: Any) -> None:
    with corpus.capture() as live:
        live.extend(
            [
                {
                    "id": f"{prefix}{n}",
                    "text": f"text {n}",
                    "label": "a",
                    "split": "train" if n else "heldout",
                    **fields,
                }
                for n in range(rows)
            ]
        )


@pytest.fixture
def real(tmp_path: Path) -> treering.Store:
    """`support@v1` (a0…a29, a0 held out), `support@v2` (b…), live (c…)."""
    store = treering.open(tmp_path / "store")
    support = store.create("support", "labelled")
    for prefix in "ab":
        fill(support, prefix)
        support.snapshot(message=f"round {prefix}")
    fill(support, "c")
    return store


def trained(store: treering.Store, lock: treering.MixLock, promote: bool = False, **fields: Any) -> str:
    """What a training run from this lock leaves in the registry."""
    registry = Registry(store, "support")
    on, rows = training_data(source.pin.model_dump(mode="json") for source in lock.sources if source.units)
    added = registry.add(
        weights=os.urandom(8),
        card={"labels": ["a"]},
        lock=lock.to_json().encode(),
        lock_digest=lock.digest,
        trained_on=on,
        trained_rows=rows,
        **fields,
    )
    if promote:
        before = registry.state().production
        verdict(registry, added.ref, baseline=f"support:{before}" if before else None)
        registry.promote(added.ref)
    return added.ref


def the_place(store: treering.Store, record_id: str) -> RecordAt:
    found = treering.lineage(store, record_id)
    assert isinstance(found, RecordLineage)
    assert found.id == record_id
    (place,) = found.places
    return place


def seen(store: treering.Store, record_id: str) -> list[tuple[str, str | None]]:
    return [(one.adapter, one.through) for one in the_place(store, record_id).adapters]


def test_a_record_leads_to_the_adapters_whose_locks_hold_its_row(real: treering.Store) -> None:
    trained(real, real.mix("support@v1").lock(4))
    trained(real, real.mix("support@v1..v2", "support@live").lock(4))
    trained(real, real.mix("support@v1", "support@v2", weights=[1, 0]).lock(4))
    assert seen(real, "a3") == [
        ("support:1", "support@v1"),
        ("support:2", "support@v1..v2"),
        ("support:3", "support@v1"),
    ]
    assert seen(real, "b3") == [("support:2", "support@v1..v2")]  # weight 0 isn't drawn
    assert seen(real, "c3") == [("support:2", "support@live")]
    assert seen(real, "a0") == []  # held out
    real.corpus("support").snapshot()
    fill(real.corpus("support"), "d")
    place = the_place(real, "c3")
    assert (place.ref, place.where) == ("support@v3", "snapshot")
    assert [one.adapter for one in place.adapters] == ["support:2"]  # it was live then
    assert seen(real, "d3") == []


def test_what_was_excluded_left_out_or_not_selected_wasnt_seen(real: treering.Store) -> None:
    support = real.corpus("support")
    support.annotate("a1", exclude=True, by="ann")
    source = real.load("support@v1")
    chosen = source.select(rows=10, name="ten", seed=1)
    inside = set(chosen.to_table(["id"]).column(0).to_pylist())
    trained(real, real.mix(source).lock(4))
    trained(real, real.mix(chosen).lock(4))
    trained(real, real.mix(source.where(text=["text 5", "text 6"])).lock(4))
    support.annotate("a1", exclude=False)
    support.annotate("a2", exclude=True)  # later than the locks
    assert seen(real, "a1") == []
    assert ("support:1", "support@v1") in seen(real, "a2")
    for n in range(2, 30):
        wanted = [("support:1", "support@v1")]
        wanted += [("support:2", "support/ten")] if f"a{n}" in inside else []
        wanted += [("support:3", "support@v1")] if n in (5, 6) else []
        assert seen(real, f"a{n}") == wanted
    place = the_place(real, next(iter(inside)))
    assert place.selections == ["support/ten"]
    words = the_place(real, "a1")
    assert [(w.key, w.value, w.by) for w in words.annotations] == [("exclude", True, "ann"), ("exclude", False, None)]
    assert (words.excluded, the_place(real, "a2").excluded) == (False, True)


def test_rows_that_a_followed_run_took_in_count(real: treering.Store) -> None:
    support = real.corpus("support")
    with real.mix("support@live", seed=1).loader(4, ["id"], epochs=None, follow=True) as loader:
        batches = iter(loader)
        next(batches)
        fill(support, "d")
        for _ in range(70):
            next(batches)
        lock = loader.lock()
    assert lock.events
    trained(real, lock)
    support.snapshot()
    fill(support, "e")
    assert seen(real, "d3") == [("support:1", "support@live")]
    assert seen(real, "e3") == []


def test_a_record_says_where_it_lies(real: treering.Store) -> None:
    support = real.corpus("support")
    trained(real, real.mix("support@v1").lock(4), promote=True)
    assert (the_place(real, "c1").where, the_place(real, "c1").ref) == ("live", "support@live")
    place = the_place(real, "a1")
    assert (place.where, place.ref, place.split, place.readable) == ("snapshot", "support@v1", "train", True)
    assert [(one.status, one.promoted, one.known_by) for one in place.adapters] == [("production", True, "lock")]
    with support.capture() as live:
        live.extend([{"id": "bad", "text": 7, "label": "a"}, {"id": "a1", "text": "other", "label": "a"}])
    (refused,) = treering.lineage(real, "bad").places  # type: ignore[union-attr]
    assert (refused.where, refused.ref) == ("quarantine", None)
    assert "text" in refused.problems[0]
    assert [p.where for p in treering.lineage(real, "a1").places] == ["snapshot", "quarantine"]  # type: ignore[union-attr]
    support.prune(keep=1, dry_run=False, force=True, keep_heldout=True)
    gone = treering.lineage(real, "a2").places[0]  # type: ignore[union-attr]
    assert (gone.where, gone.ref, gone.row_id, gone.readable) == ("pruned", "support@v1", None, False)
    assert [(one.adapter, one.known_by) for one in gone.adapters] == [("support:1", "snapshot")]
    kept = the_place(real, "a0")
    assert (kept.where, kept.split, kept.readable, kept.adapters) == ("pruned", "heldout", True, [])


def test_a_ref_leads_to_its_parents_adapters_selections_and_scores(real: treering.Store) -> None:
    first = trained(real, real.mix("support@v1").lock(4), scores={"support@v1": 0.5})
    second = trained(real, real.mix("support@v2").lock(4), parent=first, scores={"support@v1": 0.4, "support@v2": 0.9})
    record = Registry(real, "support").get(second)
    ScoreLog(real, record).put("support@v1", "key", "accuracy", score=0.75, rows=3)
    real.load("support@v1").select(rows=3, name="few")
    found = treering.lineage(real, "support@v1")
    assert isinstance(found, RefLineage)
    (part,) = found.parts
    assert (part.ref, part.parents, part.message, part.selections) == ("support@v1", [], "round a", ["support/few"])
    assert [one.adapter for one in part.adapters] == [first]
    assert part.descendants == [second]
    assert [(s.adapter, s.metric, s.score) for s in part.scores] == [
        (first, "macro_f1", 0.5), (second, "macro_f1", 0.4), (second, "accuracy", 0.75),
    ]  # fmt: skip
    both = treering.lineage(real, "support@v1..v2")
    assert isinstance(both, RefLineage)
    assert [part.ref for part in both.parts] == ["support@v1", "support@v2"]
    assert both.parts[1].parents == ["support@v1"]
    chosen = treering.lineage(real, "support/few")
    assert isinstance(chosen, RefLineage)
    assert chosen.chosen_from == "support@v1"
    live = treering.lineage(real, "support@live")
    assert isinstance(live, RefLineage)
    assert live.parts[0].adapters == []
    real.corpus("support").prune(keep=1, dry_run=False)
    pruned = treering.lineage(real, "support@v1")
    assert isinstance(pruned, RefLineage)
    assert pruned.parts[0].pruned_at is not None
    assert [one.adapter for one in pruned.parts[0].adapters] == [first]


def test_an_adapter_and_a_lock_lead_to_their_data(real: treering.Store, tmp_path: Path) -> None:
    lock = real.mix("support@v1", "support@live", weights=[1, 3]).lock(4)
    first = trained(real, lock, promote=True, scores={"support@v1": 0.5})
    second = trained(real, real.mix("support@v2").lock(4), parent=first, promote=True)
    real.corpus("support").snapshot()
    real.corpus("support").prune(keep=2, dry_run=False, force=True)
    found = treering.lineage(real, first)
    assert isinstance(found, AdapterLineage)
    assert (found.ref, found.status, found.lock, found.parents, found.descendants) == (
        first, "retired", lock.digest, [], [second],
    )  # fmt: skip
    v1, live = found.sources
    assert (v1.ref, v1.share, v1.parts[0].digest) == ("support@v1", 0.25, lock.sources[0].pin.segments[0].digest)
    assert v1.parts[0].pruned == ["support@v1"]
    assert (live.parts[0].sealed_as, live.parts[0].pruned) == (["support@v3"], [])
    assert [v.passed for v in found.verdicts] == [True]
    assert found.events[0].startswith("promote ")
    production = treering.lineage(real, "support:production")
    assert isinstance(production, AdapterLineage)
    assert (production.ref, production.parents) == (second, [first])
    lock.save(tmp_path / "mix.lock.json")
    for run in (lock.digest, str(tmp_path / "mix.lock.json"), tmp_path / "mix.lock.json"):
        of_lock = treering.lineage(real, run)
        assert isinstance(of_lock, LockLineage)
        assert (of_lock.digest, of_lock.adapters) == (lock.digest, [first])


def test_text_that_could_be_several_things_is_a_ref_unless_told_otherwise(real: treering.Store) -> None:
    support = real.corpus("support")
    odd = ["support@v1", "support:1", "support/ten", "mail@v1", "a" * 64, "x.json"]
    with support.capture() as live:
        live.extend([{"id": i, "text": "t", "label": "a", "split": "train"} for i in odd])
    assert isinstance(treering.lineage(real, "support@v1"), RefLineage)
    with pytest.raises(NotFoundError, match="no adapter support:1"):
        treering.lineage(real, "support:1")
    for record_id in odd:
        assert isinstance(treering.lineage(real, record_id, record=True), RecordLineage)
    for record_id in odd[3:]:  # no corpus of that name, no lock
        assert isinstance(treering.lineage(real, record_id), RecordLineage)
    with pytest.raises(NotFoundError, match=r"no corpus of .* has or had a record 'nobody'"):
        treering.lineage(real, "nobody")
    with pytest.raises(NotFoundError, match="support@v9"):
        treering.lineage(real, "support@v9")
    with pytest.raises(UsageError):
        treering.lineage(real, "")
