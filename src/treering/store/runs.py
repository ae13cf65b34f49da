"""Runs of consecutive row ids: int64 (k, 2) of (first id, length), ascending, and what narrows them. Pure.

Training rows are few runs however many they are, so narrowing costs by what is left out or picked, not by rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["RowIds", "Runs", "drop_ids", "expand", "inside", "join_runs", "keep_ids", "runs_of"]

RowIds = np.ndarray[Any, np.dtype[np.int64]]
Runs = np.ndarray[Any, np.dtype[np.int64]]


def runs_of(ids: RowIds) -> Runs:
    """The runs that distinct, ascending `ids` (n,) form."""
    if not len(ids):
        return np.empty((0, 2), np.int64)
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
    return np.stack([ids[starts], np.diff(starts, append=len(ids))], axis=1).astype(np.int64)


def join_runs(parts: Sequence[Runs]) -> Runs:
    """The runs of all parts, which have no id in common; neighbours become one."""
    runs = np.concatenate([np.empty((0, 2), np.int64), *parts])
    if not len(runs):
        return runs
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    heads = np.flatnonzero(np.concatenate([[True], runs[1:, 0] != runs[:-1].sum(axis=1)]))
    return np.stack([runs[heads, 0], np.add.reduceat(runs[:, 1], heads)], axis=1)


def expand(runs: Runs) -> RowIds:
    """Every id of the runs, ascending: int64 (n,)."""
    lengths = runs[:, 1]
    before = np.cumsum(lengths) - lengths
    return np.repeat(runs[:, 0] - before, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)


def inside(runs: Runs, ids: RowIds) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of `ids` (n,) lie in the runs: bool (n,)."""
    if not len(runs):
        return np.zeros(len(ids), bool)
    at = np.searchsorted(runs[:, 0], ids, side="right") - 1
    return np.asarray((at >= 0) & (ids < runs[at, 0] + runs[at, 1]))


def keep_ids(runs: Runs, ids: RowIds) -> Runs:
    """What the runs have in common with distinct, ascending `ids`."""
    return runs_of(ids[inside(runs, ids)])


def drop_ids(runs: Runs, ids: RowIds) -> Runs:
    """The runs without distinct, ascending `ids`: a run is cut in two where one stood."""
    ids = ids[inside(runs, ids)]
    if not len(ids):
        return runs
    # Each run loses its ids as one cut each; starts and ends, sorted, then pair up again.
    starts = np.sort(np.concatenate([runs[:, 0], ids + 1]))
    ends = np.sort(np.concatenate([runs.sum(axis=1), ids]))
    return np.stack([starts, ends - starts], axis=1)[ends > starts]
