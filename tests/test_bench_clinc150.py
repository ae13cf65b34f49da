"""The benchmark runs, untimed, on a file in CLINC150's form."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

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
    (tmp_path / "general.txt").write_text("\n".join(f"general {n}" for n in range(20)), "utf-8")
    config = {"base": make_base(tmp_path / "base"), "steps": 3, "batch_size": 8, "precision": "fp32"}
    names = "naive,replay:replay_rows=4+replay=0.5,lora-replay:store,dual-replay,slda,joint"
    arguments = f"--strategies {names} --json --config {json.dumps(config, separators=(',', ':'))}"
    files = ["--data", "data.json", "--domains", "domains.json", "--general", "general.txt", "--out", "runs.jsonl"]
    files = [str(tmp_path / part) if "." in part else part for part in files]

    def run(more: str) -> list[dict[str, Any]]:
        bench.main([*files, *arguments.split(), *more.split()])
        return list(json.loads(capsys.readouterr().out)["results"])

    found = run("--orderings 2")
    assert [result["strategy"] for result in found] == names.split(",")
    assert all(0.0 <= result["f1"] <= 100.0 and result["orderings"] == 2 for result in found)
    assert all(math.isfinite(result["bwt"]) for result in found[:-1])
    assert found[-1]["bwt"] is None
    rows = {result["strategy"]: result["budget_rows"] for result in found}
    assert rows == dict(zip(names.split(","), (0, 4, 12, 12 + 20, 0, 0), strict=True))
    assert found[4]["budget_bytes"] > 4 * 32 * 32  # the statistic isn't free
    before = (tmp_path / "runs.jsonl").read_text("utf-8")
    again = run("--orderings 2")  # everything is there
    assert again == found
    assert (tmp_path / "runs.jsonl").read_text("utf-8") == before
    tailed = run("--orderings 1 --long-tail")
    assert all(0.0 <= result["tail_f1"] <= 100.0 for result in tailed)
    grouped = run("--orderings 1 --rounds-of 3")
    assert grouped[0]["runs"][0]["updates"] == 2 * 3


def test_a_long_tail_leaves_every_domain_its_share_and_the_held_out_sentences_alone(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench_clinc150", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    domains = {f"d{n}": [f"i{n}a", f"i{n}b"] for n in range(10)}
    rows = [[f"{intent} {k}", intent] for found in domains.values() for intent in found for k in range(100)]
    (tmp_path / "data.json").write_text(json.dumps({"train": rows, "test": rows[::10]}), "utf-8")
    stream = bench.clinc150(str(tmp_path / "data.json"), domains=domains, order=list(domains))
    counts = [
        [sum(r["split"] == split for r in round_.records) for round_ in bench.long_tailed(stream, 3).rounds]
        for split in ("train", "heldout")
    ]
    assert sorted(counts[0])[0] == 10
    assert sorted(counts[0])[-1] == 200
    assert len(set(counts[0])) == 10
    assert counts[1] == [20] * 10
    assert counts[0] != [sum(r["split"] == "train" for r in x.records) for x in bench.long_tailed(stream, 4).rounds]
