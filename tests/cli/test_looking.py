"""`diff`, `status`, `audit`, and what `head` and `show` show of annotations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import treering
from tests.rounds.looking import produce, tickets

from .conftest import Run, jsonl


@pytest.fixture
def grown(support: Run, where: Path) -> Run:
    """`support@v1` and `@v2` alike, another topic in live; an adapter in production that was trained on v1."""
    for seed in (1, 2):
        support("capture", "support", jsonl(where / "r.jsonl", tickets(150, seed=seed)))
        support("snapshot", "live", "--to", "support")
    support("capture", "support", jsonl(where / "r.jsonl", tickets(150, seed=3, topics=["delivery"])))
    produce(treering.open(where / ".treering"), "support", ["support@v1"])
    return support


def test_diff_ends_with_3_only_when_asked_to(grown: Run) -> None:
    found = grown("diff", "support", "--records", "--json")
    assert (found.code, found.data["drifted"], found.data["after"]["ref"]) == (0, True, "support@live")
    assert len(found.data["records"]) == 5
    table = grown("diff", "support")
    assert (table.code, max(map(len, table.out.splitlines())) <= 80) == (0, True)
    assert "delivery" in table.out
    failed = grown("diff", "support", "--fail-on-drift", "--json")
    assert (failed.code, failed.data["drifted"]) == (3, True)
    assert json.loads(failed.err)["error"]["code"] == "drifted"
    assert grown("diff", "support@v1", "support@v2", "--fail-on-drift").code == 0


def test_status_says_whether_a_round_is_due(grown: Run, where: Path) -> None:
    found = grown("status", "support", "--json").data
    assert (found["live_rows"], found["sealed_rows"], found["new"]["rows"], found["due"]) == (150, 300, 300, True)
    assert found["reasons"][0] == "support:1 has never seen label delivery"
    shown = grown("status", "support")
    assert (shown.code, max(map(len, shown.out.splitlines())) <= 80) == (0, True)
    assert "unseen labels" in shown.out
    failed = grown("status", "support", "--fail-when-due")
    assert (failed.code, failed.lines[0].startswith("error: a round of support is due: ")) == (3, True)
    (where / "round.toml").write_text("fewest = 1000\n")
    assert grown("status", "support", "--policy", "round.toml", "--fail-when-due").code == 0


def test_what_an_audit_finds_can_be_excluded_by_the_file_it_writes(grown: Run, where: Path) -> None:
    twin = {**tickets(150, seed=1)[0], "id": "twin", "split": "train"}  # s1-0 is held out
    grown("capture", "support", jsonl(where / "r.jsonl", [twin]))
    found = grown("audit", "support@v1", "--thin", "0", "--json", "--exclusions", "out.jsonl")
    assert [leak["heldout_id"] for leak in found.data["leaks"]] == ["s1-0"]
    assert found.lines == ["1 exclusions in out.jsonl: treering annotate support --from out.jsonl"]
    failed = grown("audit", "support@v1", "--thin", "0", "--fail-on-finding")
    assert (failed.code, max(map(len, failed.out.splitlines())) <= 80) == (3, True)
    assert "the same text as twin, which trains in support@live" in " ".join(failed.out.split())
    assert grown("annotate", "support", "--from", "out.jsonl").code == 0
    assert grown("audit", "support@v1", "--thin", "0", "--fail-on-finding").code == 0


def test_head_and_show_say_what_was_said_later(support: Run, where: Path) -> None:
    support("capture", "support", jsonl(where / "r.jsonl", tickets(20, seed=1)))
    support("snapshot", "live", "--to", "support")
    (where / "w.csv").write_text(
        "id,label,quality,exclude,by,note\n"
        "s1-1,first,,,ann,at first sight\n"
        "s1-1,refund!,0.25,,bob,\n"
        "s1-2,,,true,ann,a test message\n"
        "s1-3,,,true,,\n"
        "s1-3,,,false,,\n"
    )
    assert "6 annotations stored" in support("annotate", "support", "--from", "w.csv").out
    shown = support("head", "support@v1", "-n", "20", "-c", "label").out
    lines = [line.rstrip() for line in shown.splitlines() if line.startswith("→")]
    assert lines == ["→ label    refund! (bob)", "→ quality  0.25 (bob)", "→ excluded  by ann: a test message"]
    plain = support("head", "support@v1", "-n", "20", "--json").data
    assert all("_annotations" not in record for record in plain)
    said = {r["id"]: r["_annotations"] for r in support("head", "support@v1", "-n", "20", "--json", "--annotated").data}
    assert {key: word["value"] for key, word in said["s1-1"].items()} == {"label": "refund!", "quality": 0.25}
    assert (said["s1-2"]["exclude"]["value"], said["s1-2"]["exclude"]["note"]) == (True, "a test message")
    assert said["s1-4"] == {}
    view = support("show", "support@v1", "--json").data
    assert (view["annotated"], view["excluded_rows"]) == ({"label": 1, "quality": 1, "exclude": 1}, 1)
    assert "excluded     1, in no batch and no score" in support("show", "support@v1").out
    assert support("show", "support@live", "--json").data["annotated"] == {}
