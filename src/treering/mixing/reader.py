"""Read the rows that the plan names, in blocks, and put batches together from them.

Each source is read in windows of draws (`SourcePlan.window`): one request a window, its rows sorted so that the engine
reads neighbours together, the next window fetched in the background. A batch then only gathers rows that are in
memory. Any batch can be asked for; asking in order is what is fast. Decides nothing (plan), makes no tensors (loader).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from treering.mixing.columns import Columns, Kind, Part
from treering.mixing.permute import Int64Array
from treering.mixing.plan import MixPlan
from treering.mixing.sources import TrainRows

__all__ = ["REF", "SPAN", "BatchReader", "Share"]

REF = "_ref"  # the batch column of source numbers
SPAN = 8  # batches in a row that one worker process makes: a message between processes costs about as much as one
_LOOKUP = 64  # batches whose counts are looked up at once
_NOTHING_KNOWN: tuple[int, Int64Array, list[int]] = (0, np.empty((0, 0), dtype=np.int64), [])


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
class _Window:
    planned: tuple[int, int]  # the interval of draws that the plan reads in one request
    low: int  # first draw of it that was read
    high: int  # draw after the last
    rows: Int64Array  # (high - low,): which row of the blocks each draw is; -1: not read, because not ours
    blocks: Sequence[Any]  # one decoded block a column


def _part(window: _Window, rows: Int64Array) -> Part:
    if rows.min() < 0:  # gathering clips, so a row that wasn't read would come out as another one
        raise AssertionError("a batch was asked for that this reader doesn't make: please report it")
    return Part(window.blocks, rows)


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
    ) -> None:
        self._plan = plan
        self._kinds = kinds
        self._columns = [kind.name for kind in kinds]
        self._share = share or Share()
        self._windows: list[list[_Window]] = [[] for _ in rows]
        self._coming: dict[tuple[int, tuple[int, int]], Future[_Window]] = {}  # by source and planned interval
        self._wanted: list[tuple[int, int]] = []  # (source, draw) of windows to read ahead
        self._whole: dict[int, tuple[int, Sequence[Any]]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="treering-read") if read_ahead else None
        self._view = self._seen(plan, rows)
        self._known = _NOTHING_KNOWN
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
        self._windows = [[] for _ in self._windows]
        self._whole.clear()

    def replan(self, plan: MixPlan, rows: Sequence[TrainRows], *, share: Share | None = None) -> None:
        """From the next `read` on go by a plan that later events changed, and by the rows that belong to it.

        What was read stays where the new plan has the same window of draws; the rest is read again when it is due.
        `share` says that the batch to stop before moved too; nothing else of it may differ. Call it between batches,
        from the thread that reads them.
        """
        self._plan, self._share = plan, share or self._share
        self._view = self._seen(plan, rows)
        self._known = _NOTHING_KNOWN
        for source, held in enumerate(self._windows):
            held[:] = [window for window in held if self._still(source, window.planned)]
        for key in [key for key in self._coming if not self._still(*key)]:
            self._coming.pop(key).cancel()

    def _still(self, source: int, planned: tuple[int, int]) -> bool:
        # Of a window that isn't all ours only our draws were read, and which are ours moves with the weights.
        return self._share.whole and self._plan.sources[source].window(planned[0]) == planned

    def _seen(self, plan: MixPlan, rows: Sequence[TrainRows]) -> _View:
        stop = self._share.stop
        return _View(plan, rows, plan.taken_before(stop) if stop is not None else (2**62,) * len(rows))

    def read(self, batch: int) -> tuple[Columns, Int64Array]:
        """The columns of this reader's slice of batch t, `_ref` included, and how many rows each source gave.

        Columns are numpy arrays, lists or ArrowColumns; nothing in them is shared with another batch.
        """
        taken, after, turn = self._look_up(batch)
        order = self._plan.order(batch, turn)
        counts = after - taken
        if self._share.world_size > 1:
            mine = order[self._slots]
            chosen = np.sort(mine)
            order = np.searchsorted(chosen, mine)
            firsts = np.concatenate([[0], np.cumsum(counts)])
            cuts = np.searchsorted(chosen, firsts)
            counts = np.diff(cuts)
        parts: list[Part] = []
        for source in np.flatnonzero(counts).tolist():
            if self._share.world_size > 1:
                draws = taken[source] + chosen[cuts[source] : cuts[source + 1]] - firsts[source]
                self._add_chosen(parts, source, draws)
            else:
                self._add_all(parts, source, int(taken[source]), int(after[source]))
        columns: Columns = {}
        for number, kind in enumerate(self._kinds):
            columns.update(kind.gather(number, parts, order))
        if self._reader is not None and self._wanted:
            # Only now, with the batch in hand: started any earlier, this would compete with reads that are waited for.
            for source, draw in self._wanted:
                planned = self._plan.sources[source].window(draw)
                self._coming[source, planned] = self._reader.submit(self._load, self._view, source, draw, planned)
            self._wanted.clear()
        columns[REF] = np.repeat(np.arange(len(counts), dtype=np.int64), counts)[order]
        return columns, counts

    def _look_up(self, batch: int) -> tuple[Int64Array, Int64Array, int]:
        """C_s(t), C_s(t+1) and b_t, looked up for many batches at once."""
        first, table, turns = self._known
        at = batch - first
        if not 0 <= at < len(turns):
            table = self._plan.taken(np.arange(batch, batch + _LOOKUP + 1))
            turns = self._plan.turns(np.arange(batch, batch + _LOOKUP)).tolist()
            self._known, at = (batch, table, turns), 0
        return table[at], table[at + 1], turns[at]

    def _add_all(self, parts: list[Part], source: int, low: int, high: int) -> None:
        while low < high:
            window = self._window(source, low)
            end = min(high, window.high)
            parts.append(_part(window, window.rows[low - window.low : end - window.low]))
            low = end

    def _add_chosen(self, parts: list[Part], source: int, draws: Int64Array) -> None:
        while len(draws):
            window = self._window(source, int(draws[0]))
            here = int(np.searchsorted(draws, window.high))
            parts.append(_part(window, window.rows[draws[:here] - window.low]))
            draws = draws[here:]

    def _window(self, source: int, draw: int) -> _Window:
        held = self._windows[source]
        for window in held:
            if window.low <= draw < window.high:
                if window is not held[0]:
                    del held[0]  # draws come in order: what lies before the window in use isn't asked for again
                return window
        planned = self._plan.sources[source].window(draw)
        window = self._fetch(source, draw, planned)
        held[:] = [*held[-1:], window]
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
        size = plan.fits(low)
        if size is not None:  # small: all of it stays in memory, and a window is only an order
            held = self._whole.get(source)
            if held is None or held[0] != size:
                held = self._whole[source] = (size, self._read(rows_of, np.arange(size, dtype=np.int64)))
            return _Window(planned, low, high, plan.positions(np.arange(low, high)), held[1])
        low, high = max(low, draw), min(high, view.ends[source])
        draws = np.arange(low, high, dtype=np.int64)
        if not self._share.whole:
            share = self._share
            batches, ranks = view.plan.owner_ranks(source, low, high, share.world_size)
            draws = draws[(ranks == share.rank) & share.owns(batches)]
        positions = plan.positions(draws)
        by_place = np.argsort(positions)
        rows = np.full(high - low, -1, dtype=np.int64)
        rows[draws[by_place] - low] = np.arange(len(draws))
        return _Window(planned, low, high, rows, self._read(rows_of, positions[by_place]))

    def _read(self, rows: TrainRows, positions: Int64Array) -> list[Any]:
        """Decode the columns of these rows (ascending positions), in that order."""
        if not self._columns:
            return []
        tables = [segment.take(ids, self._columns) for segment, ids in rows.locate(positions)]
        blocks = []
        for kind in self._kinds:
            chunks: list[Any] = []
            for table in tables:
                column = table.column(kind.name)
                chunks += (column if column.type == kind.type else column.cast(kind.type)).chunks
            blocks.append(kind.decode(pa.chunked_array(chunks, type=kind.type)))
        return blocks
