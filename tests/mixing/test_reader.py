"""The reader below the loader: plans that change between batches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.mixing.columns import kind_of
from treering.mixing.plan import Growth, MixPlan, WeightChange, block_rows_for
from treering.mixing.reader import BatchReader, Share
from treering.mixing.sources import TrainRows
from treering.testing import MemoryStore

BATCH = 12


def rows_of(*sizes: int) -> list[TrainRows]:
    store = MemoryStore()
    return [
        TrainRows.of(store.add(f"s{n}@v1", [{"id": f"{n}-{k:05d}"} for k in range(size)]))
        for n, size in enumerate(sizes)
    ]


def read(reader: BatchReader, low: int, high: int) -> list[list[str]]:
    return [reader.read(batch)[0]["id"] for batch in range(low, high)]


@given(
    st.integers(20, 400), st.sampled_from([1, 4]), st.integers(16, 200), st.integers(0, 25), st.booleans(),
    st.sampled_from([Share(), Share(1, 2), Share(0, 1, 0, 2)]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_plan_taken_in_between_two_batches_gives_what_it_gives_from_the_start(
    size: int, chunk: int, pool: int, at: int, ahead: bool, share: Share
) -> None:
    units = (1, 2)
    rows = rows_of(size, 300)
    kinds = [kind_of("id", rows[0].segments[0].table().schema.field("id").type, ragged="pad", pad_value=0)]  # type: ignore[attr-defined]
    plain = MixPlan((size, 300), units, BATCH, 5, chunk, block_rows_for(units, BATCH, chunk, pool), anchor=0)
    taken = plain.taken_before(at)
    change = WeightChange(at, (3, 1), taken)
    options: dict[str, Any] = {"share": share, "read_ahead": ahead}
    mine = [batch for batch in range(40) if bool(share.owns(batch))]  # type: ignore[arg-type]
    changed = MixPlan(**{**_fields(plain), "changes": (change,)})
    with BatchReader(changed, rows, kinds, **options) as reader:
        want = [reader.read(batch)[0]["id"] for batch in mine]
    with BatchReader(plain, rows, kinds, **options) as reader:
        got = [reader.read(batch)[0]["id"] for batch in mine if batch < at]
        reader.replan(changed, rows)
        got += [reader.read(batch)[0]["id"] for batch in mine if batch >= at]
    assert got == want


def _fields(plan: MixPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_source_that_grew_is_read_with_its_new_rows_from_the_next_batch_on(ahead: bool) -> None:
    before, after = rows_of(200), rows_of(330)
    kinds = [kind_of("id", after[0].segments[0].table().schema.field("id").type, ragged="pad", pad_value=0)]  # type: ignore[attr-defined]
    plan = MixPlan((200,), (1,), BATCH, 5, 4, (64,), anchor=0)
    source = plan.sources[0]
    batch = next(t for t in range(1, 40) if source.is_boundary(plan.taken_before(t)[0]) and t > 1)
    grown = MixPlan(**{**_fields(plan), "growth": ((0, Growth(plan.taken_before(batch)[0], 330)),)})
    with BatchReader(grown, after, kinds, read_ahead=ahead) as reader:
        want = read(reader, 0, 60)
    with BatchReader(plan, before, kinds, read_ahead=ahead) as reader:
        got = read(reader, 0, batch)
        reader.replan(grown, after)
        got += read(reader, batch, 60)
    assert got == want
    assert {one for ids in got for one in ids} == {f"0-{k:05d}" for k in range(330)}


def test_what_was_read_stays_where_the_new_plan_has_the_same_windows() -> None:
    rows = rows_of(5_000, 300)
    kinds = [kind_of("id", rows[0].segments[0].table().schema.field("id").type, ragged="pad", pad_value=0)]  # type: ignore[attr-defined]
    plan = MixPlan((5_000, 300), (1, 2), BATCH, 5, 4, (1_000, 1_000), anchor=0)
    changed = MixPlan(**{**_fields(plan), "changes": (WeightChange(3, (2, 1), plan.taken_before(3)),)})
    reads = 0

    class Counting:
        def __init__(self, segment: Any) -> None:
            self.segment = segment

        def take(self, *args: Any) -> Any:
            nonlocal reads
            reads += 1
            return self.segment.take(*args)

    counted = [TrainRows((Counting(one.segments[0]),), one.first, one.start, one.segment) for one in rows]  # type: ignore[arg-type]
    with BatchReader(plan, counted, kinds, read_ahead=False) as reader:
        read(reader, 0, 3)
        assert reads == 2
        reader.replan(changed, counted)
        read(reader, 3, 6)
        assert reads == 2
