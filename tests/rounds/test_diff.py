"""Two refs compared: what came and went is counted, drift is seen early, and chance isn't drift."""

from __future__ import annotations

from typing import Any

import pytest

import treering
from tests.rounds.looking import capture, tickets
from treering.errors import NotFoundError, UsageError
from treering.schema import Record


def drifted(found: treering.Diff) -> set[tuple[str, str]]:
    return {(d.column, d.what) for d in found.drift if d.drifted}


def test_halves_of_one_stream_do_not_drift_and_a_new_topic_does(
    store: treering.Store, support: treering.Corpus
) -> None:
    for seed in (1, 2):
        capture(support, tickets(400, seed=seed))
    same = treering.diff(store, "support@v1", "support@v2")
    assert (same.drifted, same.schema_changes, same.records) == (False, [], None)
    capture(support, tickets(300, seed=3, topics=["refund", "delivery"]), seal=False)
    found = treering.diff(store, "support", records=3)  # live against the newest snapshot
    assert (found.before.ref, found.after.ref) == ("support@v2", "support@live")
    assert (found.before.rows, found.after.rows, found.after.training_rows, found.after.heldout_rows) == (
        400,
        300,
        270,
        30,
    )
    assert drifted(found) == {("label", "values"), ("text", "words")}
    label = next(b for b in found.balance if b.column == "label")
    assert (label.new, label.gone) == (["delivery"], ["login"])
    assert found.records is not None
    assert len(found.records) == 3
    assert [r.label for r in found.records] == ["delivery", "refund", "delivery"] or found.records[
        0
    ].label == "delivery"
    assert "label delivery is not in support@v2" in {r.why for r in found.records}
    assert found == treering.diff(store, "support@live", records=3)
    assert treering.Diff.model_validate_json(found.model_dump_json()) == found


def test_near_twins_of_what_was_there_are_counted(store: treering.Store, support: treering.Corpus) -> None:
    before = tickets(200, seed=1)
    capture(support, before)
    again = [{**r, "id": f"again-{i}", "text": r["text"].upper()} for i, r in enumerate(before[:30])]
    nearly = [{**r, "id": f"nearly-{i}", "text": f"oh {r['text']}"} for i, r in enumerate(before[30:50])]
    capture(support, [*again, *nearly, *tickets(50, seed=2)])
    overlap = treering.diff(store, "support@v2").overlap  # against the snapshot before it
    assert overlap is not None
    assert (overlap.looked_for, overlap.nearly, overlap.word_for_word) == (100, 50, 30)
    assert (overlap.share, overlap.error, overlap.similarity) == (0.5, 0.0, 0.8)


def test_any_two_refs_can_be_compared(store: treering.Store, support: treering.Corpus) -> None:
    for seed in (1, 2, 3):
        capture(support, tickets(120, seed=seed))
    capture(support, tickets(40, seed=4), seal=False)
    store.load("support@v1").select(rows=60, name="some")
    store.create("other", "chat")
    for before, after, rows in (
        ("support@v1..v2", "support@v3", (240, 120)),
        ("support/some", "support@new", (60, 400)),
        ("support@live", "support@v1", (40, 120)),
        (store.load("support@v1").where(label="refund"), store.load("support@v2").heldout(), None),
        ("support@v1", "other@live", (120, 0)),
        ("other@live", "support@v1", (0, 120)),
        ("other@live", "other@live", (0, 0)),
    ):
        found = treering.diff(store, before, after, records=True)
        assert rows is None or (found.before.rows, found.after.rows) == rows
        assert (found.unscored is None) == bool(found.drift)
    empty = treering.diff(store, "support@v1", "other@live")
    assert empty.unscored == "other@live holds 0 records; fewer than 30 can't be told from chance"
    assert {(c.column, c.change) for c in empty.schema_changes} == {
        ("text", "not there"), ("label", "not there"), ("messages", "added"), ("tools", "added"),
    }  # fmt: skip


def test_excluded_records_count_for_nothing_but_themselves(store: treering.Store, support: treering.Corpus) -> None:
    capture(support, tickets(100, seed=1))
    capture(support, [*tickets(60, seed=2), *tickets(60, seed=3, topics=["delivery"])])
    support.annotate_many([{"id": f"s3-{i}", "exclude": True} for i in range(60)])
    found = treering.diff(store, "support@v1", "support@v2")
    assert (found.after.rows, found.after.excluded_rows) == (60, 60)
    assert not found.drifted


def test_changed_columns_are_named_and_what_was_not_there_is_not_scored(
    store: treering.Store, support: treering.Corpus
) -> None:
    class Ticket(Record):
        body: str
        label: str
        lang: str = "en"

    capture(support, tickets(80, seed=1))
    support.evolve(Ticket, renames={"text": "body"})
    records: list[dict[str, Any]] = tickets(80, seed=2)
    capture(
        support, [{**{k: v for k, v in r.items() if k != "text"}, "body": r["text"], "lang": "de"} for r in records]
    )
    found = treering.diff(store, "support@v1", "support@v2")
    assert (found.before.captured_under, found.after.captured_under) == ([1], [2])
    assert {c.column: c.change for c in found.schema_changes} == {
        "body": "renamed from text",
        "lang": 'added, filled with "en"',
    }
    assert not found.drifted
    assert {d.column for d in found.drift} == {"domain", "label", "body"}


def test_what_cannot_be_compared_says_so(store: treering.Store, support: treering.Corpus) -> None:
    capture(support, tickets(40, seed=1), seal=False)
    with pytest.raises(NotFoundError, match="no snapshot to compare live with"):
        treering.diff(store, "support")
    support.snapshot()
    with pytest.raises(NotFoundError, match="no snapshot before support@v1"):
        treering.diff(store, "support@v1")
    with pytest.raises(UsageError, match="alone can't be compared"):
        treering.diff(store, "support@new")
    with pytest.raises(UsageError, match="no text in a column 'txt'"):
        treering.diff(store, "support@v1", "support@v1", text="txt")
    with pytest.raises(UsageError, match="compared with another one"):
        treering.diff(store, store.load("support@v1"))
