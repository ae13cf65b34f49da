"""What the report gathers from a store of two rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

import treering
from tests.rounds.test_round import config_of, grow
from tests.training.tiny import make_base
from treering.errors import NotFoundError, UsageError
from treering.report import gather_report, render_report


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> treering.Store:
    root = tmp_path_factory.mktemp("gather")
    config = config_of(make_base(root / "base"))
    store = treering.open(root / "store")
    support = store.create("support", "labelled")
    for topic in ("billing", "shipping"):
        grow(support, topic)
        assert treering.round(store, config).outcome == "promoted"
    lone = treering.train(store, store.mix("support@v2"), treering.RoundConfig.of(config).train, parent=None)
    assert lone.adapter.ref == "support:3"
    store.load("support@v1..v2").select(rows=20, strategy="reservoir", by="domain", name="replay")
    store.create("empty", "labelled")
    return store


def test_everything_on_the_page_is_in_one_document(store: treering.Store) -> None:
    data = gather_report(store, "support")
    assert (data.adapter and data.adapter.ref, data.production) == ("support:2", "support:2")
    assert [one.matrix.rounds for one in data.matrices] == [["support:1", "support:2"], ["support:3"]]
    assert [(one.ref, one.kind, round(one.planned, 2)) for one in data.mix] == [
        ("support@v1", "replay", 0.3),
        ("support@v2", "new", 0.7),
    ]
    assert [one.served for one in data.mix] == [pytest.approx(0.3, abs=0.01), pytest.approx(0.7, abs=0.01)]
    assert [(one.ref, one.rows, one.training) for one in data.snapshots] == [
        ("support@v1", 40, 32),
        ("support@v2", 40, 32),
    ]
    assert data.snapshots[1].learned_by == ["support:2", "support:3"]
    assert [one.adapter for one in data.curve] == ["support:1", "support:2"]
    assert data.curve[1].bwt == data.matrices[0].matrix.bwt
    assert {(one.domain, one.available) for one in data.buffers} == {("billing", 32), ("shipping", 32)}
    assert sum(one.taken for one in data.buffers) == 20
    assert [one.outcome for one in data.rounds] == ["promoted", "promoted"]
    assert data.audit is not None
    assert data.status is not None
    assert data.verdict is not None
    assert data.verdict.budget is not None
    text = data.model_dump_json()
    assert type(data).model_validate_json(text).model_dump_json() == text
    text = render_report(data)
    assert "support@v1..v2" not in data.missing
    assert "<h1>support:2 " in text


def test_quick_reads_no_records_and_says_what_it_left_out(store: treering.Store) -> None:
    data = gather_report(store, "support", adapter="support:3", quick=True)
    assert (data.adapter and data.adapter.ref, data.audit, data.status, data.diagnosis) == (
        "support:3",
        None,
        None,
        None,
    )
    assert [one.kind for one in data.mix] == ["new"]
    assert data.missing == ["diagnosis, drift and audit: left out, as asked"]


def test_what_cannot_be_measured_is_a_note_and_not_the_end(
    store: treering.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NotFoundError("the base is on another machine")

    monkeypatch.setattr(treering.rounds, "score_matrix", fails)
    data = gather_report(store, "support", quick=True)
    assert data.matrices == data.curve == []
    assert "score matrix of support:2: the base is on another machine" in data.missing
    assert "the base is on another machine" in render_report(data)


def test_a_corpus_without_adapters_has_a_page_too(store: treering.Store, tmp_path: Path) -> None:
    path = store.report("empty", tmp_path / "empty.html")
    assert "<h1>no adapter yet</h1>" in path.read_text()
    with pytest.raises(NotFoundError):
        gather_report(store, "nobody")
    with pytest.raises(UsageError, match="isn't an adapter of empty"):
        gather_report(store, "empty", adapter="support:1")
