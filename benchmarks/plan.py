"""What a plan costs at any size and any position: nothing that grows. Reads no data.

Three questions. What does the first batch after a resume cost at batch 0, and at batch 1,000,000? How much memory do
1,024 ranks with 8 workers each need to plan a mix of 10¹² rows? Are their slices disjoint and the shares exact, on
sampled batches? Readers are the real ones; they read row numbers from segments that hold nothing.

    python benchmarks/plan.py [--rows 1000000000000] [--ranks 1024] [--workers 8] [--batches 64] [--json]
    python benchmarks/plan.py --smoke
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from treering.mixing.columns import kind_of
from treering.mixing.plan import MixPlan, block_rows_for
from treering.mixing.reader import SPAN, BatchReader, Share
from treering.mixing.shares import quantise
from treering.mixing.sources import TrainRows

WEIGHTS = (0.3, 0.3, 0.4)
ROWS_PER_RANK = 8
RUNS = 10_000  # runs of training rows in each source, with held-out rows between them

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class RowNumbers:
    """A segment of any size whose one column is the row id."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    @property
    def row_ids(self) -> tuple[int, int]:
        """Ten in eleven rows are training rows."""
        return 0, self.rows * 11 // 10

    def runs(self, split: str = "train") -> IntArray:
        """`RUNS` runs of equal length, the last one a little longer."""
        count = min(RUNS, self.rows)
        length = self.rows // count
        first = np.arange(count, dtype=np.int64) * (length * 11 // 10)
        lengths = np.full(count, length, dtype=np.int64)
        lengths[-1] += self.rows - length * count
        return np.stack([first, lengths], axis=1)

    def take(self, row_ids: IntArray, columns: Sequence[str]) -> Any:
        """The row ids themselves."""
        return pa.table(dict.fromkeys(columns, row_ids))


class Numbers:
    """A source of one such segment."""

    def __init__(self, rows: int) -> None:
        self.ref = f"simulated@{rows}"
        self.corpus = "simulated"
        self.segments = (RowNumbers(rows),)
        self.schema = pa.schema([("row", pa.int64())])
        self.sampling = None

    def pin(self) -> dict[str, Any]:
        """It is never locked."""
        raise NotImplementedError

    def up_to(self, end: int | None = None, annotations: int = 0) -> Numbers:
        """It never grows."""
        return self


def simulated(
    rows: int, ranks: int, *, chunk_rows: int = 32, pool_rows: int = 65_536
) -> tuple[MixPlan, list[TrainRows]]:
    """A mix of three sources with `rows` training rows altogether."""
    units = quantise(WEIGHTS)
    sizes = [int(rows * weight) for weight in WEIGHTS]
    batch_size = ranks * ROWS_PER_RANK
    blocks = block_rows_for(units, batch_size, chunk_rows, pool_rows)
    plan = MixPlan(tuple(sizes), units, batch_size, 7, chunk_rows, blocks, anchor=2)
    return plan, [TrainRows.of(Numbers(size)) for size in sizes]


def reader(plan: MixPlan, rows: list[TrainRows], share: Share) -> BatchReader:
    """The reader that one worker of one rank has, as the loader makes it."""
    kinds = [kind_of("row", pa.int64(), ragged="pad", pad_value=0)]
    return BatchReader(plan, rows, kinds, share, read_ahead=False)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def resume(rows: int, rounds: int) -> dict[str, Any]:
    """Milliseconds to the first batch of a fresh reader and a fresh plan, at several batches in turn."""
    at = [0, 1_000, 1_000_000, 1_000_000_000]

    def first(batch: int) -> None:
        plan, found = simulated(rows, 32)
        with reader(plan, found, Share(start=batch)) as one:
            one.read(batch)

    first(0)
    took: dict[int, list[float]] = {batch: [] for batch in at}
    for _ in range(rounds):
        for batch in at:
            took[batch].append(timed(partial(first, batch)))
    ms = {batch: 1e3 * statistics.median(found) for batch, found in took.items()}
    return {"first_batch_ms": ms, "a_million_against_none": ms[1_000_000] / ms[0]}


def shares_are_exact(plan: MixPlan, batches: Sequence[int]) -> float:
    """The largest distance of C_s(t) from its exact share, in rows. Raises AssertionError where a batch isn't fair."""
    worst = 0.0
    units = np.array(plan.units)
    exact = units * plan.batch_size / units.sum()
    for batch in batches:
        taken = np.array([plan.taken_before(batch), plan.taken_before(batch + 1)])
        counts = taken[1] - taken[0]
        assert counts.sum() == plan.batch_size
        assert (np.floor(exact) <= counts).all()
        assert (counts <= np.ceil(exact)).all()
        # In whole numbers: at batch 10⁹ a float no longer knows a tenth of a row.
        error = np.abs(taken[1] * int(units.sum()) - (batch + 1) * units * plan.batch_size)
        worst = max(worst, float(error.max()) / float(units.sum()))
    assert worst <= 1
    return worst


def slices_are_disjoint(plan: MixPlan, ranks: int, batch: int) -> None:
    """All ranks' slices of one batch hold each of its rows once, and no two rows of it are one. Else AssertionError.

    Asked from both sides: the order of the batch says which row stands in which slot, and so on which rank; the draws
    say which rank owns them. A draw that two ranks read, or none, would show.
    """
    taken, after = plan.taken_before(batch), plan.taken_before(batch + 1)
    order = plan.order(batch)
    assert np.array_equal(np.sort(order), np.arange(plan.batch_size))
    owner = np.empty(plan.batch_size, dtype=np.int64)
    owner[order] = np.arange(plan.batch_size) // (plan.batch_size // ranks)
    claimed = []
    for source, (low, high) in enumerate(zip(taken, after, strict=True)):
        batches, ranks_of = plan.owner_ranks(source, low, high, ranks)
        assert (batches == batch).all()
        claimed.append(ranks_of)
        positions = plan.sources[source].positions(np.arange(low, high))
        assert 0 <= positions.min() <= positions.max() < plan.sizes[source]
        if plan.sources[source].epoch_of(low) == plan.sources[source].epoch_of(high - 1):
            assert len(np.unique(positions)) == len(positions)
    assert np.array_equal(np.concatenate(claimed), owner)


def readers_agree(plan: MixPlan, rows: list[TrainRows], ranks: int, workers: int, batch: int, most: int) -> int:
    """Real readers of `most` ranks give the slices that a single process's reader gives; returns how many were asked."""
    with reader(plan, rows, Share(start=batch)) as one:
        whole = one.read(batch)[0]
    per_rank = plan.batch_size // ranks
    chosen = np.unique(np.linspace(0, ranks - 1, most).astype(int)).tolist()
    for rank in chosen:
        start = max(0, batch - SPAN * (rank % workers))  # spans are dealt to workers from where a run starts
        worker = (batch - start) // SPAN
        with reader(plan, rows, Share(rank, ranks, worker, workers, start=start)) as one:
            mine = one.read(batch)[0]
        here = slice(rank * per_rank, (rank + 1) * per_rank)
        assert np.array_equal(mine["row"], whole["row"][here])
        assert np.array_equal(mine["_ref"], whole["_ref"][here])
    return len(chosen)


def sampled(count: int, most: int) -> list[int]:
    """Batches at every order of magnitude up to `most`."""
    return sorted({0, 1, *np.unique(np.geomspace(1, most, count).astype(np.int64)).tolist()})


def forget_peak() -> float:
    """Let Linux count this process's peak of memory from now on; returns what it holds now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mb("VmRSS")


def status_mb(field: str) -> float:
    """A size in /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def simulate(rows: int, ranks: int, workers: int, batches: int, readers: int) -> dict[str, Any]:
    """Plan for all ranks on sampled batches, with the memory it took beyond the imports."""
    before = forget_peak()
    plan, found = simulated(rows, ranks)
    last = rows // plan.batch_size  # a pass over everything
    chosen = sampled(batches, last)
    began = time.perf_counter()
    worst = shares_are_exact(plan, chosen)
    for batch in chosen:
        slices_are_disjoint(plan, ranks, batch)
    took = time.perf_counter() - began
    asked = sum(readers_agree(plan, found, ranks, workers, batch, readers) for batch in chosen[:: len(chosen) // 3])
    return {
        "rows": rows,
        "ranks": ranks,
        "workers": workers,
        "batch_size": plan.batch_size,
        "batches": len(chosen),
        "last_batch": chosen[-1],
        "largest_share_error_rows": worst,
        "ms_for_a_batch_of_all_ranks": 1e3 * took / len(chosen),
        "readers": asked,
        "mb_beyond_imports": status_mb("VmHWM") - before,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**12, help="training rows of the three sources together")
    parser.add_argument("--ranks", type=int, default=1_024)
    parser.add_argument("--workers", type=int, default=8, help="worker processes of each rank")
    parser.add_argument("--batches", type=int, default=64, help="batches that are looked at")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.batches, options.rounds, options.ranks = 3, 1, 64
    # First the simulation: the memory it needs is what the process's peak grows by.
    found = simulate(options.rows, options.ranks, options.workers, options.batches, readers=4 if options.smoke else 16)
    cost = resume(options.rows, options.rounds)
    if options.json:
        print(json.dumps({"simulation": found, "resume": cost}, indent=1))
        return
    print("| what | figure |\n| --- | --- |")
    print(
        f"| rows; ranks × workers; batch size | {found['rows']:.0e}; {found['ranks']:,} × {found['workers']}; {found['batch_size']:,} |"
    )
    print(f"| memory beyond the imports | {found['mb_beyond_imports']:.0f} MB |")
    print(f"| batches looked at, up to number | {found['batches']}, {found['last_batch']:,} |")
    print("| slices of all ranks disjoint, every row of a batch in one of them | yes |")
    print(f"| largest distance of a share from exact, in rows | {found['largest_share_error_rows']:.2f} |")
    print(f"| a batch planned for all ranks | {found['ms_for_a_batch_of_all_ranks']:.1f} ms |")
    print(f"| real readers that gave their slice | {found['readers']} |")
    for batch, ms in cost["first_batch_ms"].items():
        print(f"| first batch of a fresh reader at batch {batch:,} | {ms:.2f} ms |")
    print(f"| batch 1,000,000 against batch 0 | {cost['a_million_against_none']:.2f} |")


if __name__ == "__main__":
    main()
