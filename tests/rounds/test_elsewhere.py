"""Test sets from files, models from elsewhere, and canaries. Models trained here are a fake, as in test_evaluate."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import treering
from tests.rounds.test_evaluate import ALL, LABELS, _fake_models, add, capture, store, two_lineages  # noqa: F401
from treering.errors import ConflictError, InvalidRecordError, NotFoundError, UsageError
from treering.evaluation import GatePolicy, HeldoutSlice, Metric
from treering.registry import Registry
from treering.rounds import add_external, each_snapshot, evaluate, gate, load_adapter, score_matrix
from treering.rounds.baseline import find_baseline


@pytest.fixture(autouse=True)
def _no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serving takes isn't asked here."""
    module = sys.modules["treering.rounds.evaluate"]
    if hasattr(module, "measure_budget"):
        monkeypatch.setattr(module, "measure_budget", lambda *_, **__: None)


ROWS = [
    {"text": "card please", "label": "card", "domain": "banking", "id": "x1"},
    {"text": "pizza now", "label": "pizza", "domain": "food", "id": "x2"},
]


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def test_set(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / f"hard.{request.param}"
    if request.param == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    elif request.param == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*ROWS[0], "more"])
            writer.writeheader()
            writer.writerows([{**row, "more": "is passed over"} for row in ROWS])
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return str(path)


# -- test sets


def test_a_test_set_is_one_more_slice_whatever_file_it_comes_in(store, test_set: str) -> None:  # noqa: F811
    ref = add(store, ["card"], "v1")
    found = evaluate(store, ref, on="support@v1", metric="accuracy", extra={"hard": test_set})
    assert found.scores == {"support@v1": 0.5, "hard": 0.5}
    assert found.rows["hard"] == 2


def test_a_test_set_counts_as_learnt_by_the_first_round_that_knows_its_labels(store, tmp_path: Path) -> None:  # noqa: F811
    first = second = None
    for name, known in (("v1", ["card", "loan"]), ("v3", ["card", "loan", "pizza"])):
        card = {"known": known, "classes": known}
        made = Registry(store, "support").add(
            weights=b"w", card=card, trained_on=[f"support@{name}"], parent=first, external=None
        )
        first, second = made.ref, made.ref
    path = tmp_path / "hard.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    strange = HeldoutSlice("strange", (), ("zebra?",), ("zebra",), None)
    matrix = score_matrix(store, "support", adapter=second, metric="accuracy", extra={"hard": path, "strange": strange})
    assert matrix.slices == ("support@v1", "support@v3", "hard", "strange")
    assert matrix.learned_in == (0, 1, 1, None)
    assert matrix.values[1, 2] == 1.0
    assert list(matrix.values[:, 3]) == [0.0, 0.0]  # shown, and in no mean


def test_the_gate_judges_the_test_sets_of_its_policy(store, tmp_path: Path) -> None:  # noqa: F811
    ref = add(store, ["card"], "v1")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "hard.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    policy = tmp_path / "gate.toml"
    policy.write_text('metric = "accuracy"\n[extra]\nhard = "tests/hard.jsonl"\n[slices]\nhard = 0.9\n')
    verdict = gate(store, ref, policy)
    assert verdict.reasons == ["hard scores 50.0, below its minimum of 90.0"]
    (tmp_path / "tests" / "hard.jsonl").write_text("")
    with pytest.raises(UsageError, match="holds no records to score"):
        gate(store, ref, policy)


def test_a_policy_of_a_metric_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="f2"):
        GatePolicy(metric="f2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a"}\n{"text": "b", "label": 3}\n', "line 1: label: expected a value.*line 2: label: expected text"),
        ('{"text": "a", "label"\n', "line 1: expected a JSON object"),
        ('{"text": "a", "label": "b", "id": "1"}\n{"text": "a", "label": "b"}\n', "line 2: id: expected an id"),
    ],
)
def test_every_bad_line_of_a_test_set_is_named(store, tmp_path: Path, text: str, said: str) -> None:  # noqa: F811
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRecordError, match=said):
        evaluate(store, add(store, ALL, "v1"), extra={"bad": path})


def test_a_test_set_needs_a_name_and_a_file_of_its_own(store, tmp_path: Path) -> None:  # noqa: F811
    ref = add(store, ALL, "v1")
    for name in ("support@v1", "", "a/b", "x[domain=y]"):
        with pytest.raises(UsageError, match="can't name a test set"):
            evaluate(store, ref, extra={name: "x.jsonl"})
    with pytest.raises(NotFoundError, match=r"no file .*none\.jsonl"):
        evaluate(store, ref, extra={"hard": tmp_path / "none.jsonl"})


# -- metrics


def test_a_judge_reads_texts_and_is_asked_anew_each_time(store) -> None:  # noqa: F811
    ref = add(store, ["card"], "v1")
    calls = []

    def judge(texts: list[str], truth: list[str], predicted: list[str]) -> float:
        calls.append(len(texts))
        return sum(text.split()[0] == label for text, label in zip(texts, predicted, strict=True)) / len(texts)

    metric = Metric("judge", judge, reads="texts")
    assert evaluate(store, ref, on="support@v1", metric=metric).scores == {"support@v1": 0.5}
    assert score_matrix(store, "support", adapter=ref, metric=metric).metric == "judge"
    assert calls == [8, 8]


def test_a_full_matrix_tells_forward_transfer_against_chance(store) -> None:  # noqa: F811
    forgets, _ = two_lineages(store)
    matrix = score_matrix(store, "support", adapter=forgets, full=True, metric="accuracy")
    assert 0 < sum(matrix.chance) / 3 < 0.5
    assert matrix.forward_transfer == pytest.approx(-sum(matrix.chance[1:]) / 2)


# -- models from elsewhere


def predictions(store: treering.Store, path: Path, known: list[str], *names: str) -> str:  # noqa: F811
    rows = [
        {"id": i, "predicted": label if label in known else "?", "probability": 0.9}
        for name in names
        for i, label in zip(
            *store.load(f"support@{name}").heldout().to_table(["id", "label"]).to_pydict().values(), strict=True
        )
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def lock_of(store: treering.Store, *names: str) -> treering.MixLock:  # noqa: F811
    return store.mix(*(f"support@{name}" for name in names)).lock()


def test_a_model_from_elsewhere_is_scored_gated_and_promoted_by_its_predictions(store, tmp_path: Path) -> None:  # noqa: F811
    first = add(store, ["card", "loan"], "v1")
    record = add_external(store, "support", "hub:team/support-7b", parent=first, lock=lock_of(store, "v1", "v2"))
    assert (record.external, record.parent, record.status) == ("hub:team/support-7b", first, "candidate")
    assert record.trained_on == ["support@v1", "support@v2"]
    file = predictions(store, tmp_path / "p.jsonl", ["card", "flight", "visa"], "v1", "v2")
    found = evaluate(store, record.ref, on=["support@v1", "support@v2"], metric="accuracy", predictions=file)
    assert found.scores == {"support@v1": 0.5, "support@v2": 1.0}
    matrix = score_matrix(store, "support", adapter=record.ref, metric="accuracy")
    assert matrix.rounds == (first, record.ref)
    assert matrix.bwt == -0.5
    by_domain = score_matrix(store, "support", adapter=record.ref, metric="accuracy", by="domain")
    assert list(by_domain.values[1]) == [0.5, 1.0]
    assert gate(store, record.ref).reasons == ["support@v1 fell by 50.0 points, from 100.0 to 50.0; 2 are tolerated"]
    assert gate(store, record.ref, GatePolicy(regression_tolerance=1.0)).passed
    assert store.promote(record.ref).status == "production"
    with pytest.raises(
        UsageError, match="was trained elsewhere, as hub:team/support-7b: its weights aren't in this store"
    ):
        load_adapter(store, "support:production")


def test_probabilities_in_predictions_tell_a_loss(store, tmp_path: Path) -> None:  # noqa: F811
    record = add_external(store, "support", "x", lock=lock_of(store, "v1"))
    evaluate(store, record.ref, on="support@v1", predictions=predictions(store, tmp_path / "p.jsonl", ALL, "v1"))
    loss = evaluate(store, record.ref, on="support@v1", metric="loss").scores["support@v1"]
    assert loss == pytest.approx(0.10536, abs=1e-4)  # −ln 0.9


def test_missing_doubled_and_unknown_ids_are_named_and_nothing_is_stored(store, tmp_path: Path) -> None:  # noqa: F811
    record = add_external(store, "support", "x")
    path = tmp_path / "p.jsonl"
    predictions(store, path, ALL, "v1")
    lines = path.read_text().splitlines()
    lines = [*lines[1:], lines[3], json.dumps({"id": "nobody", "predicted": "card"})]
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidRecordError) as error:
        evaluate(store, record.ref, on="support@v1", predictions=str(path))
    said = str(error.value)
    assert "1 of the 8 records of support@v1 are missing: 'v1-card-0'" in said
    assert "1 ids come more than once: 'v1-card-3'" in said
    assert "1 ids are no held-out records of support@v1: 'nobody'" in said
    assert not Registry(store, "support").predictions(record.ref).predicted


def test_what_was_not_predicted_is_said_and_not_taken_for_wrong(store, tmp_path: Path) -> None:  # noqa: F811
    record = add_external(store, "support", "x")
    evaluate(store, record.ref, on="support@v1", predictions=predictions(store, tmp_path / "p.jsonl", ALL, "v1"))
    with pytest.raises(NotFoundError, match="its predictions lack 8 of the 8 records of support@v2: 'v2-"):
        evaluate(store, record.ref, on="support@v2")


def test_a_model_does_not_change_its_mind(store, tmp_path: Path) -> None:  # noqa: F811
    record = add_external(store, "support", "x")
    file = predictions(store, tmp_path / "p.jsonl", ALL, "v1")
    for _ in range(2):
        evaluate(store, record.ref, on="support@v1", predictions=file)
    changed = predictions(store, tmp_path / "q.jsonl", ["card"], "v1")
    with pytest.raises(ConflictError, match="has other predictions for 4 of these records already"):
        evaluate(store, record.ref, on="support@v1", predictions=changed)


def test_predictions_are_for_models_from_elsewhere_alone(store, tmp_path: Path) -> None:  # noqa: F811
    ref = add(store, ALL, "v1")
    with pytest.raises(UsageError, match="was trained here: it is asked itself"):
        evaluate(store, ref, on="support@v1", predictions=predictions(store, tmp_path / "p.jsonl", ALL, "v1"))


def test_no_name_of_a_record_is_kept_with_predictions(store, tmp_path: Path) -> None:  # noqa: F811
    record = add_external(store, "support", "x")
    evaluate(store, record.ref, on="support@v1", predictions=predictions(store, tmp_path / "p.jsonl", ALL, "v1"))
    kept = [path for path in (store.root / "adapters").rglob("*.json") if "predictions" in str(path)]
    assert kept
    assert b"v1-card" not in kept[0].read_bytes()


def test_nobody_trains_on_from_a_model_without_weights(store) -> None:  # noqa: F811
    record = add_external(store, "support", "x")
    with pytest.raises(UsageError, match="was trained elsewhere: it has no weights here to go on from"):
        treering.train(store, store.mix("support@v1"), treering.TrainConfig(steps=1), parent=record.ref)


# -- canaries


@pytest.fixture
def drop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every model forget a label from now on."""
    module = sys.modules["treering.rounds.evaluate"]
    loaded = module._load_model

    def forget(label: str) -> None:
        def load(*given: Any, **how: Any) -> Any:
            model = loaded(*given, **how)
            model.known = [known for known in model.known if known != label]
            return model

        monkeypatch.setattr(module, "_load_model", load)

    return forget


def test_a_canary_measures_anew_and_names_the_slices_that_dropped(store, drop) -> None:  # noqa: F811
    ref = add(store, ALL, "v1", "v2", scores={"support@v1": 1.0, "support@v2": 1.0})
    refs = each_snapshot("support@v1..v2,support@live")
    assert refs == ["support@v1", "support@v2", "support@live"]
    assert evaluate(store, ref, on=refs[:2], tolerance=0.02).dropped == []
    drop("card")
    assert evaluate(store, ref, on=refs[:2]).scores == {"support@v1": 1.0, "support@v2": 1.0}  # as it is stored
    found = evaluate(store, ref, on=refs[:2], tolerance=0.02)
    assert found.dropped == ["support@v1"]
    assert found.before == {"support@v1": 1.0, "support@v2": 1.0}
    assert found.scores["support@v1"] == 0.5
    assert evaluate(store, ref, on=refs[:2], tolerance=0.5).dropped == []


def test_live_is_compared_with_the_last_look_at_it(store, drop) -> None:  # noqa: F811
    ref = add(store, ALL, "v1")
    capture(store.corpus("support"), ["card"], "later")
    assert evaluate(store, ref, on="support@live", tolerance=0.02).before == {}  # the first look
    drop("card")
    found = evaluate(store, ref, on="support@live", tolerance=0.02)
    assert (found.before, found.dropped) == ({"support@live": 1.0}, ["support@live"])
    assert evaluate(store, ref, on="support@live", tolerance=0.02).before == {"support@live": 0.0}


def test_an_empty_slice_is_refused_by_name(store) -> None:  # noqa: F811
    ref = add(store, ALL, "v1")
    capture(store.corpus("support"), ["card"], "later", heldout=0)
    with pytest.raises(UsageError, match="support@live has no labelled held-out records"):
        evaluate(store, ref, on="support@live", tolerance=0.02)


# -- fresh baselines in the registry


def test_a_baseline_is_no_candidate_and_no_round(store) -> None:  # noqa: F811
    ref = add(store, LABELS["v1"], "v1")
    made = Registry(store, "support").add(weights=b"w", card={"known": ALL}, trained_on=["support@v1"], baseline=True)
    registry = Registry(store, "support")
    assert registry.get(made.ref).status == "baseline"
    assert registry.get("support:candidate").ref == ref
    assert score_matrix(store, "support").rounds == (ref,)
    gate(store, made.ref)
    assert registry.get(made.ref).status == "baseline"
    assert store.promote(made.ref).status == "production"  # it may well be the better one


def test_there_is_no_baseline_for_a_model_from_elsewhere(store) -> None:  # noqa: F811
    record = add_external(store, "support", "x", lock=lock_of(store, "v1"))
    assert find_baseline(store, record.ref) is None
    with pytest.raises((UsageError, NotFoundError)):
        score_matrix(store, "support", adapter=record.ref, fresh_baseline=True)
