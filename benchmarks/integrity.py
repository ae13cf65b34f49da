"""What being sure costs: certificate, verify, the head witness, and the two ways to be durable.

Records of about 1 kB, sealed once. A round times a plain scan of the snapshot by the engine, SHA-256 of its files, the
certificate and verify, interleaved; MB are those of the records in Arrow. Anonymous memory is that of a process of its
own that opens the store and certifies, at its highest.

    python benchmarks/integrity.py [--rows 1000000] [--rounds 3] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

import treering

_WORDS = 130  # of six letters and a space


def fill(corpus: treering.Corpus, rows: int) -> None:
    """Capture and seal `rows` records of about 1 kB."""
    draw = np.random.default_rng(7)
    words = np.array([bytes(draw.integers(97, 123, 6, dtype=np.uint8)).decode() for _ in range(5_000)])
    with corpus.capture() as live:
        for start in range(0, rows, 16_384):
            count = min(16_384, rows - start)
            ids = [draw.bytes(16).hex() for _ in range(count)]
            texts = [" ".join(chosen) for chosen in words[draw.integers(0, len(words), (count, _WORDS))]]
            live.extend(pa.table({"id": ids, "text": texts, "label": ["a"] * count}))
    corpus.compact()
    corpus.snapshot()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def certify(corpus: treering.Corpus) -> treering.Snapshot:
    """Certify the snapshot as if nobody had asked for it yet."""
    for path in Path(corpus.store.uri).glob("snapshots/*/v1/1.*"):
        if path.name != "1.json":
            path.unlink()
    snapshot = corpus.snapshots()[0]
    assert snapshot.digest
    return snapshot


def rates(corpus: treering.Corpus, rounds: int) -> dict[str, float]:
    """MB/s of each way over the snapshot: medians."""
    snapshot = corpus.snapshots()[0]
    source = corpus.store.load(snapshot.ref)
    size = sum(batch.nbytes for batch in source.scan()) / 1e6
    files = [path for path in snapshot.certificate.files if path.startswith("data/")]
    ways: dict[str, Callable[[], Any]] = {
        "scan": lambda: [None for _ in source.scan()],
        "files": lambda: [corpus.table.file_sha256(path) for path in files],
        "certificate": lambda: certify(corpus),
        "verify": lambda: corpus.verify("v1"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            found[name].append(timed(work))
    return {"mb": size, **{f"{name}_mb_s": size / median(times) for name, times in found.items()}}


def memory(uri: str) -> float:
    """Anonymous MB, at their highest, of a process that certifies the snapshot."""
    code = "import sys, treering; treering.open(sys.argv[1]).corpus('records').snapshots()[0].certificate"
    process = subprocess.Popen([sys.executable, "-c", code, uri])
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # not on this system, or just gone
            break
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))])
        time.sleep(0.01)
    process.wait()
    return peak / 1024


def small_ones(root: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of a commit made durable, of noting it in the witness, of one `add` either way."""
    corpus = treering.open(root).create("small", "labelled")
    found: dict[str, list[float]] = {"commit_ms": [], "witness_ms": [], "add_disk_ms": [], "add_batch_ms": []}
    witness = corpus.table.witness
    assert witness is not None
    noting: list[float] = []
    real = type(witness).write

    def noted(self: Any, seen: Any) -> None:
        noting.append(timed(lambda: real(self, seen)))

    type(witness).write = noted  # type: ignore[method-assign]
    try:
        with corpus.capture() as live:
            for n in range(10 * rounds):
                live.extend([{"id": f"c{n}-{i}", "text": "t", "label": "a"} for i in range(1_000)])
                found["commit_ms"].append(timed(live.flush))
    finally:
        type(witness).write = real  # type: ignore[method-assign]
    found["witness_ms"] = noting
    for n in range(rounds):
        for way in ("disk", "batch"):
            with corpus.capture(durability=way) as live:
                for i in range(200):
                    record = {"id": f"{way}{n}-{i}", "text": "t", "label": "a"}
                    found[f"add_{way}_ms"].append(timed(partial(live.add, record)))
    return {name: 1_000 * median(times) for name, times in found.items()}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        corpus = treering.open(root / "store").create("records", "labelled")
        fill(corpus, arguments.rows)
        results: dict[str, Any] = {"rows": arguments.rows, "anonymous_mb": memory(corpus.store.uri)}
        results |= rates(corpus, arguments.rounds)
        results |= small_ones(root / "store", arguments.rounds)
    finally:
        shutil.rmtree(root)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print("| what | figure |\n| --- | --- |")
    for name, value in results.items():
        print(
            f"| {name} | {value:,.2f} |" if isinstance(value, float) and value < 100 else f"| {name} | {value:,.0f} |"
        )


if __name__ == "__main__":
    main()
