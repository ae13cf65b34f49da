"""Does training wait for its data? A small transformer, trained on token records from a store.

Two answers, independent of each other: the loader's own statistics (`loader.stats()["wait_share"]`: the share of the
run that the caller spent in `next()`, the first batch included) and torch's profiler, which sees the same loop from
outside (time inside "wait for data" ranges against the whole of the profiled steps).

    python benchmarks/transformer.py [--rows 100000] [--steps 200] [--batch-size 16] [--json]
    python benchmarks/transformer.py --smoke
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import treering

TOKENS = 128
VOCABULARY = 2_048
SCHEMA = pa.schema([("text", pa.string()), ("tokens", pa.list_(pa.int32(), TOKENS))])
WAIT, STEP = "wait for data", "train"


class Transformer(nn.Module):
    """A decoder: 2 layers, width 128, 4 heads, tied embeddings: a step takes about 100 ms on two cores."""

    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.zeros(TOKENS, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(TOKENS - 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss of predicting each next token: int64 (batch, TOKENS) → ()."""
        hidden = self.embedding(tokens[:, :-1]) + self.position[: TOKENS - 1]
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        logits = hidden @ self.embedding.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def build(root: Path, rows: int) -> treering.Store:
    """Two corpora of token records with text, sealed: what is new, and what is replayed."""
    store = treering.open(root / "store")
    for number, name in enumerate(("earlier", "recent")):
        rng = np.random.default_rng(number)
        corpus = store.create(name, schema=SCHEMA)
        with corpus.capture() as live:
            for low in range(0, rows, 50_000):
                count = min(50_000, rows - low)
                tokens = pa.array(rng.zipf(1.3, count * TOKENS).clip(0, VOCABULARY - 1).astype(np.int32))
                text = pa.array([f"{name} {low + n} " + "word " * 75 for n in range(count)])
                live.extend(pa.table([text, pa.FixedSizeListArray.from_arrays(tokens, TOKENS)], schema=SCHEMA))
        corpus.compact()
        corpus.snapshot()
    return store


def steps(loader: treering.Loader, model: Transformer, optimizer: torch.optim.Optimizer, count: int) -> Iterator[float]:
    """Train `count` steps; yields the seconds of each, waiting included."""
    batches = iter(loader)
    for _ in range(count):
        began = time.perf_counter()
        with record_function(WAIT):
            batch = next(batches)
        with record_function(STEP):
            loss = model(batch["tokens"].long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        yield time.perf_counter() - began


def measure(store: treering.Store, batch_size: int, count: int, profiled: int) -> dict[str, Any]:
    """Train twice from batch 0: by the loader's own statistics, then under the profiler."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def make() -> treering.Loader:
        mix = treering.mix(store.load("earlier@v1"), store.load("recent@v1"), weights=[0.3, 0.7], seed=1)
        return mix.loader(batch_size=batch_size, columns=["tokens"], epochs=None)

    with make() as loader:
        for _ in steps(loader, model, optimizer, 3):  # torch's own first times: threads, kernels, optimizer state
            pass
    with make() as loader:
        took = list(steps(loader, model, optimizer, count))
        stats = loader.stats()
    with make() as loader, profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in steps(loader, model, optimizer, profiled):
            pass
    ranges = {event.key: event.cpu_time_total for event in profiler.key_averages() if event.key in (WAIT, STEP)}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_size": batch_size,
        "steps": count,
        "step_ms": 1e3 * median(took),
        "tokens_per_s": batch_size * TOKENS * count / sum(took),
        "wait_share": stats["wait_share"],
        "wait_ms_first_batch_included": 1e3 * stats["wait_s"],
        "profiled_steps": profiled,
        "profiled_wait_share": ranges[WAIT] / (ranges[WAIT] + ranges[STEP]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="records in each of the two corpora")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--profiled", type=int, default=100, help="steps under the profiler")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.steps, options.profiled, options.batch_size = 600, 4, 3, 8
    with tempfile.TemporaryDirectory(prefix="treering-bench-") as folder:
        figures = measure(build(Path(folder), options.rows), options.batch_size, options.steps, options.profiled)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print("| what | figure |\n| --- | --- |")
    print(
        f"| parameters; rows a step | {figures['parameters'] / 1e6:.1f} M; {figures['batch_size']} × {TOKENS} tokens |"
    )
    print(f"| a step, median | {figures['step_ms']:.0f} ms |")
    print(f"| tokens/s | {figures['tokens_per_s']:,.0f} |")
    print(f"| waited for data, by `loader.stats()`, {figures['steps']} steps | {figures['wait_share']:.2%} |")
    print(f"| … by torch.profiler, {figures['profiled_steps']} steps | {figures['profiled_wait_share']:.2%} |")


if __name__ == "__main__":
    main()
