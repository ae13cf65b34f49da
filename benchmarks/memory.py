"""How much memory it takes to capture, seal, certify, verify, diff, erase and load, at any number of records.

Records are of about 1 kB. Each step runs in this one process; what is printed is the most anonymous memory (RssAnon and
RssShmem, imports included) that was seen during it, and its time.

    python benchmarks/memory.py [--rows 1000000] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

import treering

BATCH = 10_000


def anonymous_mb() -> float:
    """Anonymous memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


class Watch:
    """Samples memory while steps run, every 20 ms."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._most = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, anonymous_mb())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        self._most = anonymous_mb()
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.steps.append({"step": name, "mb": round(max(self._most, anonymous_mb())), "seconds": round(seconds, 1)})

    def close(self) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join()


def batches(rows: int, start: int) -> Iterator[pa.Table]:
    """Labelled records of about 1 kB, each thousandth about the same person."""
    rng = random.Random(start)
    words = [f"word{n}" for n in range(5_000)]
    for low in range(start, start + rows, BATCH):
        numbers = range(low, min(low + BATCH, start + rows))
        yield pa.table(
            {
                "id": [f"record-{n:012d}" for n in numbers],
                "subject": [f"person-{n % 1_000}" for n in numbers],
                "domain": [f"domain-{n % 20}" for n in numbers],
                "text": [" ".join(rng.choices(words, k=110)) for _ in numbers],
                "label": [f"label-{n % 150}" for n in numbers],
            }
        )


def run(directory: Path, rows: int) -> list[dict[str, Any]]:
    """All steps, one after another."""
    watch = Watch()
    store = treering.open(directory / "store")
    corpus = store.create("support", "labelled")

    def capture(start: int, n: int) -> None:
        with corpus.capture() as live:
            for table in batches(n, start):
                assert not live.extend(table).refused

    def load() -> None:
        mix = treering.mix(store.load("support@v1"), store.load("support@v2"), seed=1)
        with mix.loader(256, columns=["text", "label"], epochs=1) as loader:
            for number, _ in enumerate(loader):
                if number == 500:
                    break

    half = rows // 2
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("capture the first half", lambda: capture(0, half)),
        ("seal", corpus.snapshot),
        ("certify", lambda: corpus.snapshots()[0].digest),
        ("capture the second half", lambda: capture(half, rows - half)),
        ("compact", corpus.compact),
        ("seal again", corpus.snapshot),
        ("certify again", lambda: corpus.snapshots()[1].digest),
        ("verify", store.verify),
        ("diff", lambda: treering.diff(store, "support@v1", "support@v2")),
        ("load 500 batches", load),
        ("erase a person", lambda: corpus.erase(where={"subject": "person-7"})),
    ]
    for name, work in steps:
        with watch.step(name):
            work()
    watch.close()
    return watch.steps


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="treering-memory-", dir=args.dir))
    try:
        steps = run(directory, args.rows)
    finally:
        shutil.rmtree(directory)
    if args.json:
        print(json.dumps(steps, indent=2))
        return
    print("| step | anonymous MB | s |\n| --- | --- | --- |")
    for step in steps:
        print(f"| {step['step']} | {step['mb']} | {step['seconds']} |")
    print(f"| most | {max(step['mb'] for step in steps)} | |")


if __name__ == "__main__":
    main()
