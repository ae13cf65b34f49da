"""The benchmark scripts run, on little data and untimed: what they measure is read in `benchmarks/RESULTS.md`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=3000).stdout


def test_the_capture_benchmark_runs(tmp_path: Path) -> None:
    few = [
        "--rows",
        "1500",
        "--rounds",
        "1",
        "--seal-rows",
        "500",
        "--spooled",
        "300",
        "--adds",
        "20",
        "--certify-rows",
        "500",
        "--dir",
        str(tmp_path),
    ]
    results = json.loads(run("capture.py", *few, "--json"))
    assert all(ratio > 0 for ratio in results["ratios"].values())
    assert results["certificate"]["mb_s"] > 0
    for peer in ("SQLite", "JSONL", "Arrow log", "Lance,", "LanceDB", "Deep Lake", "delta-rs"):
        assert any(peer in name for name in results["capture"])
    assert set(results["sealing_ms"]) == {"500", "10000 + 300 spooled"}
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_imports_runs(tmp_path: Path) -> None:
    forms = ["with ids", "gz", "parquet", "codex"]
    asked = ["--rows", "300", "--rounds", "1", "--dir", str(tmp_path), "--only", *forms]
    results = json.loads(run("imports.py", *asked, "--json"))["imports"]
    assert all(any(form in name for name in results) for form in [*forms, "codex, a file each"])
    for found in results.values():
        assert min(found["rows_per_s"], found["of_extend"], found["cpu_s"][0], found["memory_mib"][0]) > 0
    making = json.loads(run("imports.py", *asked, "--cpu", "--json"))
    assert set(making) == set(results) - {"parquet", "codex, a file each"}
    assert list(tmp_path.iterdir()) == []


def test_the_loader_benchmark_shows_every_contender_and_says_who_does_not_run() -> None:
    rows = run("loader.py", "--smoke").splitlines()
    assert any("numpy memmap gather" in row and "1.000" in row for row in rows)
    for peer in ("LanceDB Permutation", "MosaicML", "HF datasets", "Grain", "webdataset", "litdata", "Deep Lake"):
        assert any(peer in row and ("k |" in row or "doesn't run" in row) for row in rows), peer


def test_the_loader_benchmark_measures_in_processes_of_their_own(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(f"A sentence with the number {n} in it." for n in range(2_000)))
    few = ["--rows", "1500", "--rounds", "1", "--seconds", "0.1", "--only", "gather", "treering-text"]
    results = json.loads(run("loader.py", *few, "--text", str(text), "--dir", str(tmp_path), "--json"))["results"]
    assert {row["key"] for row in results} == {"gather", "treering-text"}
    for row in results:
        assert row["rows_per_s"] > 0
        assert row["anonymous_mb"] > 20
        assert 0.9 < row["entropy_of_full_shuffle"] < 1.1


def test_the_object_store_benchmark_runs() -> None:
    assert "smoke" in run("s3.py", "--smoke")


def test_the_capacity_benchmark_runs() -> None:
    found = json.loads(run("capacity.py", "--smoke", "--json"))
    (one,) = found["measured"]
    assert one["writers"] == 2
    assert one["commits_s"] > 0
    by_writers = {row["writers"]: row["commits_s"] for row in found["simulated"] if row["attempt_s"] == 0.2}
    assert (
        by_writers[1] < by_writers[64] < 1 / (0.8 * 0.2)
    )  # writers help until one attempt always runs, and no further
    assert 50 < found["bytes_per_record"]["data"] < 455
    assert 0 < one["writes"] < one["requests"]
    (reading,) = found["readings"]
    assert reading["ranks"] == 2
    assert reading["read_kb_per_row"] > 0.5  # a row's tokens alone are half a kilobyte


def test_the_shuffle_benchmark_runs() -> None:
    assert "|" in run("shuffle.py", "--smoke")


def test_the_plan_benchmark_runs() -> None:
    found = json.loads(run("plan.py", "--smoke", "--json"))
    assert found["simulation"]["rows"] == 10**12
    assert found["simulation"]["mb_beyond_imports"] < 200
    assert set(found["resume"]["first_batch_ms"]) >= {"0", "1000000"}


def test_the_transformer_benchmark_trains_and_says_how_long_it_waited_both_ways() -> None:
    found = json.loads(run("transformer.py", "--smoke", "--json"))
    assert 0 < found["wait_share"] < 1
    assert 0 < found["profiled_wait_share"] < 1
    assert found["parameters"] > 100_000


def test_the_integrity_benchmark_runs(tmp_path: Path) -> None:
    found = json.loads(run("integrity.py", "--rows", "2000", "--rounds", "1", "--dir", str(tmp_path), "--json"))
    assert found["certificate_mb_s"] > 0
    assert found["add_batch_ms"] > 0
    assert list(tmp_path.iterdir()) == []


def memory(rows: int, directory: Path) -> int:
    steps = json.loads(run("memory.py", "--rows", str(rows), "--dir", str(directory), "--json"))
    assert steps[-1]["step"] == "erase a person"
    return max(int(step["mb"]) for step in steps)


def test_every_step_of_the_memory_benchmark_gives_back_what_it_took(tmp_path: Path) -> None:
    assert 0 < memory(5_000, tmp_path) <= 600  # a million takes 542 MB


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_records_are_kept_within_768_mb(tmp_path: Path) -> None:
    assert memory(1_000_000, tmp_path) <= 768


def test_the_erasure_benchmark_erases_what_it_says(tmp_path: Path) -> None:
    results = json.loads(run("erase.py", "--rows", "5000", "--dir", str(tmp_path), "--json"))
    assert [one["records"] for one in results["erasures"].values()] == [5, 1, 2500]
    assert results["redaction_us"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_server_benchmark_runs(tmp_path: Path) -> None:
    few = [
        "--rows",
        "400",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--slow",
        "10",
        "--snapshot-s",
        "0.4",
        "--dir",
        str(tmp_path),
    ]
    found = json.loads(run("server.py", *few, "--json"))
    assert all(rate > 0 for rate in found["rows_s"].values())
    assert {name.split()[0] for name in found["latency_ms"]} == {"alone", "beside"}
    assert list(tmp_path.iterdir()) == []
