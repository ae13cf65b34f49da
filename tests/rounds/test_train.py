from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch

import treering
from tests.training.tiny import make_base, records
from treering.errors import ConflictError, NotFoundError, UsageError
from treering.registry import Registry
from treering.rounds import evaluate, gate, load_adapter, score_matrix, train
from treering.training import DivergedError, TrainConfig
from treering.training.strategies import strategy

TOPICS = ("billing", "shipping", "account")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(base: str) -> TrainConfig:
    return TrainConfig(
        strategy="replay",
        base=base,
        steps=40,
        batch_size=16,
        lr=1e-2,
        bottleneck=8,
        feature_noise=0.1,
        precision="fp32",
        max_tokens=32,
    )


def grow(corpus: treering.Corpus, topic: str, *, seal: bool = True) -> None:
    """A round: 40 records of one topic, every fifth held out."""
    with corpus.capture() as live:
        live.extend(
            {**record, "id": f"{topic}-{n}", "split": "train" if n % 5 else "heldout"}
            for n, record in enumerate(records(topic))
        )
    if seal:
        corpus.snapshot(message=topic)


@pytest.fixture
def grown(support: treering.Corpus) -> treering.Store:
    for topic in TOPICS:
        grow(support, topic)
    return support.store


def test_a_run_leaves_a_candidate_with_lock_card_and_scores(grown: treering.Store, config: TrainConfig) -> None:
    mix = grown.mix("support@v1", "support@v2", weights=[0.3, 0.7], seed=5)
    run = train(grown, mix, config)
    assert (run.adapter.ref, run.adapter.status, run.adapter.parent) == ("support:1", "candidate", None)
    assert run.adapter.trained_on == ["support@v1", "support@v2"]
    assert (run.adapter.strategy, run.adapter.base, run.config) == ("replay", config.base, config)
    assert run.adapter.lock_digest == run.lock.digest
    assert set(run.scores) == {"support@v1", "support@v2", "support@v3"}
    card = Registry(grown, "support").card("support:1")
    assert (card["lock_digest"], card["scores"], card["trained_on"]) == (
        run.lock.digest,
        run.scores,
        ["support@v1", "support@v2"],
    )
    # 16 a batch at 3 : 7
    assert card["stats"]["rows_per_source"] == {"support@v1": 192, "support@v2": 448}


def test_the_scores_are_those_that_the_loaded_adapter_gets(grown: treering.Store, config: TrainConfig) -> None:
    run = train(grown, grown.mix("support@v1", "support@v2"), config)
    again = evaluate(grown, run.adapter.ref, fresh=True)
    assert again.scores == run.scores
    texts = grown.load("support@v1").heldout().to_table(["text"]).column("text").to_pylist()
    assert len(load_adapter(grown, "support:candidate").predict(texts)) == len(texts)


def test_the_same_lock_config_base_and_parent_give_the_same_digest(grown: treering.Store, config: TrainConfig) -> None:
    first = train(grown, grown.mix("support@v1"), config)
    mix = grown.mix("support@v1", "support@v2", weights=[1, 2])
    one = train(grown, mix, config, parent="support:1")
    two = train(grown, one.lock, config, parent="support:1")
    saved = treering.MixLock.from_json(Registry(grown, "support").lock(two.adapter.ref) or b"")
    three = train(grown, saved, config, parent="support:1")
    assert one.adapter.digest == two.adapter.digest == three.adapter.digest
    assert one.adapter.digest != first.adapter.digest
    assert train(grown, mix, config, parent=None).adapter.digest != one.adapter.digest


def test_a_lock_brings_its_own_batch_size(grown: treering.Store, config: TrainConfig) -> None:
    run = train(grown, grown.mix("support@v1").lock(8), config)
    assert run.config.batch_size == 8
    assert run.adapter.config["batch_size"] == 8


def test_the_config_of_a_run_says_what_the_strategy_left_open(grown: treering.Store, config: TrainConfig) -> None:
    run = train(grown, grown.mix("support@v1"), config.changed(strategy="recommended", steps=2))
    assert (run.config.feature_layers, run.config.replay_balance) == (3, "label")
    assert run.adapter.config["feature_layers"] == 3
    assert TrainConfig().strategy == "recommended"


def test_a_bounded_replay_is_a_stored_selection_that_the_lock_names(grown: treering.Store, config: TrainConfig) -> None:
    first = train(grown, grown.mix("support@v1..v2"), config)
    config = config.changed(strategy="der", replay_rows=10, steps=4)
    mix = grown.mix("support@v1..v2", "support@v3", weights=[0.25, 0.75])
    run = train(grown, mix, config, parent=first.adapter.ref)
    selection = run.lock.sources[0].pin.selection
    assert selection is not None
    kept = grown.load(f"support/{selection.name}")
    assert kept.to_table().num_rows == run.lock.sources[0].train_rows == 10
    again = train(grown, run.lock, config, parent=first.adapter.ref)
    assert again.adapter.digest == run.adapter.digest
    balanced = train(grown, mix, config.changed(replay_by="balanced"), parent=first.adapter.ref)
    chosen = balanced.lock.sources[0].pin.selection
    assert chosen is not None
    labels = grown.load(f"support/{chosen.name}").to_table(["label"]).column("label").to_pylist()
    assert sorted(labels.count(label) for label in set(labels)) == [2, 2, 3, 3]


def test_domains_that_forget_more_get_more_of_the_budget(grown: treering.Store, config: TrainConfig) -> None:
    last = None
    for number in (1, 2):
        mix = grown.mix(f"support@v{number}")
        last = train(grown, mix, config.changed(strategy="naive"), parent=last).adapter.ref
    forgotten = score_matrix(grown, "support", adapter=last, by="domain").domain_forgetting()
    assert forgotten["billing"] > forgotten.get("shipping", 0.0)  # the newest hasn't had a round to be forgotten in
    dual = config.changed(strategy="replay", replay_rows=16, replay_by="importance", steps=2)
    mix = grown.mix("support@v1..v2", "support@v3", weights=[0.5, 0.5])
    run = train(grown, mix, dual, parent=last)
    selection = run.lock.sources[0].pin.selection
    assert selection is not None
    domains = grown.load(f"support/{selection.name}").to_table(["domain"]).column("domain").to_pylist()
    assert domains.count("billing") > 2 * domains.count("shipping") > 0
    even = train(grown, mix, dual.changed(replay_spread="label"), parent=last).lock.sources[0].pin.selection
    assert even is not None
    rows = grown.load(f"support/{even.name}").to_table(["domain", "label"]).to_pylist()
    counts = Counter(row["label"] for row in rows if row["domain"] == "billing")
    assert sum(counts.values()) == domains.count("billing")
    assert max(counts.values()) - min(counts.values()) <= 1


def test_spreading_a_replay_that_has_no_domains_is_refused(grown: treering.Store, config: TrainConfig) -> None:
    for asked in ({"strategy": "lora-replay"}, {"strategy": "dual-replay", "replay_by": "balanced"}):
        with pytest.raises(treering.UsageError, match="replay_spread goes with replay_by='importance'"):
            train(grown, grown.mix("support@v1"), config.changed(replay_spread="label", **asked))
    balanced = strategy("dual-replay").settle(TrainConfig(strategy="dual-replay", replay_by="balanced"))
    assert balanced.replay_spread == ""
    assert strategy("dual-replay").settle(balanced) == balanced  # as a run that goes on does


def test_a_general_corpus_is_drawn_beside_the_mix(grown: treering.Store, config: TrainConfig) -> None:
    import pyarrow as pa

    world = grown.create("world", pa.schema([("text", pa.string()), ("label", pa.string())]), heldout=0.0)
    with world.capture() as live:
        live.extend({"text": f"the world has {n} things", "split": "train"} for n in range(30))
    world.snapshot()
    first = train(grown, grown.mix("support@v1"), config.changed(strategy="dual-replay", general="world@v1"))
    assert first.adapter.trained_on == ["support@v1"]  # nothing is replayed yet
    mix = grown.mix("support@v1", "support@v2", weights=[0.5, 0.5])
    dual = config.changed(strategy="dual-replay", general="world@v1", replay_rows=20, bottleneck=8)
    run = train(grown, mix, dual, parent=first.adapter.ref)
    assert run.lock.shares == pytest.approx((0.35, 0.5, 0.15), abs=1e-3)
    assert [source.train_rows for source in run.lock.sources] == [14, 32, 6]
    assert set(run.adapter.stats["rows_per_source"]) >= {"support@v2"}
    third = train(grown, grown.mix("support@v1..v2", "support@v3", weights=[0.5, 0.5]), dual, parent=run.adapter.ref)
    assert third.lock.shares == pytest.approx((0.35, 0.5, 0.15), abs=1e-3)  # trained on before, and no replay


def test_slda_takes_each_new_record_once(grown: treering.Store, config: TrainConfig) -> None:
    slda = config.changed(strategy="slda")
    first = train(grown, grown.mix("support@v1"), slda)
    second = train(grown, grown.mix("support@v1", "support@v2", weights=[0.5, 0.5]), slda, parent=first.adapter.ref)
    assert second.adapter.trained_on == ["support@v2"]
    weights = safetensors.torch.load(Registry(grown, "support").weights(second.adapter.ref))
    assert weights["stat.counts"].tolist() == [16.0, 16.0, 16.0, 16.0]


def test_naive_trains_on_what_the_parent_has_not_seen(grown: treering.Store, config: TrainConfig) -> None:
    first = train(grown, grown.mix("support@v1"), config)
    mix = grown.mix("support@v1", "support@v2", weights=[0.5, 0.5])
    naive = train(grown, mix, config.changed(strategy="naive"), parent=first.adapter.ref)
    assert naive.adapter.trained_on == ["support@v2"]
    assert naive.lock.shares == (0.0, 1.0)
    with pytest.raises(UsageError, match="new data only"):
        train(grown, grown.mix("support@v1"), config.changed(strategy="naive"), parent=naive.adapter.ref)


def test_what_was_learnt_from_live_is_known_once_it_is_sealed(
    support: treering.Corpus, grown: treering.Store, config: TrainConfig
) -> None:
    grow(support, "returns", seal=False)
    run = train(grown, grown.mix("support@v3", "support@live"), config)
    assert run.adapter.trained_on == ["support@v3"]
    assert run.adapter.trained_rows["support"]
    support.snapshot()
    with pytest.raises(UsageError, match="new data only"):
        train(grown, grown.mix("support@v4"), config.changed(strategy="naive"), parent=run.adapter.ref)


def test_joint_draws_all_records_alike_from_scratch(grown: treering.Store, config: TrainConfig) -> None:
    train(grown, grown.mix("support@v1"), config)
    joint = config.changed(strategy="joint")
    mix = grown.mix("support@v1..v2", "support@v3", weights=[0.1, 0.9])
    run = train(grown, mix, joint)
    assert run.adapter.parent is None
    assert run.lock.shares == pytest.approx((2 / 3, 1 / 3))
    with pytest.raises(UsageError, match="takes no parent"):
        train(grown, mix, joint, parent="support:1")


def test_the_default_parent_is_production_else_the_newest_that_no_gate_refused(
    grown: treering.Store, config: TrainConfig
) -> None:
    config = config.changed(steps=2)
    mix = grown.mix("support@v1")
    first = train(grown, mix, config)
    second = train(grown, mix, config)
    assert (first.adapter.parent, second.adapter.parent) == (None, "support:1")
    assert not gate(grown, second.adapter.ref, {"min_score": 1.0, "slices": {"support@v3": 1.0}}).passed
    assert train(grown, mix, config).adapter.parent == "support:1"
    assert gate(grown, "support:1", {"regression_tolerance": 1.0}).passed
    grown.promote("support:1")
    train(grown, mix, config)
    assert train(grown, mix, config).adapter.parent == "support:1"
    assert train(grown, mix, config, parent=None).adapter.parent is None
    assert train(grown, mix, config, parent="support:2").adapter.parent == "support:2"
    with pytest.raises(NotFoundError, match="support:99"):
        train(grown, mix, config, parent="support:99")


def test_replay_keeps_what_new_data_alone_forgets(grown: treering.Store, config: TrainConfig) -> None:
    last: dict[float, str | None] = {0.0: None, 0.5: None}
    for past in last:
        for number in (1, 2, 3):
            sources = ["support@v1..v2" if number == 3 else "support@v1", f"support@v{number}"][-number:]
            mix = grown.mix(*sources, weights=[past, 1.0][-number:])
            last[past] = train(grown, mix, config, parent=last[past]).adapter.ref
    forgot, kept = (score_matrix(grown, "support", adapter=ref) for ref in last.values())
    assert kept.bwt - forgot.bwt > 0.3
    assert score_matrix(grown, "support", adapter=last[0.5], fresh=True) == kept


def test_a_parent_on_another_base_is_refused(grown: treering.Store, config: TrainConfig, tmp_path: Path) -> None:
    train(grown, grown.mix("support@v1"), config.changed(steps=2))
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(ConflictError, match="another base"):
        train(grown, grown.mix("support@v1"), config.changed(base=other))


def test_records_that_are_not_labelled_are_refused_before_anything_is_read(
    store: treering.Store, config: TrainConfig
) -> None:
    bare = store.create("bare", "tokens")
    with bare.capture() as live:
        live.add({"tokens": [1, 2, 3], "split": "train"})
    with pytest.raises(UsageError, match="bare@live has no column text and label, and no messages"):
        train(store, store.mix("bare@live"), config)
    assert store.adapters("bare") == []


def test_a_corpus_without_held_out_records_trains_and_has_no_scores(
    support: treering.Corpus, config: TrainConfig
) -> None:
    with support.capture() as live:
        live.extend({**record, "split": "train"} for record in records("billing"))
    run = train(support.store, support.store.mix("support@live"), config.changed(steps=2))
    assert run.scores == {}


def test_a_diverged_run_adds_no_adapter_and_keeps_the_last_good_weights(
    grown: treering.Store, config: TrainConfig
) -> None:
    with pytest.raises(DivergedError) as caught:
        train(grown, grown.mix("support@v1"), config.changed(lr=1e30))
    assert grown.adapters("support") == []
    kept = Path(str(caught.value.hint).rpartition(": ")[2])
    assert caught.value.adapter is not None
    assert kept.read_bytes() == caught.value.adapter.to_bytes()


def test_the_activation_cache_may_be_dropped_at_any_time(grown: treering.Store, config: TrainConfig) -> None:
    import shutil

    mix = grown.mix("support@v1", "support@v2")
    first = train(grown, mix, config, parent=None)
    shutil.rmtree(grown.cache_dir)
    assert train(grown, mix, config, parent=None).adapter.digest == first.adapter.digest


def test_a_source_of_which_nothing_was_forgotten_gets_even_shares_of_a_budget_by_importance(
    grown: treering.Store, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(grown, grown.mix("support@v1"), config)
    train(grown, grown.mix("support@v1", "support@v2", weights=[0.5, 0.5]), config, parent="support:1")
    monkeypatch.setattr(sys.modules["treering.rounds.train"], "_forgetting", lambda *_: {"billing": 0.5})
    bounded = config.changed(strategy="replay", replay_rows=12, replay_by="importance")
    mix = grown.mix("support@v1", "support@v2", "support@v3", weights=[0.2, 0.2, 0.6])
    run = train(grown, mix, bounded, parent="support:2")
    assert len(grown.corpus("support").selections()) == 2
    assert run.adapter.parent == "support:2"


def test_a_gate_with_a_line_for_bwt_judges_what_has_none(support: treering.Corpus, config: TrainConfig) -> None:
    with support.capture() as live:
        live.extend([{**record, "split": "train"} for record in records("billing")])
    support.snapshot()
    train(support.store, support.store.mix("support@v1"), config)
    with pytest.raises(UsageError, match="no slice"):
        gate(support.store, "support:1", {"min_bwt": -0.05, "max_p99_ms": False})
    grow(support, "shipping", seal=False)
    train(support.store, support.store.mix("support@live"), config, parent="support:1")
    assert gate(support.store, "support:2", {"min_bwt": -0.05}).rows


def test_a_canary_sees_what_the_lineage_has_lost_and_passes_over_an_empty_live(
    grown: treering.Store, config: TrainConfig
) -> None:
    train(grown, grown.mix("support@v1"), config)
    train(grown, grown.mix("support@v2"), config.changed(strategy="naive", steps=200), parent="support:1")
    looked = evaluate(grown, "support:2", on=["support@v1", "support@v2", "support@live"], tolerance=0.02)
    assert looked.before["support@v1"] == grown.adapters("support")[0].scores["support@v1"]
    assert looked.dropped == ["support@v1"]
    assert looked.skipped == ["support@live"]
    with pytest.raises(UsageError, match="no labelled held-out records"):
        evaluate(grown, "support:2", on=["support@live"], tolerance=0.02)
