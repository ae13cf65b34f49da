"""The mix: which sources, at which weights, under which seed.

A mix is a recipe over pinned sources. `lock()` resolves it into a document, `loader()` draws from it. (Not `mix.py`:
a module of the function's name would hide it.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from treering.errors import UsageError
from treering.mixing.lock import LockedSource, MixLock, SourcePin, column_names
from treering.mixing.permute import Int64Array
from treering.mixing.plan import block_rows_for
from treering.mixing.shares import quantise, share_table
from treering.mixing.sources import SourceLike, TrainRows, is_growing

if TYPE_CHECKING:
    from treering.mixing.columns import Ragged
    from treering.mixing.loader import Loader, Transform

__all__ = ["BATCH_SIZE", "CHUNK_ROWS", "POOL_ROWS", "Mix", "mix"]

BATCH_SIZE = 256

# Rows read together, and rows shuffled together over all sources. On data sorted by label (30/30/40 of 3 × 300k rows,
# batches of 256) they keep 0.998 / 0.989 / 0.983 of a full shuffle's label entropy per batch at 10 / 150 / 1,000 labels
# (benchmarks/shuffle.py). Chunks of 64 rows cost half the reading that chunks of 32 do; of the pool two are in memory, the
# one in use and the next: of rows of 920 bytes 180 MB.
CHUNK_ROWS = 64
POOL_ROWS = 98_304


def mix(*sources: SourceLike, weights: Sequence[float] | None = None, seed: int = 0) -> Mix:
    """Mix sources: `mix(store.load("support@v1"), store.live("support"), weights=[0.6, 0.4])`.

    Weights are relative numbers ≥ 0, one per source, equal when left out; a source of weight 0 is listed and never
    drawn. Raises UsageError for weights that are NaN, negative, all 0 or of another number than the sources, and for a
    source without training rows.
    """
    return Mix(sources, weights, seed)


class Mix:
    """Sources at weights, under a seed. Immutable; costs nothing until a loader reads."""

    def __init__(self, sources: Sequence[SourceLike], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        for number, source in enumerate(sources):
            if not isinstance(source, SourceLike):
                raise UsageError(
                    f"source {number} is {source!r}, not a source",
                    code="not-a-source",
                    hint='load it first: store.load("support@v1")',
                )
            if getattr(source, "split", None) == "heldout":
                raise UsageError(
                    f"source {number} is the held-out part of {source.ref}: it has no training rows",
                    code="empty-source",
                    hint="held-out records are for evaluation; no mix draws them",
                )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UsageError(f"seed is {seed!r}; it is a whole number", code="bad-seed")
        if weights is not None and (isinstance(weights, str) or not isinstance(weights, Iterable)):
            raise UsageError(f"weights is {weights!r}; it is a list of numbers", code="bad-weights")
        chosen = [1.0] * len(sources) if weights is None else list(weights)
        if len(chosen) != len(sources):
            raise UsageError(
                f"{len(chosen)} weights for {len(sources)} sources", code="weights-length", hint="give one per source"
            )
        self._sources = tuple(sources)
        self._units = quantise(chosen)
        self._weights = tuple(float(weight) for weight in chosen)
        self._seed = seed
        for source, rows, units in zip(self._sources, self._rows, self._units, strict=True):
            if units and not rows.size:
                raise UsageError(
                    f"{source.ref} has no training rows",
                    code="empty-source",
                    hint="held-out records are never drawn; capture some more, or give it weight 0",
                )

    @property
    def sources(self) -> tuple[SourceLike, ...]:
        """The sources, by source number."""
        return self._sources

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights as given."""
        return self._weights

    @property
    def units(self) -> tuple[int, ...]:
        """The weights as integers with a small sum: what the shares really are."""
        return self._units

    @property
    def shares(self) -> tuple[float, ...]:
        """The fraction of each batch that comes from each source; they sum to 1."""
        total = sum(self._units)
        return tuple(unit / total for unit in self._units)

    @property
    def seed(self) -> int:
        """What the order is drawn from."""
        return self._seed

    @property
    def anchor(self) -> int:
        """The source whose pass is one epoch: the live or new one with the largest share, else the largest share."""
        growing = [n for n, source in enumerate(self._sources) if self._units[n] and is_growing(source.ref)]
        return max(growing or range(len(self._units)), key=lambda n: self._units[n])

    def __repr__(self) -> str:
        parts = ", ".join(f"{s.ref}={share:.4g}" for s, share in zip(self._sources, self.shares, strict=True))
        return f"Mix({parts}, seed={self._seed})"

    @cached_property
    def _rows(self) -> tuple[TrainRows, ...]:
        return tuple(TrainRows.of(source) for source in self._sources)

    def counts(self, batches: int, batch_size: int = BATCH_SIZE) -> Int64Array:
        """How many rows each source gives to each of the first batches: int64 (batches, sources). Reads nothing."""
        table = share_table(self._units, batch_size)
        return np.diff(table.taken(np.arange(batches + 1)), axis=0)

    def lock(
        self,
        batch_size: int = BATCH_SIZE,
        *,
        columns: Sequence[str] | None = None,
        epochs: int | None = 1,
        chunk_rows: int = CHUNK_ROWS,
        pool_rows: int = POOL_ROWS,
        ragged: Ragged = "pad",
        pad_value: float = 0,
    ) -> MixLock:
        """The mix with everything resolved, as a document; waits for the content digests of its snapshots.

        Raises UsageError for a size that isn't a positive whole number.
        """
        for name, value in (("batch_size", batch_size), ("chunk_rows", chunk_rows), ("pool_rows", pool_rows)):
            _check_count(name, value)
        if epochs is not None:
            _check_count("epochs", epochs)
        if ragged not in ("pad", "values"):
            raise UsageError(f"ragged is {ragged!r}; it is 'pad' or 'values'", code="bad-ragged")
        blocks = block_rows_for(self._units, batch_size, chunk_rows, pool_rows)
        return MixLock.checked(
            seed=self._seed,
            batch_size=batch_size,
            chunk_rows=chunk_rows,
            anchor=self.anchor,
            sources=tuple(
                LockedSource(pin=_pinned(source), units=units, train_rows=rows.size, block_rows=block)
                for source, rows, units, block in zip(self._sources, self._rows, self._units, blocks, strict=True)
            ),
            columns=None if columns is None else column_names(columns),
            ragged=ragged,
            pad_value=pad_value,
            epochs=epochs,
        )

    def loader(
        self,
        batch_size: int = BATCH_SIZE,
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
        num_workers: int = 0,
        epochs: int | None = 1,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        chunk_rows: int = CHUNK_ROWS,
        pool_rows: int = POOL_ROWS,
        prefetch: int | None = None,
        ragged: Ragged = "pad",
        pad_value: float = 0,
        start_method: str = "forkserver",
        cache: bool = True,
    ) -> Loader:
        """Batches of the mix, as dicts of column → torch tensor or list; `batch["_ref"]` holds the source numbers.

        batch_size: rows of the global batch. Each batch holds floor or ceiling of every share.
        columns: record columns, `id` among them; every column that all sources have when left out.
        transform: called with each batch; what it returns is delivered instead.
        num_workers: 0 reads in a thread beside the training step; more are processes, for heavy transforms.
        epochs: passes over the live (or new) source, without one over the source with the largest share; None: endless.
        rank, world_size: deliver only this slice of each global batch; RANK and WORLD_SIZE (torchrun) when left out.
        chunk_rows: neighbours that are read together; 1 is a full shuffle, at the price of random reads.
        pool_rows: rows that are shuffled together, over all sources.
        prefetch: batches made ahead in a thread; 0 reads and makes everything in the calling thread. When left out, 8
            with a `transform` or workers; else only reading goes on in a thread, and batches are made when asked for.
        ragged: lists of numbers as "pad" (`name` filled up with `pad_value`, and `name.lengths`) or as "values"
            (`name` flat, and `name.offsets`).
        start_method: how worker processes start; "fork" is refused, since Lance hangs in forked children.
        cache: read decoded columns of snapshots from memory-mapped files beside the store, and build them, in a thread,
            where this run will gain by it. The batches are the same either way.

        Raises UsageError for arguments that don't fit, NotFoundError for a column that a source lacks.
        """
        from treering.mixing.loader import Loader

        lock = self.lock(
            batch_size,
            columns=columns,
            epochs=epochs,
            chunk_rows=chunk_rows,
            pool_rows=pool_rows,
            ragged=ragged,
            pad_value=pad_value,
        )
        return Loader(
            lock,
            self._sources,
            self._rows,
            transform=transform,
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            prefetch=prefetch,
            start_method=start_method,
            cache=cache,
        )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}; it is a whole number ≥ 1", code="bad-" + name.replace("_", "-"))


def _pinned(source: SourceLike) -> SourcePin:
    return SourcePin.model_validate_json(json.dumps(source.pin()))  # by way of JSON, whose arrays a strict tuple takes
