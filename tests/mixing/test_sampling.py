"""Drawing by weight: exact in every epoch, in proportion over many, the same on any machine."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from treering.errors import ConflictError, UsageError
from treering.mixing import MixLock
from treering.mixing.plan import Growth, SourcePlan
from treering.mixing.sampling import Sampled, balanced_weights, integer_weights, weighted_rows
from treering.testing import MemoryStore, check_resume

from .conftest import records


@given(
    weights=st.lists(st.integers(0, 50), min_size=1, max_size=60).filter(any),
    epochs=st.integers(0, 2**40),
    key=st.integers(0, 2**64 - 1),
)
def test_in_each_epoch_a_row_comes_floor_or_ceiling_of_its_part(weights: list[int], epochs: int, key: int) -> None:
    n, w = len(weights), np.array(weights)
    for epoch in (0, 1, epochs):
        rows = weighted_rows(np.arange(n), np.full(n, epoch), np.cumsum(w), key)
        counts = np.bincount(rows, minlength=n)
        assert counts.sum() == n
        exact = [n * int(one) / int(w.sum()) for one in w]
        assert all(
            int(e) <= count <= -(-n * int(one) // int(w.sum())) for e, count, one in zip(exact, counts, w, strict=True)
        )


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=2, max_size=40).filter(lambda w: max(w) > 1e-3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_over_many_epochs_a_row_comes_in_proportion(weights: list[float], seed: int) -> None:
    n, epochs = len(weights), 200
    sampled = Sampled.of("weighted", np.array(weights))
    p, e = np.tile(np.arange(n), epochs), np.repeat(np.arange(epochs), n)
    counts = np.bincount(weighted_rows(p, e, sampled.cumulative, seed), minlength=n)
    expected = np.array(weights) / sum(weights) * n * epochs
    # The golden ratio's discrepancy grows with the logarithm of the epochs, chance's with their root (here 14).
    assert np.abs(counts - expected).max() < 6


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200))
def test_balanced_gives_every_group_the_same_part_of_an_epoch(groups: list[int]) -> None:
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    sampled = Sampled.of("balanced", codes)
    n, kinds = len(groups), len(set(groups))
    rows = weighted_rows(np.arange(n), np.zeros(n, np.int64), sampled.cumulative, 5)
    totals = [int(balanced_weights(codes)[codes == kind].sum()) for kind in range(kinds)]
    assert len(set(totals)) == 1
    if kinds == 1:
        assert sorted(rows.tolist()) == list(range(n))
    # Rows of a group needn't be neighbours, so a group's count may be off by one a stretch of it; sorted they are.
    ordered = np.sort(codes)
    rows = weighted_rows(np.arange(n), np.zeros(n, np.int64), Sampled.of("balanced", ordered).cumulative, 5)
    counts = np.bincount(ordered[rows], minlength=kinds)
    assert counts.max() - counts.min() <= 1


def test_weights_keep_their_ratios_at_any_size() -> None:
    weights = integer_weights(np.array([1e-9, 0.3, 0.9, 0.0]))
    assert weights[2] / weights[1] == pytest.approx(3, rel=1e-12)
    assert weights[0] >= 1
    assert weights[3] == 0
    assert integer_weights(np.array([3.0, 5.0])).tolist() == [3, 5]
    many = np.arange(200_001, dtype=np.int64)
    codes = np.repeat(many[:600], np.arange(1, 601))  # sizes 1 … 600: their least common multiple is beyond any integer
    totals = np.bincount(codes, weights=balanced_weights(codes))
    assert totals.max() / totals.min() == pytest.approx(1, rel=1e-9)
    assert int(np.cumsum(balanced_weights(codes))[-1]) < 2**62 + len(codes)


def test_the_rows_of_known_weights_are_known() -> None:
    # Written down once: other machines and later versions must give the same.
    sampled = Sampled.of("weighted", np.array([0.1, 0.2, 0.3, 0.4]))
    rows = weighted_rows(np.tile(np.arange(4), 4), np.repeat(np.arange(4), 4), sampled.cumulative, 7)
    assert rows.tolist() == [0, 1, 2, 3, 1, 2, 3, 3, 0, 2, 2, 3, 1, 2, 3, 3]
    assert sampled.digest.startswith("c5e6d8a8c1f60a8f")


@pytest.mark.parametrize("bad", [[-1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_weights_that_mean_nothing_are_refused(bad: list[float]) -> None:
    with pytest.raises(UsageError, match="weight"):
        Sampled.of("weighted", np.array(bad))


@pytest.mark.parametrize(("size", "block", "chunk"), [(90, 4096, 32), (5000, 512, 16), (777, 64, 1)])
def test_a_plan_draws_each_row_floor_or_ceiling_times_an_epoch(size: int, block: int, chunk: int) -> None:
    weights = np.random.default_rng(1).integers(0, 9, size)
    plan = SourcePlan(size, 11, chunk, block, cumulative=np.cumsum(weights))
    for epoch in range(3):
        counts = np.bincount(plan.positions(np.arange(epoch * size, (epoch + 1) * size)), minlength=size)
        share = size * weights / weights.sum()
        assert (counts >= np.floor(share)).all()
        assert (counts <= np.ceil(share)).all()


def test_a_source_drawn_by_weight_cant_grow() -> None:
    with pytest.raises(UsageError, match="grow"):
        SourcePlan(4, 1, 1, 64, growth=(Growth(4, 8),), cumulative=np.arange(1, 5))


@pytest.mark.parametrize("pool", [64, 65_536])
def test_batches_of_a_weighted_source_hold_its_rows_with_their_own_values(memory: MemoryStore, pool: int) -> None:
    source = memory.load("support@v1..v2").weighted("label")
    train = [row for row in source.to_table(["id", "split", "label", "text"]).to_pylist() if row["split"] == "train"]
    texts = {row["id"]: row["text"] for row in train}
    weight = {row["id"]: row["label"] for row in train}
    counts = dict.fromkeys(texts, 0)
    with treering.mix(source, seed=5).loader(
        20, columns=["id", "text", "tokens"], epochs=3, chunk_rows=4, pool_rows=pool
    ) as loader:
        for batch in loader:
            for record, text in zip(batch["id"], batch["text"], strict=True):
                assert texts[record] == text
                counts[record] += 1
    total = sum(weight.values())
    for record, count in counts.items():
        assert abs(count - 3 * len(train) * weight[record] / total) < 3
    assert max(counts[i] for i in counts if weight[i] == 0) == 0


def test_a_weighted_mix_resumes_and_is_shared_among_workers_and_ranks(memory: MemoryStore) -> None:
    mix = treering.mix(memory.load("support@v1").balanced("label"), memory.load("support@v2"), weights=[2, 1], seed=1)

    def make() -> treering.Loader:
        return mix.loader(24, columns=["id"], epochs=1, pool_rows=64, chunk_rows=2)

    check_resume(make, stops=(0, 1, 5), key=lambda batch: batch["id"])
    with make() as loader:
        whole = [batch["id"] for batch in loader]
    parts = []
    for rank in range(2):
        with mix.loader(24, columns=["id"], rank=rank, world_size=2, pool_rows=64, chunk_rows=2) as loader:
            parts.append([batch["id"] for batch in loader])
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_a_lock_keeps_the_sampling_and_refuses_other_weights(memory: MemoryStore) -> None:
    lock = treering.mix(memory.load("support@v1").balanced("label"), memory.load("support@v2")).lock(16)
    assert lock.sources[0].sampling is not None
    assert lock.sources[0].sampling.kind == "balanced"
    assert lock.sources[1].sampling is None
    again = MixLock.from_json(lock.to_json())
    with lock.loader(memory, columns=["id"]) as a, again.loader(memory, columns=["id"]) as b:
        assert [x["id"] for x in islice(a, 9)] == [x["id"] for x in islice(b, 9)]
    document = json.loads(lock.to_json())
    del document["digest"]
    document["sources"][0]["sampling"]["digest"] = "0" * 64
    with pytest.raises(ConflictError, match="other weights"):
        MixLock.model_validate_json(json.dumps(document)).loader(memory)


def test_the_uniform_order_is_the_one_without_sampling(memory: MemoryStore) -> None:
    plain = memory.load("support@v1")
    plan = treering.mix(plain).lock(16).plan()
    assert plan.sources[0].cumulative is None


def test_a_store_balances_by_columns_and_by_annotations(store: treering.Store) -> None:
    corpus = store.create("support", "labelled", heldout=0)
    rows = [{"id": f"r{n}", "text": "t", "label": "rare" if n % 20 == 0 else "common"} for n in range(400)]
    with corpus.capture() as live:
        live.extend(rows)
    corpus.snapshot()
    with pytest.raises(treering.NotFoundError, match="mood"):
        store.load("support@v1").balanced("mood")
    with pytest.raises(UsageError, match="weights are numbers"):
        store.load("support@v1").weighted("label")
    balanced = store.load("support@v1").balanced("label")
    with treering.mix(balanced, seed=2).loader(40, columns=["label"], epochs=2) as loader:
        labels = [label for batch in loader for label in batch["label"]]
    assert len(labels) == 800
    assert abs(labels.count("rare") - 400) <= 40  # 20 stretches an epoch, at most one off each
    corpus.annotate_many([{"id": f"r{n}", "quality": n % 3} for n in range(0, 400, 2)])
    weighted = store.load("support@v1").weighted("quality", missing=0.5)
    lock = treering.mix(weighted, seed=2).lock(40, columns=["id"], epochs=3)
    with lock.loader(store) as loader:
        ids = [record for batch in loader for record in batch["id"]]
    weight = {n: 0.5 if n % 2 else n % 3 for n in range(400)}
    total = sum(weight.values())
    for n in range(400):
        assert abs(ids.count(f"r{n}") - 3 * 400 * weight[n] / total) < 3
    corpus.annotate_many([{"id": f"r{n}", "quality": 9} for n in range(10)])  # said later: not in the lock
    with lock.loader(store) as loader:
        assert [record for batch in loader for record in batch["id"]] == ids


def test_a_domain_stream_and_a_general_stream_are_one_mix() -> None:
    memory = MemoryStore()
    memory.add("support@v1", records("a", 300))
    memory.add("wiki@v1", [{"id": f"w{n}", "text": "general"} for n in range(900)])
    mix = treering.streams(memory.load("support@v1"), memory.load("wiki@v1"), seed=4)
    with mix.loader(100) as loader:
        batch = next(iter(loader))
    assert batch["_ref"].bincount().tolist() == [70, 30]
    assert set(batch) == {"id", "text", "split", "_ref"}
    assert treering.streams(*mix.sources, share=0.5).shares == (0.5, 0.5)
    with pytest.raises(UsageError, match="fraction"):
        treering.streams(*mix.sources, share=70)
