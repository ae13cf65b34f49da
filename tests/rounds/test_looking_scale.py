"""A million records are compared and audited within 768 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import treering

ROWS = 1_000_000
MEGABYTES = 768

LOOK = """
import json, sys, threading, time
import treering

peak = 0
def watch():
    global peak
    while True:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        peak = max(peak, int(status["RssAnon"].split()[0]) / 1024)
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
store = treering.open(sys.argv[1], create=False)
if sys.argv[2] == "diff":
    found = treering.diff(store, "big@v1", "big@v2", records=True)
    said = [found.drifted, found.overlap.nearly]
else:
    found = treering.audit(store, "big@v1..v2")
    said = [found.rows, len(found.leaks)]
print(json.dumps([peak, *said]))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots of half a million records of 1 kB; of the second, 1 in 100 repeats one of the first."""
    where = tmp_path_factory.mktemp("big")
    corpus = treering.open(where).create("big", "labelled", group_by="id")
    rng = np.random.default_rng(0)
    vocabulary = np.array(["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 10))) for _ in range(30_000)])
    first: list[str] = []
    for start in range(0, ROWS, 10_000):
        texts = [" ".join(row) for row in vocabulary[rng.integers(0, 30_000, (10_000, 160))]]
        if start == 0:
            first = texts[:100]
        if start >= ROWS // 2:
            texts[:100] = first
        labels = [f"l{n % 50}" for n in range(10_000)]
        ids = [f"r{n}" for n in range(start, start + 10_000)]
        with corpus.capture() as live:
            live.extend(pa.table({"id": ids, "text": texts, "label": labels}))
        if start + 10_000 in (ROWS // 2, ROWS):
            corpus.compact()
            corpus.snapshot()
    return where


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("verb", ["diff", "audit"])
def test_a_million_records_are_looked_at_within_768_mb(big: Path, verb: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOOK, str(big), verb], capture_output=True, text=True, check=True)
    peak, one, other = json.loads(done.stdout)
    assert peak < MEGABYTES
    if verb == "diff":
        assert one is False
        assert 100 < other < 300  # of 20,000 looked for, 1 in 100
    else:
        assert one == ROWS
        assert other > 10
