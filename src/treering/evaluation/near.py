"""PURE. Which records nearly equal one of a set: MinHash signatures, bands, and a look at the texts themselves.

Two texts are as alike as their sets of characters in runs of five overlap (Jaccard similarity of shingles: Leskovec,
Rajaraman & Ullman, "Mining of Massive Datasets", 3.2). Candidates share one of 25 bands of 5 rows of a MinHash signature
(ibid. 3.4), which finds 99.99 % of the pairs at 0.8; what they are worth is then computed from the shingles themselves. Lee
et al., "Deduplicating Training Data Makes Language Models Better" (ACL 2022), take the same line, 0.8.

The set that is looked for is held in memory, a stream goes by it once: about 700 bytes and the text for each of the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from treering.evaluation.content import normal
from treering.store.measure import hash_texts

__all__ = ["NEARLY", "NearIndex", "Sketches", "Twin"]

UInt64Array = npt.NDArray[np.uint64]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

#: Similarity from which two records nearly equal each other.
NEARLY = 0.8
#: Characters of a text that are compared.
COMPARED_CHARS = 2_000

_SHINGLE = 5
_SEED = 42
_SIGNATURE = 128
_BANDS, _ROWS = 25, 5
_AT_ONCE = 1_024  # signatures come as Python lists
_PAIRS = 65_536  # compared at a time: 64 MB of signatures
#: Pairs whose shingles are compared; beyond it, in data of one mould, the estimate decides (its error is 0.03).
_EXACT_PAIRS = 50_000
_SLACK = 0.1  # of an estimate: three and a half standard errors

_PRIME = np.uint64(0x100000001B3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: UInt64Array) -> UInt64Array:
    """splitmix64's finaliser, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _shingles(texts: pa.Array) -> tuple[UInt64Array, UInt64Array]:
    """Hashes of every run of five characters: (uint64 (s,), offsets uint64 (n + 1,)); a shorter text is one run."""
    padding = "\0" * (_SHINGLE - 1)
    joined = padding.join([text or "" for text in texts.to_pylist()]) + padding
    characters = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.uint64)
    characters += np.uint64(1)
    lengths = np.asarray(pc.fill_null(pc.utf8_length(texts), 0)).astype(np.int64)
    starts = np.cumsum(lengths + len(padding)) - lengths - len(padding)
    sizes = np.where(lengths == 0, 0, np.maximum(lengths - len(padding), 1))
    edges = np.zeros(
        len(characters) + 1, np.int8
    )  # of the stretches that runs begin in; texts are kept apart by padding
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + sizes, -1)
    begins = np.cumsum(edges[:-1], dtype=np.int8).view(bool)
    hashes = characters.copy()
    for offset in range(1, _SHINGLE):
        hashes *= _PRIME
        hashes[:-offset] ^= characters[offset:]
    return _mixed(hashes[begins]), np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)


def _jaccard(one: UInt64Array, other: UInt64Array) -> float:
    if not len(one) or not len(other):
        return 0.0
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


class Sketches:
    """What a batch of records is told apart by. Records without text equal nothing."""

    def __init__(self, ids: pa.Array, texts: pa.Array) -> None:
        import rensa  # only what compares texts needs it

        self.ids = ids
        self.id_hashes = hash_texts(ids, "id")
        self.texts = normal(pc.utf8_slice_codeunits(texts.cast(pa.large_string()), 0, COMPARED_CHARS))
        self.full = np.asarray(pc.greater(pc.fill_null(pc.utf8_length(self.texts), 0), 0))
        self.exact = hash_texts(self.texts, "content")
        self.signatures = np.zeros((len(texts), _SIGNATURE), np.uint32)
        for start in range(0, len(texts), _AT_ONCE):
            part = self.texts.slice(start, _AT_ONCE)
            hashes, offsets = _shingles(part)
            rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, _SIGNATURE, _SEED).to_rows()
            self.signatures[start : start + len(part)] = np.array(rows, np.uint32).reshape(len(part), _SIGNATURE)

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Sketches:
        """Those of some of the records: bool (n,)."""
        if chosen.all():
            return self
        part: Sketches = object.__new__(Sketches)
        rows = pa.array(np.flatnonzero(chosen))
        part.ids, part.texts = self.ids.take(rows), self.texts.take(rows)
        for name in ("id_hashes", "full", "exact", "signatures", "bands"):
            setattr(part, name, getattr(self, name)[chosen])
        return part

    @cached_property
    def bands(self) -> UInt64Array:
        """A key per record and band: (n, 25)."""
        keys = np.zeros((len(self), _BANDS), np.uint64)
        parts = self.signatures[:, : _BANDS * _ROWS].reshape(len(self), _BANDS, _ROWS).astype(np.uint64)
        for row in range(_ROWS):
            keys = _mixed((keys ^ parts[:, :, row]) + _GOLDEN)
        return keys


@dataclass(frozen=True, slots=True)
class Twin:
    """A record that nearly equals one that was looked for. `place` says where it was met."""

    query: int  # index into what was looked for
    id: str
    place: str
    similarity: float


class NearIndex:
    """Records that are looked for: their near twins in what goes by."""

    def __init__(self, ids: pa.Array, texts: pa.Array, *, line: float = NEARLY) -> None:
        sketches = Sketches(ids, texts)
        self.line = line
        self.ids = sketches.ids
        self.texts = sketches.texts
        self._full = sketches.full
        self._id_hashes = sketches.id_hashes
        self._signatures = sketches.signatures
        self._exact_order = np.argsort(sketches.exact, kind="stable")
        self._exact = sketches.exact[self._exact_order]
        self._order = [np.argsort(sketches.bands[:, band], kind="stable") for band in range(_BANDS)]
        self._keys = [sketches.bands[order, band] for band, order in enumerate(self._order)]
        self._best: FloatArray = np.where(self._full, 0, 2).astype(np.float32)  # what has no text has no twin to find
        self._twins: dict[int, Twin] = {}
        self._budget = _EXACT_PAIRS

    def __len__(self) -> int:
        return len(self.ids)

    def pass_by(self, found: Sketches, place: str = "") -> None:
        """Let a batch go by; a record is never its own twin. What equals word for word wins over what nearly equals."""
        if not len(self) or not len(found):
            return
        rows = np.flatnonzero(found.full)
        for pick in (1, -1):  # the first and the last of each: one of them may be the record itself
            keys, row = _firsts(found.exact[rows][::pick], rows[::pick])
            queries, hits = _join(self._exact, self._exact_order, keys, row)
            self._take(queries, hits, np.ones(len(queries)), found, place, again=True)
        rejected: set[tuple[int, int]] = set()
        for band in range(_BANDS):
            for pick in (1, -1):
                keys, row = _firsts(found.bands[rows, band][::pick], rows[::pick])
                queries, hits = _join(self._keys[band], self._order[band], keys, row)
                todo = self._best[queries] < self.line
                self._compare(queries[todo], hits[todo], found, place, rejected)

    def _compare(
        self, queries: Int64Array, hits: Int64Array, found: Sketches, place: str, rejected: set[tuple[int, int]]
    ) -> None:
        for start in range(0, len(queries), _PAIRS):
            q, h = queries[start : start + _PAIRS], hits[start : start + _PAIRS]
            estimates = (self._signatures[q] == found.signatures[h]).mean(axis=1)
            near = np.flatnonzero((estimates >= self.line - _SLACK) & (self._best[q] < self.line))
            values = estimates[near]
            for at, (query, hit) in enumerate(zip(q[near].tolist(), h[near].tolist(), strict=True)):
                if self._budget <= 0:
                    break
                if (query, hit) in rejected or self._id_hashes[query] == found.id_hashes[hit]:
                    values[at] = 0
                    continue
                self._budget -= 1
                values[at] = _alike(self.texts[query].as_py(), found.texts[hit].as_py())
                if values[at] < self.line:
                    rejected.add((query, hit))
            good = values >= self.line
            self._take(q[near][good], h[near][good], values[good], found, place)

    def _take(
        self,
        queries: Int64Array,
        hits: Int64Array,
        values: npt.NDArray[Any],
        found: Sketches,
        place: str,
        *,
        again: bool = False,
    ) -> None:
        better = values > self._best[queries] if again else self._best[queries] < self.line
        better &= self._id_hashes[queries] != found.id_hashes[hits]
        for query, hit, value in zip(
            queries[better].tolist(), hits[better].tolist(), values[better].tolist(), strict=True
        ):
            if value > self._best[query]:
                self._best[query] = value
                self._twins[query] = Twin(query, found.ids[hit].as_py(), place, round(value, 4))

    @property
    def with_text(self) -> int:
        """How many of the records that are looked for say anything."""
        return int(self._full.sum())

    def twins(self) -> list[Twin]:
        """One for each that has any, the most alike first."""
        return sorted(self._twins.values(), key=lambda twin: (-twin.similarity, self.ids[twin.query].as_py(), twin.id))

    def has_twin(self) -> npt.NDArray[np.bool_]:
        """Which of the records that are looked for have one: bool (n,)."""
        found = np.zeros(len(self), bool)
        found[list(self._twins)] = True
        return found


def _alike(one: str, other: str) -> float:
    hashes, offsets = _shingles(pa.array([one, other], pa.large_string()))
    return _jaccard(np.unique(hashes[: int(offsets[1])]), np.unique(hashes[int(offsets[1]) :]))


def _firsts(keys: UInt64Array, rows: Int64Array) -> tuple[UInt64Array, Int64Array]:
    """Each key once, ascending, with the first row that has it."""
    unique, first = np.unique(keys, return_index=True)
    return unique, rows[first]


def _join(known: UInt64Array, order: Int64Array, keys: UInt64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """All pairs (index into what is known, row) of equal keys; `known` is ascending, `order` says where it came from."""
    low, high = np.searchsorted(known, keys, "left"), np.searchsorted(known, keys, "right")
    sizes = high - low
    met = np.flatnonzero(sizes)
    sizes = sizes[met]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
    return order[np.repeat(low[met], sizes) + within], np.repeat(rows[met], sizes)
