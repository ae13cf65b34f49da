"""`treering prune`, `lineage`, `pack`, `unpack` and `capture --as-of`, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run, jsonl, labelled


@pytest.fixture
def sealed(support: Run, where: Path) -> Run:
    """`support@v1` and `support@v2`, 40 records each."""
    for number in (1, 2):
        support("capture", "support", jsonl(where / f"{number}.jsonl", labelled(40, topic=f"t{number}")))
        assert support("snapshot", "live", "--to", f"support@v{number}").code == 0
    return support


def test_prune_says_what_it_would_take_and_does_it_when_told_to(sealed: Run) -> None:
    looked = sealed("prune", "support", "--keep", "1", "--json")
    assert looked.code == 0
    assert [one["ref"] for one in looked.data["snapshots"]] == ["support@v1"]
    assert looked.data["freed"] is None
    assert "nothing was pruned yet" in looked.err
    assert "support@v1" in sealed("prune", "support", "--keep", "1").out
    done = sealed("prune", "support", "--keep", "1", "--yes", "--keep-heldout", "--json")
    assert (done.code, done.data["dry_run"], done.data["kept"]) == (0, False, ["support@v2"])
    log = sealed("log", "support", "--json").data["snapshots"]
    assert [(one["name"], one["pruned_by"]) for one in log] == [("v2", None), ("v1", "keep 1")]
    assert "pruned" in sealed("log", "support").out
    gone = sealed("head", "support@v1")
    assert gone.code == 4
    assert "support@v1 was pruned" in gone.err
    again = sealed("prune", "support", "--keep", "1", "--yes")
    assert again.code == 0
    assert "nothing of support is to be pruned" in again.err
    assert sealed("prune", "support", "--older-than", "90d", "--json").data["snapshots"] == []


def test_lineage_leads_both_ways(sealed: Run) -> None:
    found = sealed("lineage", "t1-3", "--json")
    assert (found.code, found.data["kind"], found.data["places"][0]["ref"]) == (0, "record", "support@v1")
    ref = sealed("lineage", "support@v2", "--json").data
    assert (ref["kind"], ref["parts"][0]["parents"]) == ("ref", ["support@v1"])
    assert "support@v1" in sealed("lineage", "t1-3").out
    assert "records" in sealed("lineage", "support@v1..v2").out
    assert sealed("mix", "support@v1=1", "--lock", "mix.lock.json").code == 0
    lock = sealed("lineage", "mix.lock.json", "--json").data
    assert (lock["kind"], lock["sources"][0]["ref"], lock["adapters"]) == ("lock", "support@v1", [])
    assert "support@v1" in sealed("lineage", "mix.lock.json").out
    assert sealed("lineage", "support@v1", "--record").code == 4


def test_pack_and_unpack_carry_a_snapshot_to_another_store(sealed: Run, where: Path) -> None:
    done = sealed("pack", "support@v2", "--annotations", "--json")
    assert (done.code, done.data["file"]) == (0, "support-v2.treering.zip")
    assert sealed("init", "--store", "other").code == 0
    there = sealed("unpack", "support-v2.treering.zip", "--to", "copy", "--store", "other", "--json")
    assert (there.code, there.data["ref"], there.data["origin"], there.data["rows"]) == (0, "copy@v1", "support@v2", 40)
    assert there.data["digest"] == sealed("show", "support@v2", "--json").data["parts"][0]["digest"]
    assert "copy@v1" in sealed("unpack", "support-v2.treering.zip", "--to", "copy", "--store", "other").out
    assert sealed("pack", "support@v2").code == 5
    bad = sealed("unpack", "1.jsonl", "--store", "other")
    assert (bad.code, bad.out) == (3, "")
    assert "isn't a zip archive" in bad.err


def test_history_becomes_snapshots_by_the_month(support: Run, where: Path) -> None:
    rows = [{**record, "ts": f"2026-0{1 + n // 10}-0{1 + n % 9}T00:00:00Z"} for n, record in enumerate(labelled(30))]
    words = ["capture", "support", jsonl(where / "h.jsonl", rows), "--as-of", "ts", "--snapshot-by", "month"]
    done = support(*words, "--json")
    assert done.code == 0
    assert [(one["period"], one["ref"], one["rows"]) for one in done.data["snapshots"]] == [
        ("2026-01", "support@v1", 10), ("2026-02", "support@v2", 10), ("2026-03", "support@v3", 10),
    ]  # fmt: skip
    again = support(*words)
    assert again.code == 0
    assert "30" in again.out
    assert [entry["message"] for entry in support("log", "support", "--json").data["snapshots"]] == [
        "2026-03", "2026-02", "2026-01",
    ]  # fmt: skip
    assert support(*words[:-2]).code == 2
