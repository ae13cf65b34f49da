"""Runs of row ids: what narrows them, against sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from treering.store.runs import drop_ids, expand, inside, keep_ids, runs_of

Ids = st.sets(st.integers(0, 60), max_size=50).map(lambda found: np.array(sorted(found), np.int64))


@given(Ids)
def test_runs_hold_exactly_their_ids_and_are_as_few_as_can_be(ids: np.ndarray) -> None:
    runs = runs_of(ids)
    assert expand(runs).tolist() == ids.tolist()
    assert (runs[1:, 0] > runs[:-1].sum(axis=1)).all()


@given(Ids, Ids)
def test_keeping_and_dropping_part_the_runs(ids: np.ndarray, picked: np.ndarray) -> None:
    runs = runs_of(ids)
    assert expand(keep_ids(runs, picked)).tolist() == sorted(set(ids.tolist()) & set(picked.tolist()))
    dropped = drop_ids(runs, picked)
    assert expand(dropped).tolist() == sorted(set(ids.tolist()) - set(picked.tolist()))
    assert (dropped[:, 1] > 0).all()
    assert inside(runs, picked).tolist() == [one in set(ids.tolist()) for one in picked.tolist()]
