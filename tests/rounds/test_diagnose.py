"""What is found in adapters whose trouble is known, because it was made."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import treering
from tests.rounds.tiny_rounds import broken, cancel_the_features, config, seal, swap_the_head, two_rounds
from tests.training.tiny import make_base
from treering.errors import NotFoundError, UsageError
from treering.evaluation import Diagnosis, Finding
from treering.registry import Registry
from treering.rounds import score_matrix, to_label
from treering.rounds.baseline import find_baseline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: str) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "store"
    two_rounds(folder, base)
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> treering.Store:
    shutil.copytree(trained, tmp_path / "store")
    return treering.open(tmp_path / "store")


def finding(found: Diagnosis, check: str) -> Finding:
    (one,) = (f for f in found.findings if f.check == check)
    return one


def test_where_only_the_head_drifted_the_probe_says_so_and_the_remedy_cures_it(
    store: treering.Store, base: str
) -> None:
    ref = broken(store, "support:2", swap_the_head)
    found = treering.diagnose(store, ref)
    (slice_,) = found.probed
    assert slice_.slice == "support@v1"
    assert slice_.drop > 0.5
    assert slice_.cause == "alignment drift"
    assert found.spurious_share is not None
    assert found.spurious_share > 0.9
    spurious = finding(found, "spurious-forgetting")
    assert spurious.ok is False
    assert spurious.remedy == f"treering train support@v1..v2=1 --parent {ref} --only-head --strategy replay"
    assert "--only-gate billing would leave all other domains as they are" in spurious.says
    cured = treering.train(store, store.mix("support@v1..v2"), config(base, only="head"), parent=ref)
    assert cured.scores["support@v1"] > slice_.learned - 0.1


def test_where_knowledge_was_destroyed_the_probe_does_not_find_it(store: treering.Store) -> None:
    ref = broken(store, "support:2", cancel_the_features)
    found = treering.diagnose(store, ref)
    by_slice = {one.slice: one for one in found.probed}
    assert by_slice["support@v1"].drop > 0.3
    assert {one.cause for one in found.probed} == {"knowledge loss"}
    assert found.spurious_share is not None
    assert found.spurious_share < 0.4
    assert finding(found, "spurious-forgetting").ok
    remedy = finding(found, "severe-forgetting").remedy
    assert remedy is None or "--only" not in remedy


def test_severe_forgetting_is_told_once_it_lasts(store: treering.Store) -> None:
    first = broken(store, "support:2", swap_the_head)
    assert finding(treering.diagnose(store, first), "severe-forgetting").ok  # it was well the round before
    second = broken(store, first, lambda adapter, tensors: None)
    severe = finding(treering.diagnose(store, second), "severe-forgetting")
    assert severe.ok is False
    assert severe.figure is not None
    assert severe.figure < -0.05
    assert finding(treering.diagnose(store, second), "baseline-diff").ok  # nothing changed since the parent


def test_a_sound_adapter_is_looked_at_all_over(store: treering.Store) -> None:
    found = treering.diagnose(store, "support:2")
    assert [f.check for f in found.findings] == [
        "severe-forgetting", "spurious-forgetting", "head-tail-gap", "buffer-occupancy", "parameter-growth",
        "multi-intent-share", "multi-intent-gap", "router-accuracy", "router-drift", "heldout-size", "baseline-diff",
        "fresh-baseline",
    ]  # fmt: skip
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found
    assert [(d.domain, d.train_rows, d.heldout_rows) for d in found.domains] == [
        ("billing", 36, 12),
        ("shipping", 36, 12),
    ]
    growth = found.growth
    assert growth is not None
    header = Registry(store, "support")
    assert growth.bytes <= header.get("support:2").weights_bytes
    assert growth.per_domain == 32  # a gate vector
    assert growth.per_class == 33
    assert growth.order == "O(1)"
    assert finding(found, "heldout-size").figure == 12
    assert not found.ok


def test_router_accuracy_is_that_of_the_routes(store: treering.Store) -> None:
    model = treering.load_adapter(store, "support:2")
    right = rows = 0
    for ref in ("support@v1", "support@v2"):
        table = store.load(ref).heldout().to_table(["text", "domain"])
        routes = model.route(table.column("text").to_pylist()).argmax(1)
        right += sum(model.domains[n] == d for n, d in zip(routes, table.column("domain").to_pylist(), strict=True))
        rows += len(table)
    router = finding(treering.diagnose(store, "support:2"), "router-accuracy")
    assert router.figure == right / rows
    assert f"{right} of {rows} held-out records" in router.says


def test_live_that_the_router_is_unsure_of_is_noticed(store: treering.Store) -> None:
    assert finding(treering.diagnose(store, "support:2"), "router-drift").figure is None
    with store.corpus("support").capture() as live:
        live.extend({"text": f"bill parcel {k}", "label": "billing-a", "domain": "billing"} for k in range(30))
    drift = finding(treering.diagnose(store, "support:2"), "router-drift")
    assert drift.figure is not None
    assert drift.figure < 0


def test_several_intents_are_counted_from_what_was_said_by_hand(store: treering.Store) -> None:
    corpus = store.corpus("support")
    with corpus.capture() as live:
        live.extend({"id": f"new-{k}", "text": f"bill and parcel {k}", "label": "billing-a"} for k in range(10))
    sample = to_label(store, "support@live", 10)
    for number, (name, _) in enumerate(sample.left):
        corpus.annotate(name, intents=2 if number < 3 else 1)
    for name, _ in to_label(store, "support@v1", 5).left:
        corpus.annotate(name, intents=1)
    found = treering.diagnose(store, "support:2")
    share, gap = finding(found, "multi-intent-share"), finding(found, "multi-intent-gap")
    assert (share.ok, share.figure) == (False, 0.3)
    assert (gap.ok, gap.figure) == (False, 0.3)
    corpus.snapshot()  # sealed, it is still not what the adapter was trained on
    assert finding(treering.diagnose(store, "support:2"), "multi-intent-gap").figure == 0.3


def test_a_sample_to_label_can_be_left_off_and_taken_up(store: treering.Store) -> None:
    whole = to_label(store, "support@v1", 20)
    assert (whole.sample, len(whole.left)) == (20, 20)
    store.corpus("support").annotate(whole.left[0][0], intents=1)
    rest = to_label(store, "support@v1", 20)
    assert rest.left == whole.left[1:]
    assert set(to_label(store, "support@v1", 5).left) < set(whole.left)  # a smaller sample lies in the larger one
    with pytest.raises(UsageError, match="asks nothing"):
        to_label(store, "support@v1", 0)


def test_the_buffer_is_that_of_the_runs_own_lock(store: treering.Store, base: str) -> None:
    past = store.load("support@v1..v2")
    lost = {"billing": 1.0, "shipping": 0.0}
    buffer = past.select(rows=8, name="lopsided", strategy="importance", forgetting=lost, floor=0.0)
    run = treering.train(store, store.mix(buffer, "support@v2"), config(base), parent="support:2")
    found = treering.diagnose(store, run.adapter.ref)
    assert {d.domain: d.buffer_rows for d in found.domains} == {"billing": 8, "shipping": 0}
    occupancy = finding(found, "buffer-occupancy")
    assert (occupancy.ok, occupancy.figure) == (False, 0.0)
    assert "shipping has 0 of the 8 rows in support/lopsided" in occupancy.says


def test_a_fresh_baseline_is_trained_once_and_found_again(store: treering.Store) -> None:
    matrix = score_matrix(store, "support", adapter="support:2", fresh_baseline=True)
    assert matrix.reference_name == "support:3"
    assert matrix.intransigence == pytest.approx(
        sum(matrix.reference[j] - matrix.values[r, j] for j, r in enumerate(matrix.learned_in) if r is not None) / 2
    )
    made = Registry(store, "support").get("support:3")
    assert (made.status, made.strategy, made.parent) == ("baseline", "joint", None)
    assert set(made.trained_on) == {"support@v1", "support@v2"}
    assert made.config["steps"] == 160  # as many updates as both rounds together
    again = score_matrix(store, "support", adapter="support:2", fresh_baseline=True)
    assert again.reference == matrix.reference
    assert len(store.adapters("support")) == 3
    seal(store, "account", 24)
    found = find_baseline(store, "support:2")
    assert found is not None  # the lineage hasn't learnt the new snapshot
    late = treering.diagnose(store, "support:2", now=datetime.now(UTC) + timedelta(days=31))
    assert finding(late, "fresh-baseline").ok is False
    assert finding(treering.diagnose(store, "support:2"), "fresh-baseline").ok


def test_a_baseline_of_last_week_still_counts_after_another_round(store: treering.Store, base: str) -> None:
    score_matrix(store, "support", adapter="support:2", fresh_baseline=True)
    newer = treering.train(store, store.mix(seal(store, "account", 24)), config(base, steps=5), parent="support:2")
    found = finding(treering.diagnose(store, newer.adapter.ref), "fresh-baseline")
    assert found.ok
    assert found.says.startswith("support:3 was trained on everything at once, 0 days ago; it scores ")
    assert found.says.endswith("on average, and hasn't learnt support@v3")
    assert find_baseline(store, newer.adapter.ref) is None  # the matrix would train another one


def test_a_subspace_a_round_grows_with_the_domains_and_one_lora_does_not(store: treering.Store, base: str) -> None:
    orders = {}
    for strategy in ("lora", "o-lora"):
        how = {"strategy": strategy, "steps": 2, "rank": 4, "adapt_layers": 1, "kind": "lora"}
        first = treering.train(store, store.mix("support@v1"), config(base, **how), parent=None)
        last = treering.train(store, store.mix("support@v2"), config(base, **how), parent=first.adapter.ref)
        growth = treering.diagnose(store, last.adapter.ref).growth
        assert growth is not None
        orders[strategy] = growth.order
        fits = Registry(store, "support").get(last.adapter.ref).weights_bytes
        assert growth.bytes == pytest.approx(fits, rel=0.3)  # the file has a header, too
    assert orders == {"lora": "O(1)", "o-lora": "O(K)"}


def test_what_cannot_be_diagnosed_is_refused(store: treering.Store) -> None:
    with pytest.raises(UsageError, match="'loss' is none"):
        treering.diagnose(store, "support:2", metric="loss")
    with pytest.raises(NotFoundError):
        treering.diagnose(store, "support:9")


def test_a_canary_in_training_ends_the_run_and_keeps_what_was_good(store: treering.Store, base: str) -> None:
    seal(store, "account")
    mix = store.mix("support@v3")
    run = treering.train(store, mix, config(base, strategy="naive", eval_every=2, steps=200), parent="support:2")
    assert run.stopped is not None
    assert "held-out scores had dropped: support@v" in run.stopped
    assert run.adapter.stats["steps"] < 200
    before = {name: Registry(store, "support").get("support:2").scores[name] for name in ("support@v1", "support@v2")}
    assert all(run.scores[name] >= score - 0.05 - 1e-9 for name, score in before.items())
    assert run.adapter.stats["stopped"] == run.stopped
    assert json.loads(run.adapter.model_dump_json())["stats"]["stopped"]


def test_a_run_that_had_dropped_by_the_first_look_keeps_what_it_began_with(store: treering.Store, base: str) -> None:
    seal(store, "account")
    late = config(base, strategy="naive", eval_every=100, steps=200)
    run = treering.train(store, store.mix("support@v3"), late, parent="support:2")
    assert run.stopped is not None
    before = {name: Registry(store, "support").get("support:2").scores[name] for name in ("support@v1", "support@v2")}
    assert all(run.scores[name] >= score - 1e-9 for name, score in before.items())


def test_looking_does_not_change_what_is_trained(store: treering.Store, base: str) -> None:
    mix = store.mix("support@v1..v2")
    plain = treering.train(store, mix, config(base, steps=20), parent="support:2")
    looked = treering.train(store, mix, config(base, steps=20, eval_every=5, eval_tolerance=1.0), parent="support:2")
    assert looked.stopped is None
    assert looked.adapter.digest == plain.adapter.digest
