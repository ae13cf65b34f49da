"""The mix: which sources, at which weights, under which seed.

A mix is a recipe over pinned sources. `lock()` resolves it into a document, `loader()` draws from it. (Not `mix.py`:
a module of the function's name would hide it.)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from treering.errors import UsageError
from treering.mixing.lock import LockedSource, MixLock, SourcePin, column_names, pinned_sampling
from treering.mixing.permute import Int64Array
from treering.mixing.plan import block_rows_for
from treering.mixing.shares import quantise, share_table
from treering.mixing.sources import SourceLike, TrainRows, is_growing
from treering.mixing.tokens import CountTokens, mean_length, token_column
from treering.mixing.weights import Schedule, regroup

if TYPE_CHECKING:
    from treering.mixing.columns import Ragged
    from treering.mixing.loader import Loader, Transform

__all__ = ["BATCH_SIZE", "CHUNK_ROWS", "POOL_ROWS", "Exhaustion", "Mix", "mix", "streams"]

Exhaustion = Literal["repeat", "stop", "error"]

_log = logging.getLogger(__name__)

BATCH_SIZE = 256

# Rows read together, and rows shuffled together over all sources. On data sorted by label (30/30/40 of 3 × 300k rows,
# batches of 256) they keep 0.998 / 0.989 / 0.983 of a full shuffle's label entropy per batch at 10 / 150 / 1,000 labels
# (benchmarks/shuffle.py). Chunks of 64 rows cost half the reading that chunks of 32 do; of the pool two are in memory, the
# one in use and the next: of rows of 920 bytes 180 MB.
CHUNK_ROWS = 64
POOL_ROWS = 98_304

# The same where a source lies on an object store. Sorted by label they keep 0.998 / 0.990 / 0.986 of a full shuffle's entropy
# and take 0.3 of the requests and 0.8 of the bytes that 32 and 65,536 take (benchmarks/s3.py).
REMOTE_CHUNK_ROWS = 256
REMOTE_POOL_ROWS = 262_144


def read_sizes(sources: Sequence[SourceLike]) -> tuple[int, int]:
    """chunk_rows and pool_rows for a mix of these sources when nothing is said; once locked they stay, wherever read."""
    remote = any(getattr(source, "is_remote", False) for source in sources)
    return (REMOTE_CHUNK_ROWS, REMOTE_POOL_ROWS) if remote else (CHUNK_ROWS, POOL_ROWS)


def mix(
    *sources: SourceLike,
    weights: Sequence[float] | Schedule | None = None,
    seed: int = 0,
    replay_ratio: float | None = None,
    share_by: Literal["rows", "tokens"] = "rows",
    count_tokens: CountTokens | None = None,
) -> Mix:
    """Mix sources: `mix(store.load("support@v1"), store.live("support"), weights=[0.6, 0.4])`.

    Weights are relative numbers ≥ 0, one per source, equal when left out; a source of weight 0 is listed and never
    drawn. A `Schedule` lets them move as the run goes.

    replay_ratio: say the mix the other way round. Each record of the one live or new source is drawn once, and
        n·r/(1−r) records of the others beside its n, divided by their weights: r of all rows are replay. The run is one
        pass, and its last batch is as short as the count demands; `counts_once()` says how many rows each source gives.
    share_by: "tokens" lets weights mean shares of tokens: each is divided by the mean length of the source's rows in
        the column `tokens` (or `input_ids`, or else the first column of lists of integers), which is read for it. Exact
        over whole epochs; `stats()` shows the rows. Conversations are measured by their bytes, or by `count_tokens`.
    count_tokens: tokens of one conversation, called with its messages and tools: `ChatBase.load("…").count`.

    Raises UsageError for weights that are NaN, negative, all 0 or of another number than the sources, and for a source
    without training rows.
    """
    return Mix(sources, weights, seed, replay_ratio=replay_ratio, share_by=share_by, count_tokens=count_tokens)


def streams(domain: SourceLike, general: SourceLike, *, share: float = 0.7, seed: int = 0) -> Mix:
    """A domain stream and a general stream as one mix: what is to be kept of one's own, and an anchor for the rest.

    `share` of every batch, in [0, 1], comes from `domain` (a selection by importance, say), the rest from `general`: any
    pinned source, of another corpus as well; then batches hold the columns that both have. 70/30 are Dual-Replay's. Raises
    UsageError as `mix` does.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UsageError(f"share is {share!r}; it is a fraction of 1", code="bad-share")
    return Mix((domain, general), (share, 1 - share), seed)


class Mix:
    """Sources at weights, under a seed. Immutable; costs nothing until a loader reads."""

    def __init__(
        self,
        sources: Sequence[SourceLike],
        weights: Sequence[float] | Schedule | None = None,
        seed: int = 0,
        *,
        replay_ratio: float | None = None,
        share_by: Literal["rows", "tokens"] = "rows",
        count_tokens: CountTokens | None = None,
    ) -> None:
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
        self._schedule = weights if isinstance(weights, Schedule) else None
        if isinstance(weights, Schedule):
            weights = weights.at(0)
        chosen = [1.0] * len(sources) if weights is None else list(weights)
        if len(chosen) != len(sources):
            raise UsageError(
                f"{len(chosen)} weights for {len(sources)} sources", code="weights-length", hint="give one per source"
            )
        if share_by not in ("rows", "tokens"):
            raise UsageError(f"share_by is {share_by!r}; it is 'rows' or 'tokens'", code="bad-share-by")
        quantise(chosen)  # refuses what isn't a weight, before anything is computed with it
        #: What weights are shares of, and how tokens of conversations are counted: for a mix of the same kind.
        self.share_by: Literal["rows", "tokens"] = share_by
        self.count_tokens = count_tokens
        self._sources = tuple(sources)
        self._weights = tuple(float(weight) for weight in chosen)
        self._seed = seed
        self._once = replay_ratio is not None
        if replay_ratio is not None:
            self._weights = self._by_ratio(replay_ratio)
        self._tokens_per_row = self._mean_tokens(count_tokens) if share_by == "tokens" else (None,) * len(sources)
        self._units = quantise([w / (t or 1.0) for w, t in zip(self._weights, self._tokens_per_row, strict=True)])
        points = [point.weights for point in self._schedule.points] if self._schedule else []
        if not all(point[self.anchor] for point in points):
            raise UsageError(
                f"{self._sources[self.anchor].ref} measures the epochs of this mix: the schedule can't take it to 0",
                code="anchor-weight",
            )
        used = [any(of_one) for of_one in zip(self._units, *points, strict=True)]
        for source, rows, is_used in zip(self._sources, self._rows, used, strict=True):
            if is_used and not rows.size:
                raise UsageError(
                    f"{source.ref} has no training rows",
                    code="empty-source",
                    hint="held-out and excluded records are never drawn, nor what `where` leaves out; capture some more, or "
                    "give it weight 0 (with follow=True, and reweigh() once some have come)",
                )

    @property
    def sources(self) -> tuple[SourceLike, ...]:
        """The sources, by source number."""
        return self._sources

    def _by_ratio(self, ratio: float) -> tuple[float, ...]:
        new = [n for n, source in enumerate(self._sources) if is_growing(source.ref)]
        if any(self._sources[n].sampling is not None for n in new):
            raise UsageError(
                "replay_ratio draws each new record once, and a source drawn by weight some of them never",
                code="weighted-once",
                hint="take the new source as it is",
            )
        if self._schedule is not None:
            raise UsageError("replay_ratio and a schedule both say the shares", code="two-shares", hint="give one")
        if len(new) != 1:
            named = ", ".join(self._sources[n].ref for n in new) or "none"
            raise UsageError(
                f"replay_ratio goes with exactly one live or new source, and this mix has {named}",
                code="no-new-source",
                hint="name the new records as NAME@new or NAME@live, or give weights instead",
            )
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise UsageError(f"replay_ratio is {ratio!r}; it lies in [0, 1)", code="bad-share")
        if not self._weights[new[0]]:
            raise UsageError(f"{self._sources[new[0]].ref} has weight 0, and is to be drawn", code="zero-weights")
        return regroup(self._weights, [not is_growing(source.ref) for source in self._sources], float(ratio))

    def _mean_tokens(self, count: CountTokens | None) -> tuple[float | None, ...]:
        column = token_column(self._sources)
        return tuple(
            mean_length(rows, column, source.schema.field(column).type, count)
            for source, rows in zip(self._sources, self._rows, strict=True)
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights as given; with `replay_ratio` those that follow from it."""
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

    def _repr_html_(self) -> str:
        from treering.notebook import bar, card, table

        rows = [
            (source.ref, f"{weight:g}", bar(share), f"{rows.size:,}")
            for source, weight, share, rows in zip(self._sources, self._weights, self.shares, self._rows, strict=True)
        ]
        heads = ["source", "weight", "share of a batch", "training records"]
        return card(
            "mix",
            " + ".join(source.ref for source in self._sources),
            [
                ("seed", self._seed),
                ("an epoch is", f"one pass over {self._sources[self.anchor].ref}"),
                ("shares count", "tokens" if self.share_by == "tokens" else None),
                ("replay", "each new record once" if self._once else None),
                ("schedule", None if self._schedule is None else f"{len(self._schedule.points)} points"),
            ],
            body=table(heads, rows, right=["weight", "training records"]),
        )

    def __repr__(self) -> str:
        parts = ", ".join(f"{s.ref}={share:.4g}" for s, share in zip(self._sources, self.shares, strict=True))
        return f"Mix({parts}, seed={self._seed})"

    @cached_property
    def _rows(self) -> tuple[TrainRows, ...]:
        return tuple(TrainRows.of(source) for source in self._sources)

    def counts_once(self, batch_size: int = BATCH_SIZE) -> dict[str, int]:
        """With `replay_ratio`, the rows that the whole run draws: ref → rows (of a ref given twice, the sum).

        Raises UsageError without it.
        """
        if not self._once:
            raise UsageError("only a mix with replay_ratio ends by itself", code="no-replay-ratio")
        counts: dict[str, int] = {}
        for source, rows in zip(self._sources, self.lock(batch_size).plan().limits.tolist(), strict=True):
            counts[source.ref] = counts.get(source.ref, 0) + rows
        return counts

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
        chunk_rows: int | None = None,
        pool_rows: int | None = None,
        ragged: Ragged = "pad",
        pad_value: float = 0,
        exhaustion: Exhaustion = "repeat",
    ) -> MixLock:
        """The mix with everything resolved, as a document; waits for the content digests of its snapshots.

        Raises UsageError for a size that isn't a positive whole number.
        """
        chunk, pool = read_sizes(self._sources)
        chunk_rows = chunk if chunk_rows is None else chunk_rows
        pool_rows = pool if pool_rows is None else pool_rows
        for name, value in (("batch_size", batch_size), ("chunk_rows", chunk_rows), ("pool_rows", pool_rows)):
            _check_count(name, value)
        if epochs is not None:
            _check_count("epochs", epochs)
        if ragged not in ("pad", "values"):
            raise UsageError(f"ragged is {ragged!r}; it is 'pad' or 'values'", code="bad-ragged")
        if exhaustion not in ("repeat", "stop", "error"):
            raise UsageError(f"exhaustion is {exhaustion!r}; it is repeat, stop or error", code="bad-exhaustion")
        if self._once and epochs != 1:
            raise UsageError(f"epochs={epochs!r}: with replay_ratio each new record is drawn once", code="bad-epochs")
        blocks = block_rows_for(self._units, batch_size, chunk_rows, pool_rows)
        return MixLock.checked(
            seed=self._seed,
            batch_size=batch_size,
            chunk_rows=chunk_rows,
            anchor=self.anchor,
            sources=tuple(
                LockedSource(
                    pin=_pinned(source),
                    units=units,
                    train_rows=rows.size,
                    block_rows=block,
                    tokens_per_row=tokens,
                    sampling=pinned_sampling(source, rows),
                )
                for source, rows, units, block, tokens in zip(
                    self._sources, self._rows, self._units, blocks, self._tokens_per_row, strict=True
                )
            ),
            once=self._once,
            schedule=self._schedule,
            columns=None if columns is None else column_names(columns),
            ragged=ragged,
            pad_value=pad_value,
            epochs=epochs,
            exhaustion=exhaustion,
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
        chunk_rows: int | None = None,
        pool_rows: int | None = None,
        prefetch: int | None = None,
        ragged: Ragged = "pad",
        pad_value: float = 0,
        start_method: str = "forkserver",
        exhaustion: Exhaustion = "repeat",
        follow: bool = False,
        adaptive: bool = False,
        cache: bool = True,
    ) -> Loader:
        """Batches of the mix, as dicts of column → torch tensor or list; `batch["_ref"]` holds the source numbers.

        batch_size: rows of the global batch. Each batch holds floor or ceiling of every share.
        columns: record columns, `id` among them; every column that all sources have when left out.
        transform: called with each batch; what it returns is delivered instead.
        num_workers: 0 reads in a thread beside the training step; more are processes, for heavy transforms.
        epochs: passes over the live (or new) source, without one over the source with the largest share; None: endless.
            The last batch is filled up from the next pass, so a few records come once more (`replay_ratio`: never); where
            one batch is more than a pass, many do, which is logged as a warning.
        rank, world_size: deliver only this slice of each global batch; those of torch.distributed, else of torchrun
                (RANK and WORLD_SIZE), when left out.
        chunk_rows: neighbours that are read together; 1 is a full shuffle, at the price of random reads. When left out,
            it depends on where the sources lie: more on an object store than on a disk (`read_sizes`).
        pool_rows: rows that are shuffled together, over all sources; the same when left out.
        prefetch: batches made ahead in a thread; 0 reads and makes everything in the calling thread. When left out, 8
            with a `transform` or workers; else only reading goes on in a thread, and batches are made when asked for.
        ragged: lists of numbers as "pad" (`name` filled up with `pad_value`, and `name.lengths`) or as "values"
            (`name` flat, and `name.offsets`). Nulls: NaN for a float, the smallest int64 (numpy's NaT) for a time, an
            empty list for a list, None for text; an integer or boolean column that holds some is refused.
        start_method: how worker processes start; "fork" is refused, since Lance hangs in forked children.
        exhaustion: when a source other than the one that measures epochs has been passed over once: "repeat" it, "stop"
            the run before the batch that would, or "error": refuse to begin.
        follow: let records that are captured during the run enter it: every 64 batches live and new sources are looked
            at, and what came is shuffled into the rest of their epoch (at most 16 times an epoch). An event in the lock.
        adaptive: let `loader.reweigh()` and `loader.set_replay()` change the weights, as an event in the lock.
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
            exhaustion=exhaustion,
        )
        if epochs is not None and (draws := lock.plan().crowded().get(lock.anchor)):
            pinned = lock.sources[lock.anchor]
            _log.warning(
                "a batch of %d draws up to %d rows of %s, which has %d: an epoch draws its records more than once; "
                "a smaller batch_size avoids that",
                batch_size, draws, pinned.pin.ref, pinned.train_rows,
            )  # fmt: skip
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
            follow=follow,
            adaptive=adaptive,
            cache=cache,
        )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}; it is a whole number ≥ 1", code="bad-" + name.replace("_", "-"))


def _pinned(source: SourceLike) -> SourcePin:
    return SourcePin.model_validate_json(json.dumps(source.pin()))  # by way of JSON, whose arrays a strict tuple takes
