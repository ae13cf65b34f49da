"""What erasing costs: one person, half of all, one record by id, from records of about 1 kB in four snapshots and live.

Each person's records lie in all snapshots and in live, so that everything is rewritten. Anonymous memory is that of a
process of its own that opens the store and erases, at its highest. Redaction is timed on the same kind of text.

    python benchmarks/erase.py [--rows 1000000] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import treering

_PEOPLE = 1_000
_WORDS = 130  # of six letters and a space
_PLACES = 5  # four snapshots and live

#: What the erasing process runs, and how the figures call it.
_ERASURES = {
    "one of 1,000 people": "where={'subject': 'p7'}",
    "one record by id": "ids=['r5']",
    "500 of 1,000 people": "where={'subject': [f'p{n}' for n in range(100, 600)]}",
}
_ERASE = """
import json, sys, time, treering
corpus = treering.open(sys.argv[1], create=False).corpus("support")
start = time.perf_counter()
receipt = corpus.erase({what})
print(json.dumps([receipt.total, time.perf_counter() - start]))
"""


def texts(draw: np.random.Generator, count: int) -> list[str]:
    """Texts of about 1 kB."""
    words = np.array([bytes(draw.integers(97, 123, 6, dtype=np.uint8)).decode() for _ in range(5_000)])
    return [" ".join(chosen) for chosen in words[draw.integers(0, len(words), (count, _WORDS))]]


def fill(corpus: treering.Corpus, rows: int) -> None:
    """Capture `rows` records, four fifths of them sealed."""
    draw = np.random.default_rng(7)
    share = rows // _PLACES
    for place in range(_PLACES):
        with corpus.capture() as live:
            for start in range(place * share, (place + 1) * share, 16_384):
                numbers = range(start, min(start + 16_384, (place + 1) * share))
                ids, people = [f"r{n}" for n in numbers], [f"p{n % _PEOPLE}" for n in numbers]
                live.extend(pa.table({"id": ids, "subject": people, "text": texts(draw, len(numbers))}))
        if place < _PLACES - 1:
            snapshot = corpus.snapshot()
            assert snapshot is not None
            assert snapshot.digest


def erased(uri: str, what: str) -> tuple[int, float, int]:
    """(records, seconds, anonymous MB at their highest) of an erasure in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", _ERASE.format(what=what), uri], stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))])
        time.sleep(0.02)
    assert process.stdout is not None
    assert process.returncode == 0
    records, seconds = json.loads(process.stdout.read())
    return int(records), float(seconds), peak // 1024


def redaction_us() -> float:
    """Microseconds that redacting a text of about 1 kB takes."""
    from treering.capture.redact import KINDS, Redactor

    redactor, counts, some = Redactor(KINDS), Counter[str](), texts(np.random.default_rng(7), 500)
    redactor.text(some[0], counts)
    start = time.perf_counter()
    for text in some:
        redactor.text(text, counts)
    return (time.perf_counter() - start) / len(some) * 1e6


def measure(rows: int, directory: Path) -> dict[str, Any]:
    """All figures, by what was erased."""
    store = treering.open(directory / "store")
    fill(store.create("support", pa.schema([("text", pa.string())])), rows)
    found: dict[str, Any] = {}
    for name, what in _ERASURES.items():
        records, seconds, peak = erased(store.uri, what)
        found[name] = {"records": records, "seconds": round(seconds, 2), "anonymous_mb": peak}
    return {"rows": rows, "erasures": found, "redaction_us": round(redaction_us(), 1)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=None, help="where the store is made, and removed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="treering-erase-", dir=args.dir))
    try:
        results = measure(args.rows, directory)
    finally:
        shutil.rmtree(directory)
    if args.json:
        print(json.dumps(results))
        return
    print(f"of {results['rows']:,} records, erasing | records | s | anonymous MB\n--- | --- | --- | ---")
    for name, one in results["erasures"].items():
        print(f"{name} | {one['records']:,} | {one['seconds']} | {one['anonymous_mb']}")
    print(f"redacting 1 kB of text: {results['redaction_us']} µs")


if __name__ == "__main__":
    main()
