"""What changes while a run goes on: weights that move, sources that grow, and what a lock says of it afterwards."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import ConflictError, UsageError
from treering.mixing import MixLock, ReplayController, Schedule, mix
from treering.mixing.events import EVENT_EVERY
from treering.mixing.weights import regroup
from treering.testing import MemoryStore

from .conftest import records

SMALL: dict[str, Any] = {"columns": ["id"], "pool_rows": 64, "chunk_rows": 4}  # blocks far smaller than the sources


def ids(batch: dict[str, Any]) -> list[str]:
    return list(batch["id"])


def shares(batch: dict[str, Any], sources: int) -> list[float]:
    counts = np.bincount(batch["_ref"].numpy(), minlength=sources)
    return (counts / counts.sum()).tolist()


def a_store(live: int = 400) -> MemoryStore:
    store = MemoryStore()
    store.add("support@v1", records("a", 300))
    store.add("support@v2", records("b", 200))
    store.add("support@live", records("c", live))
    return store


def grow(store: MemoryStore, low: int, high: int) -> None:
    store.add("support@live", records("c", high)[low:])


# ---- weights as functions


def test_a_schedule_is_a_function_of_the_batch() -> None:
    linear = Schedule.of({0: [0.5, 0.5], 100: [0.1, 0.9]})
    assert linear.at(0) == (0.5, 0.5)
    assert linear.at(50) == pytest.approx((0.3, 0.7))
    assert linear.at(100) == linear.at(10**9) == (0.1, 0.9)
    step = Schedule.of({0: [1, 1], 100: [1, 3]}, kind="step")
    assert (step.at(99), step.at(100)) == ((1.0, 1.0), (1.0, 3.0))


@pytest.mark.parametrize(
    "points", [{}, {1: [1, 1]}, {0: [1, 1], 5: [1]}, {0: [0, 0]}, {0: [1, -1]}, {0: ["x"]}, {0: []}, [1]]
)
def test_a_schedule_that_says_nothing_is_refused(points: Any) -> None:
    with pytest.raises(UsageError):
        Schedule.of(points)


def test_regrouping_keeps_the_proportions_within_each_group() -> None:
    assert regroup([1, 3, 2], [True, True, False], 0.4) == pytest.approx((0.1, 0.3, 0.6))
    assert regroup([1, 0], [False, True], 0) == (1.0, 0.0)
    for weights, share in (([1, 0], 0.5), ([1, 1], 1.5)):
        with pytest.raises(UsageError):
            regroup(weights, [False, True], share)


def test_the_controller_replays_more_on_regression_and_less_when_learning_is_slow() -> None:
    controller = ReplayController()
    assert controller.share == 0.3
    assert controller.update({"v1": 0.9, "v2": 0.8}, 0.5) == 0.3
    assert controller.update({"v1": 0.9, "v2": 0.8}, 0.6) == 0.3  # learns, and forgets nothing
    assert controller.update({"v1": 0.85, "v2": 0.8}, 0.7) == 0.5
    assert "v1" in controller.reason
    assert controller.update({"v1": 0.85, "v2": 0.8}, 0.71) == 0.5  # still below its best
    assert controller.update({"v1": 0.9, "v2": 0.8}, 0.712) == 0.2  # back, but hardly learning
    assert controller.update({"v1": 0.9, "v2": 0.8}, 0.8) == 0.3


# ---- weights that move


def test_a_schedule_moves_the_shares_at_checkpoints_and_is_an_event_each() -> None:
    store = a_store()
    schedule = Schedule.of({0: [1, 1, 2], 4 * EVENT_EVERY: [3, 3, 2]})
    sources = [store.load("support@v1"), store.load("support@v2"), store.live("support")]
    with mix(*sources, weights=schedule).loader(8, epochs=None, **SMALL) as loader:
        batches = list(islice(loader, 6 * EVENT_EVERY))
        lock = loader.lock()
    assert [event.batch for event in lock.events] == [64, 128, 192, 256]
    for number in range(0, len(batches), EVENT_EVERY):
        stretch = np.mean([shares(batch, 3) for batch in batches[number : number + EVENT_EVERY]], axis=0)
        weights = np.array(schedule.at(number))
        assert stretch == pytest.approx(weights / weights.sum(), abs=0.02)
    with MixLock.from_json(lock.to_json()).loader(store) as again:
        assert [ids(batch) for batch in islice(again, len(batches))] == list(map(ids, batches))


def test_asking_for_other_weights_counts_from_the_next_checkpoint() -> None:
    store = a_store()
    options: dict[str, Any] = {"epochs": None, **SMALL}
    two = mix(store.load("support@v1"), store.live("support"), weights=[1, 3])
    with two.loader(8, adaptive=True, **options) as loader:
        batches = iter(loader)
        seen = list(islice(batches, 10))
        loader.set_replay(0.5)
        seen += islice(batches, 100)
        assert [shares(batch, 2)[0] for batch in seen] == [0.25] * 64 + [0.5] * 46
        loader.reweigh([1, 7])
        seen += islice(batches, 100)
        assert [shares(batch, 2)[0] for batch in seen[110:]] == [0.5] * 18 + [0.125] * 82
        for wrong in ([1], [0, 0], [1, 0]):
            with pytest.raises(UsageError):
                loader.reweigh(wrong)
    with two.loader(8, **options) as fixed, pytest.raises(UsageError, match="adaptive"):
        fixed.reweigh([1, 1])


# ---- sources that grow


def a_growing_run(
    store: MemoryStore, grown_at: dict[int, tuple[int, int]], **options: Any
) -> tuple[list[list[str]], MixLock]:
    """All batches of an epoch over a live source that takes on records [low, high) once `batch` is handed out."""
    two = mix(store.load("support@v1"), store.live("support"), weights=[1, 3], seed=5)
    batches = []
    with two.loader(8, follow=True, **options) as loader:
        for number, batch in enumerate(loader):
            batches.append(ids(batch))
            if number in grown_at:
                grow(store, *grown_at[number])
        assert len(batches) == len(loader) == loader.stats()["batches_total"]
        return batches, loader.lock()


@pytest.mark.parametrize("pool_rows", [64, 4_096])
@pytest.mark.parametrize("prefetch", [0, 5])
def test_growth_enters_the_epoch_under_way_and_each_record_is_drawn_once(pool_rows: int, prefetch: int) -> None:
    store = a_store(live=1_000)
    growth = {3: (1_000, 1_300), 70: (1_300, 1_301), 110: (1_301, 1_800)}
    options: dict[str, Any] = {"columns": ["id"], "pool_rows": pool_rows, "chunk_rows": 4}
    batches, lock = a_growing_run(store, growth, prefetch=prefetch, **options)
    live = [one for batch in batches for one in batch if one[0] == "c"]
    trained = {str(one["id"]) for one in records("c", 1_800) if one["split"] == "train"}
    drawn = Counter(live)
    assert set(drawn) == trained
    assert sum(count - 1 for count in drawn.values()) < 6  # the last batch is filled up
    assert [event.batch for event in lock.events] == [64, 128]
    # The lock gives the run again, though live has grown on.
    grow(store, 1_800, 2_500)
    for workers_or_rank in ({}, {"prefetch": 3}, {"rank": 0, "world_size": 2}):
        with MixLock.from_json(lock.to_json()).loader(store, **workers_or_rank) as again:
            half = len(batches[0]) // again.world_size
            assert [ids(batch) for batch in again] == [batch[:half] for batch in batches]


def test_growth_of_heldout_records_alone_is_no_event() -> None:
    store = a_store()
    with mix(store.live("support")).loader(8, follow=True, epochs=None, **SMALL) as loader:
        batches = iter(loader)
        next(batches)
        store.add("support@live", [{**one, "split": "heldout"} for one in records("c", 450)[400:]])
        list(islice(batches, 100))
        assert loader.lock().events == ()


def test_a_mix_without_a_live_source_has_nothing_to_follow() -> None:
    with pytest.raises(UsageError, match="nothing to follow"):
        mix(a_store().load("support@v1")).loader(8, follow=True)


def test_a_source_grows_at_most_sixteen_times_an_epoch() -> None:
    store = a_store(live=200)
    size = 200
    with mix(store.live("support")).loader(2, follow=True, epochs=1, columns=["id"]) as loader:
        seen = Counter()
        for batch in loader:
            seen.update(batch["id"])
            if size < 3_000:
                grow(store, size, size + 5)
                size += 5
        events = loader.lock().events
    assert 3 <= len(events) <= 16
    assert max(seen.values()) == 1 or sum(seen.values()) - len(seen) < 2


def test_a_score_that_is_no_number_is_a_fall_and_nothing_to_be_compared_with() -> None:
    controller = ReplayController()
    said = [controller.update({"v1": score}, new) for score, new in ((0.9, 0.4), (math.nan, math.nan), (0.5, 0.6))]
    assert said == [0.3, 0.5, 0.5]
    assert controller.update({"v1": 0.9}, 0.7) == 0.3
    with pytest.raises(UsageError, match="share in"):
        ReplayController(base="x")  # type: ignore[arg-type]


# ---- states


def test_resuming_at_every_batch_with_events_in_between_equals_the_unbroken_run() -> None:
    store = a_store(live=700)
    schedule = Schedule.of({0: [1, 3], 64: [1, 1], 128: [1, 7]}, kind="step")
    two = mix(store.load("support@v1"), store.live("support"), weights=schedule, seed=3)
    lock = two.lock(4, epochs=1, **SMALL)
    states, batches = [], []
    with two.loader(4, follow=True, **SMALL) as loader:
        states.append(json.loads(json.dumps(loader.state_dict())))
        for number, batch in enumerate(loader):
            batches.append(ids(batch))
            states.append(json.loads(json.dumps(loader.state_dict())))
            if number == 20:
                grow(store, 700, 900)
        final = loader.lock()
    assert len(final.events) >= 3
    assert max(len(json.dumps(state)) for state in states) <= 1_024 + 64 * len(final.events)
    for number in range(len(states)):
        options: dict[str, Any] = {"prefetch": number % 3 or None}
        for begun in (lock, final):  # from the lock that the run began with, and from the one it ended with
            with begun.loader(store, follow=True, **options) as resumed:
                resumed.load_state_dict(states[number])
                assert resumed.state_dict()["batch"] == number
                assert [ids(batch) for batch in resumed] == batches[number:]
                assert resumed.lock().events == final.events


def test_weights_that_were_asked_for_outlive_a_resume_before_they_are_settled() -> None:
    store = a_store()
    lock = mix(store.load("support@v1"), store.live("support")).lock(4, epochs=None, **SMALL)
    with lock.loader(store, adaptive=True) as loader:
        running = iter(loader)
        for _ in range(10):
            next(running)
        loader.reweigh([1, 9])
        for _ in range(5):
            next(running)
        state = json.loads(json.dumps(loader.state_dict()))
        rest = [ids(next(running)) for _ in range(150)]
    with lock.loader(store, adaptive=True) as resumed:
        resumed.load_state_dict(state)
        running = iter(resumed)
        assert [ids(next(running)) for _ in range(150)] == rest
        assert [event.kind for event in resumed.lock().events] == ["weights"]
        assert "wanted" not in resumed.state_dict()
        for wrong in ([1], [0, 0], ["1", "9"], [-1, 9], {"a": 1}):
            with pytest.raises(UsageError, match="weights of this state"):
                resumed.load_state_dict({**state, "wanted": wrong})


@pytest.mark.parametrize("points", [{0: [0, 1], 70_000: [0.05, 0.95]}, {0: [0.001, 0.999], 129: [0, 1]}])
def test_a_schedule_on_its_way_from_or_to_0_passes_through_shares_too_small_to_keep(
    points: dict[int, list[float]],
) -> None:
    store = a_store()
    scheduled = mix(store.load("support@v1"), store.live("support"), weights=Schedule.of(points))
    with scheduled.loader(1, **SMALL) as loader:
        assert len([ids(batch) for batch in loader]) >= 320


@pytest.mark.parametrize("how", ["stop", "error"])
def test_a_source_that_is_given_weight_later_is_exhausted_too(how: str) -> None:
    store = MemoryStore()
    store.add("support@v1", records("a", 30))
    store.add("support@live", records("c", 9_000))
    two = mix(store.load("support@v1"), store.live("support"), weights=[0, 1])
    with two.loader(1, adaptive=True, exhaustion=how, **SMALL) as loader:  # type: ignore[arg-type]
        running = iter(loader)
        next(running)
        loader.reweigh([1, 1])
        if how == "error":
            with pytest.raises(UsageError, match="exhausted"):
                list(running)
        else:
            list(running)
            once = loader.stats()["sources"][0]
            assert once["planned"] == once["train_rows"] > 20


def test_a_source_that_loses_its_weight_before_it_is_exhausted_ends_nothing() -> None:
    store = a_store()
    two = mix(store.load("support@v1"), store.live("support"), weights=[1, 99])
    with two.loader(1, epochs=None, adaptive=True, exhaustion="stop", **SMALL) as loader:
        running = iter(loader)
        next(running)
        loader.reweigh([0, 1])
        assert len([next(running) for _ in range(300)]) == 300


def test_no_replay_at_all_can_be_taken_back() -> None:
    store = a_store()
    three = mix(store.load("support@v1"), store.load("support@v2"), store.live("support"), weights=[1, 2, 3])
    with three.loader(60, epochs=None, adaptive=True, **SMALL) as loader:
        running = iter(loader)
        for share, wanted in ((0.0, [0, 0, 1]), (0.3, [0.1, 0.2, 0.7])):
            loader.set_replay(share)
            for _ in range(65):
                batch = next(running)
            assert shares(batch, 3) == pytest.approx(wanted)


def test_workers_learn_of_events_before_they_plan_with_them() -> None:
    store = a_store(live=700)
    schedule = Schedule.of({0: [1, 3], 64: [1, 1], 128: [1, 7]}, kind="step")
    two = mix(store.load("support@v1"), store.live("support"), weights=schedule, seed=3)
    batches = []
    with two.loader(4, num_workers=2, follow=True, **SMALL) as loader:
        for number, batch in enumerate(loader):
            batches.append(ids(batch))
            if number == 20:
                grow(store, 700, 900)
                state = loader.state_dict()
        lock = loader.lock()
    assert {event.kind for event in lock.events} == {"weights", "growth"}
    with lock.loader(store) as again:
        assert [ids(batch) for batch in again] == batches
        again.load_state_dict(state)
        assert [ids(batch) for batch in again] == batches[21:]


def test_a_state_of_another_course_of_the_same_run_is_refused() -> None:
    store = a_store()
    two = mix(store.load("support@v1"), store.live("support"))

    def after(share: float | None) -> tuple[dict[str, Any], MixLock]:
        with two.loader(4, adaptive=True, epochs=None, **SMALL) as loader:
            batches = iter(loader)
            if share:
                loader.set_replay(share)
            list(islice(batches, 70))
            return loader.state_dict(), loader.lock()

    plain, half = after(None), after(0.25)
    with plain[1].loader(store) as loader, pytest.raises(ConflictError, match="different runs"):
        loader.load_state_dict(half[0])
    with half[1].loader(store) as loader, pytest.raises(ConflictError, match="different runs"):
        loader.load_state_dict(plain[0])
    for broken in ({**half[0], "events": [["x"]]}, {**half[0], "decided": -1}, {**half[0], "events": 5}):
        with half[1].loader(store) as loader, pytest.raises(UsageError):
            loader.load_state_dict(broken)


def test_a_state_is_small_whatever_the_mix() -> None:
    store = MemoryStore()
    sources = [store.add(f"a-rather-long-corpus-name-{n}@v1", records("a", 20)) for n in range(60)]
    with mix(*sources, weights=list(range(1, 61))).loader(64) as loader:
        assert len(json.dumps(loader.state_dict())) <= 1_024


# ---- counts


@given(st.integers(1, 60), st.integers(1, 90), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_a_replay_ratio_draws_each_new_record_once_and_as_much_replay_as_that_makes(
    new: int, old: int, ratio: float, batch_size: int
) -> None:
    store = MemoryStore()
    past, live = (
        store.add("s@v1", records("a", old, heldout_every=0)),
        store.add("s@live", records("c", new, heldout_every=0)),
    )
    said = mix(past, live, replay_ratio=ratio)
    with said.loader(batch_size, **SMALL) as loader:
        drawn = Counter(one for batch in loader for one in batch["id"])
        sizes = [len(batch["id"]) for batch in loader]
    replayed = sum(count for one, count in drawn.items() if one[0] == "a")
    assert {one: count for one, count in drawn.items() if one[0] == "c"} == {f"c-{n:05d}": 1 for n in range(new)}
    assert abs(replayed - new * ratio / (1 - ratio)) <= 1
    assert said.counts_once(batch_size) == {"s@v1": replayed, "s@live": new}
    assert all(size == batch_size for size in sizes[:-1])
    assert sum(sizes) == new + replayed
    for world_size in (w for w in (2, 3, 4) if batch_size % w == 0):
        halves: Counter[str] = Counter()
        for rank in range(world_size):
            with said.loader(batch_size, rank=rank, world_size=world_size, **SMALL) as part:
                halves.update(one for batch in part for one in batch["id"])
        assert halves == drawn


def test_a_replay_ratio_needs_one_new_source_and_ends_by_itself() -> None:
    store = a_store()
    v1, live = store.load("support@v1"), store.live("support")
    for sources, options in (
        ([v1], {}), ([live, live], {}), ([v1, live], {"replay_ratio": 1.0}), ([v1, live], {"weights": [1, 0]}),
        ([live], {"replay_ratio": 0.5}), ([v1, live], {"weights": Schedule.of({0: [1, 1]})}),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            mix(*sources, **{"replay_ratio": 0.3, **options})
    with pytest.raises(UsageError, match="once"):
        mix(v1, live, replay_ratio=0.3).loader(8, epochs=2)


def test_shares_by_tokens_count_tokens() -> None:
    store = MemoryStore()
    long = [{"text": "t", "tokens": list(range(30 + n % 5))} for n in range(200)]
    short = [{"text": "t", "tokens": list(range(1 + n % 3))} for n in range(300)]
    two = mix(store.add("a@v1", long), store.add("b@v1", short), weights=[1, 1], share_by="tokens")
    assert two.shares[0] == pytest.approx(2 / (2 + 32), abs=1e-3)
    with two.loader(64, columns=["tokens"], epochs=None) as loader:
        tokens = np.zeros(2)
        for batch in islice(loader, 400):
            for source in range(2):
                tokens[source] += int(batch["tokens.lengths"][batch["_ref"] == source].sum())
        stats = loader.stats()
    assert tokens[0] / tokens.sum() == pytest.approx(0.5, abs=0.01)
    assert stats["tokens"] == tokens.sum()
    assert stats["tokens_per_s"] > 0
    plain = store.add("c@v1", [{"text": "t"}])
    with pytest.raises(UsageError, match="token"):
        mix(plain, plain, share_by="tokens")


def test_exhaustion_repeats_stops_or_is_refused_as_asked() -> None:
    store = MemoryStore()
    small, live = (
        store.add("s@v1", records("a", 30, heldout_every=0)),
        store.add("s@live", records("c", 300, heldout_every=0)),
    )
    two = mix(small, live, weights=[1, 1])
    options: dict[str, Any] = {"columns": ["id"], "batch_size": 8}
    with two.loader(**options) as loader:
        assert len(list(loader)) == len(loader) == 75
        stats = loader.stats()["sources"]
    assert (stats[0]["repeats"], stats[1]["repeats"]) == (270, 0)
    assert stats[0]["epochs"] == pytest.approx(10)
    with two.loader(**options, exhaustion="stop") as loader:
        drawn = Counter(one for batch in loader for one in batch["id"])
        assert len(loader) == 7
    assert max(drawn.values()) == 1
    with pytest.raises(UsageError, match="s@v1 holds 30 training rows"):
        two.loader(**options, exhaustion="error")
    with mix(live, small, weights=[19, 1]).loader(**options, exhaustion="error") as loader:
        assert len(loader) > 0
    with pytest.raises(UsageError, match="exhaustion"):
        two.loader(**options, exhaustion="maybe")


def test_a_progress_bar_knows_the_length() -> None:
    with mix(a_store().load("support@v1")).loader(7, columns=["id"]) as loader:
        assert len(loader) == math.ceil(240 / 7) == sum(1 for _ in loader)
