"""The plan is pure arithmetic: these tests read no data."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import UsageError
from treering.mixing.permute import derive_key, hash64, permute
from treering.mixing.plan import Growth, MixPlan, SourcePlan, WeightChange, block_rows_for
from treering.mixing.shares import MAX_UNITS, quantise, share_table


def a_plan(
    sizes: Sequence[int],
    weights: Sequence[float],
    batch_size: int,
    *,
    seed: int = 0,
    chunk_rows: int = 4,
    pool_rows: int = 256,
    **events: tuple,  # type: ignore[type-arg]
) -> MixPlan:
    units = quantise(weights)
    blocks = block_rows_for(units, batch_size, chunk_rows, pool_rows)
    anchor = int(np.argmax(units))
    return MixPlan(tuple(sizes), units, batch_size, seed, chunk_rows, blocks, anchor, **events)


# ---- permutations


@given(st.integers(1, 3_000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_keyed_permutation_is_a_bijection_with_an_inverse(size: int, key: int) -> None:
    image = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(image), np.arange(size))
    assert np.array_equal(permute(image, size, key, inverse=True), np.arange(size))


def test_a_permutation_of_a_trillion_positions_is_injective_where_sampled() -> None:
    size = 10**12
    index = np.unique(np.random.default_rng(0).integers(0, size, 100_000))
    image = permute(index, size, 5)
    assert image.min() >= 0
    assert image.max() < size
    assert len(np.unique(image)) == len(index)
    assert np.array_equal(permute(image, size, 5, inverse=True), index)


def test_sizes_and_keys_may_differ_by_position() -> None:
    sizes = np.repeat([5, 7, 1_000], [5, 7, 1_000])
    keys = np.repeat(np.array([11, 22, 33], dtype=np.uint64), [5, 7, 1_000])
    index = np.concatenate([np.arange(5), np.arange(7), np.arange(1_000)])
    together = permute(index, sizes, keys)
    apart = np.concatenate([permute(np.arange(n), n, k) for n, k in ((5, 11), (7, 22), (1_000, 33))])
    assert np.array_equal(together, apart)


@pytest.mark.parametrize("size", [8, 40, 100])
def test_every_position_goes_everywhere_about_as_often(size: int) -> None:
    keys = hash64(np.arange(20_000), 99)
    expected = len(keys) / size
    chi = 0.0
    for position in (0, 1, size - 1):
        seen = np.bincount(permute(np.full(len(keys), position), size, keys), minlength=size)
        chi += float(((seen - expected) ** 2 / expected).sum())
    assert chi / (3 * (size - 1)) < 1.6


def test_keys_of_neighbouring_seeds_and_sources_share_nothing() -> None:
    keys = {derive_key("source", seed, source) for seed in range(50) for source in range(50)}
    assert len(keys) == 2_500


# ---- shares


def test_weights_become_the_smallest_integers_that_say_the_same() -> None:
    assert quantise([0.3, 0.3, 0.4]) == (3, 3, 4)
    assert quantise([1 / 3] * 3) == (1, 1, 1)
    assert quantise([7]) == (1,)
    assert quantise([0, 2, 2]) == (0, 1, 1)
    assert quantise(np.array([0.5, 0.5], dtype=np.float32)) == (1, 1)
    assert sum(quantise([np.pi, np.e])) <= MAX_UNITS


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        ([], "no-sources"),
        ([float("nan"), 1], "bad-weight"),
        ([float("inf"), 1], "bad-weight"),
        ([-0.1, 1], "bad-weight"),
        (["1", 1], "bad-weight"),
        ([True, 1], "bad-weight"),
        ([0, 0.0], "zero-weights"),
        ([1e-7, 1], "weight-too-small"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: list[float], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        quantise(weights)
    assert caught.value.code == code


def exact(weights: Sequence[float], batch_size: int, batches: int) -> None:
    """Floor or ceiling in each batch, and never a whole row off in any prefix."""
    units = quantise(weights)
    total = sum(units)
    taken = share_table(units, batch_size).taken(np.arange(batches + 1))
    counts = np.diff(taken, axis=0)
    shares = np.array(units) * batch_size
    assert (counts.sum(axis=1) == batch_size).all()
    assert (counts >= shares // total).all()
    assert (counts <= -(-shares // total)).all()
    assert (np.abs(taken * total - np.arange(batches + 1)[:, None] * shares) < total).all()


@pytest.mark.parametrize("weights", [[1, 8, 8, 8], [1, 1, 11], [1, 999], [1], [5, 5, 5, 5, 5, 1, 1]])
def test_awkward_weights_in_small_batches_are_exact(weights: list[float]) -> None:
    exact(weights, 8, 2_500)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=12).filter(any), st.integers(1, 70))
@settings(max_examples=120, deadline=None)
def test_random_mixes_are_exact(weights: list[int], batch_size: int) -> None:
    exact(weights, batch_size, 1_000)


def test_thirty_thirty_forty_stays_within_a_row_in_every_batch_and_prefix() -> None:
    taken = share_table(quantise([0.3, 0.3, 0.4]), 256).taken(np.arange(1_001))
    ideal = np.array([76.8, 76.8, 102.4])
    assert (np.abs(np.diff(taken, axis=0) - ideal) < 1).all()
    assert (np.abs(taken - np.arange(1_001)[:, None] * ideal) < 1).all()


def test_the_table_is_a_formula_at_any_batch() -> None:
    table = share_table((1, 8, 8, 8), 8)
    far = 10**12
    assert np.abs(table.taken(np.array([far]))[0] - far * 8 * np.array([1, 8, 8, 8]) / 25).max() < 1


# ---- one source


@given(
    st.integers(1, 700),
    st.sampled_from([1, 2, 4, 16]),
    st.sampled_from([16, 32, 100, 1_000]),
    st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_each_epoch_holds_each_row_once_in_a_fresh_order(size: int, chunk: int, block: int, key: int) -> None:
    plan = SourcePlan(size, key, chunk, -(-block // chunk) * chunk)
    passes = plan.positions(np.arange(3 * size)).reshape(3, size)
    assert np.array_equal(np.sort(passes, axis=1), np.tile(np.arange(size), (3, 1)))
    if size > 30:
        assert not np.array_equal(passes[0], passes[1])
    assert [plan.epoch_of(d) for d in (0, size - 1, size, 3 * size - 1)] == [0, 0, 1, 2]


@given(st.integers(1, 500), st.sampled_from([1, 4]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_draw_means_the_same_whatever_is_asked_with_it(size: int, chunk: int, key: int) -> None:
    plan = SourcePlan(size, key, chunk, 64)
    whole = plan.positions(np.arange(2 * size + 7))
    picks = np.random.default_rng(key).integers(0, 2 * size + 7, 40)
    assert np.array_equal(plan.positions(picks), whole[picks])
    assert all(plan.positions(np.array([d]))[0] == whole[d] for d in picks[:5])


@given(st.integers(1, 400), st.sampled_from([1, 4]), st.sampled_from([64, 128]))
@settings(max_examples=60, deadline=None)
def test_windows_tile_the_draws_and_end_with_blocks(size: int, chunk: int, block: int) -> None:
    plan = SourcePlan(size, 3, chunk, block)
    draw = 0
    while draw < 3 * size:
        low, high = plan.window(draw)
        assert (low, high) == plan.window(high - 1)
        assert low == draw
        assert high - low <= max(block, size)
        assert plan.is_boundary(low)
        draw = high


def test_a_window_reads_whole_chunks() -> None:
    plan = SourcePlan(100_000, 1, 64, 4_096)
    low, high = plan.window(50_000)
    rows = np.sort(plan.positions(np.arange(low, high)))
    runs = np.flatnonzero(np.diff(rows) != 1).size + 1
    assert runs <= (high - low) // 64 + 3


@given(st.integers(0, 10_000), st.sampled_from([1, 4]), st.integers(30, 200))
@settings(max_examples=100, deadline=None)
def test_growth_inside_an_epoch_loses_and_repeats_nothing(seed: int, chunk: int, size: int) -> None:
    rng = random.Random(seed)
    growth: list[Growth] = []
    plan = SourcePlan(size, seed, chunk, 16)
    at = 0
    for _ in range(rng.randint(1, 5)):
        at += rng.randint(0, 60)
        while not plan.is_boundary(at):
            at += 1
        growth.append(Growth(at, (growth[-1].size if growth else size) + rng.randint(0, 40)))
        plan = SourcePlan(size, seed, chunk, 16, tuple(growth))
    total = plan.draws_in(6)
    drawn = plan.positions(np.arange(total))
    epoch = np.array([plan.epoch_of(d) for d in range(total)])
    assert (np.diff(epoch) >= 0).all()
    for number in range(6):
        rows = np.sort(drawn[epoch == number])
        assert np.array_equal(rows, np.arange(len(rows)))
        last = int(np.flatnonzero(epoch == number)[-1])
        assert len(rows) == max([size, *(event.size for event in growth if event.draw <= last)])
    before = SourcePlan(size, seed, chunk, 16).positions(np.arange(growth[0].draw))
    assert np.array_equal(drawn[: growth[0].draw], before)
    for draw in range(0, total, 7):
        low, high = plan.window(draw)
        assert low <= draw < high
        assert not any(low < event.draw < high for event in growth)


def test_a_growth_inside_a_block_or_backwards_is_refused() -> None:
    for event in (Growth(3, 200), Growth(16, 50)):
        with pytest.raises(UsageError):
            SourcePlan(100, 0, 4, 16, (event,))
    with pytest.raises(UsageError):
        SourcePlan(1_000, 0, 1, 16, tuple(Growth(k + 1, 1_001 + k) for k in range(17)))


# ---- the mix


def test_batches_partition_the_draws_of_every_source() -> None:
    plan = a_plan([100, 50, 70], [1, 8, 8], 16)
    taken = plan.taken(np.arange(200))
    for source, batch in itertools.product(range(3), (0, 3, 77)):
        low, high = taken[batch, source], taken[batch + 1, source]
        assert all(plan.batch_of(source, int(d)) == batch for d in range(low, high))


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
    st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_the_batch_of_a_draw_is_looked_up_through_all_changes_of_weight(shares: list[list[int]], step: int) -> None:
    """Also where a source has no weight for a while, or none any more."""
    plan = a_plan([90, 80, 70], shares[0], 8)
    for number, weights in enumerate(shares[1:], 1):
        change = WeightChange(number * step, quantise(weights), plan.taken_before(number * step))
        plan = a_plan([90, 80, 70], shares[0], 8, changes=(*plan.changes, change))
    last = len(shares) * step + 20
    taken = plan.taken(np.arange(last + 1))
    for source in range(3):
        for draw in range(int(taken[last, source])):
            batch = plan.batch_of(source, draw)
            assert taken[batch, source] <= draw < taken[batch + 1, source]
        if not shares[-1][source]:
            with pytest.raises(UsageError, match="never drawn"):
                plan.batch_of(source, int(taken[last, source]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8, 16, 100, 256, 1_000])
def test_the_order_of_a_batch_is_a_permutation_that_spreads_the_sources(batch_size: int) -> None:
    plan = a_plan([1_000, 1_000], [1, 1], batch_size)
    for batch in (0, 1, 999):
        order = plan.order(batch)
        assert np.array_equal(np.sort(order), np.arange(batch_size))
        if batch_size >= 16:
            of_first = order[: batch_size // 2] < batch_size // 2
            assert abs(int(of_first.sum()) - batch_size / 4) <= 2


def test_ranks_own_the_slots_that_the_order_gives_them() -> None:
    plan = a_plan([300, 200, 100], [3, 3, 4], 12)
    batches, ranks = plan.owner_ranks(1, 5, 95, 4)
    for draw, batch, rank in zip(range(5, 95), batches.tolist(), ranks.tolist(), strict=True):
        taken, after = plan.taken_before(batch), plan.taken_before(batch + 1)
        assert taken[1] <= draw < after[1]
        row = (after[0] - taken[0]) + draw - taken[1]
        assert plan.order(batch).tolist().index(row) // 3 == rank


def test_an_epoch_of_a_mix_is_one_pass_over_its_anchor() -> None:
    plan = a_plan([1_000, 1_000, 333], [0.3, 0.3, 0.4], 10)
    batches = plan.batches_in(1)
    assert plan.taken_before(batches)[2] >= 333
    assert plan.taken_before(batches - 1)[2] < 333
    assert plan.batches_in(3) == -(-3 * 333 // 4)


def test_a_weight_change_counts_from_where_it_happened() -> None:
    first = a_plan([1_000, 1_000], [1, 2], 8)
    change = WeightChange(7, (1, 1), first.taken_before(7))
    plan = a_plan([1_000, 1_000], [1, 2], 8, changes=(change,))
    assert plan.taken_before(7) == first.taken_before(7)
    assert np.array_equal(np.diff(plan.taken(np.arange(7, 20)), axis=0), np.full((12, 2), 4))
    with pytest.raises(UsageError):
        a_plan([9, 9], [1, 2], 8, changes=(WeightChange(7, (1, 1), (1, 55)),)).taken_before(9)


def test_blocks_last_equally_long_whatever_the_share() -> None:
    assert block_rows_for((3, 3, 4), 256, 64, 32_768) == (9_856, 9_856, 13_120)
    assert min(block_rows_for((1, 999), 8, 64, 32_768)) == 16 * 64
    assert block_rows_for((1,), 100_000, 64, 32_768) == (100_032,)


def test_a_plan_over_a_trillion_rows_costs_as_little() -> None:
    plan = a_plan([10**12, 10**12], [0.3, 0.7], 8_192 * 8, chunk_rows=64, pool_rows=2**20)
    batch = 10**6
    low, high = plan.taken_before(batch)[1], plan.taken_before(batch + 1)[1]
    positions = plan.sources[1].positions(np.arange(low, high))
    assert len(np.unique(positions)) == high - low
    _, ranks = plan.owner_ranks(1, low, high, 1_024)
    assert np.bincount(ranks, minlength=1_024).max() - np.bincount(ranks, minlength=1_024).min() <= 3


@pytest.mark.parametrize("chunk", [1, 64])
def test_neighbouring_draws_come_from_anywhere(chunk: int) -> None:
    plan = MixPlan((100_000,), (1,), 256, 1, chunk, block_rows_for((1,), 256, chunk, 98_304 // 4), anchor=0)
    positions = plan.sources[0].positions(np.arange(100_000))
    assert sorted(positions.tolist()) == list(range(100_000))
    assert abs(float(np.corrcoef(positions[:-1], positions[1:])[0, 1])) < 0.03
