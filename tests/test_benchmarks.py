"""The benchmark scripts run, on little data and untimed: what they measure is read in `benchmarks/RESULTS.md`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout


def test_the_capture_benchmark_runs(tmp_path: Path) -> None:
    few = ["--rows", "1500", "--rounds", "1", "--seal-rows", "500", "--spooled", "300", "--dir", str(tmp_path)]
    results = json.loads(run("capture.py", *few, "--json"))
    assert results["capture"]["acknowledged_against_sqlite"] > 0
    assert set(results["sealing_ms"]) == {"500", "10000 + 300 spooled"}
    assert list(tmp_path.iterdir()) == []


def test_the_loader_benchmark_runs() -> None:
    assert "numpy memmap gather" in run("loader.py", "--smoke")


def test_the_object_store_benchmark_runs() -> None:
    assert "smoke" in run("s3.py", "--smoke")


def test_the_shuffle_benchmark_runs() -> None:
    assert "|" in run("shuffle.py", "--smoke")
