"""Rows per second of a 30/30/40 mix of three corpora, beside the physical limit and LanceDB's own loader.

Rows of 128 int32 tokens, a label and ~400 B of text; tokens and labels are delivered as torch tensors, 256 rows a batch,
in one process, shuffled. "limit" is a numpy memmap gather: decoded columns on disk, random rows, nothing else. Rounds are
interleaved, so that a loaded machine slows everybody; every contestant starts cold in each round (fresh loader, first
read included; the files are in the page cache).

    python benchmarks/loader.py [--rows 300000] [--rounds 5] [--seconds 2] [--text]     prints a markdown table
    python benchmarks/loader.py --smoke                                                  tiny and untimed, for the tests
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import treering

WEIGHTS = [0.3, 0.3, 0.4]
BATCH = 256
TOKENS = 128
NAMES = ("one", "two", "three")
SCHEMA = pa.schema([("text", pa.string()), ("tokens", pa.list_(pa.int32(), TOKENS)), ("target", pa.int64())])

Batches = Iterator[tuple[torch.Tensor, torch.Tensor, Any]]  # tokens, labels, text or None


def records(rows: int, seed: int) -> pa.Table:
    """`rows` records of about 930 B."""
    rng = np.random.default_rng(seed)
    words = ["".join(map(chr, rng.integers(97, 123, 7))) for _ in range(5_000)]
    text = [" ".join(words[k] for k in line) for line in rng.integers(0, len(words), (rows, 50))]
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 32_000, rows * TOKENS, dtype=np.int32)), TOKENS)
    return pa.table([pa.array(text), tokens, pa.array(rng.integers(0, 150, rows))], schema=SCHEMA)


def build(root: Path, rows: int) -> treering.Store:
    """A store of three corpora, sealed once each, and the same training rows as memmaps and LanceDB tables."""
    import lancedb

    store = treering.open(root / "store")
    peers = lancedb.connect(root / "lancedb")
    for number, name in enumerate(NAMES):
        corpus = store.create(name, schema=SCHEMA)
        with corpus.capture() as live:
            for low in range(0, rows, 50_000):
                live.extend(records(min(50_000, rows - low), number * 1_000 + low))
        corpus.compact()
        corpus.snapshot()
        table = store.load(f"{name}@v1").to_table(["text", "tokens", "target", "split"])
        table = table.filter(pa.compute.equal(table["split"], "train")).drop_columns(["split"]).combine_chunks()
        np.save(root / f"{name}.tokens.npy", table["tokens"].chunk(0).flatten().to_numpy().reshape(-1, TOKENS))
        np.save(root / f"{name}.label.npy", table["target"].to_numpy())
        peers.create_table(name, table)
    return store


def counts() -> list[int]:
    """Rows of each source in a batch, by hand: the peers have no exact shares."""
    return [77, 77, 102]


def limit(root: Path) -> Batches:
    """Random rows from memory-mapped columns, straight into the batch."""
    tokens = [np.load(root / f"{name}.tokens.npy", mmap_mode="r") for name in NAMES]
    labels = [np.load(root / f"{name}.label.npy", mmap_mode="r") for name in NAMES]
    rng = np.random.default_rng(0)
    while True:
        out, label = np.empty((BATCH, TOKENS), dtype=np.int32), np.empty(BATCH, dtype=np.int64)
        low = 0
        for s, count in enumerate(counts()):
            rows = rng.integers(0, len(tokens[s]), count)
            np.take(tokens[s], rows, axis=0, out=out[low : low + count], mode="clip")
            np.take(labels[s], rows, out=label[low : low + count], mode="clip")
            low += count
        yield torch.from_numpy(out), torch.from_numpy(label), None


def ours(store: treering.Store, *, text: bool = False, **options: Any) -> Batches:
    """A treering loader, made anew."""
    mix = treering.mix(*[store.load(f"{name}@v1") for name in NAMES], weights=WEIGHTS, seed=1)
    columns = ["tokens", "target", "text"] if text else ["tokens", "target"]
    with mix.loader(batch_size=BATCH, columns=columns, epochs=None, **options) as loader:
        for batch in loader:
            yield batch["tokens"], batch["target"], batch.get("text")


def permutation(root: Path, *, text: bool = False, clump_size: int | None = None) -> Batches:
    """LanceDB's Permutation, one per source, mixed by hand, read as Arrow and joined by columns: its fastest form."""
    import lancedb
    from lancedb.permutation import Permutation, permutation_builder

    db = lancedb.connect(root / "lancedb")
    columns = ["tokens", "target", "text"] if text else ["tokens", "target"]

    def endless(name: str, count: int) -> Iterator[pa.RecordBatch]:
        table = db.open_table(name)
        seed = 0
        while True:
            order = permutation_builder(table).shuffle(seed=seed, clump_size=clump_size).execute()
            rows = Permutation.from_tables(table, order).select_columns(columns).with_format("arrow")
            yield from rows.iter(count, skip_last_batch=True)
            seed += 1

    streams = [endless(name, count) for name, count in zip(NAMES, counts(), strict=True)]
    while True:
        parts = [next(stream) for stream in streams]
        tokens = np.concatenate([part["tokens"].flatten().to_numpy().reshape(-1, TOKENS) for part in parts])
        label = np.concatenate([part["target"].to_numpy() for part in parts])
        yield (
            torch.from_numpy(tokens),
            torch.from_numpy(label),
            [t for p in parts for t in p["text"].to_pylist()] if text else None,
        )


def measure(make: Callable[[], Batches], seconds: float, most: int) -> tuple[float, float]:
    """(rows/s over at least `seconds` or `most` batches, seconds to the first batch); checks what arrives."""
    began = time.perf_counter()
    batches = make()
    rows = 0
    first = 0.0
    for number, (tokens, label, _text) in enumerate(batches, 1):
        rows += len(label)
        if number == 1:
            first = time.perf_counter() - began
            assert tokens.shape == (BATCH, TOKENS)
            assert tokens.dtype == torch.int32
        if number >= most or time.perf_counter() - began >= seconds:
            break
    took = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    return rows / took, first


def main() -> None:
    """Build, measure in interleaved rounds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000, help="records in each of the three corpora")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contestant in each round")
    parser.add_argument("--text", action="store_true", help="deliver the text too, as Python strings")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    rows, rounds, seconds, most = options.rows, options.rounds, options.seconds, 10**9
    if options.smoke:
        rows, rounds, seconds, most = 2_000, 1, 60.0, 3
    with tempfile.TemporaryDirectory(prefix="treering-bench-") as folder:
        root = Path(folder)
        store = build(root, rows)
        contestants: dict[str, Callable[[], Batches]] = {
            "numpy memmap gather (the limit)": lambda: limit(root),
            "treering, cold": lambda: ours(store, text=options.text),
            "treering, cold, batches made in a thread": lambda: ours(store, text=options.text, prefetch=8),
            "treering, cold, no thread at all": lambda: ours(store, text=options.text, prefetch=0),
            "treering, cold, full shuffle (chunk_rows=1)": lambda: ours(store, text=options.text, chunk_rows=1),
            "LanceDB Permutation": lambda: permutation(root, text=options.text),
            "LanceDB Permutation, clumps of 32": lambda: permutation(root, text=options.text, clump_size=32),
        }
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, make in contestants.items():
                figures[name].append(measure(make, seconds, most))
    best = statistics.median(rate for rate, _ in figures["numpy memmap gather (the limit)"])
    print(f"{rows:,} rows × 3, batch {BATCH}, {rounds} interleaved rounds{', with text' if options.text else ''}\n")
    print("| median | rows/s | of the limit | first batch, s |\n| --- | --- | --- | --- |")
    for name, found in figures.items():
        rate, first = (statistics.median(values) for values in zip(*found, strict=True))
        if options.smoke:
            print(f"| {name} | smoke | – | – |")
        else:
            print(f"| {name} | {rate / 1e3:,.0f}k | {rate / best:.2f} | {first:.3f} |")


if __name__ == "__main__":
    main()
