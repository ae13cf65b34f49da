"""Decide which rows stand in which batch: pure functions of position, O(1) memory at any size.

Numbers in, numbers out. A source maps its own draw number d (0, 1, 2, …) to the position of a training row; the mix
maps batch t to C_s(t), the draws taken from each source s before it. So batch t holds the draws
[C_s(t), C_s(t+1)) of each source, on any machine, for any number of workers and ranks, and resuming is arithmetic.
What changes while a run goes on (weights, sizes) is an event with its position; nothing else is remembered. Reads no
data, knows no refs.

How a source is shuffled
    Each epoch (one pass) has its own keyed order. The rows, turned by a random offset, are cut into chunks of
    `chunk_rows` neighbours; the chunks are permuted; the result is cut into blocks of about `block_rows`, and each
    block is permuted row by row. A reader that holds one block therefore reads whole chunks and delivers rows. With
    `chunk_rows=1`, or when the source fits into one block, every order of the rows is a full shuffle.

How a batch is ordered
    Row j of a batch, counted source after source, goes to slot (a·j + b_t) mod batch size, with a near batch size / φ
    and b_t keyed by the batch: each source's rows are spread evenly, so that the contiguous slices that ranks (or
    micro-batches) take hold every source in about its share.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from treering.errors import UsageError
from treering.mixing.permute import Int64Array, UInt64Array, derive_key, hash64, permute, scale
from treering.mixing.sampling import weighted_rows
from treering.mixing.shares import ShareTable, share_table

__all__ = ["MAX_GROWTHS_PER_EPOCH", "Growth", "MixPlan", "SourcePlan", "WeightChange", "block_rows_for"]

MAX_GROWTHS_PER_EPOCH = 16  # each nests one more permutation, and a draw walks through all of them
_MOST_REPEATED = 1 << 16  # draws looked up at once of a source that is passed over several times within a block
MIN_BLOCK_CHUNKS = 16  # a block of fewer chunks would hardly be shuffled


@dataclass(frozen=True, slots=True)
class Growth:
    """From draw `draw` on the source holds `size` training rows: the rest of that epoch is re-permuted with the new."""

    draw: int
    size: int


@dataclass(frozen=True, slots=True)
class WeightChange:
    """From batch `batch` on the shares are `units`; `taken` are the draws of each source before it."""

    batch: int
    units: tuple[int, ...]
    taken: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Era:
    """The stretch between two growths: first the rest of the epoch that was under way, then whole epochs."""

    start: int  # draw
    size: int  # rows in an epoch
    rest: int  # draws until the interrupted epoch ends; 0 when the era starts with a fresh one
    epoch: int  # number of the first whole epoch
    left: int  # of `rest`, how many are rows that the interrupted order still owed; the others are new
    offset: int  # where in the interrupted order they begin
    depth: int  # growths inside that epoch


@dataclass(frozen=True)
class SourcePlan:
    """The order of one source: draw d ≥ 0 → position of a training row. Every epoch holds each row exactly once.

    With `cumulative` weights it holds each row about in proportion instead, and growth isn't possible.
    `key` decides the orders; `growth` lists the sizes the source took on later, by draw. Raises UsageError for a
    growth that shrinks, isn't in order, or falls inside one of several blocks: the rows of a block are permuted after
    the chunks are, so what half a block still owes isn't a stretch of chunks.
    """

    size: int
    key: int
    chunk_rows: int
    block_rows: int
    growth: tuple[Growth, ...] = ()
    cumulative: Int64Array | None = field(default=None, repr=False, compare=False)  # draws by weight: see sampling
    _eras: tuple[_Era, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.cumulative is not None and self.growth:
            raise UsageError("a source that is drawn by weight can't grow", code="bad-event")
        eras = [_Era(start=0, size=self.size, rest=0, epoch=0, left=0, offset=0, depth=0)]
        for event in self.growth:
            if eras[-1].size == 0 and event.draw == 0:  # it was empty: as if it had begun with these
                eras = [_Era(start=0, size=event.size, rest=0, epoch=0, left=0, offset=0, depth=0)]
            else:
                eras.append(self._next_era(eras[-1], event))
        object.__setattr__(self, "_eras", tuple(eras))

    def positions(self, draws: Int64Array) -> Int64Array:
        """Which training row (0 ≤ position < size) each draw is: int64 (k,) → int64 (k,); in any order, repeats too."""
        draws = np.asarray(draws, dtype=np.int64)
        if not len(draws):
            return np.empty(0, dtype=np.int64)
        lowest, highest = int(draws.min()), int(draws.max())
        era = self._era_at(lowest)
        whole = era.start + era.rest
        epoch = (lowest - whole) // era.size if era.size else 0
        if lowest >= whole and era is self._era_at(highest) and (highest - whole) // era.size == epoch:
            # All of one epoch, as the windows of a large source are: no need to look at each draw.
            out = self._of_epoch(era.size, era.epoch + epoch, draws - (whole + epoch * era.size))
        else:
            out = np.empty(len(draws), dtype=np.int64)
            era_of = np.searchsorted(self._firsts, draws, side="right") - 1
            for number in np.unique(era_of):
                here = era_of == number
                out[here] = self._in_era(int(number), draws[here] - self._eras[number].start)
        if self.cumulative is not None:
            return weighted_rows(out, draws // self.size, self.cumulative, derive_key("phase", self.key))
        return out

    def epoch_of(self, draw: int) -> int:
        """Which pass over the source (0-based) a draw belongs to."""
        era = self._era_at(draw)
        ahead = draw - era.start - era.rest
        return era.epoch - 1 if ahead < 0 else era.epoch + ahead // era.size

    def draws_in(self, epochs: int) -> int:
        """How many draws the first `epochs` passes take, growth included."""
        for era, after in zip(self._eras, [*self._eras[1:], None], strict=True):
            end = era.start + era.rest + (epochs - era.epoch) * era.size
            if after is None or (epochs >= era.epoch and end <= after.start):
                return end
        raise AssertionError("the last era has no end")

    def window(self, draw: int) -> tuple[int, int]:
        """The half-open interval of draws to read in one request when `draw` is due.

        One block, or, for a source smaller than a block, as many whole epochs as fit into one.
        """
        number = bisect_right(self._firsts, draw) - 1
        era = self._eras[number]
        stop = self._eras[number + 1].start if number + 1 < len(self._eras) else None
        ahead = draw - era.start - era.rest
        if ahead < 0:
            base, length, unit = era.start, era.rest, self._block(era.rest)
        elif self._blocks(era.size) == 1:
            unit = max(1, min(self.block_rows, _MOST_REPEATED) // era.size) * era.size
            base, length = era.start + era.rest, (ahead // unit + 1) * unit
        else:
            base = era.start + era.rest + ahead // era.size * era.size
            length, unit = era.size, self._block(era.size)
        low = base + (draw - base) // unit * unit
        high = min(low + unit, base + length)
        return low, high if stop is None else min(high, stop)

    def fits(self, draw: int) -> int | None:
        """The size of the source at this draw when it fits into one block, so that all of it can be held; else None."""
        era = self._era_at(draw)
        return era.size if self._blocks(era.size) == 1 and draw >= era.start + era.rest else None

    def is_boundary(self, draw: int) -> bool:
        """Whether a growth may be entered at this draw: between two blocks, or anywhere in a full shuffle."""
        return self.next_boundary(draw) == draw

    def next_boundary(self, draw: int) -> int:
        """The first draw from this one on where a growth may be entered."""
        if self._eras[-1].size == 0:
            return 0
        era = self._era_at(draw)
        ahead = draw - era.start - era.rest
        base, length = (era.start, era.rest) if ahead < 0 else (draw - ahead % era.size, era.size)
        if self._is_flat(length):
            return draw
        block = self._block(length)
        return base + min(length, -(-(draw - base) // block) * block)

    def growths_at(self, draw: int) -> int:
        """How many growths the epoch under way at this draw has seen."""
        era = self._era_at(draw)
        return era.depth if draw < era.start + era.rest else 0

    @cached_property
    def _firsts(self) -> list[int]:
        return [era.start for era in self._eras]

    def _era_at(self, draw: int) -> _Era:
        return self._eras[bisect_right(self._firsts, draw) - 1]

    def _next_era(self, era: _Era, event: Growth) -> _Era:
        if event.size < era.size or event.draw < era.start:
            raise UsageError(f"{event} doesn't follow a source of {era.size} rows", code="bad-event")
        ahead = event.draw - era.start - era.rest
        new = event.size - era.size
        if ahead >= 0:
            epoch, offset = divmod(ahead, era.size)
            if offset == 0:
                return _Era(event.draw, event.size, 0, era.epoch + epoch, 0, 0, 0)
            length, following, depth = era.size, era.epoch + epoch + 1, 1
        else:
            offset, length, following, depth = event.draw - era.start, era.rest, era.epoch, era.depth + 1
        left, block = length - offset, self._block(length)
        if not self._is_flat(length) and offset % block:
            raise UsageError(
                f"{event} falls inside a block",
                code="bad-event",
                hint=f"enter growth at a multiple of {block} draws into the epoch",
            )
        if depth > MAX_GROWTHS_PER_EPOCH:
            raise UsageError(
                f"{event} is growth number {depth} of its epoch; {MAX_GROWTHS_PER_EPOCH} is the most", code="bad-event"
            )
        return _Era(event.draw, event.size, left + new, following, left, offset, depth)

    def _is_flat(self, length: int) -> bool:
        """Whether an order of this many rows is one permutation: with chunks of one row, or when it fits into a block."""
        return self.chunk_rows == 1 or self._blocks(length) == 1

    def _blocks(self, length: int) -> int:
        return -(-length // self.block_rows)

    def _block(self, length: int) -> int:
        """Rows of a block in an order of `length` rows: blocks of nearly equal length, in whole chunks."""
        share = -(-length // self._blocks(length))
        return min(length, -(-share // self.chunk_rows) * self.chunk_rows)

    def _in_era(self, number: int, ahead: Int64Array) -> Int64Array:
        era = self._eras[number]
        out = np.empty(len(ahead), dtype=np.int64)
        resting = ahead < era.rest
        if resting.any():
            key = self._rest_key(era)
            out[resting] = self._rest(number, self._shuffled(ahead[resting], era.rest, key))
        if resting.all():
            return out
        epoch, offset = np.divmod(ahead[~resting] - era.rest, era.size)
        epoch += era.epoch
        out[~resting] = self._whole(era.size, epoch, offset)
        return out

    def _whole(self, size: int, epoch: Int64Array, offset: Int64Array) -> Int64Array:
        if self._blocks(size) == 1:  # small: one permutation is the whole order, and many epochs go in one call
            keys = hash64(epoch, self.key)
            return permute(offset, size, keys[:1].item() if (epoch == epoch[:1]).all() else keys)
        out = np.empty(len(offset), dtype=np.int64)
        for one in np.unique(epoch):
            here = epoch == one
            out[here] = self._of_epoch(size, int(one), offset[here])
        return out

    def _of_epoch(self, size: int, epoch: int, offset: Int64Array) -> Int64Array:
        key = hash64(np.array(epoch), self.key).item()
        return self._stream(self._shuffled(offset, size, key), size, key)

    def _rest(self, number: int, offset: Int64Array) -> Int64Array:
        """Positions at these offsets of the order that a growth began, before its blocks are shuffled."""
        era = self._eras[number]
        virtual = self._chunked(offset, era.rest, self._rest_key(era))
        old = virtual < era.left
        before = self._eras[number - 1]
        out = before.size + (virtual - era.left)
        if old.any():
            owed = era.offset + virtual[old]
            if era.depth > 1:
                out[old] = self._rest(number - 1, owed)
            else:
                key = hash64(np.array(era.epoch - 1), self.key).item()
                out[old] = self._stream(owed, before.size, key)
        return out

    def _rest_key(self, era: _Era) -> int:
        return derive_key("growth", self.key, era.start)

    def _stream(self, offset: Int64Array, size: int, key: int) -> Int64Array:
        """The order of an epoch before its blocks are shuffled: chunks of neighbours in permuted order."""
        if self._blocks(size) == 1:
            return permute(offset, size, key)
        turn = scale(hash64(np.array(0), derive_key("turn", key)), min(size, 2**32)).item()
        moved = self._chunked(offset, size, key)
        moved += turn  # chunks begin elsewhere in each epoch, so their rows don't stay neighbours for ever
        moved -= size * (moved >= size)
        return moved

    def _chunked(self, offset: Int64Array, length: int, key: int) -> Int64Array:
        """Permute chunks of `chunk_rows` (the last one may be short, wherever it lands): offset → offset."""
        rows = self.chunk_rows
        chunks = -(-length // rows)
        key = derive_key("chunks", key)
        if self._is_flat(length):
            return permute(offset, length, key)
        short = length - (chunks - 1) * rows
        if short == rows:
            rank, inside = np.divmod(offset, rows)
        else:
            edge = permute(chunks - 1, chunks, key, inverse=True).item() * rows  # where the short chunk begins
            after = offset >= edge + short
            rank, inside = np.divmod(offset + (rows - short) * after, rows)
        return _permute_ranks(rank, chunks, key) * rows + inside

    def _shuffled(self, offset: Int64Array, length: int, key: int) -> Int64Array:
        """Permute the rows inside each block: offset → offset of the same block."""
        if self._is_flat(length):
            return offset
        block = self._block(length)
        number, inside = np.divmod(offset, block)
        first = int(number[0])
        base = derive_key("blocks", key)
        last = (length - 1) // block
        keys: int | UInt64Array = hash64(number, base)
        sizes: int | Int64Array = np.where(number == last, length - last * block, block)
        if (number == first).all():
            keys, sizes = hash64(np.array(first), base).item(), length - last * block if first == last else block
        return number * block + permute(inside, sizes, keys)


def _permute_ranks(ranks: Int64Array, chunks: int, key: int) -> Int64Array:
    """`permute`, for ranks that are mostly repeats: the rows of a block have few chunks among them."""
    low, high = int(ranks.min()), int(ranks.max())
    if (high - low + 1) * 4 > len(ranks):
        return permute(ranks, chunks, key)
    places: Int64Array = permute(np.arange(low, high + 1), chunks, key)[ranks - low]
    return places


def block_rows_for(units: Sequence[int], batch_size: int, chunk_rows: int, pool_rows: int) -> tuple[int, ...]:
    """Rows of a block for each source: its share of `pool_rows`, so that all blocks last about as many batches.

    At least `MIN_BLOCK_CHUNKS` chunks and the rows of one batch, in whole chunks.
    """
    total = sum(units)
    least = MIN_BLOCK_CHUNKS * chunk_rows
    wanted = [max(least, pool_rows * unit // total, -(-batch_size * unit // total)) for unit in units]
    return tuple(-(-rows // chunk_rows) * chunk_rows for rows in wanted)


def _unevenness(a: int, size: int) -> int:
    """Largest partial quotient of a / size: how unevenly the multiples of a fill a circle of that size."""
    worst = 0
    while a:
        quotient, rest = divmod(size, a)
        worst, size, a = max(worst, quotient), a, rest
    return worst


@dataclass(frozen=True)
class MixPlan:
    """Which draws of which source stand in batch t, for every t ≥ 0.

    `sizes` are training rows, `units` integer weights (`quantise`); a source of 0 units is never drawn. `growth` holds
    (source, Growth) pairs in order, `changes` the later weights.
    """

    sizes: tuple[int, ...]
    units: tuple[int, ...]
    batch_size: int
    seed: int
    chunk_rows: int
    block_rows: tuple[int, ...]
    anchor: int  # the source whose pass is an epoch of the mix
    changes: tuple[WeightChange, ...] = ()
    growth: tuple[tuple[int, Growth], ...] = ()
    cumulative: tuple[Int64Array | None, ...] = field(default=(), repr=False, compare=False)  # of each source
    once: bool = False  # the anchor is passed over once, and the others in proportion; the last batch is short

    @cached_property
    def sources(self) -> tuple[SourcePlan, ...]:
        """The order of each source; keyed by the seed and its place in the mix."""
        return tuple(
            SourcePlan(
                size,
                derive_key("source", self.seed, number),
                self.chunk_rows,
                self.block_rows[number],
                tuple(event for owner, event in self.growth if owner == number),
                self.cumulative[number] if self.cumulative else None,
            )
            for number, size in enumerate(self.sizes)
        )

    @cached_property
    def _tables(self) -> tuple[tuple[int, Int64Array, ShareTable], ...]:
        """(first batch, draws before it, table) for each set of weights, in order."""
        tables = [(0, np.zeros(len(self.units), dtype=np.int64), share_table(self.units, self.batch_size))]
        for change in self.changes:
            batch, base, table = tables[-1]
            if change.batch < batch or len(change.units) != len(self.units):
                raise UsageError(f"{change} doesn't follow batch {batch}", code="bad-event")
            taken = base + table.taken(np.array([change.batch - batch]))[0]
            if tuple(taken.tolist()) != change.taken:
                raise UsageError(f"{change} doesn't fit: the plan has taken {taken.tolist()} by then", code="bad-event")
            tables.append((change.batch, taken, share_table(change.units, self.batch_size)))
        return tuple(tables)

    def taken(self, batches: Int64Array) -> Int64Array:
        """C_s(t), the draws of each source before batch t: int64 (k,) → int64 (k, sources)."""
        taken = self._taken(batches)
        return np.minimum(taken, self.limits) if self.once else taken

    @cached_property
    def limits(self) -> Int64Array:
        """With `once`, the draws of each source in the whole run: int64 (sources,).

        The run ends where the anchor's share comes to one pass. No source is a whole row off its share before or then,
        so only the last batch is cut, and each other source ends within one row of its proportion.
        """
        draws = self.sources[self.anchor].draws_in(1)
        for number, (first, base, table) in enumerate(self._tables):
            total, units = sum(table.units), np.array(table.units, dtype=np.int64)
            left = draws - int(base[self.anchor])
            last = first + max(1, -(-left * total // (table.units[self.anchor] * self.batch_size))) - 1
            if number + 1 == len(self._tables) or last < self._tables[number + 1][0]:
                break
        exact = base + (2 * left * units + units[self.anchor]) // (2 * units[self.anchor])
        before, after = self._taken(np.array([last, last + 1]))
        limits: Int64Array = np.clip(exact, before, after)
        return limits

    def _taken(self, batches: Int64Array) -> Int64Array:
        batches = np.asarray(batches, dtype=np.int64)
        out = np.empty((len(batches), len(self.units)), dtype=np.int64)
        firsts = np.array([first for first, _, _ in self._tables], dtype=np.int64)
        which = np.searchsorted(firsts, batches, side="right") - 1
        for number in np.unique(which):
            first, base, table = self._tables[number]
            here = which == number
            out[here] = base + table.taken(batches[here] - first)
        return out

    def taken_before(self, batch: int) -> tuple[int, ...]:
        """C_s(t) of one batch, as numbers."""
        return tuple(self.taken(np.array([batch]))[0].tolist())

    def crowded(self) -> dict[int, int]:
        """Sources of which a batch draws more rows than there are, so that some come several times in it → draws at most."""
        total = sum(self.units)
        most = [-(-self.batch_size * unit // total) for unit in self.units]
        if self.once:
            most = [min(pair) for pair in zip(most, self.limits.tolist(), strict=True)]
        return {n: draws for n, (draws, rows) in enumerate(zip(most, self.sizes, strict=True)) if draws > rows > 0}

    def batch_of(self, source: int, draw: int) -> int:
        """The batch that a draw of a source belongs to; the source has to have a weight by then."""
        batch = self.batch_reaching(source, draw)
        if batch is None:
            raise UsageError(f"source {source} is never drawn that often", code="never-drawn")
        return batch

    def batch_reaching(self, source: int, draw: int) -> int | None:
        """The batch that a draw of a source belongs to; None when it is never drawn that often at the weights so far."""
        # Looked up, not searched for from batch 0: a rank that resumes asks for each of its windows, wherever it is.
        first, base, table = self._tables[bisect_right(self._tables, draw, key=lambda entry: int(entry[1][source])) - 1]
        ahead = draw - int(base[source])
        each = int(table.prefix[-1, source])
        limited = self.once and draw >= int(self.limits[source])
        if each == 0 or limited or ahead // each * table.period > 2**45:  # beyond, the counts would leave int64
            return None
        periods, rest = divmod(ahead, each)
        inside = int(np.searchsorted(table.prefix[:, source], rest, side="right")) - 1
        return first + periods * table.period + inside

    def batches_in(self, epochs: int) -> int:
        """Batches until the anchor source has been passed over `epochs` times; the last one is filled up.

        With `once`, which is one pass, the last one is short instead.
        """
        if self.once:
            limits = self.limits.tolist()
            return max(self.batch_of(s, limit - 1) + 1 for s, limit in enumerate(limits) if limit)
        draws = self.sources[self.anchor].draws_in(epochs)
        return self.batch_of(self.anchor, draws - 1) + 1

    @cached_property
    def stride(self) -> int:
        """The a of `slot = (a·j + b_t) mod batch size`: coprime to it, and near batch size / φ fills slots most evenly."""
        size = self.batch_size
        ideal = round(size * 0.6180339887498949)
        near = [a for a in range(max(1, ideal - 64), min(size, ideal + 64) + 1) if math.gcd(a, size) == 1]
        return min(near, key=lambda a: (_unevenness(a, size), abs(a - ideal)))

    @cached_property
    def _slot_key(self) -> int:
        return derive_key("slots", self.seed)

    def turns(self, batches: Int64Array) -> Int64Array:
        """The b_t of each batch: int64 (k,) in [0, batch size)."""
        return scale(hash64(batches, self._slot_key), self.batch_size)

    @cached_property
    def _unturned(self) -> tuple[Int64Array, Int64Array]:
        """(slot of each row j, row j in each slot twice over) for b = 0."""
        slots = np.arange(self.batch_size, dtype=np.int64) * self.stride % self.batch_size
        rows = np.empty_like(slots)
        rows[slots] = np.arange(self.batch_size)
        return slots, np.concatenate([rows, rows])

    def order(
        self, batch: int, turn: int | None = None, *, rows: int | None = None, slots: slice = slice(None)
    ) -> Int64Array:
        """Which row (counted source after source) stands in each slot of the batch: a permutation, (batch size,).

        `turn` is the b_t of the batch and `rows` the rows it holds, when the caller has them already; in a short batch
        the slots of the missing rows are left out. `slots` cuts out those of a rank.
        """
        turn = self.turns(np.array([batch])).item() if turn is None else turn
        start = -turn % self.batch_size
        order = self._unturned[1][start : start + self.batch_size][slots]
        return order if rows is None or rows == self.batch_size else order[order < rows]

    def owner_ranks(self, source: int, low: int, high: int, world_size: int) -> tuple[Int64Array, Int64Array]:
        """(batch, rank) of each draw in [low, high) of a source: two int64 arrays (high - low,)."""
        first, last = self.batch_of(source, low), self.batch_of(source, high - 1)
        batches = np.arange(first, last + 2, dtype=np.int64)
        taken = self.taken(batches)
        counts = np.diff(taken, axis=0)
        draws = np.arange(low, high, dtype=np.int64)
        at = np.searchsorted(taken[:, source], draws, side="right") - 1
        before = counts[:, :source].sum(axis=1)
        row = before[at] + draws - taken[at, source]
        slot = (self._unturned[0][row] + self.turns(batches[:-1])[at]) % self.batch_size
        return batches[at], slot // (self.batch_size // world_size)
