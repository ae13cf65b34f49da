"""Rounds over conversations, on real dialogues and a tiny language model: train, matrix, gate, promote, serve, export."""

from __future__ import annotations

import json
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

import treering
from tests.training.tiny_chat import WEATHER, call, make_chat_base, say
from treering.errors import AlreadyExistsError, StoreError, UsageError
from treering.registry import Registry
from treering.rounds import export_adapter
from treering.rounds.forms import load_weights
from treering.training import TrainConfig

yaml = pytest.importorskip("yaml")
pytest.importorskip("chatterbot_corpus")

THEMES = ("greetings", "psychology")


def dialogues(theme: str, most: int = 24) -> list[dict[str, Any]]:
    """Real exchanges of one theme, every third held out."""
    text = (files("chatterbot_corpus") / "data" / "english" / f"{theme}.yml").read_text(encoding="utf-8")
    talks = yaml.load(text, Loader=yaml.BaseLoader)["conversations"]
    pairs = [(one[0].strip(), one[1].strip()) for one in talks if len(one) == 2 and len("".join(one)) < 120]
    return [
        {"id": f"{theme}-{n}", "domain": theme, "messages": say(q, a), "split": "heldout" if n % 3 == 2 else "train"}
        for n, (q, a) in enumerate(pairs[:most])
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_chat_base(tmp_path_factory.mktemp("chat-base"))


@pytest.fixture(scope="module")
def config(base: str) -> TrainConfig:
    return TrainConfig(base=base, steps=40, batch_size=8, lr=1e-2, rank=8, warmup=4, precision="fp32", max_tokens=160)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> treering.Store:
    """Two snapshots of dialogues, one theme each."""
    store = treering.open(tmp_path_factory.mktemp("store"))
    chats = store.create("chats", "chat")
    for theme in THEMES:
        with chats.capture() as live:
            live.extend(dialogues(theme))
        chats.snapshot(message=theme)
    return store


@pytest.fixture(scope="module")
def rounds(grown: treering.Store, config: TrainConfig) -> dict[str, list[treering.Run]]:
    """Two rounds each: new data only, and with replay."""
    first = treering.train(grown, grown.mix("chats@v1", seed=3), config)
    found = {}
    for name, share in (("lora", 0.0), ("replay", 0.5)):
        mix = grown.mix("chats@v1", "chats@v2", weights=[share, 1.0 - share], seed=3)
        second = treering.train(grown, mix, config.changed(strategy=name), parent=first.adapter.ref)
        found[name] = [first, second]
    return found


def test_a_run_on_conversations_leaves_a_candidate_scored_by_its_loss(
    grown: treering.Store, rounds: dict[str, list[treering.Run]]
) -> None:
    first, second = rounds["replay"]
    assert (first.adapter.ref, first.adapter.status, first.adapter.metric) == ("chats:1", "candidate", "loss")
    assert second.adapter.parent == "chats:1"
    assert second.adapter.trained_on == ["chats@v1", "chats@v2"]
    assert set(second.scores) == {"chats@v1", "chats@v2"}
    card = Registry(grown, "chats").card(second.adapter.ref)
    assert card["format"] == "treering.chat-card/1"
    assert card["stats"]["rows_per_source"] == {"chats@v1": 160, "chats@v2": 160}
    assert card["stats"]["texts_cut"] == 0
    assert card["stats"]["packed"]
    again = treering.evaluate(grown, second.adapter.ref, fresh=True)
    assert (again.metric, again.scores) == ("loss", second.scores)


def test_replay_forgets_less_and_bwt_is_below_0_for_a_loss_that_rose(
    grown: treering.Store, rounds: dict[str, list[treering.Run]]
) -> None:
    matrices = {
        name: treering.score_matrix(grown, "chats", adapter=runs[-1].adapter.ref) for name, runs in rounds.items()
    }
    naive, replay = matrices["lora"], matrices["replay"]
    assert (naive.metric, naive.better) == ("loss", "lower")
    assert naive.values[1, 0] > naive.values[0, 0]  # the loss on the first theme rose …
    assert naive.bwt < 0  # … and that is forgetting
    assert naive.bwt == pytest.approx(naive.values[0, 0] - naive.values[1, 0])
    assert replay.bwt > naive.bwt + 0.1
    by_perplexity = treering.score_matrix(grown, "chats", adapter=rounds["lora"][-1].adapter.ref, metric="perplexity")
    assert by_perplexity.bwt < 0


def test_the_gate_judges_a_loss_the_right_way_round(
    grown: treering.Store, rounds: dict[str, list[treering.Run]]
) -> None:
    forgot, kept = (rounds[name][-1].adapter.ref for name in ("lora", "replay"))
    verdict = treering.gate(grown, forgot, {"regression_tolerance": 0.1, "max_p99_ms": False}, record=False)
    assert not verdict.passed
    assert verdict.policy.metric == "loss"
    assert "chats@v1 rose by" in verdict.reasons[0]
    assert "nats" in verdict.reasons[0]
    fine = {"regression_tolerance": 5.0, "min_score": 20.0, "min_bwt": -9.0, "metric": "loss", "max_p99_ms": False}
    assert treering.gate(grown, kept, fine, record=False).passed
    low = treering.gate(grown, kept, {**fine, "min_score": 0.01}, record=False)
    assert "above its maximum of 0.010 nats" in low.reasons[0]
    bwt = treering.gate(grown, forgot, {**fine, "min_bwt": -0.01}, record=False)
    assert "BWT is" in bwt.reasons[0]
    assert bwt.budget is None or bwt.budget.p99_ms > 0


def test_from_the_gate_to_replies(grown: treering.Store, rounds: dict[str, list[treering.Run]]) -> None:
    kept, forgot = (rounds[name][-1].adapter.ref for name in ("replay", "lora"))
    policy = {"regression_tolerance": 5.0, "metric": "loss", "max_p99_ms": 60_000.0}
    assert treering.gate(grown, kept, policy).passed
    assert grown.promote(kept).status == "production"
    model = treering.load_adapter(grown, "chats:production")
    assert model.ref == kept
    said = model.generate([{"role": "user", "content": "What is a computer?"}], max_new_tokens=12)
    assert said["role"] == "assistant"
    assert not model.refresh()
    assert treering.gate(grown, forgot, policy).passed
    grown.promote(forgot)
    assert model.ref == kept  # until somebody looks
    assert model.refresh()
    assert model.ref == forgot
    grown.rollback("chats")
    assert model.refresh()
    assert model.ref == kept
    assert model.generate([{"role": "user", "content": "What is a computer?"}], max_new_tokens=12) == said


def test_the_same_lock_config_and_base_give_the_same_digest(grown: treering.Store, config: TrainConfig) -> None:
    config = config.changed(steps=3)
    one = treering.train(grown, grown.mix("chats@v1", "chats@v2", seed=5), config, parent=None)
    two = treering.train(grown, one.lock, config, parent=None)
    assert one.adapter.digest == two.adapter.digest


def test_shares_by_tokens_are_shares_of_what_is_read(tmp_path: Path, base: str, config: TrainConfig) -> None:
    from treering.training.chat import ChatBase

    store = treering.open(tmp_path)
    for name, words in (("short", 2), ("long", 12)):
        corpus = store.create(name, "chat", heldout=0.0)
        with corpus.capture() as live:
            live.extend({"messages": say(f"{n}?", "word " * words)} for n in range(30))
        corpus.snapshot()
    count = ChatBase.load(base, precision="fp32", max_tokens=160).count
    for how in ({}, {"count_tokens": count}):
        mix = store.mix("short@v1", "long@v1", weights=[0.5, 0.5], share_by="tokens", **how)
        run = treering.train(store, mix, config.changed(steps=8, batch_size=30), parent=None, corpus="short")
        tokens = run.adapter.stats["tokens_per_source"]
        share = tokens["short@v1"] / sum(tokens.values())
        assert share == pytest.approx(0.5, abs=0.02 if how else 0.2)
        rows = run.adapter.stats["rows_per_source"]
        assert rows["short@v1"] > 1.3 * rows["long@v1"]


def test_tool_calls_are_matched_over_held_out_conversations(tmp_path: Path, base: str, config: TrainConfig) -> None:
    store = treering.open(tmp_path)
    corpus = store.create("calls", "chat")
    with corpus.capture() as live:
        for n, city in enumerate(["Paris", "London", "Paris", "London"]):
            split = "train" if n < 2 else "heldout"
            live.add({"messages": call(city), "tools": [WEATHER], "split": split, "domain": city})
        live.add({"messages": [{"role": "user", "content": "nobody answers"}], "split": "heldout"})
    corpus.snapshot()
    mix = store.mix("calls@v1")
    weak = treering.train(store, mix, config.changed(steps=1), parent=None)
    good = treering.train(store, mix, config.changed(steps=60), parent=None)
    found = [treering.evaluate(store, run.adapter.ref, metric="tool_call_match") for run in (weak, good)]
    assert [one.scores["calls@v1"] for one in found] == [0.0, 1.0]
    assert found[0].rows == {"calls@v1": 2}  # a conversation without a reply can't be scored
    assert treering.score_matrix(store, "calls", adapter=good.adapter.ref, by="domain").slices == (
        "calls[domain=Paris]",
        "calls[domain=London]",
    )
    replies = treering.evaluate(store, good.adapter.ref, metric=lambda truth, said: float(list(truth) == list(said)))
    assert replies.scores["calls@v1"] in (0.0, 1.0)
    with pytest.raises(UsageError, match="chat model says what no list of labels holds"):
        treering.evaluate(store, good.adapter.ref, metric="macro_f1")


def test_what_does_not_go_together_is_refused_before_anything_is_read(
    grown: treering.Store, config: TrainConfig
) -> None:
    if "labelled" not in {corpus.name for corpus in grown.corpora()}:
        with grown.create("labelled", "labelled").capture() as live:
            live.add({"text": "hi", "label": "greeting", "split": "train"})
    with pytest.raises(UsageError, match="one adapter can't learn both"):
        treering.train(grown, grown.mix("chats@v1", "labelled@live"), config)
    with pytest.raises(UsageError, match="doesn't train on conversations"):
        treering.train(grown, grown.mix("chats@v1"), config.changed(strategy="slda"))


def test_one_reservoir_of_conversations_is_a_stored_selection_of_the_lock(
    grown: treering.Store, rounds: dict[str, list[treering.Run]], config: TrainConfig
) -> None:
    buffered = config.changed(strategy="lora-replay", replay_rows=5, steps=4)
    mix = grown.mix("chats@v1", "chats@v2", weights=[0.5, 0.5])
    run = treering.train(grown, mix, buffered, parent=rounds["replay"][0].adapter.ref)
    first = run.lock.sources[0]
    assert first.train_rows == 5
    assert first.pin.selection is not None
    assert run.adapter.config["kind"] == "lora"
    assert run.adapter.config["steps"] == 4


def test_the_commands_show_a_loss_as_it_is(
    grown: treering.Store, rounds: dict[str, list[treering.Run]], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from treering.cli.app import app

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["--store", grown.uri, *words])

    last = rounds["lora"][-1]
    shown = f"{last.scores['chats@v1']:.3f}"
    for words in (
        ["eval", last.adapter.ref],
        ["eval", last.adapter.ref, "--matrix"],
        ["show", last.adapter.ref],
        ["lineage", last.adapter.ref],
    ):
        done = run(*words)
        assert done.exit_code == 0, done.stderr
        assert shown in done.stdout, words
    matrix = run("eval", last.adapter.ref, "--matrix").stdout
    assert "loss, the lower the better" in matrix
    policy = tmp_path / "gate.toml"
    policy.write_text("regression_tolerance = 0.01\nmax_p99_ms = false\nmax_memory_gb = false\n")
    refused = run("gate", last.adapter.ref, "--policy", str(policy))
    assert refused.exit_code == 3
    assert "nats" in refused.stderr
    unasked = run("eval", last.adapter.ref, "--diagnose")
    assert (unasked.exit_code, "chat model" in unasked.stderr) == (2, True)


def test_training_stops_when_a_past_slice_has_dropped_and_keeps_the_last_look_without_a_drop(
    grown: treering.Store, rounds: dict[str, list[treering.Run]], config: TrainConfig
) -> None:
    parent = rounds["lora"][0].adapter.ref
    stopping = config.changed(strategy="lora", eval_every=2, eval_tolerance=0.02)
    run = treering.train(grown, grown.mix("chats@v2"), stopping, parent=parent)
    assert run.stopped is not None
    assert "chats@v1 by" in run.stopped
    assert run.adapter.stats["steps"] < config.steps
    before = treering.evaluate(grown, parent, on="chats@v1").scores["chats@v1"]
    assert run.scores["chats@v1"] < before + 0.1


def test_a_whole_round_over_conversations_in_one_call(tmp_path: Path, base: str) -> None:
    store = treering.open(tmp_path)
    chats = store.create("chats", "chat")
    train = {"base": base, "steps": 4, "lr": 1e-2, "rank": 4, "precision": "fp32", "max_tokens": 160}
    plan = {"corpus": "chats", "train": train, "gate": {"regression_tolerance": 1.0, "max_p99_ms": 60_000.0}}
    for number, theme in enumerate(THEMES, 1):
        with chats.capture() as live:
            live.extend(dialogues(theme, most=9))
        done = treering.round(store, plan, now=True)
        assert (done.outcome, done.adapter) == ("promoted", f"chats:{number}")
    record = store.adapters("chats")[-1]
    assert (record.metric, record.trained_on) == ("loss", ["chats@v1", "chats@v2"])
    assert (record.config["kind"], record.config["batch_size"]) == (
        "lora",
        16,
    )  # as conversations want what isn't given
    assert record.verdict is not None
    assert record.verdict.policy.metric == "loss"
    assert "<svg" in store.report("chats", tmp_path / "chats.html", quick=True).read_text()


# -- export


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_an_exported_chat_adapter_loads_in_peft_with_equal_logits(
    grown: treering.Store, rounds: dict[str, list[treering.Run]], tmp_path: Path, base: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ref = rounds["replay"][-1].adapter.ref
    told = export_adapter(grown, ref, tmp_path / "out")
    assert told.files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (told.task_type, told.rank, told.adapter) == ("CAUSAL_LM", 8, ref)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model:")
    assert rounds["replay"][-1].adapter.digest in card
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")).eval()
    ours = load_weights(Registry(grown, "chats").weights(ref), Registry(grown, "chats").card(ref))
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)("Where is my parcel?")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, ours._prepared()(input_ids=ids).logits)
        plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
        assert not torch.allclose(plain, model(ids).logits)
    with pytest.raises(AlreadyExistsError, match="isn't empty"):
        export_adapter(grown, ref, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        export_adapter(grown, ref, tmp_path / "file")


def test_a_pickle_or_a_tampered_card_in_an_adapters_place_is_refused(
    grown: treering.Store, rounds: dict[str, list[treering.Run]]
) -> None:
    import pickle

    registry = Registry(grown, "chats")
    ref = rounds["replay"][0].adapter.ref
    weights, card = registry.weights(ref), registry.card(ref)
    with pytest.raises(StoreError, match="not an adapter"):
        load_weights(pickle.dumps({"a": 1}), card)
    for change in ({"auto_mapping": {"parent_library": "os"}}, {"format": "treering.chat-card/9"}):
        with pytest.raises(StoreError, match="not a model card"):
            load_weights(weights, {**card, **change})
    with pytest.raises(StoreError, match="don't belong together"):
        load_weights(weights, {**card, "weights_digest": "0" * 64})


def test_threads_go_on_being_answered_while_adapters_are_swapped(
    grown: treering.Store, rounds: dict[str, list[treering.Run]]
) -> None:
    kept, forgot = (rounds[name][-1].adapter.ref for name in ("replay", "lora"))
    policy = {"regression_tolerance": 9.0, "metric": "loss", "max_p99_ms": False, "max_memory_gb": False}
    question = [{"role": "user", "content": "What is a computer?"}]
    said = {}
    for ref in (kept, forgot):
        said[ref] = treering.load_adapter(grown, ref).generate(question, max_new_tokens=6)
    assert treering.gate(grown, kept, policy).passed
    grown.promote(kept)
    model = treering.load_adapter(grown, "chats:production")
    stop, wrong, heard = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            reply = model.generate(question, max_new_tokens=6)
            heard.add(json.dumps(reply))
            if reply not in said.values():
                wrong.append(reply)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for ref in (forgot, kept, forgot):
        assert treering.gate(grown, ref, policy).passed
        grown.promote(ref)
        assert model.refresh()
        assert model.ref == ref
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert heard
    assert model.adapter.base is treering.load_adapter(grown, kept).adapter.base  # one base for all of them
