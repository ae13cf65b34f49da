"""The loader over sources in memory; `test_store_mixing.py` runs it over a real store."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import wait_for
from treering.errors import ConflictError, NotFoundError, StoreError, TreeringError, UsageError
from treering.mixing import GrowthEvent, Mix, MixLock, WeightEvent, mix
from treering.testing import MemoryStore, check_resume

from .conftest import records

WEIGHTS = [0.3, 0.3, 0.4]


@pytest.fixture
def thirds(memory: MemoryStore) -> Mix:
    return mix(memory.load("support@v1"), memory.load("support@v2"), memory.live("support"), weights=WEIGHTS, seed=7)


def ids(batch: dict[str, Any]) -> list[str]:
    return list(batch["id"])


def first(loader: Any, batches: int) -> list[list[str]]:
    with loader:
        return [ids(batch) for batch in islice(loader, batches)]


# ---- what a batch is


def test_every_batch_and_prefix_is_within_one_row_of_its_shares(thirds: Mix) -> None:
    taken = np.zeros(3)
    with thirds.loader(batch_size=256, columns=["id"], epochs=None) as loader:
        for number, batch in enumerate(islice(loader, 60), 1):
            counts = np.bincount(batch["_ref"].numpy(), minlength=3)
            assert (np.abs(counts - 256 * np.array(WEIGHTS)) < 1).all()
            taken += counts
            assert (np.abs(taken - number * 256 * np.array(WEIGHTS)) < 1).all()
    assert loader.refs == ["support@v1", "support@v2", "support@live"]


def test_ref_numbers_name_the_source_of_each_row_and_sources_are_interleaved(thirds: Mix) -> None:
    with thirds.loader(batch_size=20, columns=["id"]) as loader:
        batch = next(iter(loader))
    assert batch["_ref"].dtype == torch.int64
    assert ["abc"[ref] for ref in batch["_ref"].tolist()] == [one[0] for one in batch["id"]]
    assert len({one[0] for one in batch["id"][:10]}) == 3


def test_columns_become_tensors_and_lists_of_one_row_each(thirds: Mix) -> None:
    with thirds.loader(batch_size=32) as loader:
        batch = next(iter(loader))
    assert set(batch) == {"_ref", "id", "text", "label", "tokens", "tokens.lengths", "messages", "split"}
    for row, one in enumerate(batch["id"]):
        n = int(one[2:])
        assert batch["text"][row] == f"{one[0]} says {n}"
        assert batch["label"][row] == n % 7
        length = int(batch["tokens.lengths"][row])
        assert length == n % 5 + 1
        assert batch["tokens"][row].tolist() == list(range(length)) + [0] * (batch["tokens"].shape[1] - length)
        assert batch["messages"][row] == [{"role": "user", "content": f"{one[0]} {n}"}]
    assert batch["split"] == ["train"] * 32
    assert isinstance(batch["text"], list)
    assert batch["tokens"].shape[1] == int(batch["tokens.lengths"].max())


def test_ragged_lists_also_come_as_values_and_offsets(thirds: Mix) -> None:
    with thirds.loader(batch_size=32, columns=["id", "tokens"], ragged="values") as loader:
        batch = next(iter(loader))
    offsets = batch["tokens.offsets"].tolist()
    for row, one in enumerate(batch["id"]):
        assert batch["tokens"][offsets[row] : offsets[row + 1]].tolist() == list(range(int(one[2:]) % 5 + 1))
    with thirds.loader(batch_size=8, columns=["tokens"], pad_value=-1) as loader:
        assert (next(iter(loader))["tokens"] == -1).any()


def test_every_arrow_type_arrives_with_its_values() -> None:
    rows = 40
    table = pa.table(
        {
            "id": [f"r{n}" for n in range(rows)],
            "i8": pa.array(range(rows), pa.int8()),
            "u16": pa.array(range(rows), pa.uint16()),
            "f16": pa.array(np.arange(rows, dtype=np.float16)),
            "f64": pa.array([None if n % 3 == 0 else n / 2 for n in range(rows)], pa.float64()),
            "flag": pa.array([n % 2 == 0 for n in range(rows)]),
            "ts": pa.array([None if n == 0 else n for n in range(rows)], pa.timestamp("us", "UTC")),
            "day": pa.array(range(rows), pa.date32()),
            "grid": pa.array([[[n, 1], [2, n]] for n in range(rows)], pa.list_(pa.list_(pa.int32(), 2), 2)),
            "word": pa.array([f"w{n % 4}" for n in range(rows)]).dictionary_encode(),
            "maybe": pa.array([None if n % 2 else f"m{n}" for n in range(rows)]),
            "blob": pa.array([bytes([n]) for n in range(rows)], pa.binary()),
            "lists": pa.array([None if n == 5 else [n] * (n % 3) for n in range(rows)], pa.large_list(pa.float32())),
            "deep": pa.array([[[n]] for n in range(rows)], pa.list_(pa.list_(pa.int32()))),
        }
    )
    source = MemoryStore().add("all@v1", table)
    with mix(source).loader(batch_size=rows, chunk_rows=1) as loader:
        batch = next(iter(loader))
    n = np.array([int(one[1:]) for one in batch["id"]])
    for name, dtype in (("i8", torch.int8), ("u16", torch.uint16), ("f16", torch.float16)):
        assert batch[name].dtype == dtype
        assert batch[name].tolist() == n.tolist()
    assert torch.equal(batch["f64"].isnan(), torch.from_numpy(n % 3 == 0))
    assert batch["flag"].tolist() == (n % 2 == 0).tolist()
    assert batch["ts"].dtype == torch.int64
    assert batch["ts"].tolist() == [-(2**63) if k == 0 else k for k in n.tolist()]
    assert batch["day"].tolist() == n.tolist()
    assert batch["grid"].shape == (rows, 2, 2)
    assert batch["grid"][:, 1, 1].tolist() == n.tolist()
    assert batch["word"] == [f"w{k % 4}" for k in n.tolist()]
    assert batch["maybe"] == [None if k % 2 else f"m{k}" for k in n.tolist()]
    assert batch["blob"] == [bytes([k]) for k in n.tolist()]
    assert batch["lists.lengths"].tolist() == [0 if k == 5 else k % 3 for k in n.tolist()]
    assert list(batch["deep"]) == [[[k]] for k in n.tolist()]
    assert batch["deep"][-1] == [[int(n[-1])]]
    assert batch["deep"][:2] == [[[k]] for k in n[:2].tolist()]


def test_writing_into_a_batch_changes_no_other_batch(thirds: Mix) -> None:
    expected = first(thirds.loader(batch_size=16, epochs=3), 40)
    with thirds.loader(batch_size=16, epochs=3, columns=["id", "label", "tokens"], prefetch=0) as loader:
        for batch, want in zip(loader, expected, strict=False):
            assert ids(batch) == want
            assert batch["label"].tolist() == [int(one[2:]) % 7 for one in want]
            for value in batch.values():
                value.zero_() if isinstance(value, torch.Tensor) else value.clear()


def test_a_transform_gets_the_whole_batch_and_decides_what_is_delivered(thirds: Mix) -> None:
    with thirds.loader(batch_size=8, transform=lambda batch: len(batch["id"])) as loader:
        assert next(iter(loader)) == 8


# ---- epochs and shuffling


def test_an_epoch_is_one_pass_over_live_each_training_row_once(thirds: Mix, memory: MemoryStore) -> None:
    with thirds.loader(batch_size=10, columns=["id"]) as loader:
        seen = [one for batch in loader for one in batch["id"] if one[0] == "c"]
        assert len(loader) == 30
    train = [row["id"] for row in memory.live("support").to_table().to_pylist() if row["split"] == "train"]
    assert sorted(seen) == sorted(train)


def test_without_live_an_epoch_is_a_pass_over_the_largest_share(memory: MemoryStore) -> None:
    both = mix(memory.load("support@v1"), memory.load("support@v2"), weights=[1, 3])
    assert both.anchor == 1
    assert len(both.loader(batch_size=8)) == -(-160 // 6)
    unused_live = mix(memory.load("support@v1"), memory.live("support"), weights=[1, 0])
    assert unused_live.anchor == 0


@given(
    st.integers(1, 120), st.sampled_from([1, 3, 8]), st.sampled_from([1, 4, 64]), st.integers(1, 60), st.integers(0, 9)
)
@settings(max_examples=40, deadline=None)
def test_each_epoch_of_a_source_serves_each_training_row_once(
    rows: int, batch: int, chunk: int, pool: int, seed: int
) -> None:
    source = MemoryStore().add("c@v1", records("a", rows))
    train = sorted(row["id"] for row in source.to_table().to_pylist() if row["split"] == "train")
    loader = mix(source, seed=seed).loader(
        batch, columns=["id"], epochs=3, chunk_rows=chunk, pool_rows=pool, prefetch=0
    )
    served: Counter[str] = Counter()
    for part in loader:  # after every batch, each row has come as often as whole passes fit, or once more
        served.update(part["id"])
        passes = served.total() // len(train)
        assert {served[one] for one in train} <= ({passes, passes + 1} if served.total() % len(train) else {passes})
    assert set(served) == set(train)
    assert served.total() // len(train) >= 3


def test_epochs_repeat_in_a_fresh_order_and_iter_starts_over(thirds: Mix) -> None:
    with thirds.loader(batch_size=12, columns=["id"], epochs=2) as loader:
        once = [one for batch in loader for one in batch["id"] if one[0] == "c"]
        twice = [one for batch in loader for one in batch["id"] if one[0] == "c"]
    assert once == twice
    assert len(once) == 240
    assert set(Counter(once).values()) == {2}
    assert once[:120] != once[120:]


def test_a_ref_over_several_snapshots_is_one_source_drawn_by_rows(memory: MemoryStore) -> None:
    source = memory.load("support@v1..v2")
    with mix(source).loader(batch_size=40, columns=["id"]) as loader:
        served = [one for batch in loader for one in batch["id"]]
    assert len(served) == len(set(served)) == 240 + 160
    assert 40 < sum(one[0] == "a" for one in served[:100]) < 80


# ---- held-out rows


@given(st.lists(st.booleans(), min_size=2, max_size=200), st.sampled_from([1, 4]), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_a_heldout_record_is_never_drawn(heldout: list[bool], chunk: int, seed: int) -> None:
    rows = [{"id": f"r{n}", "split": "heldout" if out else "train"} for n, out in enumerate(heldout)]
    store = MemoryStore()
    source, more = store.add("c@v1", rows), store.add("c@v2", [{"id": "x"}])
    if all(heldout):
        with pytest.raises(UsageError):
            mix(source, more)
        return
    loader = mix(source, more, seed=seed).loader(
        6, columns=["id"], epochs=4, chunk_rows=chunk, pool_rows=16, prefetch=0
    )
    banned = {row["id"] for row in rows if row["split"] == "heldout"}
    assert not banned & {one for batch in loader for one in batch["id"]}


def test_the_heldout_records_of_a_source_cant_be_mixed(memory: MemoryStore) -> None:
    with pytest.raises(UsageError) as caught:
        mix(memory.load("support@v1").heldout())
    assert caught.value.code == "empty-source"


# ---- the same again


def test_workers_change_nothing_in_the_sequence(thirds: Mix) -> None:
    expected = first(thirds.loader(batch_size=16, columns=["id"], epochs=None), 45)
    got = first(thirds.loader(batch_size=16, columns=["id"], epochs=None, num_workers=2), 45)
    assert got == expected


def test_prefetch_and_columns_change_nothing_in_the_sequence(thirds: Mix) -> None:
    expected = first(thirds.loader(batch_size=16, epochs=None), 30)
    assert first(thirds.loader(batch_size=16, columns=["id"], epochs=None, prefetch=0), 30) == expected
    assert first(thirds.loader(batch_size=16, columns=["text", "id"], epochs=None, prefetch=1), 30) == expected


def test_seeds_and_sources_have_orders_of_their_own(memory: MemoryStore) -> None:
    one = memory.load("support@v1")
    runs = [first(mix(one, seed=seed).loader(32, columns=["id"]), 3) for seed in (0, 1)]
    assert runs[0] != runs[1]
    with mix(one, one).loader(40, columns=["id"]) as loader:
        batch = next(iter(loader))
    sides = [[i for i, ref in zip(batch["id"], batch["_ref"], strict=True) if ref == k] for k in (0, 1)]
    assert sides[0] != sides[1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_get_disjoint_slices_of_the_same_global_batches(thirds: Mix, world_size: int) -> None:
    whole = first(thirds.loader(batch_size=16, columns=["id"], epochs=None), 25)
    slices = [
        first(thirds.loader(16, columns=["id"], epochs=None, rank=rank, world_size=world_size), 25)
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*slices, strict=True)] == whole
    lengths = {len(thirds.loader(batch_size=16, rank=rank, world_size=world_size)) for rank in range(world_size)}
    assert len(lengths) == 1


def test_ranks_come_from_torchrun_unless_given(thirds: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = thirds.loader(batch_size=16)
    assert (found.rank, found.world_size, found.local_batch_size) == (1, 2, 8)
    given = thirds.loader(batch_size=16, rank=0, world_size=1)
    assert (given.rank, given.world_size) == (0, 1)


# ---- resume


def test_resuming_at_twenty_random_batches_equals_the_unbroken_run(thirds: Mix) -> None:
    stops = random.Random(1).sample(range(60), 20)
    check_resume(
        lambda: thirds.loader(batch_size=16, columns=["id"], epochs=None, pool_rows=64, chunk_rows=4),
        stops=stops,
        length=60,
        key=ids,
    )


def test_resuming_a_finite_run_ends_where_the_unbroken_one_ends(thirds: Mix) -> None:
    length = len(thirds.loader(batch_size=10))
    check_resume(lambda: thirds.loader(10, columns=["id"]), stops=(0, 1, 7, length - 1, length), key=ids)


def test_a_run_may_resume_with_other_workers_and_ranks(thirds: Mix) -> None:
    def make(workers: int) -> Any:
        return thirds.loader(batch_size=16, columns=["id"], epochs=None, num_workers=workers)

    check_resume(lambda: make(2), remake=lambda: make(0), stops=(5,), length=20, key=ids)
    check_resume(lambda: make(0), remake=lambda: make(2), stops=(11,), length=20, key=ids)
    with thirds.loader(16, epochs=None, rank=1, world_size=2) as half:
        list(islice(half, 3))
        state = half.state_dict()
    with make(0) as loader:
        loader.load_state_dict(state)
        assert [ids(batch) for batch in islice(loader, 2)] == first(make(0), 5)[3:]


def test_a_state_counts_batches_handed_out_not_prefetched(thirds: Mix) -> None:
    with thirds.loader(batch_size=8, epochs=None, prefetch=32) as loader:
        assert loader.state_dict()["batch"] == 0
        iterator = iter(loader)
        next(iterator)
        time.sleep(0.05)
        assert loader.state_dict()["batch"] == 1
        assert len(json.dumps(loader.state_dict())) < 1_024


def test_three_resumes_in_one_epoch_lose_nothing(thirds: Mix) -> None:
    expected = first(thirds.loader(batch_size=16, columns=["id"], epochs=None), 30)
    got: list[list[str]] = []
    state = None
    for stop in (3, 4, 17, 30):
        with thirds.loader(batch_size=16, columns=["id"], epochs=None) as loader:
            if state is not None:
                loader.load_state_dict(state)
            got += [ids(batch) for batch in islice(loader, stop - len(got))]
            state = json.loads(json.dumps(loader.state_dict()))
    assert got == expected


def test_a_state_of_another_run_is_refused_with_the_difference(thirds: Mix, memory: MemoryStore) -> None:
    state = thirds.loader(batch_size=16).state_dict()
    sources = thirds.sources
    other = MemoryStore()
    other.add("support@v1", records("z", 300))
    others = {
        "batch_size: 16 there, 32 here": thirds.loader(batch_size=32),
        "seed: 7 there, 8 here": mix(*sources, weights=WEIGHTS, seed=8).loader(16),
        "units: [3, 3, 4] there": mix(*sources, weights=[1, 1, 1], seed=7).loader(16),
        "chunk_rows": thirds.loader(16, chunk_rows=1),
        "sources: [['support@v1'": mix(
            other.load("support@v1"), sources[1], sources[2], weights=WEIGHTS, seed=7
        ).loader(16),
    }
    for difference, loader in others.items():
        with pytest.raises(ConflictError) as caught:
            loader.load_state_dict(state)
        assert difference in str(caught.value)
        assert str(caught.value).count(" there, ") == 1
    for nonsense in ({}, {"batch": -1, "version": 1}, {"batch": True, "version": 1}, [], {**state, "version": 99}):
        with pytest.raises(UsageError):
            thirds.loader(batch_size=16).load_state_dict(nonsense)  # type: ignore[arg-type]


# ---- locks


def test_a_lock_gives_the_same_batches_again(thirds: Mix, memory: MemoryStore, tmp_path: Any) -> None:
    loader = thirds.loader(batch_size=16, columns=["id", "tokens"], epochs=2, ragged="values")
    expected = first(loader, 10**6)
    assert loader.lock() == thirds.lock(16, columns=["id", "tokens"], epochs=2, ragged="values")
    loader.lock().save(tmp_path / "deep" / "mix.lock.json")
    lock = MixLock.load(tmp_path / "deep" / "mix.lock.json")
    assert lock == loader.lock()
    assert lock.digest == loader.lock().digest
    assert lock.shares == thirds.shares == (0.3, 0.3, 0.4)
    again = lock.loader(memory)
    assert set(next(iter(again))) == {"_ref", "id", "tokens", "tokens.offsets"}
    assert first(again, 10**6) == expected
    assert first(lock.loader(memory, columns=["id"], epochs=None), len(expected) + 1)[:-1] == expected
    with lock.loader(memory) as resumed:
        resumed.load_state_dict(loader.state_dict())


def test_a_saved_lock_holds_what_its_json_schema_names(thirds: Mix) -> None:
    schema = MixLock.model_json_schema()
    assert set(json.loads(thirds.lock().to_json())) == set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_the_events_of_a_lock_decide_the_batches() -> None:
    options: dict[str, Any] = {"columns": ["id"], "epochs": None, "chunk_rows": 1}
    memory = MemoryStore()
    old, live = memory.add("support@v1", records("a", 300)), memory.add("support@live", records("c", 150)[:125])
    base = mix(old, live, weights=[1, 1]).lock(8, **options)
    end = memory.add("support@live", records("c", 150)[125:]).segments[-1].row_ids[1]
    events = (
        WeightEvent(batch=10, units=(3, 1), taken=(40, 40)),
        GrowthEvent(batch=10, source=1, draw=60, train_rows=120, end=end),  # there were 100 when the run began
    )
    lock = MixLock.from_json(base.with_events(events, 10).to_json())
    assert lock.digest != base.digest
    with lock.loader(memory) as loader:
        batches = [(ids(batch), batch["_ref"]) for batch in islice(loader, 50)]
    assert [int(ref.sum()) for _, ref in batches] == [4] * 10 + [2] * 40
    from_live = [one for batch, _ in batches for one in batch if one[0] == "c"]
    assert len(set(from_live[:60])) == 60
    assert len(set(from_live)) == len(from_live) == 120
    check_resume(lambda: lock.loader(memory), stops=(0, 9, 10, 11, 19, 20, 21), length=40, key=ids)
    check_resume(lambda: lock.loader(memory, rank=1, world_size=2), stops=(9, 21), length=40, key=ids)
    wrong = events[1].model_copy(update={"train_rows": 119})
    with pytest.raises(ConflictError, match="120 training rows, the lock says 119"):
        lock.with_events((events[0], wrong), 10).loader(memory)


def test_a_lock_refuses_what_isnt_what_was_locked(thirds: Mix, tmp_path: Any) -> None:
    lock = thirds.lock()
    changed = MemoryStore()
    changed.add("support@v1", records("a", 299))
    with pytest.raises(ConflictError):
        lock.loader(changed)
    with pytest.raises(NotFoundError):
        lock.loader(MemoryStore())
    with pytest.raises(NotFoundError):
        MixLock.load(tmp_path / "none.json")
    edited = json.loads(lock.to_json()) | {"seed": 8}
    with pytest.raises(ConflictError):
        MixLock.from_json(json.dumps(edited))
    for text in ("", "[]", "{}", '{"seed": "7"}', lock.to_json().replace('"seed": 7', '"seed": 7.5')):
        with pytest.raises(UsageError):
            MixLock.from_json(text)


def test_locking_needs_no_torch() -> None:
    script = (
        "import sys, treering; from treering.testing import MemoryStore; "
        "treering.mix(MemoryStore().add('a@v1', [{'x': 1}])).lock().to_json(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_rows_sorted_by_label_arrive_mixed() -> None:
    rows, labels, batch = 60_000, 100, 256
    source = MemoryStore().add(
        "sorted@v1", {"id": [str(n) for n in range(rows)], "label": np.arange(rows) * labels // rows}
    )

    def entropy(chosen: np.ndarray[Any, Any]) -> float:
        shares = np.bincount(chosen) / len(chosen)
        return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())

    with mix(source, seed=1).loader(batch, columns=["label"], chunk_rows=32, pool_rows=16_384) as loader:
        found = np.mean([entropy(part["label"].numpy()) for part in islice(loader, 60)])
    random_rows = np.random.default_rng(0).integers(0, labels, (60, batch))
    assert found >= 0.98 * np.mean([entropy(row) for row in random_rows])


# ---- refusals


def test_sources_without_training_rows_are_refused_unless_their_weight_is_nothing(memory: MemoryStore) -> None:
    empty = memory.add("support@v9", [{"id": "h", "label": 1, "text": "x", "split": "heldout"}])
    full = memory.load("support@v1")
    with pytest.raises(UsageError, match="support@v9 has no training rows") as caught:
        mix(full, empty)
    assert caught.value.code == "empty-source"
    with mix(full, empty, weights=[1, 0]).loader(8, columns=["id"]) as loader:
        assert not any(batch["_ref"].any() for batch in loader)
        assert loader.refs == ["support@v1", "support@v9"]


def test_bad_arguments_are_one_clear_line(memory: MemoryStore) -> None:
    source = memory.load("support@v1")
    good = mix(source)
    calls = {
        "weights-length": lambda: mix(source, weights=[1, 2]),
        "bad-weight": lambda: mix(source, source, weights=[1, float("nan")]),
        "zero-weights": lambda: mix(source, weights=[0]),
        "no-sources": lambda: mix(),
        "not-a-source": lambda: mix("support@v1"),  # type: ignore[arg-type]
        "bad-seed": lambda: mix(source, seed=1.5),  # type: ignore[arg-type]
        "bad-batch-size": lambda: good.loader(batch_size=0),
        "bad-chunk-rows": lambda: good.loader(chunk_rows=0),
        "bad-epochs": lambda: good.loader(epochs=0),
        "bad-ragged": lambda: good.loader(ragged="nested"),  # type: ignore[arg-type]
        "bad-num-workers": lambda: good.loader(num_workers=-1),
        "fork": lambda: good.loader(start_method="fork"),
        "bad-rank": lambda: good.loader(rank=2, world_size=2),
        "indivisible-batch": lambda: good.loader(batch_size=10, rank=0, world_size=3),
        "reserved-column": lambda: good.loader(columns=["_ref"]),
    }
    for code, call in calls.items():
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == code
    with pytest.raises(UsageError):
        good.loader(rank=1)


def test_an_unknown_column_is_refused_with_the_columns_there_are(thirds: Mix) -> None:
    with pytest.raises(NotFoundError) as caught:
        thirds.loader(columns=["id", "labell"])
    assert caught.value.code == "no-column"
    assert "label, tokens" in str(caught.value)


def test_columns_that_differ_between_sources_are_left_out_or_refused() -> None:
    store = MemoryStore()
    one = store.add("a@v1", [{"id": "1", "x": 1, "y": 1}])
    two = store.add("b@v1", [{"id": "2", "x": "one"}])
    with pytest.raises(UsageError, match="int64 in a@v1, string in b@v1"):
        mix(one, two).loader(2)
    assert mix(one, two).loader(2, columns=["id"]).columns == ["id"]
    three = store.add("c@v1", [{"id": "3", "x": 3}])
    assert mix(one, three).loader(2).columns == ["id", "x", "split"]
    with pytest.raises(NotFoundError, match="c@v1 has no column 'y'"):
        mix(one, three).loader(2, columns=["y"])


def test_nulls_that_a_tensor_cant_hold_are_refused_by_name() -> None:
    source = MemoryStore().add("a@v1", {"id": ["1", "2"], "n": pa.array([1, None])})
    with mix(source).loader(2, prefetch=0) as loader, pytest.raises(UsageError, match="'n' holds nulls"):
        next(iter(loader))


def test_iterating_inside_another_dataloaders_worker_is_refused(thirds: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treering.mixing.loader.get_worker_info", lambda: object())
    with pytest.raises(UsageError) as caught:
        iter(thirds.loader(8))
    assert caught.value.code == "nested-workers"


# ---- failures and cleaning up


def broken(batch: dict[str, Any]) -> Any:
    raise StoreError("no more disk", code="disk-full", hint="buy one")


def dying(batch: dict[str, Any]) -> Any:
    import os

    os._exit(3)


@pytest.mark.parametrize("options", [{"prefetch": 0}, {"prefetch": 4}, {"num_workers": 1}])
def test_an_error_reaches_the_caller_with_its_code(thirds: Mix, options: dict[str, int]) -> None:
    with thirds.loader(8, transform=broken, **options) as loader:  # type: ignore[arg-type]
        with pytest.raises(StoreError) as caught:
            next(iter(loader))
        assert (caught.value.code, caught.value.hint) == ("disk-full", "buy one")


def test_a_worker_that_dies_is_an_error_not_a_hang(thirds: Mix) -> None:
    with thirds.loader(8, transform=dying, num_workers=1) as loader, pytest.raises(TreeringError) as caught:
        next(iter(loader))
    assert caught.value.code == "worker-died"


def test_a_transform_that_cant_be_sent_to_workers_is_refused(thirds: Mix) -> None:
    with thirds.loader(8, transform=lambda batch: batch, num_workers=1) as loader, pytest.raises(UsageError) as caught:
        iter(loader)
    assert caught.value.code == "transform-not-picklable"


def test_no_thread_is_left_after_close_the_end_or_a_break(thirds: Mix) -> None:
    before = set(threading.enumerate())

    def ours() -> list[str]:
        return [one.name for one in set(threading.enumerate()) - before if one.name.startswith("treering")]

    loader = thirds.loader(8, epochs=None)
    iterator = iter(loader)
    next(iterator)
    assert ours()
    loader.close()
    assert not ours()
    with pytest.raises(UsageError, match="ended early"):
        next(iterator)
    with pytest.raises(UsageError):
        iter(loader)
    list(thirds.loader(50))
    for _batch in thirds.loader(8, epochs=None):
        break
    gc.collect()
    wait_for(lambda: not ours())


def test_stats_count_what_was_planned_and_served(thirds: Mix) -> None:
    with thirds.loader(10, columns=["id"], epochs=2) as loader:
        list(islice(loader, 35))
        stats = loader.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["batches"], stats["batches_total"], stats["rows"]) == (35, 60, 350)
    assert [source["served"] for source in stats["sources"]] == [105, 105, 140]
    assert [source["planned"] for source in stats["sources"]] == [105, 105, 140]
    assert stats["sources"][2]["epochs"] == pytest.approx(140 / 120)
    assert stats["sources"][0]["planned_total"] == 180
    assert stats["rows_per_s"] > 0
    with pytest.raises(TypeError):
        len(thirds.loader(10, epochs=None))


@pytest.mark.parametrize("sizes", [{"pool_rows": 10**18}, {"chunk_rows": 10**12}, {"pool_rows": 50_000_000}])
def test_a_source_smaller_than_a_block_costs_what_it_holds(sizes: dict[str, int]) -> None:
    store = MemoryStore()
    store.add("support@v1", records("a", 40))
    tracemalloc.start()
    with mix(store.load("support@v1")).loader(8, columns=["id"], epochs=None, **sizes) as loader:
        passes = [next(iter(loader))["id"] for _ in range(2)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert passes[0] == passes[1]
    assert peak < 32 << 20


@pytest.mark.parametrize("options", ["", "adaptive=True, num_workers=1"])
def test_a_script_that_ends_in_the_middle_of_a_run_says_nothing(options: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import treering\n"
        "from treering.testing import MemoryStore\n"
        "if __name__ == '__main__':\n"
        "    store = MemoryStore()\n"
        "    store.add('a@v1', [{'id': str(n)} for n in range(100)])\n"
        f"    loader = treering.mix(store.load('a@v1')).loader(batch_size=8, {options})\n"
        "    running = iter(loader)\n"
        "    next(running)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_batch_that_is_more_than_an_epoch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    few = MemoryStore()
    few.add("c@v1", records("few", 34, heldout_every=0))
    with mix(few.load("c@v1"), weights=[1]).loader(batch_size=34):
        assert caplog.messages == []
    with mix(few.load("c@v1"), weights=[1]).loader(batch_size=35, epochs=None):
        assert caplog.messages == []  # who trains without epochs means to repeat
    with mix(few.load("c@v1"), weights=[1]).loader(batch_size=35):
        (told,) = caplog.messages
    assert told.startswith("a batch of 35 draws up to 35 rows of c@v1, which has 34: ")
