"""Status: what is new to production, row by row, and whether a round is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import treering
from tests.rounds.looking import capture, produce, tickets
from treering.errors import NotFoundError, UsageError

NOW = datetime(2026, 3, 10, tzinfo=UTC)


def test_everything_is_new_while_nothing_is_in_production(store: treering.Store, support: treering.Corpus) -> None:
    empty = treering.status(store, "support")
    assert (empty.new.rows, empty.due, empty.production) == (0, False, None)
    capture(support, tickets(200, seed=1))
    capture(support, tickets(100, seed=2), seal=False)
    found = treering.status(store, "support")
    assert (found.live_rows, found.sealed_rows, found.snapshots, found.newest) == (100, 200, 1, "support@v1")
    assert (found.new.rows, found.new.training_rows, found.new.unseen, found.new.drift) == (300, 270, None, None)
    assert not found.due
    assert treering.status(store, "support", min_new=270).reasons == ["270 new training records; 270 are enough"]


def test_new_labels_domains_and_drift_are_seen_against_what_production_saw(
    store: treering.Store, support: treering.Corpus
) -> None:
    capture(support, tickets(300, seed=1))
    adapter = produce(store, "support", ["support@v1"])
    capture(support, tickets(200, seed=2))
    calm = treering.status(store, "support")
    assert (calm.production, calm.new.rows, calm.new.unseen, calm.due) == (adapter, 200, [], False)
    assert not any(d.drifted for d in calm.new.drift or ["none"])
    capture(support, tickets(200, seed=3, topics=["delivery"], domain="parcels"), seal=False)
    found = treering.status(store, "support")
    assert [(u.column, u.value, u.rows) for u in found.new.unseen or []] == [
        ("label", "delivery", 200), ("domain", "parcels", 200),
    ]  # fmt: skip
    assert found.due
    assert found.reasons[:2] == [f"{adapter} has never seen label delivery", f"{adapter} has never seen domain parcels"]
    assert found.reasons[2].startswith("drift in ")
    assert "text (words)" in found.reasons[2]
    assert treering.status(store, "support", {"on_unseen": False, "on_drift": False}).reasons == []
    assert treering.status(store, "support", fewest=361).due is False  # 360 of them train


def test_what_production_drew_from_live_is_not_new_once_it_is_sealed_with_more(
    store: treering.Store, support: treering.Corpus
) -> None:
    capture(support, tickets(100, seed=1), seal=False)
    (live,) = store.live("support").segments
    produce(store, "support", [], trained_rows={"support": [live.row_ids]})
    assert treering.status(store, "support").new.rows == 0
    capture(support, tickets(50, seed=2, topics=["delivery"]))
    found = treering.status(store, "support")
    assert (found.sealed_rows, found.new.rows) == (150, 50)
    assert [u.value for u in found.new.unseen or []] == ["delivery"]


def test_a_label_that_was_only_held_out_has_not_been_seen(store: treering.Store, support: treering.Corpus) -> None:
    held = [{**r, "split": "heldout"} for r in tickets(40, seed=9, topics=["delivery"])]
    capture(support, [*tickets(100, seed=1), *held])
    produce(store, "support", ["support@v1"])
    capture(support, tickets(20, seed=2, topics=["delivery"]), seal=False)
    assert [u.value for u in treering.status(store, "support").new.unseen or []] == ["delivery"]


def test_what_production_learnt_from_a_pruned_snapshot_is_not_unseen(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(support, tickets(60, seed=1, topics=["delivery"]))
    capture(support, tickets(60, seed=2))
    assert support.snapshots()[0].digest  # which certifies it
    produce(store, "support", ["support@v1", "support@v2"])
    capture(support, tickets(60, seed=3, topics=["delivery", "refund"], domain="else"), seal=False)
    everything = type(support).snapshots
    monkeypatch.setattr(type(support), "snapshots", lambda self: everything(self)[1:])  # as if v1 were pruned
    assert [u.value for u in treering.status(store, "support").new.unseen or []] == ["else"]


def test_ages_count_from_when_records_happened(store: treering.Store, support: treering.Corpus) -> None:
    capture(support, tickets(150, seed=1, ts=NOW - timedelta(days=6)), seal=False)
    assert treering.status(store, "support", now=NOW).reasons == []
    found = treering.status(store, "support", now=NOW + timedelta(days=2))
    assert (found.new.oldest_days, found.new.first_ts) == (8.0, NOW - timedelta(days=6))
    assert found.reasons == ["the oldest new record is 8.0 days old; 7 are the most"]
    support.annotate_many([{"id": f"s1-{i}", "exclude": True} for i in range(60)])
    assert treering.status(store, "support", now=NOW + timedelta(days=2)).new.rows == 90


def test_a_policy_is_a_table_or_a_toml_file_and_every_bad_key_is_named(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    capture(support, tickets(150, seed=1), seal=False)
    file = tmp_path / "round.toml"
    file.write_text("min_new = 100\n[lines]\npsi = 0.25\n")
    found = treering.status(store, "support", file)
    assert (found.due, found.policy.min_new, found.policy.lines.psi, found.policy.max_age_days) == (
        True,
        100,
        0.25,
        7.0,
    )
    assert treering.status(store, "support", file, min_new=500).due is False
    assert treering.status(store, "support", treering.RoundPolicy(min_new=150 * 9 // 10)).due
    with pytest.raises(UsageError, match=r"max_age_days: .*; unknown key 'min_nwe'"):
        treering.status(store, "support", {"min_nwe": 3, "max_age_days": -1})
    with pytest.raises(NotFoundError, match="no round policy at"):
        treering.status(store, "support", tmp_path / "none.toml")
    with pytest.raises(NotFoundError, match="no corpus 'nobody'"):
        treering.status(store, "nobody")
