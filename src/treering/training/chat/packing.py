"""PURE. Sequences of different lengths into rows of one capacity, so that few positions are padding.

Decides which sequence lies where. Does not know tokens' meaning (template) or run a model (base).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Packed", "pack", "passes"]

IGNORED = -100  # what torch's cross-entropy passes over


@dataclass(frozen=True, slots=True)
class Packed:
    """What one forward pass reads; all int64 (rows, length), rows filled up with padding.

    `positions` begin at 0 with every sequence, and with the padding: by that the model keeps them apart. `targets`: the
    token to be predicted *at* each position, i.e. the next one, IGNORED where none is to be learnt. `mask`: 1 where there
    is a token. `owner`: number of the sequence, -1 in the padding.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Positions that hold a token."""
        return int(self.mask.sum())


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which sequences share a row, by number: longest first, each into the fullest row that still takes it.

    Best-fit decreasing needs at most 11/9 of the fewest rows (Johnson, "Near-optimal bin packing algorithms", 1973). A
    sequence longer than the capacity has a row of its own. The same lengths give the same rows.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, row), ascending
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        place = bisect_left(room, (lengths[number], 0))
        if place == len(room):
            rows.append([number])
            free, row = capacity - lengths[number], len(rows) - 1
        else:
            free, row = room.pop(place)
            rows[row].append(number)
            free -= lengths[number]
        if free > 0:
            insort(room, (free, row))
    return rows


def passes(
    ids: Sequence[npt.NDArray[np.int32]],
    learn: Sequence[npt.NDArray[np.bool_]],
    *,
    capacity: int,
    tokens_per_pass: int,
    packing: bool,
    pad: int,
) -> list[Packed]:
    """The forward passes over these sequences: rows of at most `capacity` tokens, at most `tokens_per_pass` positions each.

    `learn[k]` says which tokens of sequence k are to be predicted; its first token can't be. Without packing a sequence
    has a row of its own, and rows of like length lie together.
    """
    lengths = [len(one) for one in ids]
    if packing:
        rows = pack(lengths, min(capacity, tokens_per_pass))
    else:
        rows = [[number] for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))]
    found: list[Packed] = []
    group: list[list[int]] = []
    width = 0
    for row in rows:
        wide = max(width, sum(lengths[n] for n in row))
        if group and wide * (len(group) + 1) > tokens_per_pass:
            found.append(_laid(group, ids, learn, pad))
            group, wide = [], sum(lengths[n] for n in row)
        group.append(row)
        width = wide
    if group:
        found.append(_laid(group, ids, learn, pad))
    return found


def _laid(
    rows: Sequence[Sequence[int]],
    ids: Sequence[npt.NDArray[np.int32]],
    learn: Sequence[npt.NDArray[np.bool_]],
    pad: int,
) -> Packed:
    width = max(sum(len(ids[n]) for n in row) for row in rows)
    shape = (len(rows), width)
    out = np.full(shape, pad, np.int64)
    positions, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets, owner = np.full(shape, IGNORED, np.int64), np.full(shape, -1, np.int64)
    for line, row in enumerate(rows):
        start = 0
        for n in row:
            stop = start + len(ids[n])
            out[line, start:stop] = ids[n]
            positions[line, start:stop] = np.arange(stop - start)
            mask[line, start:stop] = 1
            owner[line, start:stop] = n
            targets[line, start : stop - 1] = np.where(learn[n][1:], ids[n][1:], IGNORED)
            start = stop
        positions[line, start:] = np.arange(width - start)
    return Packed(out, positions, targets, mask, owner)
