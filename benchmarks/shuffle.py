"""How well is a mix shuffled that is read in chunks? On data sorted by label, the worst case; reads no data.

For each chunk and pool size: label entropy per batch as a share of a full shuffle's (mean and worst batch), and the
correlation of positions in neighbouring draws.

    python benchmarks/shuffle.py [--rows 300000] [--batches 200]        prints a markdown table
    python benchmarks/shuffle.py --smoke
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from treering.mixing.plan import MixPlan, block_rows_for

UNITS = (3, 3, 4)
BATCH = 256


def entropy(labels: np.ndarray[Any, Any]) -> float:
    """In nats, of the labels of one batch."""
    shares = np.bincount(labels) / len(labels)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def measure(rows: int, labels: int, chunk: int, pool: int, batches: int) -> tuple[float, float, float]:
    """(mean, worst) label entropy per batch as a share of a full shuffle's mean, and neighbour correlation."""
    plan = MixPlan((rows,) * 3, UNITS, BATCH, 1, chunk, block_rows_for(UNITS, BATCH, chunk, pool), anchor=2)
    taken = plan.taken(np.arange(batches + 1))
    drawn = [plan.sources[s].positions(np.arange(taken[-1, s])) * labels // rows for s in range(3)]
    found = [
        entropy(np.concatenate([drawn[s][taken[t, s] : taken[t + 1, s]] for s in range(3)])) for t in range(batches)
    ]
    full = np.mean([entropy(row) for row in np.random.default_rng(0).integers(0, labels, (400, BATCH))])
    positions = plan.sources[2].positions(np.arange(min(rows, 100_000)))
    correlation = float(np.corrcoef(positions[:-1], positions[1:])[0, 1])
    return float(np.mean(found) / full), float(np.min(found) / full), correlation


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of each of the three sources")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    rows, batches = (3_000, 3) if options.smoke else (options.rows, options.batches)
    print("| labels | chunk_rows | pool_rows | entropy, mean | worst batch | neighbours' correlation |")
    print("| --- | --- | --- | --- | --- | --- |")
    for labels in (10, 150, 1_000):
        for chunk, pool in (
            (1, 98_304),
            (32, 65_536),
            (64, 65_536),
            (64, 98_304),
            (64, 131_072),
            (128, 196_608),
            (32, 16_384),
        ):
            mean, worst, correlation = measure(rows, labels, chunk, pool, batches)
            print(f"| {labels} | {chunk} | {pool:,} | {mean:.4f} | {worst:.3f} | {correlation:+.3f} |")


if __name__ == "__main__":
    main()
