"""The benchmark runs, untimed, on a file in CLINC150's form."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from tests.training.tiny import make_base
from treering.demo.clinc150_domains import CLINC150_DOMAINS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "clinc150.py"


def test_the_benchmark_prints_what_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("bench_clinc150", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    domains = {name: list(CLINC150_DOMAINS[name][:2]) for name in list(CLINC150_DOMAINS)[:3]}
    intents = [intent for found in domains.values() for intent in found]
    data = {
        "train": [[f"{start} {intent}", intent] for intent in intents for start in ("my", "the", "a")],
        "test": [[f"about {intent}", intent] for intent in intents],
    }
    (tmp_path / "data.json").write_text(json.dumps(data), "utf-8")
    (tmp_path / "domains.json").write_text(json.dumps(domains), "utf-8")
    config = {"base": make_base(tmp_path / "base"), "steps": 3, "batch_size": 8, "precision": "fp32"}
    arguments = (
        f"--strategies naive,replay,joint --orderings 2 --json --config {json.dumps(config, separators=(',', ':'))}"
    )
    files = ["--data", str(tmp_path / "data.json"), "--domains", str(tmp_path / "domains.json")]
    bench.main([*files, *arguments.split()])
    found = json.loads(capsys.readouterr().out)["results"]
    assert [result["strategy"] for result in found] == ["naive", "replay", "joint"]
    assert all(0.0 <= result["f1"] <= 100.0 and result["orderings"] == 2 for result in found)
    assert all(math.isfinite(result["bwt"]) for result in found[:2])
    assert found[2]["bwt"] is None
