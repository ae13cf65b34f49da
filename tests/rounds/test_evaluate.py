"""Evaluation over a real store. The models are a fake: an adapter's card lists the labels it still knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treering
from treering.errors import CheckFailedError, NotFoundError, StoreError, UsageError
from treering.evaluation import CheckedRow, GatePolicy, Verdict
from treering.registry import AdapterRecord, Registry, trained_snapshots
from treering.rounds import evaluate, gate, load_adapter, score_matrix

PER_LABEL = 4  # held-out records a label
LABELS = {"v1": ["card", "loan"], "v2": ["flight", "visa"], "v3": ["pizza", "sushi"]}
DOMAINS = {"card": "banking", "loan": "banking", "flight": "travel", "visa": "travel", "pizza": "food", "sushi": "food"}
ALL = [label for labels in LABELS.values() for label in labels]


class Knows:
    """Predicts the true label of every text whose label it knows, else nothing; counts what it is asked."""

    asked = 0

    def __init__(self, known: list[str]) -> None:
        self.known = known

    def predict(self, texts: list[str]) -> list[str]:
        Knows.asked += len(texts)
        return [label if (label := text.split()[0]) in self.known else "?" for text in texts]


@pytest.fixture(autouse=True)
def _fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(store: Any, registry: Registry, record: AdapterRecord, *, cached: bool) -> Knows:
        registry.weights(record.ref)  # the digest is checked as for a real one
        return Knows(registry.card(record.ref)["known"])

    Knows.asked = 0
    monkeypatch.setattr(sys.modules["treering.rounds.evaluate"], "_load_model", load)


def capture(corpus: treering.Corpus, labels: list[str], tag: str, *, heldout: int = PER_LABEL) -> None:
    with corpus.capture() as live:
        live.extend(
            {
                "id": f"{tag}-{label}-{i}",
                "text": f"{label} {tag} {i}",
                "label": label,
                "domain": DOMAINS[label],
                "split": "heldout" if i < heldout else "train",
            }
            for label in labels
            for i in range(PER_LABEL + 2)
        )


@pytest.fixture
def store(tmp_path: Path) -> treering.Store:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", "labelled")
    for name, labels in LABELS.items():
        capture(corpus, labels, name)
        assert corpus.snapshot().name == name
    return store


def add(store: treering.Store, known: list[str], *on: str, parent: str | None = None, **more: Any) -> str:
    record = Registry(store, "support").add(
        weights=b"weights", card={"known": known}, parent=parent, trained_on=[f"support@{v}" for v in on], **more
    )
    return record.ref


def two_lineages(store: treering.Store) -> tuple[str, str]:
    """Adapters 1-3 forget everything but the newest round; 4-6 keep it all."""
    forgets = keeps = None
    for name in LABELS:
        forgets = add(store, LABELS[name], name, parent=forgets)
    for k in range(1, len(LABELS) + 1):
        keeps = add(store, ALL[: 2 * k], *list(LABELS)[:k], parent=keeps)
    assert forgets is not None
    assert keeps is not None
    return forgets, keeps


def scored(verdict: Verdict) -> list[CheckedRow]:
    """What is about scores; latency and memory are rows, too."""
    return [row for row in verdict.rows if row.unit == "points"]


# -- evaluate


def test_each_ref_is_scored_on_its_held_out_records_alone(store) -> None:
    ref = add(store, ["card", "flight", "visa"], "v1")
    scores = evaluate(store, ref, on=["support@v1", "support@v2", "support@v1..v2"], metric="accuracy")
    assert scores.scores == {"support@v1": 0.5, "support@v2": 1.0, "support@v1..v2": 0.75}
    assert scores.rows == {"support@v1": 8, "support@v2": 8, "support@v1..v2": 16}
    assert (scores.adapter, scores.metric) == (ref, "accuracy")


def test_without_refs_every_snapshot_is_scored(store) -> None:
    ref = add(store, ALL, "v1")
    assert evaluate(store, ref).scores == {"support@v1": 1.0, "support@v2": 1.0, "support@v3": 1.0}


def test_live_and_a_source_at_hand_can_be_scored(store) -> None:
    ref = add(store, ["card"], "v1")
    capture(store.corpus("support"), ["card"], "later")
    source = store.load("support@v1")
    assert evaluate(store, ref, on=["support@live", source], metric="accuracy").scores == {
        "support@live": 1.0,
        "support@v1": 0.5,
    }


def test_any_callable_is_a_metric_and_never_served_from_the_store(store) -> None:
    ref = add(store, ALL, "v1")
    answers = iter([0.25, 0.75])

    def macro_f1(truth: list[str], predicted: list[str]) -> float:  # borrows a built-in name
        return next(answers)

    assert evaluate(store, ref, on="support@v1", metric=macro_f1).scores == {"support@v1": 0.25}
    assert evaluate(store, ref, on="support@v1", metric=macro_f1).scores == {"support@v1": 0.75}
    assert evaluate(store, ref, on="support@v1").scores == {"support@v1": 1.0}


def test_a_score_on_sealed_records_is_measured_once_and_fresh_measures_again(store) -> None:
    ref = add(store, ALL, "v1")
    evaluate(store, ref, on="support@v1")
    assert Knows.asked == 8
    evaluate(store, ref, on="support@v1")
    assert Knows.asked == 8
    evaluate(store, ref, on="support@v1", fresh=True)
    assert Knows.asked == 16
    capture(store.corpus("support"), ["card"], "later")
    for _ in range(2):  # what isn't sealed has no name to keep a score under
        evaluate(store, ref, on="support@live")
    assert Knows.asked == 24


def test_a_slice_without_held_out_records_is_refused(store) -> None:
    ref = add(store, ALL, "v1")
    capture(store.corpus("support"), ["card"], "later", heldout=0)
    with pytest.raises(UsageError, match="support@live has no labelled held-out records"):
        evaluate(store, ref, on=["support@v1", "support@live"])


def test_records_of_another_type_are_refused(store) -> None:
    store.create("chat", "chat")
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]
    with store.corpus("chat").capture() as live:
        live.extend([{"messages": talk, "split": "heldout"} for _ in range(8)])
    store.corpus("chat").snapshot()
    with pytest.raises(UsageError, match="chat@v1 holds conversations, and support:1 learnt from labelled texts"):
        evaluate(store, add(store, ALL, "v1"), on="chat@v1")


@pytest.mark.parametrize(
    ("adapter", "on", "metric", "error"),
    [
        ("support:9", "support@v1", "macro_f1", NotFoundError),
        ("support:production", "support@v1", "macro_f1", NotFoundError),
        ("support:1", "support@v9", "macro_f1", NotFoundError),
        ("support:1", "other@v1", "macro_f1", NotFoundError),
        ("support:1", "nonsense", "macro_f1", UsageError),
        ("support:1", "support@v1", "f2", UsageError),
        ("support@v1", "support@v1", "macro_f1", UsageError),
    ],
)
def test_what_does_not_exist_is_refused_by_kind(store, adapter, on, metric, error) -> None:
    add(store, ALL, "v1")
    with pytest.raises(error):
        evaluate(store, adapter, on=on, metric=metric)


def test_changed_weights_are_never_evaluated(store) -> None:
    ref = add(store, ALL, "v1")
    (store.root / "adapters" / "support" / "1" / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(StoreError, match="isn't what was added"):
        evaluate(store, ref, on="support@v1")
    with pytest.raises(StoreError, match="isn't what was added"):
        load_adapter(store, ref)


# -- score_matrix


def test_two_lineages_in_one_store_have_each_their_own_matrix(store) -> None:
    forgets, keeps = two_lineages(store)
    bad = score_matrix(store, "support", adapter=forgets)
    assert bad.rounds == ("support:1", "support:2", "support:3")
    assert bad.slices == ("support@v1", "support@v2", "support@v3")
    assert np.array_equal(bad.values, [[1, np.nan, np.nan], [0, 1, np.nan], [0, 0, 1]], equal_nan=True)
    assert (bad.average, bad.bwt, bad.forgetting) == (pytest.approx(1 / 3), -1.0, 1.0)
    good = score_matrix(store, "support", adapter=keeps)
    assert good.rounds == ("support:4", "support:5", "support:6")
    assert (good.average, good.bwt, good.forgetting) == (1.0, 0.0, 0.0)


def test_the_default_lineage_is_that_of_production_else_of_the_newest_adapter(store) -> None:
    forgets, keeps = two_lineages(store)
    assert score_matrix(store, "support").rounds[-1] == keeps
    gate(store, forgets, GatePolicy(regression_tolerance=1.0))
    store.promote(forgets)
    assert score_matrix(store, "support").rounds[-1] == forgets


def test_the_full_matrix_scores_what_was_not_learnt_yet_too(store) -> None:
    forgets, _ = two_lineages(store)
    full = score_matrix(store, "support", adapter=forgets, full=True)
    assert np.array_equal(full.values, np.eye(3))
    assert full.bwt == -1.0


def test_evaluating_again_gives_the_same_matrix(store) -> None:
    two_lineages(store)
    assert score_matrix(store, "support") == score_matrix(store, "support", fresh=True)


def test_a_slice_per_domain_is_pooled_over_snapshots(store) -> None:
    capture(store.corpus("support"), ["card", "pizza"], "again")
    store.corpus("support").snapshot()
    first = add(store, ["card", "loan"], "v1")
    second = add(store, ["card", "pizza"], "v4", parent=first)
    matrix = score_matrix(store, "support", adapter=second, by="domain", metric="accuracy")
    assert matrix.slices == ("support[domain=banking]", "support[domain=food]")
    assert matrix.learned_in == (0, 1)
    # banking: 4 card and 4 loan of v1, 4 card of v4; food: 4 pizza and 4 sushi of v3, 4 pizza of v4
    assert np.array_equal(matrix.values, [[1, np.nan], [8 / 12, 8 / 12]], equal_nan=True)


def test_what_was_learnt_from_live_counts_once_it_is_sealed(store) -> None:
    capture(store.corpus("support"), ["card"], "later")
    live = [tuple(segment.row_ids) for segment in store.live("support").segments]
    ref = add(store, ["card"], trained_rows={"support": live})
    with pytest.raises(NotFoundError, match="trained on no snapshot"):
        score_matrix(store, "support", adapter=ref)
    store.corpus("support").snapshot()
    assert score_matrix(store, "support", adapter=ref).slices == ("support@v4",)


def test_a_snapshot_without_held_out_records_is_left_out_and_said_so(store) -> None:
    capture(store.corpus("support"), ["card"], "later", heldout=0)
    store.corpus("support").snapshot()
    matrix = score_matrix(store, "support", adapter=add(store, ALL, "v1", "v2", "v4"))
    assert matrix.slices == ("support@v1", "support@v2")
    assert matrix.notes == (
        "support@v3: no adapter of this lineage was trained on it: left out",
        "support@v4 has no held-out records: left out",
    )


def test_a_matrix_without_adapters_is_not_found(store) -> None:
    with pytest.raises(NotFoundError, match="support has no adapters yet"):
        score_matrix(store, "support")


# -- gate


def test_the_gate_refuses_what_forgot_and_passes_what_kept(store) -> None:
    forgets, keeps = two_lineages(store)
    refused = gate(store, forgets)
    assert not refused.passed
    assert refused.baseline == "support:2"  # nothing is in production: the parent
    assert refused.reasons == ["support@v2 fell by 100.0 points, from 100.0 to 0.0; 2 are tolerated"]
    with pytest.raises(CheckFailedError, match="support@v2 fell by"):
        store.promote(forgets)
    assert gate(store, keeps).passed
    assert store.promote(keeps).status == "production"
    assert [r.status for r in store.adapters("support")] == [
        *["candidate"] * 2,
        "refused",
        *["candidate"] * 2,
        "production",
    ]


def test_production_is_the_baseline_once_there_is_one(store) -> None:
    forgets, keeps = two_lineages(store)
    gate(store, keeps)
    store.promote(keeps)
    verdict = gate(store, forgets)
    assert verdict.baseline == keeps
    assert [row.previous for row in scored(verdict)] == [1.0, 1.0, 1.0]
    assert len(verdict.reasons) == 2


def test_a_first_adapter_has_no_baseline_and_needs_only_its_minimums(store) -> None:
    ref = add(store, ["card"], "v1")
    verdict = gate(store, ref, record=False)
    assert verdict.passed
    assert verdict.baseline is None
    assert not gate(store, ref, GatePolicy(metric="accuracy", min_score=0.6)).passed


def test_a_look_without_recording_leaves_the_registry_alone(store) -> None:
    ref = add(store, ALL, "v1")
    gate(store, ref, record=False)
    assert Registry(store, "support").events() == []
    with pytest.raises(CheckFailedError, match="hasn't passed a gate"):
        store.promote(ref)


def test_the_gate_looks_at_what_was_learnt_and_at_what_the_policy_names(store) -> None:
    ref = add(store, ["card", "loan", "pizza"], "v1")
    assert [row.what for row in scored(gate(store, ref))] == ["support@v1"]
    policy = GatePolicy(slices={"support@v3": 0.9, "support[domain=travel]": 0.0, "support@v9": 0.1}, metric="accuracy")
    verdict = gate(store, ref, policy)
    assert {row.what: row.score for row in scored(verdict)} == {
        "support@v1": 1.0,
        "support@v3": 0.5,
        "support[domain=travel]": 0.0,
        "support@v9": None,
    }
    assert verdict.reasons == [
        "support@v3 scores 50.0, below its minimum of 90.0",
        "support@v9 wasn't evaluated",
    ]


def test_domains_are_compared_when_the_policy_asks(store) -> None:
    _, keeps = two_lineages(store)
    verdict = gate(store, keeps, GatePolicy(by=["domain"]))
    assert [row.what for row in scored(verdict)] == [f"support[domain={d}]" for d in ("banking", "travel", "food")]


def test_what_was_learnt_from_unsealed_live_is_judged_on_live(store) -> None:
    capture(store.corpus("support"), ["card"], "later")
    live = [tuple(segment.row_ids) for segment in store.live("support").segments]
    ref = add(store, [], "v1", trained_rows={"support": live})
    verdict = gate(store, ref, GatePolicy(min_score=0.5))
    assert [row.what for row in scored(verdict)] == ["support@v1", "support@live"]


def test_the_bwt_line_reads_the_candidates_own_lineage(store, tmp_path: Path) -> None:
    forgets, keeps = two_lineages(store)
    path = tmp_path / "gate.toml"
    path.write_text("min_bwt = -0.05\nregression_tolerance = 1.0\n")
    assert gate(store, forgets, path).reasons == ["BWT is -100.0, below its minimum of -5.0"]
    assert gate(store, keeps, str(path)).passed
    assert gate(store, "support:1", path).passed  # one round has no BWT


def test_the_verdict_of_a_lineage_is_read_back_with_the_adapter(store) -> None:
    forgets, _ = two_lineages(store)
    verdict = gate(store, forgets)
    assert Registry(store, "support").get(forgets).verdict == verdict


# -- what production has seen


def test_new_is_what_neither_production_nor_its_ancestors_were_trained_on(store) -> None:
    assert trained_snapshots(store, "support") == set()
    first = add(store, ["card", "loan"], "v1")
    second = add(store, ALL, "v2", parent=first)
    gate(store, second)
    store.promote(second)
    assert trained_snapshots(store, "support") == {"support@v1", "support@v2"}


def test_a_snapshot_is_no_longer_new_only_if_all_its_rows_were_drawn_from(store) -> None:
    corpus = store.corpus("support")
    capture(corpus, ["card"], "later")
    live = [tuple(segment.row_ids) for segment in store.live("support").segments]
    ref = add(store, ALL, "v1", trained_rows={"support": live})
    gate(store, ref)
    store.promote(ref)
    corpus.snapshot()
    capture(corpus, ["loan"], "latest")
    assert trained_snapshots(store, "support") == {"support@v1", "support@v4"}
    corpus.snapshot()
    assert trained_snapshots(store, "support") == {"support@v1", "support@v4"}
