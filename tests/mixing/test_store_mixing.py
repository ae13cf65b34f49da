"""Capture, seal, mix, draw: the loader over a real store, also while the store moves on."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import treering
from treering.errors import ConflictError, NotFoundError, UsageError
from treering.mixing import MixLock
from treering.testing import check_resume

WEIGHTS = [0.3, 0.3, 0.4]


def fill(corpus: treering.Corpus, prefix: str, rows: int) -> None:
    with corpus.capture() as live:
        live.extend([{"id": f"{prefix}-{n}", "text": f"{prefix} {n}", "label": f"l{n % 5}"} for n in range(rows)])


@pytest.fixture
def grown(support: treering.Corpus) -> treering.Corpus:
    """Two snapshots and live, of 300, 200 and 150 records."""
    fill(support, "a", 300)
    support.snapshot()
    fill(support, "b", 200)
    support.snapshot()
    fill(support, "c", 150)
    return support


def three(store: treering.Store, seed: int = 7) -> treering.Mix:
    return store.mix("support@v1", "support@v2", "support@live", weights=WEIGHTS, seed=seed)


def ids(batch: dict[str, Any]) -> list[str]:
    return list(batch["id"])


def first(loader: Any, batches: int) -> list[list[str]]:
    with loader:
        return [ids(batch) for batch in islice(loader, batches)]


def heldout(store: treering.Store, *refs: str) -> set[str]:
    return {one for ref in refs for one in store.load(ref).heldout().to_table(["id"])["id"].to_pylist()}


def test_two_snapshots_and_live_arrive_in_their_shares_without_heldout_records(
    store: treering.Store, grown: treering.Corpus
) -> None:
    taken = np.zeros(3)
    seen: set[str] = set()
    with three(store).loader(batch_size=256, epochs=None) as loader:
        for number, batch in enumerate(islice(loader, 30), 1):
            taken += np.bincount(batch["_ref"].numpy(), minlength=3)
            assert (np.abs(taken - number * 256 * np.array(WEIGHTS)) < 1).all()
            assert ["abc"[ref] for ref in batch["_ref"].tolist()] == [one[0] for one in batch["id"]]
            assert batch["text"] == [one.replace("-", " ") for one in batch["id"]]
            seen.update(batch["id"])
    refs = ("support@v1", "support@v2", "support@live")
    banned = heldout(store, *refs)
    everything = {one for ref in refs for one in store.load(ref).to_table(["id"])["id"].to_pylist()}
    assert banned
    assert seen == everything - banned
    with pytest.raises(UsageError, match="no training rows"):
        treering.mix(store.load("support@v1").heldout())


def test_workers_read_the_same_sequence_from_the_store(store: treering.Store, grown: treering.Corpus) -> None:
    expected = first(three(store).loader(batch_size=32, columns=["id"], epochs=None), 30)
    assert first(three(store).loader(batch_size=32, columns=["id"], epochs=None, num_workers=2), 30) == expected


def test_resuming_at_twenty_random_batches_of_a_store_equals_the_unbroken_run(
    store: treering.Store, grown: treering.Corpus
) -> None:
    check_resume(
        lambda: three(store).loader(batch_size=16, columns=["id"], epochs=None, pool_rows=128, chunk_rows=4),
        stops=random.Random(2).sample(range(40), 20),
        length=40,
        key=ids,
    )


def test_sealing_and_compacting_in_the_middle_changes_no_batch(store: treering.Store, grown: treering.Corpus) -> None:
    mix = three(store)
    options: dict[str, Any] = {"batch_size": 16, "columns": ["id"], "epochs": None, "pool_rows": 128, "chunk_rows": 4}
    expected = first(mix.loader(**options), 60)
    lock = mix.lock(16, columns=["id"], epochs=None, pool_rows=128, chunk_rows=4)
    pinned = MixLock.from_json(lock.to_json())
    got = []
    with three(store).loader(**options) as loader:
        batches = iter(loader)
        got += [ids(next(batches)) for _ in range(20)]
        assert grown.snapshot() is not None
        got += [ids(next(batches)) for _ in range(10)]
        state = json.loads(json.dumps(loader.state_dict()))
        fill(grown, "d", 120)
        grown.compact()
        grown.clean_up(older_than_s=0)
        got += [ids(next(batches)) for _ in range(30)]
    assert got == expected
    assert first(pinned.loader(store), 60) == expected
    with pinned.loader(store) as loader:
        loader.load_state_dict(state)
        assert [ids(batch) for batch in islice(loader, 30)] == expected[30:]


def test_live_that_grew_is_another_mix_and_the_old_state_says_so(store: treering.Store, grown: treering.Corpus) -> None:
    state = three(store).loader(16).state_dict()
    fill(grown, "d", 10)
    with pytest.raises(ConflictError, match="support@live"):
        three(store).loader(16).load_state_dict(state)


def test_a_range_is_one_source_and_new_is_the_anchor(store: treering.Store, grown: treering.Corpus) -> None:
    both = store.load("support@v1..v2")
    train = len(both) - len(both.heldout())
    with treering.mix(both).loader(batch_size=train, columns=["id"]) as loader:
        (batch,) = list(loader)
    assert len(set(batch["id"])) == train
    mix = store.mix("support@v1", "support@new", weights=[9, 1])
    assert mix.anchor == 1


def test_records_of_a_schema_of_ones_own_become_tensors(store: treering.Store) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.int32(), 8)), ("weight", pa.float32()), ("tail", pa.list_(pa.int64()))])
    corpus = store.create("own", schema=schema)
    with corpus.capture() as live:
        live.extend([{"id": f"r{n}", "tokens": [n] * 8, "weight": n / 2, "tail": [n] * (n % 3)} for n in range(100)])
    with treering.mix(store.live("own")).loader(16, columns=["id", "tokens", "weight", "tail"]) as loader:
        for batch in loader:
            number = [int(one[1:]) for one in batch["id"]]
            assert batch["tokens"].shape == (16, 8)
            assert batch["tokens"][:, 7].tolist() == number
            assert batch["weight"].tolist() == [n / 2 for n in number]
            assert batch["tail.lengths"].tolist() == [n % 3 for n in number]


def test_the_stores_mistakes_are_named(store: treering.Store, grown: treering.Corpus) -> None:
    with pytest.raises(NotFoundError, match="support@v9"):
        store.mix("support@v9")
    with pytest.raises(NotFoundError, match="has no column"):
        three(store).loader(columns=["nope"])
    empty = store.create("empty", "labelled")
    with pytest.raises(UsageError, match="empty@live has no training rows"):
        treering.mix(store.live(empty.name))
    lock = three(store).lock()
    with pytest.raises(NotFoundError):
        lock.loader(treering.open(store.root.parent / "another"))
    document = json.loads(lock.to_json())
    del document["digest"]
    document["sources"][0]["pin"]["segments"][0]["digest"] = "0" * 64
    gone = MixLock.model_validate_json(json.dumps(document))
    with pytest.raises(ConflictError, match="support@v1"):
        gone.loader(store)


SMALL: dict[str, Any] = {"columns": ["id"], "pool_rows": 128, "chunk_rows": 4}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_followed_live_takes_in_what_is_captured_and_its_lock_gives_the_run_again_however_the_store_moves_on(
    store: treering.Store, support: treering.Corpus, num_workers: int
) -> None:
    fill(support, "a", 300)
    support.snapshot()
    fill(support, "b", 1_000)
    mix = store.mix("support@v1", "support@live", weights=[1, 3], seed=2)
    begun = mix.lock(8, **SMALL)
    batches, states = [], []
    with mix.loader(8, follow=True, num_workers=num_workers, **SMALL) as loader:
        for number, batch in enumerate(loader):
            batches.append(ids(batch))
            states.append(json.loads(json.dumps(loader.state_dict())))
            if number in (2, 70):  # records come, and are sealed or compacted away before the loader looks again
                fill(support, f"c{number}", 200)
                support.snapshot() if number == 2 else support.compact()
                support.clean_up(older_than_s=0)
        final = loader.lock()
    sources = ["support@v1", "support@v2", "support@live"]
    trained = {one for ref in sources for one in store.load(ref).to_table(["id"])["id"].to_pylist()} - heldout(
        store, *sources
    )
    drawn = Counter(one for batch in batches for one in batch)
    assert set(drawn) == trained
    assert sum(n - 1 for one, n in drawn.items() if one[0] != "a") < 8
    assert [event.kind for event in final.events] == ["growth", "growth"]

    fill(support, "d", 100)
    support.compact(rows_per_fragment=10_000)
    support.snapshot()
    support.clean_up(older_than_s=0)
    assert first(MixLock.from_json(final.to_json()).loader(store), 10**6) == batches
    for number in (64, 80):  # what was settled by then is in the state; from 128 on it goes on with what is new now
        with begun.loader(store, follow=True) as resumed:
            resumed.load_state_dict(states[number])
            assert [ids(batch) for batch in islice(resumed, 40)] == batches[number + 1 : number + 41]


def test_following_beside_a_writer_and_a_sealer_draws_every_record_once(
    store: treering.Store, support: treering.Corpus
) -> None:
    fill(support, "a", 400)
    stop = threading.Event()

    def move() -> None:
        for n in range(40):
            if stop.wait(0.02):
                return
            fill(support, f"n{n}", 10)
            if n % 10 == 5:
                support.snapshot()
            if n % 10 == 9:
                support.compact()

    with store.mix("support@live").loader(1, follow=True, **SMALL) as loader:
        drawn: Counter[str] = Counter()
        mover = threading.Thread(target=move)
        mover.start()
        try:
            for batch in loader:
                drawn.update(batch["id"])
                stop.wait(0.004)
        finally:
            stop.set()
            mover.join()
        lock = loader.lock()
    assert lock.events
    assert set(drawn.values()) == {1}
    assert sum(drawn.values()) == lock.events[-1].train_rows  # type: ignore[union-attr]
    assert not set(drawn) & heldout(store, "support@live", *(s.ref for s in support.snapshots()))
    with lock.loader(store) as again:
        assert Counter(one for batch in again for one in batch["id"]) == drawn


def test_what_is_new_grows_too_when_live_was_empty(store: treering.Store, support: treering.Corpus) -> None:
    fill(support, "a", 300)
    support.snapshot()
    with store.mix("support@new").loader(2, follow=True, **SMALL) as loader:
        seen: list[str] = []
        for number, batch in enumerate(loader):
            seen += ids(batch)
            if number == 5:
                fill(support, "b", 50)
    assert {one[0] for one in seen} == {"a", "b"}
    assert len(set(seen)) == len(seen) or len(seen) - len(set(seen)) == 1


def test_stats_tell_how_old_the_records_of_a_source_are(store: treering.Store, grown: treering.Corpus) -> None:
    with three(store).loader(16, columns=["id"]) as loader:
        list(islice(loader, 3))
        for source in loader.stats()["sources"]:
            assert 0 <= source["newest_s"] <= source["oldest_s"] < 60


def test_a_live_that_is_empty_or_excluded_whole_grows_in_and_can_be_given_weight_then(
    store: treering.Store, support: treering.Corpus
) -> None:
    fill(support, "a", 100)
    support.snapshot()
    mix = store.mix("support@v1", "support@live", weights=[1, 0])
    with mix.loader(4, follow=True, epochs=None, **SMALL) as loader:
        batches = iter(loader)
        list(islice(batches, 70))
        with pytest.raises(UsageError, match="no training rows"):
            loader.reweigh([1, 1])
        fill(support, "b", 50)
        list(islice(batches, 70))
        loader.reweigh([1, 1])
        seen = {one for batch in islice(batches, 130) for one in ids(batch)}
        drawn, lock = loader.state_dict()["batch"], loader.lock()
    assert {one[0] for one in seen} == {"a", "b"}
    assert [event.kind for event in lock.events] == ["growth", "weights"]
    with lock.loader(store) as again:
        assert {one for batch in islice(again, drawn) for one in ids(batch)} >= seen


def test_what_was_excluded_before_it_grew_in_is_never_drawn_and_what_is_later_stays_in_the_lock(
    store: treering.Store, support: treering.Corpus
) -> None:
    fill(support, "a", 200)
    with store.mix("support@live").loader(4, follow=True, epochs=None, **SMALL) as loader:
        batches = iter(loader)
        next(batches)
        for part in "bc":
            fill(support, part, 100)
            support.annotate_many([{"id": f"{part}-{n}", "exclude": True} for n in range(0, 100, 10)])
            seen = {one for batch in islice(batches, 200) for one in ids(batch)}
        lock = loader.lock()
    assert {one[0] for one in seen} == set("abc")
    assert not seen & {f"{part}-{n}" for part in "bc" for n in range(0, 100, 10)}
    support.annotate_many([{"id": one, "exclude": True} for one in sorted(seen)])
    expected = first(lock.loader(store), 300)
    assert first(lock.loader(store, num_workers=2), 300) == expected
    assert {one for batch in expected for one in batch} >= {one for one in seen if one[0] == "b"}


def test_closing_ends_what_tells_workers_of_events(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:  # of every fifth label: a run each, so that what is told is large
        live.extend([{"id": f"a-{n}", "text": "t", "label": f"l{n % 5}"} for n in range(20_000)])
    narrowed = store.live("support").where(label="l0")
    threads = set(threading.enumerate())
    loader = treering.mix(narrowed, seed=1).loader(20, columns=["id"], epochs=None, follow=True, num_workers=2)
    batches = iter(loader)
    list(islice(batches, 30))
    with support.capture() as live:
        live.extend([{"id": f"b-{n}", "text": "t", "label": f"l{n % 5}"} for n in range(20_000)])
    list(islice(batches, 10))
    loader.close()
    assert not [one.name for one in set(threading.enumerate()) - threads if one.name.startswith("treering")]


@pytest.mark.parametrize(
    ("kind", "value"), [(pa.uint8(), 300), (pa.uint8(), -100), (pa.int32(), 0.5), (pa.int32(), 2**31), (pa.int32(), 1e300),
                        (pa.bool_(), 2), (pa.float32(), 1e300)]
)  # fmt: skip
def test_padding_that_a_column_cant_hold_is_refused(tmp_path: Path, kind: pa.DataType, value: float) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("x", schema=pa.schema([("u", pa.list_(kind))]), heldout=0)
    with corpus.capture() as live:
        live.extend(pa.table({"u": pa.array([[], [1], [1, 1]], pa.list_(pa.int64())).cast(pa.list_(kind))}))
    with pytest.raises(UsageError, match="pad_value"):
        store.mix("x@live").loader(2, columns=["u"], pad_value=value)
    with store.mix("x@live").loader(3, columns=["u"], pad_value=1) as loader:
        assert next(iter(loader))["u"].shape == (3, 2)
    with store.mix("x@live").loader(3, columns=["u"], pad_value=value, ragged="values") as loader:
        next(iter(loader))


def test_sources_read_as_two_versions_of_a_schema_are_refused(tmp_path: Path) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("s", schema=pa.schema([("text", pa.string())]), heldout=0)
    with corpus.capture() as live:
        live.extend([{"text": "one"}])
    corpus.snapshot()
    with corpus.capture() as live:
        live.extend([{"text": "two"}])
    before = store.load("s@v1")
    corpus.evolve(pa.schema([("body", pa.string())]), renames={"text": "body"})
    with pytest.raises(ConflictError, match="evolved meanwhile"):
        treering.mix(before, store.live("s")).loader(2)
    with treering.mix(store.load("s@v1"), store.live("s")).loader(2) as loader:
        assert sorted(next(iter(loader))["body"]) == ["one", "two"]


def test_what_isnt_an_argument_is_refused_by_name(tmp_path: Path) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("s", "labelled", heldout=0)
    with corpus.capture() as live:
        live.extend([{"text": "one", "label": "a", "domain": "d"}])
    one = store.mix("s@live")
    lock = one.lock(1)
    live_source = store.live("s")
    calls: list[Callable[[], Any]] = [
        lambda: one.loader(1, columns=5),  # type: ignore[arg-type]
        lambda: one.loader(1, follow="yes"),  # type: ignore[arg-type]
        lambda: one.loader(1, adaptive="x"),  # type: ignore[arg-type]
        lambda: lock.loader("path"),
        lambda: lock.loader(None),
        lambda: treering.MixLock.load(None),  # type: ignore[arg-type]
        lambda: live_source.select(rows=1, strategy="balanced", by=3),  # type: ignore[arg-type]
        lambda: live_source.select(rows=1, strategy="balanced", by=lambda batch: None),
        lambda: live_source.select(rows=1, strategy="balanced", by=lambda batch: [[1]] * len(batch)),
        *(
            lambda lost=lost: live_source.select(rows=1, strategy="importance", forgetting=lost)  # type: ignore[misc]
            for lost in ({"d": "x"}, {"d": None}, {1: 0.2}, [1], {"d": True})
        ),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
