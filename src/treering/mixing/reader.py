"""Read the rows that the plan names, in blocks, and put batches together from them.

Each source is read in windows of draws (`SourcePlan.window`): one request a window, its rows sorted so that the engine
reads neighbours together, the next window fetched in the background. Columns that a segment can copy straight out of its
files (`Filling`) are not even asked for. A batch then only gathers rows that are in memory. Of a source whose columns all
lie in the snapshot cache nothing is read: its windows are only orders, and batches gather from the memory-mapped files.
Any batch can be asked for; asking in order is what is fast. Decides nothing (plan), makes no tensors (loader).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from treering.mixing.columns import Columns, Kind, Part
from treering.mixing.permute import Int64Array
from treering.mixing.plan import MixPlan, SourcePlan
from treering.mixing.sources import Filling, Releasing, SegmentLike, TrainRows

__all__ = ["REF", "SPAN", "BatchReader", "Share"]

REF = "_ref"  # the batch column of source numbers
SPAN = 8  # batches in a row that one worker process makes: a message between processes costs about as much as one
_LOOKUP = 64  # batches whose counts are looked up at once
_READERS = 3  # threads that read ahead, each another source's window: half the time they wait for the engine
_PIECE_BYTES = 4 << 20  # decoded rows asked for at once
_LABELS = 1_024  # kinds of batches, by counts, whose source numbers are kept; a mix of a few sources has a handful
_NONE = np.empty(0, dtype=np.int64)
_NOTHING_KNOWN: tuple[int, list[list[int]], list[int]] = (0, [], [])


class SegmentCache(Protocol):
    """Where decoded columns of snapshots may lie."""

    def columns(self, segment: SegmentLike, names: Sequence[str]) -> Sequence[Any] | None:
        """The memory-mapped columns of the segment's certified rows, a `pa.Array` each; None unless all are there."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of each batch, and the batches, that one reader makes."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1
    start: int = 0  # first batch of the run
    stop: int | None = None  # batch to stop before; None: endless

    @property
    def whole(self) -> bool:
        """Whether this reader makes all rows of all batches."""
        return self.world_size == 1 and self.workers == 1

    def owns(self, batches: Int64Array) -> Any:
        """Which batches this worker makes: spans of them, in turn."""
        return (batches - self.start) // SPAN % self.workers == self.worker


@dataclass(frozen=True, slots=True)
class _View:
    """What a read goes by. One object, so that a read that is under way never sees half of a new plan."""

    plan: MixPlan
    rows: Sequence[TrainRows]
    ends: Sequence[int]  # draws of each source before the run's stop


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A segment whose columns lie in the snapshot cache."""

    segment: SegmentLike  # kept: it is known by its identity
    columns: dict[str, Any]  # name → memory-mapped `pa.Array` of its certified rows
    blocks: Sequence[Any]  # the same as the kinds read them
    runs: Int64Array  # (k, 2): first row id and length, in the order of the columns' rows
    start: Int64Array  # (k,): row of the columns at which each run begins
    corrected: Int64Array  # row ids, ascending, of rows with corrected values: they aren't gathered from the columns
    laid: Sequence[Any]  # blocks of those rows, in that order, as the kinds read them

    def holds_all_of(self, rows: TrainRows) -> bool:
        """Whether a source of this one segment has all its certified rows: then positions are rows of the columns."""
        return not len(self.corrected) and bool(
            np.array_equal(rows.first, self.runs[:, 0]) and np.array_equal(rows.start[:-1], self.start)
        )

    def rows(self, row_ids: Int64Array) -> Int64Array:
        """Where these rows stand in the columns."""
        run = np.searchsorted(self.runs[:, 0], row_ids, side="right") - 1
        inside = row_ids - self.runs[run, 0]
        if len(run) and (run.min() < 0 or (inside >= self.runs[run, 1]).any()):
            raise AssertionError("a row that its snapshot's certificate doesn't list was planned: please report it")
        at: Int64Array = self.start[run] + inside
        return at

    def take(self, row_ids: Int64Array, names: Sequence[str]) -> Any:
        """The `pa.Table` of these rows, as a segment gives it."""
        at = pa.array(self.rows(row_ids))
        return pa.table({name: self.columns[name].take(at) for name in names})


@dataclass(frozen=True, slots=True)
class _Window:
    planned: tuple[int, int]  # the interval of draws that the plan reads in one request
    low: int  # first draw of it that was read
    high: int  # draw after the last
    rows: Int64Array  # (high - low,): which row of its block each draw is; -1: not read, because not ours
    places: Sequence[Sequence[Any]]  # blocks by column, for each place that rows lie in
    place: Int64Array | None = None  # (high - low,): which place each draw's row lies in, when there are several
    read: bool = False  # into blocks of its own, whose memory the next window may take
    plain: bool = False  # every draw's row is there, in one place


def _pieces(row_ids: Int64Array, row_bytes: int) -> Iterator[Int64Array]:
    """What to ask for at once: the memory of one answer is used again by the next, and never large. Nothing for 0 bytes."""
    if row_bytes:
        step = max(1, _PIECE_BYTES // row_bytes)
        for low in range(0, len(row_ids), step):
            yield row_ids[low : low + step]


def _same_until(old: SourcePlan, new: SourcePlan) -> int | None:
    """The draw from which on two plans of one source differ: that of the first growth that only one knows."""
    for a, b in zip_longest(old.growth, new.growth):
        if a != b:
            return min(growth.draw for growth in (a, b) if growth is not None)
    return None


class BatchReader:
    """Makes batches. Not thread-safe: one thread asks, one more (inside) reads ahead. Close it, or use `with`."""

    def __init__(
        self,
        plan: MixPlan,
        rows: Sequence[TrainRows],
        kinds: Sequence[Kind],
        share: Share | None = None,
        *,
        read_ahead: bool = True,
        cache: SegmentCache | None = None,
    ) -> None:
        self._plan = plan
        self._kinds = kinds
        self._columns = [kind.name for kind in kinds]
        self._share = share or Share()
        self._windows: list[list[_Window]] = [[] for _ in rows]
        self._coming: dict[tuple[int, tuple[int, int]], Future[_Window]] = {}  # by source and planned interval
        self._wanted: list[tuple[int, int]] = []  # (source, draw) of windows to read ahead
        self._passed: list[int] = []  # sources whose first window the draws have left behind
        self._whole: dict[int, tuple[int, Sequence[Any]]] = {}
        self._cache = cache
        self._mapped: dict[int, _Mapped] = {}  # by the identity of the segment
        self._spare: dict[int, Sequence[Any]] = {}  # by source: blocks that nobody reads any more
        self._labels: dict[tuple[int, ...], Int64Array] = {}  # source numbers of a batch's rows, by its counts
        self._reader = ThreadPoolExecutor(_READERS, thread_name_prefix="treering-read") if read_ahead else None
        self._view = self._seen(plan, rows)
        self._known = _NOTHING_KNOWN
        self._held_once = False
        share_rows = plan.batch_size // self._share.world_size
        self._slots = slice(self._share.rank * share_rows, (self._share.rank + 1) * share_rows)

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self, *, wait: bool = True) -> None:
        """Stop reading ahead and let go of the rows; with `wait` the thread has ended when this returns."""
        if self._reader is not None:
            self._reader.shutdown(wait=wait, cancel_futures=True)
        self._coming.clear()
        self._wanted.clear()
        self._passed.clear()
        self._windows = [[] for _ in self._windows]
        for kept in (self._whole, self._mapped, self._spare):
            kept.clear()
        for rows in self._view.rows:
            for segment in rows.segments:
                if isinstance(segment, Releasing):
                    segment.release()

    def replan(self, plan: MixPlan, rows: Sequence[TrainRows], *, share: Share | None = None) -> None:
        """From the next `read` on go by a plan that later events changed, and by the rows that belong to it.

        What was read stays up to the first growth that the old plan didn't know; the rest is read again when it is due.
        `share` says that the batch to stop before moved too; nothing else of it may differ. Call it between batches,
        from the thread that reads them.
        """
        known = [_same_until(old, new) for old, new in zip(self._plan.sources, plan.sources, strict=True)]
        self._plan, self._share = plan, share or self._share
        self._view = self._seen(plan, rows)
        self._known = _NOTHING_KNOWN
        self._passed.clear()
        for source, held in enumerate(self._windows):
            held[:] = [window for window in held if self._still(source, window.planned, known[source])]
        for key in [key for key in self._coming if not self._still(*key, known[key[0]])]:
            self._coming.pop(key).cancel()

    def _still(self, source: int, planned: tuple[int, int], until: int | None) -> bool:
        # Beyond a growth the same interval of draws is of other rows. And of a window that isn't all ours only our draws
        # were read, and which are ours moves with the weights.
        same = self._plan.sources[source].window(planned[0]) == planned
        return self._share.whole and same and (until is None or planned[1] <= until)

    def _seen(self, plan: MixPlan, rows: Sequence[TrainRows]) -> _View:
        stop = self._share.stop
        return _View(plan, rows, plan.taken_before(stop) if stop is not None else (2**62,) * len(rows))

    def read(self, batch: int) -> tuple[Columns, Int64Array]:
        """The columns of this reader's slice of batch t, `_ref` included, and how many rows each source gave.

        Columns are numpy arrays, lists or ArrowColumns; nothing in them is shared with another batch.
        """
        taken, after, turn = self._look_up(batch)
        counts = tuple([b - a for a, b in zip(taken, after, strict=True)])
        order = self._plan.order(batch, turn, rows=sum(counts), slots=self._slots)
        parts: list[Part] = []
        moved: list[tuple[int, Int64Array]] = []
        if not self._held_once:
            self._begin(taken, counts)
        if self._share.world_size == 1:
            for source, count in enumerate(counts):
                if not count:
                    continue
                low, high = taken[source], after[source]
                held = self._windows[source]
                window = held[0] if held else None
                if window is not None and window.plain and window.low <= low and high <= window.high:
                    # All but a few batches: what follows below, without its cases.
                    parts.append(Part(window.places[0], window.rows[low - window.low : high - window.low]))
                else:
                    self._add_all(parts, moved, source, low, high)
        else:
            chosen = np.sort(order)
            order = np.searchsorted(chosen, order)
            firsts = [0, *itertools.accumulate(counts)]
            cuts = np.searchsorted(chosen, firsts).tolist()
            counts = tuple([b - a for a, b in itertools.pairwise(cuts)])
            for source, count in enumerate(counts):
                if count:
                    draws = taken[source] - firsts[source] + chosen[cuts[source] : cuts[source + 1]]
                    self._add_chosen(parts, moved, source, draws)
        by_source = self._labels.get(counts)
        if by_source is None:
            if len(self._labels) >= _LABELS:
                self._labels.clear()
            by_source = self._labels[counts] = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        labels = by_source[order]
        if moved:
            at = np.arange(len(by_source), dtype=np.int64)
            for first, rows in moved:
                at[first + rows] = np.arange(first, first + len(rows))
            order = at[order]
        columns: Columns = {}
        for number, kind in enumerate(self._kinds):
            columns.update(kind.gather(number, parts, order))
        columns[REF] = labels
        self._go_on()
        return columns, np.array(counts, dtype=np.int64)

    def gone(self, batch: int) -> Any | None:
        """Which rows of this reader's slice of batch t were erased: bool (rows,); None when none of any source was.

        By the plan alone, since erased rows keep their positions: what was read in their place says nothing.
        """
        rows_of = self._view.rows
        erased = [[getattr(segment, "erased", _NONE) for segment in rows.segments] for rows in rows_of]
        if not any(len(one) for of_source in erased for one in of_source):
            return None
        taken, after, turn = self._look_up(batch)
        found = []
        for source, (low, high) in enumerate(zip(taken, after, strict=True)):
            owner, row_ids = rows_of[source].find(self._plan.sources[source].positions(np.arange(low, high)))
            dead = np.zeros(high - low, dtype=np.bool_)
            for number, ids in enumerate(erased[source]):
                dead |= (owner == number) & np.isin(row_ids, ids)
            found.append(dead)
        flags = np.concatenate(found)
        return flags[self._plan.order(batch, turn, rows=len(flags), slots=self._slots)]

    def _begin(self, taken: Sequence[int], counts: Sequence[int]) -> None:
        """Read the first windows of all sources at once: the first batch waits for every one of them."""
        self._held_once = True
        if self._reader is not None and self._share.world_size == 1:
            for source, (draw, count) in enumerate(zip(taken, counts, strict=True)):
                if count:
                    planned = self._plan.sources[source].window(draw)
                    self._coming[source, planned] = self._reader.submit(self._load, self._view, source, draw, planned)

    def _go_on(self) -> None:
        """With the batch in hand: let go of windows that were passed, and read ahead.

        Reading ahead any earlier would compete with reads that are waited for.
        """
        if not self._passed and not self._wanted:
            return
        for source in self._passed:
            held = self._windows[source]
            if held[0].read:
                self._spare[source] = held[0].places[0]
            del held[0]  # draws come in order: what lies before the window in use isn't asked for again
        self._passed.clear()
        if self._reader is not None:
            for source, draw in self._wanted:
                planned = self._plan.sources[source].window(draw)
                self._coming[source, planned] = self._reader.submit(self._load, self._view, source, draw, planned)
        self._wanted.clear()

    def _look_up(self, batch: int) -> tuple[list[int], list[int], int]:
        """C_s(t), C_s(t+1) and b_t, looked up for many batches at once."""
        first, table, turns = self._known
        at = batch - first
        if not 0 <= at < len(turns):
            table = self._plan.taken(np.arange(batch, batch + _LOOKUP + 1)).tolist()
            turns = self._plan.turns(np.arange(batch, batch + _LOOKUP)).tolist()
            self._known, at = (batch, table, turns), 0
        return table[at], table[at + 1], turns[at]

    def _add_all(
        self, parts: list[Part], moved: list[tuple[int, Int64Array]], source: int, low: int, high: int
    ) -> None:
        while low < high:
            window = self._window(source, low)
            end = min(high, window.high)
            self._add(parts, moved, window, slice(low - window.low, end - window.low))
            low = end

    def _add_chosen(
        self, parts: list[Part], moved: list[tuple[int, Int64Array]], source: int, draws: Int64Array
    ) -> None:
        while len(draws):
            window = self._window(source, int(draws[0]))
            here = int(np.searchsorted(draws, window.high))
            self._add(parts, moved, window, draws[:here] - window.low)
            draws = draws[here:]

    def _add(
        self, parts: list[Part], moved: list[tuple[int, Int64Array]], window: _Window, draws: slice | Int64Array
    ) -> None:
        """Add the rows of these draws: as one part, or one for each place, and then in an order that `moved` gets."""
        rows = window.rows[draws]
        if not self._share.whole and rows.min() < 0:  # gathering clips: a row not read would come out as another one
            raise AssertionError("a batch was asked for that this reader doesn't make: please report it")
        if window.place is None:
            parts.append(Part(window.places[0], rows))
            return
        place = window.place[draws]
        by_place = np.argsort(place, kind="stable")
        moved.append((sum([len(part.rows) for part in parts]), by_place))
        rows, place = rows[by_place], place[by_place]
        cuts = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(place)]
        parts += [Part(window.places[place[a]], rows[a:b]) for a, b in itertools.pairwise(cuts)]

    def _window(self, source: int, draw: int) -> _Window:
        held = self._windows[source]
        for window in held:
            if window.low <= draw < window.high:
                if window is not held[0] and source not in self._passed:
                    self._passed.append(source)
                return window
        planned = self._plan.sources[source].window(draw)
        window = self._fetch(source, draw, planned)
        if len(held) > 1:  # asked out of order
            del held[:-1]
        if held and source not in self._passed:
            self._passed.append(source)
        held.append(window)
        if self._reader is not None and planned[1] < self._view.ends[source]:
            self._wanted.append((source, planned[1]))
        return window

    def _fetch(self, source: int, draw: int, planned: tuple[int, int]) -> _Window:
        coming = self._coming.pop((source, planned), None)
        for key in [key for key in self._coming if key[0] == source]:  # somebody asked out of order
            self._coming.pop(key).cancel()
        if coming is not None:
            window = coming.result()
            if window.low <= draw < window.high:  # it was cut short when a later plan goes on longer
                return window
        return self._load(self._view, source, draw, planned)

    def _load(self, view: _View, source: int, draw: int, planned: tuple[int, int]) -> _Window:
        plan, rows_of = view.plan.sources[source], view.rows[source]
        low, high = planned
        mapped = self._map(rows_of)
        if mapped is None:
            size = plan.fits(low)
            if size is not None:  # small: all of it stays in memory, and a window is only an order
                held = self._whole.get(source)
                if held is None or held[0] != size:
                    held = self._whole[source] = (size, self._read(rows_of, np.arange(size, dtype=np.int64)))
                return _Window(planned, low, high, plan.positions(np.arange(low, high)), [held[1]], plain=True)
        else:
            self._whole.pop(source, None)
        low, high = max(low, draw), min(high, view.ends[source])
        draws = np.arange(low, high, dtype=np.int64)
        if not self._share.whole:
            share = self._share
            batches, ranks = view.plan.owner_ranks(source, low, high, share.world_size)
            draws = draws[(ranks == share.rank) & share.owns(batches)]
        positions = plan.positions(draws)
        if mapped is not None:
            return self._in_cache(planned, low, high, draws, positions, rows_of, mapped)
        rows = np.full(high - low, -1, dtype=np.int64)
        if plan.cumulative is not None:  # drawn by weight, a row may come several times: it is read once
            positions, rows[draws - low] = np.unique(positions, return_inverse=True)
        else:
            by_place = np.argsort(positions)
            positions = positions[by_place]
            rows[draws[by_place] - low] = np.arange(len(draws))
        blocks = self._read(rows_of, positions, self._spare.pop(source, None))
        return _Window(planned, low, high, rows, [blocks], read=True, plain=self._share.whole)

    def _in_cache(
        self,
        planned: tuple[int, int],
        low: int,
        high: int,
        draws: Int64Array,
        positions: Int64Array,
        rows_of: TrainRows,
        mapped: Sequence[_Mapped],
    ) -> _Window:
        places = [one.blocks for one in mapped]
        if len(mapped) == 1 and mapped[0].holds_all_of(rows_of) and len(draws) == high - low:
            return _Window(planned, low, high, positions, places, plain=self._share.whole)
        owner, row_ids = rows_of.find(positions)
        rows = np.full(high - low, -1, dtype=np.int64)
        if len(mapped) == 1 and not len(mapped[0].corrected):
            rows[draws - low] = mapped[0].rows(row_ids)
            return _Window(planned, low, high, rows, places, plain=self._share.whole)
        place = np.zeros(high - low, dtype=np.int64)
        place[draws - low] = owner
        for number, one in enumerate(mapped):
            here = owner == number
            rows[draws[here] - low] = one.rows(row_ids[here])
            if len(one.corrected):
                at = np.minimum(np.searchsorted(one.corrected, row_ids), len(one.corrected) - 1)
                laid = here & (one.corrected[at] == row_ids)
                place[draws[laid] - low] = len(places)
                rows[draws[laid] - low] = at[laid]
                places.append(one.laid)
        return _Window(planned, low, high, rows, places, place)

    def _map(self, rows: TrainRows) -> list[_Mapped] | None:
        """The cached columns of all segments of a source, or None as long as any of them lacks some."""
        if self._cache is None or not self._columns:
            return None
        found: list[_Mapped] = []
        for segment in rows.segments:
            mapped = self._mapped_segment(segment)
            if mapped is None:
                return None
            found.append(mapped)
        return found or None

    def _mapped_segment(self, segment: SegmentLike) -> _Mapped | None:
        mapped = self._mapped.get(id(segment))
        if mapped is None and self._cache is not None and self._columns:
            found = self._cache.columns(segment, self._columns)
            if found is None:
                return None
            runs = np.asarray(segment.certified_runs(), dtype=np.int64).reshape(-1, 2)  # type: ignore[attr-defined]
            columns = {
                kind.name: array if array.type == kind.type else array.cast(kind.type)
                for kind, array in zip(self._kinds, found, strict=True)
            }
            blocks = [kind.view(columns[kind.name]) for kind in self._kinds]
            start = np.cumsum(runs[:, 1]) - runs[:, 1]
            corrected, laid = self._laid_over(segment, runs)
            mapped = self._mapped[id(segment)] = _Mapped(segment, columns, blocks, runs, start, corrected, laid)
        return mapped

    def _laid_over(self, segment: Any, runs: Int64Array) -> tuple[Int64Array, list[Any]]:
        """The cached rows of which a column that is read was corrected, and blocks of them: held for the whole run."""
        corrections = getattr(segment, "corrections", None)
        if corrections is None or not corrections.touches(self._columns):
            return np.empty(0, dtype=np.int64), []
        ids: Int64Array = corrections.within(runs).row_ids(self._columns)
        table = segment.take(ids, self._columns)
        blocks = []
        for kind in self._kinds:
            column = table.column(kind.name)
            block = kind.block(len(ids))
            for chunk in (column if column.type == kind.type else column.cast(kind.type)).chunks:
                block.add(chunk)
            blocks.append(block.done())
        return ids, blocks

    def _read(self, rows: TrainRows, positions: Int64Array, spare: Sequence[Any] | None = None) -> list[Any]:
        """Decode the columns of these rows (ascending positions), in that order, into the memory of `spare` blocks."""
        if not self._columns:
            return []
        blocks = [
            kind.block(len(positions), spare[number] if spare else None) for number, kind in enumerate(self._kinds)
        ]
        for segment, row_ids in rows.locate(positions):
            mapped = self._mapped_segment(segment)
            left = list(zip(self._kinds, blocks, strict=True))
            if mapped is None and isinstance(segment, Filling):
                left = [
                    (kind, block)
                    for kind, block in left
                    if not block.fill(len(row_ids), partial(segment.fill, row_ids, pa.field(kind.name, kind.type)))
                ]
            for piece in _pieces(row_ids, sum(kind.row_bytes for kind, _ in left)):
                names = [kind.name for kind, _ in left]
                table = segment.take(piece, names) if mapped is None else mapped.take(piece, names)
                if mapped is not None and len(mapped.corrected):
                    table = segment.corrections.apply(table, piece)  # type: ignore[attr-defined]
                for kind, block in left:
                    column = table.column(kind.name)
                    for chunk in (column if column.type == kind.type else column.cast(kind.type)).chunks:
                        block.add(chunk)
        return [block.done() for block in blocks]
