"""A static filter of ids: "surely not in this snapshot" for all but one in ten thousand ids that aren't. Pure.

A Bloom filter in blocks of 4 KiB: an id's hash picks the block, and thirteen bits in it. Sorted by hash, a block's ids
lie together, so it is built in the processor's cache and asked by columns. A positive always needs an exact look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from treering.errors import StoreError

__all__ = ["FilterBuilder", "IdFilter"]

_MAGIC = b"treering-ids-1\0\0"
_HEAD = len(_MAGIC) + 8
_BITS = 32_768  # a block
_PROBES = 13
#: Bits an id: 19.2 would do for 1e-4 were all blocks equally full; the fullest ones need a little more.
_BITS_AN_ID = 20
#: Hashes that wait to be sorted and put in at once: 8 bytes each.
_WAITING = 1 << 22
_BLOCKS_AT_ONCE = 64

_Hashes = np.ndarray[Any, np.dtype[np.uint64]]
_Bits = np.ndarray[Any, np.dtype[np.uint8]]


def _hashes(ids: Sequence[bytes]) -> _Hashes:
    """XXH3 (64 bit) of each id."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, ids), np.uint64, len(ids))


def _blocks(hashes: _Hashes, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which block each hash belongs to; ascending with the hash."""
    return ((hashes >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


def _probes(hashes: _Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The bits within its block that each hash sets: int64 (_PROBES, n)."""
    mixed = hashes * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    first, step = mixed & np.uint64(0xFFFFFFFF), (mixed >> np.uint64(32)) | np.uint64(1)
    steps = np.arange(_PROBES, dtype=np.uint64)[:, None]
    spread = (first + steps * step + steps * steps * steps * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    return (spread >> np.uint64(32 - 15)).astype(np.int64)


class IdFilter:
    """A filter as it was saved. Ids are asked for many at once."""

    def __init__(self, data: bytes) -> None:
        if len(data) <= _HEAD or data[: len(_MAGIC)] != _MAGIC or (len(data) - _HEAD) % (_BITS // 8):
            raise StoreError("this isn't a filter of ids", code="object-damaged")
        self._bits: _Bits = np.frombuffer(data, np.uint8, offset=_HEAD)
        self._count = len(self._bits) * 8 // _BITS

    def may_hold(self, ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each id whether it may be in: bool (n,). False is sure."""
        return self._holds(_hashes([record_id.encode() for record_id in ids]))

    def lacks(self, ids: pa.Array) -> int:
        """How many of these ids (an Arrow string array) it denies."""
        return int(len(ids) - self._holds(_hashes(ids.cast(pa.binary()).to_pylist())).sum())

    def _holds(self, hashes: _Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        at = _blocks(hashes, self._count) * _BITS + _probes(hashes)
        return np.asarray(np.all(self._bits[at >> 3] >> (7 - (at & 7)).astype(np.uint8) & 1, axis=0))


class FilterBuilder:
    """Feed it the ids of a snapshot, then ask for `save()`. Takes 2.5 bytes an id, and 32 MB for ids that wait."""

    def __init__(self, rows: int) -> None:
        self._count = max(1, -(-rows * _BITS_AN_ID // _BITS))
        self._bits: _Bits = np.zeros(self._count * _BITS // 8, np.uint8)
        self._waiting: list[_Hashes] = []
        self._rows = 0

    def add(self, ids: pa.Array) -> None:
        """Put ids in: an Arrow string array without nulls."""
        self._waiting.append(_hashes(ids.cast(pa.binary()).to_pylist()))
        self._rows += len(ids)
        if self._rows >= _WAITING:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        hashes = np.sort(np.concatenate(self._waiting))
        self._waiting, self._rows = [], 0
        blocks = _blocks(hashes, self._count)
        for low in range(0, self._count, _BLOCKS_AT_ONCE):
            high = min(low + _BLOCKS_AT_ONCE, self._count)
            first, end = np.searchsorted(blocks, [low, high])
            if first == end:
                continue
            stretch = self._bits[low * _BITS // 8 : high * _BITS // 8]
            bits = np.unpackbits(stretch)
            bits[(blocks[first:end] - low) * _BITS + _probes(hashes[first:end])] = 1
            stretch[:] = np.packbits(bits)

    def save(self) -> bytes:
        """The filter's bytes: the same for the same ids, in whatever order they came."""
        self._settle()
        return _MAGIC + self._count.to_bytes(8, "little") + self._bits.tobytes()
