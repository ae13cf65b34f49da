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
