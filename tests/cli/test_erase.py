"""`treering erase`: a preview, the deed, the receipts."""

from __future__ import annotations

from pathlib import Path

import pytest

import treering

from .conftest import Run, jsonl

ROWS = [
    {"id": f"{who}-{n}", "subject": who, "text": f"{who} says {n}", "label": "a"} for n in range(5) for who in "xyz"
]


@pytest.fixture
def people(support: Run, where: Path) -> Run:
    support("capture", "support", jsonl(where / "a.jsonl", ROWS))
    support("snapshot", "live", "--to", "support@v1")
    support("capture", "support", jsonl(where / "b.jsonl", [{**row, "id": f"new-{row['id']}"} for row in ROWS]))
    return support


def test_without_yes_it_only_says_what_would_be_erased(people: Run, where: Path) -> None:
    done = people("erase", "support", "--subject", "x")
    assert (done.code, done.lines) == (0, ["nothing was erased: add --yes to erase it for good"])
    assert "10 records of support: 5 in live, 5 in v1" in done.out
    assert "support@v1" in done.out
    shown = people("erase", "support", "--subject", "x", "--json").data
    assert (shown["erased"], shown["preview"]["records"]) == (False, {"live": 5, "v1": 5})
    assert people("erase", "support", "--list", "--json").data == []
    assert people("status", "support", "--json").data["live_rows"] == 15


def test_with_yes_it_erases_and_shows_the_receipt_which_is_listed_from_then_on(people: Run, where: Path) -> None:
    before = people("log", "support", "--json").data["snapshots"][0]
    done = people("erase", "support", "--subject", "x", "--yes", "--reason", "request 12", "--json")
    assert (done.code, done.data["erased"]) == (0, True)
    receipt = done.data["receipt"]
    assert (receipt["records"], receipt["reason"]) == ({"live": 5, "v1": 5}, "request 12")
    assert people("log", "support", "--json").data["snapshots"][0] == {**before, "rows": 10}
    (listed,) = people("erase", "support", "--list", "--json").data
    assert listed == receipt
    assert "request 12" in people("erase", "support", "--list").out
    text = people("erase", "support", "--id", "y-0", "--yes").out
    assert "1 record of support: 1 in v1" in text
    assert "not covered" in text


def test_ids_come_from_a_file_or_from_stdin_one_a_line(people: Run, where: Path) -> None:
    (where / "ids.txt").write_text("x-0\n\nx-1\n")
    assert people("erase", "support", "--ids-from", "ids.txt", "--yes", "--json").data["receipt"]["records"] == {
        "v1": 2
    }
    done = people("erase", "support", "--ids-from", "-", "--id", "new-x-0", "--yes", "--json", stdin="x-2\nnobody\n")
    assert done.data["receipt"]["records"] == {"live": 1, "v1": 1}
    assert people("erase", "support", "--ids-from", "-", stdin=b"\xff\xfe").code == 2


def test_what_was_erased_is_dropped_when_it_is_captured_again(people: Run, where: Path) -> None:
    people("erase", "support", "--subject", "x", "--yes")
    done = people("capture", "support", "a.jsonl", "--json")
    assert (done.code, done.data["stored"], done.data["erased"]) == (0, 0, 5)
    assert people("erase", "support", "--subject", "y", "--yes", "--let-back-in").code == 0
    rows = [{"id": "y-again", "subject": "y", "text": "y is back", "label": "a"}]
    done = people("capture", "support", jsonl(where / "c.jsonl", rows), "--json")
    assert (done.data["stored"], done.data["erased"]) == (1, 0)


def test_a_lock_that_lost_records_is_a_conflict_that_names_the_receipt(people: Run, where: Path) -> None:
    people("mix", "support@v1=1", "--lock", "mix.lock.json")
    people("erase", "support", "--subject", "x", "--yes")
    done = people("train", "--lock", "mix.lock.json", "--steps", "1")
    assert done.code == treering.ConflictError.exit_code
    assert "receipt 1 of support" in done.lines[0]
    assert "treering erase support --list" in done.lines[1]
