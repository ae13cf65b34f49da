"""Chat adapters without a store: packing, the loop, what is saved and loaded, several over one base, threads."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.tiny_chat import WEATHER, call, make_chat_base, make_tokenizer, say
from treering.errors import ConflictError, StoreError, UsageError
from treering.training import DivergedError, TrainConfig
from treering.training.chat import ChatAdapter, ChatBase, fit_chat
from treering.training.chat.base import token_losses
from treering.training.chat.packing import pack, passes
from treering.training.conversation import Conversation
from treering.training.lora import target_modules

PARCEL = [say("Where is my parcel?", "With the courier."), say("Where is it?", "It comes tomorrow.")]
PASSWORD = [say("Change my password?", "Open the settings."), say("How do I change it?", "Choose a new one.")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_chat_base(tmp_path_factory.mktemp("chat-base"))


@pytest.fixture(scope="module")
def base(path: str) -> ChatBase:
    return ChatBase.load(path, precision="fp32", max_tokens=96)


@pytest.fixture
def config(path: str) -> TrainConfig:
    return TrainConfig(base=path, steps=30, batch_size=4, lr=3e-3, rank=4, warmup=2, precision="fp32", max_tokens=96)


def batches(talks: list[Any], *, tools: list[Any] | None = None, source: int = 0) -> list[dict[str, Any]]:
    batch = {"messages": talks, "_ref": torch.full((len(talks),), source)}
    return [batch if tools is None else {**batch, "tools": tools}]


# -- packing


def test_packing_fills_rows_and_loses_no_sequence() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 60, 200).tolist()
    rows = pack(lengths, 64)
    assert sorted(n for row in rows for n in row) == list(range(200))
    assert max(sum(lengths[n] for n in row) for row in rows) <= 64
    assert len(rows) <= -(-sum(lengths) // 64) * 11 / 9 + 1
    assert pack([70, 10], 64) == [[0], [1]]
    assert pack([], 64) == []


def test_passes_keep_to_their_bound_and_targets_are_the_next_token() -> None:
    ids = [np.arange(k, dtype=np.int32) + 10 * k for k in range(2, 12)]
    learn = [np.ones(len(one), np.bool_) for one in ids]
    for packing in (True, False):
        found = passes(ids, learn, capacity=16, tokens_per_pass=40, packing=packing, pad=0)
        assert all(batch.ids.size <= 40 for batch in found)
        assert sum(batch.tokens for batch in found) == sum(map(len, ids))
        for batch in found:
            known = batch.targets >= 0
            assert (batch.targets[known] == np.roll(batch.ids, -1, axis=1)[known]).all()
            assert (np.roll(batch.owner, -1, axis=1)[known] == batch.owner[known]).all()  # never another's first token
            assert (batch.positions[batch.owner >= 0] < 12).all()
    assert sum(int((batch.targets >= 0).sum()) for batch in found) == sum(len(one) - 1 for one in ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_conversations_in_one_row_do_not_see_each_other(kind: str, tmp_path: Path) -> None:
    base = ChatBase.load(make_chat_base(tmp_path, kind=kind), precision="fp32", max_tokens=200)
    assert base.can_pack
    rendered = [base.template.rendered(Conversation.of(talk))[0] for talk in [*PARCEL, *PASSWORD]]
    ids, learn = [one.ids for one in rendered], [one.learn for one in rendered]
    with torch.inference_mode():
        losses = {}
        for packing in (True, False):
            (batch,) = passes(ids, learn, capacity=200, tokens_per_pass=4_096, packing=packing, pad=base.pad)
            found, owner = token_losses(base.model, base, batch, packed=packing)
            losses[packing] = [found[owner == n].sum().item() for n in range(4)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_a_model_that_carries_a_state_along_is_not_packed(tmp_path: Path) -> None:
    base = ChatBase.load(make_chat_base(tmp_path, kind="mamba"), precision="fp32", max_tokens=96)
    assert not base.can_pack


# -- the loop


def test_training_lowers_the_loss_and_says_what_it_did(config: TrainConfig, base: ChatBase) -> None:
    talks = [*PARCEL, PARCEL[0], [{"role": "user", "content": "hello?"}], say("x", "y" * 300)]
    adapter = fit_chat(batches(talks), config, base=base)
    stats = adapter.card.stats
    assert stats is not None
    assert stats.loss_last < 0.5 * stats.loss_first
    assert (stats.rows_drawn, stats.rows_distinct, stats.steps) == (5 * 30, 4, 30)
    assert (stats.rows_without_reply, stats.texts_cut, stats.rows_refused) == (30, 30, 0)
    assert stats.tokens_cut > 0
    assert stats.tokens_learnt < stats.tokens_drawn
    assert stats.packed
    assert 0.3 < stats.fill <= 1
    assert stats.template == "tokenizer"
    assert stats.trainable_parameters == sum(v.numel() for v in adapter.tensors.values())
    assert adapter.loss(PARCEL) < 0.9 * _base_loss(base, PARCEL)


def _base_loss(base: ChatBase, talks: list[Any]) -> float:
    rendered = [base.template.rendered(Conversation.of(talk))[0] for talk in talks]
    with torch.inference_mode():
        (batch,) = passes(
            [r.ids for r in rendered],
            [r.learn for r in rendered],
            capacity=96,
            tokens_per_pass=999,
            packing=False,
            pad=0,
        )
        return float(token_losses(base.model, base, batch, packed=False)[0].mean())


def test_the_base_is_left_as_it_was_and_held_once(config: TrainConfig, base: ChatBase) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    places = {value.data_ptr() for value in base.model.parameters()}
    one, two = (fit_chat(batches(talks), config.changed(steps=2), base=base) for talks in (PARCEL, PASSWORD))
    for adapter in (one, two):
        adapter.prepare()
        lent = {v.data_ptr() for name, v in adapter._net.named_parameters() if "lora_" not in name}
        assert lent == places
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_same_batches_config_and_base_give_the_same_bytes(config: TrainConfig, base: ChatBase) -> None:
    config = config.changed(steps=5)
    one, two = (fit_chat(batches(PARCEL), config, base=base) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()
    assert fit_chat(batches(PARCEL), config.changed(seed=1), base=base).digest != one.digest
    assert fit_chat(batches(PASSWORD), config, base=base).digest != one.digest


def test_gradients_accumulate_to_those_of_one_pass(config: TrainConfig, base: ChatBase) -> None:
    config = config.changed(steps=3)
    talks = [*PARCEL, *PASSWORD]
    one = fit_chat(batches(talks), config.changed(tokens_per_pass=4_096), base=base)
    many = fit_chat(batches(talks), config.changed(tokens_per_pass=32), base=base)
    alone = fit_chat(batches(talks), config.changed(packing=False), base=base)
    assert one.card.stats is not None
    assert many.card.stats is not None
    assert alone.card.stats is not None
    assert (one.card.stats.passes, many.card.stats.passes > 3, alone.card.stats.packed) == (3, True, False)
    for other in (many, alone):
        for name, value in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], value, rtol=2e-2, atol=2e-4)


def test_long_gradients_are_shortened(config: TrainConfig, base: ChatBase, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters: Any, most: float) -> Any:
        parameters = list(parameters)
        found = real(parameters, most)
        norms.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))
        return found

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    fit_chat(batches(PARCEL), config.changed(steps=3, clip_norm=0.01), base=base)
    assert len(norms) == 3
    assert max(norms) <= 0.0101
    fit_chat(batches(PARCEL), config.changed(steps=3, clip_norm=0.0), base=base)
    assert len(norms) == 3


def test_bf16_runs_where_asked_for(config: TrainConfig, path: str) -> None:
    adapter = fit_chat(batches(PARCEL), config.changed(precision="bf16", steps=10))
    assert adapter.base.precision == "bf16"
    assert adapter.base.model.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in adapter.tensors.values())
    assert adapter.base.digest == ChatBase.load(path, precision="fp32", max_tokens=96).digest
    assert 0 < adapter.loss(PARCEL) < 10


def test_a_loader_that_ends_early_is_begun_again_and_one_with_nothing_is_refused(
    config: TrainConfig, base: ChatBase
) -> None:
    assert fit_chat(batches(PARCEL), config.changed(steps=3), base=base).card.stats.rows_drawn == 6  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="nothing to train on"):
        fit_chat(batches([[{"role": "user", "content": "hello?"}]]), config, base=base)
    with pytest.raises(UsageError, match="within 2 tokens"):
        fit_chat(batches(PARCEL), config.changed(max_tokens=2))
    with pytest.raises(UsageError, match="no column messages"):
        fit_chat([{"text": ["x"], "label": ["y"]}], config, base=base)
    with pytest.raises(UsageError, match="nothing to train on"):
        fit_chat([], config, base=base)


def test_what_the_template_refuses_is_counted_and_the_rest_is_learnt(config: TrainConfig, tmp_path: Path) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('no system here') }}{% endif %}" + str(
        make_tokenizer().chat_template
    )
    path = make_chat_base(tmp_path, template=strict)
    talks = [*PARCEL, [{"role": "system", "content": "Be kind."}, *PARCEL[0]]]
    adapter = fit_chat(batches(talks), config.changed(base=path, steps=2))
    assert adapter.card.stats is not None
    assert adapter.card.stats.rows_refused == 2
    with pytest.raises(UsageError, match="no system here"):
        fit_chat(batches(talks[2:]), config.changed(base=path))


def test_strategies_that_need_classes_are_refused_with_those_that_do_not(config: TrainConfig, base: ChatBase) -> None:
    for name in ("slda", "dual-replay", "nonsense"):
        with pytest.raises(UsageError, match="doesn't train on conversations") as caught:
            fit_chat(batches(PARCEL), config.changed(strategy=name), base=base)
        assert "lora-replay" in str(caught.value.hint)
    with pytest.raises(UsageError, match="learnt by LoRA"):
        fit_chat(batches(PARCEL), config.changed(kind="gated"), base=base)


def test_a_run_goes_on_from_its_parent(config: TrainConfig, base: ChatBase) -> None:
    first = fit_chat(batches(PARCEL), config, base=base)
    second = fit_chat(batches(PARCEL), config.changed(steps=2), base=base, parent=first)
    fresh = fit_chat(batches(PARCEL), config.changed(steps=2), base=base)
    assert second.loss(PARCEL) < 0.7 * fresh.loss(PARCEL)
    joint = fit_chat(batches(PARCEL), config.changed(steps=2, strategy="joint"), base=base, parent=first)
    assert joint.loss(PARCEL) == pytest.approx(fresh.loss(PARCEL))
    with pytest.raises(UsageError, match="rank 4"):
        fit_chat(batches(PARCEL), config.changed(rank=8), base=base, parent=first)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(
    config: TrainConfig, base: ChatBase
) -> None:
    with pytest.raises(DivergedError) as caught:
        fit_chat(batches(PARCEL), config.changed(lr=1e30, clip_norm=0.0, warmup=0), base=base)
    kept: Any = caught.value.adapter
    assert isinstance(kept, ChatAdapter)
    assert all(bool(torch.isfinite(value).all()) for value in kept.tensors.values())


# -- ewc


def test_ewc_keeps_the_fisher_information_and_forgets_less(config: TrainConfig, base: ChatBase) -> None:
    config = config.changed(strategy="ewc", strength=1e4)
    first = fit_chat(batches(PARCEL), config, base=base)
    assert set(first.header.state) == {f"state.fisher.{name}" for name in first.header.lora.shapes()}
    assert all(bool((first.tensors[name] >= 0).all()) for name in first.header.state)
    second = fit_chat(batches(PASSWORD), config, base=base, parent=first)
    naive = fit_chat(batches(PASSWORD), config.changed(strategy="naive"), base=base, parent=first)
    assert second.loss(PARCEL) < naive.loss(PARCEL) - 0.1
    name = next(iter(first.header.state))
    assert bool((second.tensors[name] >= first.tensors[name]).all())  # summed over rounds


def test_ewc_of_strength_0_is_naive(config: TrainConfig, base: ChatBase) -> None:
    first = fit_chat(batches(PARCEL), config.changed(strategy="ewc", steps=4), base=base)
    config = config.changed(steps=4)
    naive = fit_chat(batches(PASSWORD), config.changed(strategy="naive"), base=base, parent=first)
    ewc = fit_chat(batches(PASSWORD), config.changed(strategy="ewc", strength=0.0), base=base, parent=first)
    assert ewc.tensors.keys() == naive.tensors.keys()
    assert all(torch.equal(ewc.tensors[name], value) for name, value in naive.tensors.items())


def test_o_lora_leaves_former_subspaces_as_they_are_and_turns_from_them(config: TrainConfig, base: ChatBase) -> None:
    first = fit_chat(batches(PARCEL), config.changed(strategy="o-lora"), base=base)
    overlap = {}
    for strength in (0.0, 50.0):
        second = fit_chat(
            batches(PASSWORD), config.changed(strategy="o-lora", strength=strength), base=base, parent=first
        )
        assert second.header.lora.rank == 8
        overlap[strength] = 0.0
        for name, value in first.tensors.items():
            now = second.tensors[name]
            assert torch.equal(now[:4] if name.endswith(".A") else now[:, :4], value)
            if name.endswith(".A"):
                overlap[strength] += float(((now[4:] @ value.T) ** 2).sum())
    assert overlap[50.0] < 0.1 * overlap[0.0]
    assert second.loss(PASSWORD) < 0.8 * first.loss(PASSWORD)
    assert ChatAdapter.load(second.to_bytes(), second.card, base=base).loss(PASSWORD) == second.loss(PASSWORD)


# -- the adapter as a value


@pytest.fixture(scope="module")
def weatherman(path: str, base: ChatBase) -> ChatAdapter:
    """Has learnt to call the tool for Paris and London."""
    config = TrainConfig(base=path, steps=90, batch_size=4, lr=1e-2, rank=8, warmup=2, precision="fp32", max_tokens=96)
    talks = [call("Paris"), call("London"), *PARCEL]
    return fit_chat(batches(talks, tools=[[WEATHER], [WEATHER], None, None]), config, base=base)


def test_it_says_what_it_learnt_and_calls_tools(weatherman: ChatAdapter) -> None:
    assert weatherman.generate(PARCEL[0][:1]) == {"role": "assistant", "content": "With the courier."}
    made = weatherman.generate(call("Paris")[:1], [WEATHER])
    assert [one["function"] for one in made["tool_calls"]] == [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    assert weatherman.predict([json.dumps(PARCEL[0]), PARCEL[0][:1]]) == ["With the courier."] * 2
    truth, said = weatherman.calls([call("Paris"), PARCEL[0], call("London")])
    assert truth == said
    assert len(truth) == 2


def test_a_reply_is_as_long_as_it_may_be(weatherman: ChatAdapter) -> None:
    short = weatherman.generate(PARCEL[0][:1], max_new_tokens=2)["content"]
    assert "With the courier.".startswith(short)
    assert len(short) < 10
    with pytest.raises(UsageError, match="max_new_tokens"):
        weatherman.generate(PARCEL[0][:1], max_new_tokens=0)
    with pytest.raises(UsageError, match="looks back on 256"):
        weatherman.generate([{"role": "user", "content": "why? " * 400}])
    long = [*say("why? " * 400, ""), *call("Paris")]
    assert weatherman.calls([long])[1] == ["[]"]


def test_the_loss_of_a_slice_is_that_of_its_tokens_however_they_lie(weatherman: ChatAdapter) -> None:
    talks = [*PARCEL, *PASSWORD, [{"role": "user", "content": "hello?"}]]
    nats, tokens = weatherman.losses(talks)
    assert tokens[-1] == 0
    assert weatherman.loss(talks) == pytest.approx(nats.sum() / tokens.sum())
    one_by_one = [weatherman.losses([talk])[0][0] for talk in talks]
    assert one_by_one == pytest.approx(nats.tolist(), rel=1e-4)
    with pytest.raises(UsageError, match="nothing that the assistant said"):
        weatherman.loss(talks[-1:])


def test_an_adapter_comes_back_from_its_bytes(weatherman: ChatAdapter) -> None:
    again = ChatAdapter.load(weatherman.to_bytes(), weatherman.card.model_dump(mode="json"))
    assert again.digest == weatherman.digest == weatherman.card.weights_digest
    assert again.generate(PARCEL[0][:1]) == weatherman.generate(PARCEL[0][:1])
    assert again.loss(PARCEL) == weatherman.loss(PARCEL)


def test_an_adapter_on_another_base_is_refused(weatherman: ChatAdapter, tmp_path: Path) -> None:
    for number, other in enumerate(({"seed": 1}, {"template": None})):
        base = ChatBase.load(make_chat_base(tmp_path / str(number), **other), precision="fp32")  # type: ignore[arg-type]
        with pytest.raises(ConflictError, match="another base"):
            ChatAdapter.load(weatherman.to_bytes(), weatherman.card, base=base).generate(PARCEL[0][:1])
        with pytest.raises(ConflictError, match="another base"):
            fit_chat(batches(PARCEL), weatherman.config, base=base, parent=weatherman)


def test_bytes_that_are_no_adapter_are_refused(weatherman: ChatAdapter) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a pickle was run",))

    for weights in (pickle.dumps(Bad()), b"", b"\xff" * 100, weatherman.to_bytes()[:-10]):
        with pytest.raises(StoreError, match="not an adapter"):
            ChatAdapter.load(weights, weatherman.card)
    flipped = bytearray(weatherman.to_bytes())
    flipped[-1] ^= 0x01
    with pytest.raises(StoreError, match="weights differ"):
        ChatAdapter.load(bytes(flipped), weatherman.card)


def test_tensors_that_do_not_belong_are_refused(weatherman: ChatAdapter, base: ChatBase) -> None:
    def bytes_of(tensors: dict[str, Any], **header: Any) -> bytes:
        changed = weatherman.header.model_copy(update=header)
        return ChatAdapter(changed, tensors).to_bytes()

    name, value = next(iter(weatherman.tensors.items()))
    for tensors, why in (
        ({**weatherman.tensors, name: torch.full_like(value, float("nan"))}, "isn't finite"),
        ({**weatherman.tensors, name: value[:, :-1].contiguous()}, "isn't float32"),
        ({**weatherman.tensors, "more": value.clone()}, "unknown tensor"),
        ({k: v for k, v in weatherman.tensors.items() if k != name}, "isn't float32"),
    ):
        with pytest.raises(StoreError, match=why):
            ChatAdapter.load(bytes_of(tensors), weatherman.card)
    lora = weatherman.header.lora
    elsewhere = lora.model_copy(update={"modules": {"model.layers.9.self_attn.q_proj": [32, 32]}})
    shapes = {k: torch.zeros(shape) for k, shape in elsewhere.shapes().items()}
    weights = bytes_of(shapes, lora=elsewhere)
    card = weatherman.card.model_copy(update={"weights_digest": ChatAdapter(weatherman.header, {}).digest})
    with pytest.raises(StoreError, match="don't belong together"):
        ChatAdapter.load(weights, card)
    import hashlib

    card = card.model_copy(update={"weights_digest": hashlib.sha256(weights).hexdigest()})
    with pytest.raises(StoreError, match=r"it has no model\.layers\.9"):
        ChatAdapter.load(weights, card, base=base).generate(PARCEL[0][:1])


def test_what_is_no_chat_base_is_refused(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    from tests.training.tiny import make_base

    with pytest.raises(UsageError, match="it is bert, which has no head"):
        ChatBase.load(make_base(tmp_path / "bert"))
    make_tokenizer().save_pretrained(tmp_path / "roberta")
    shape = RobertaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RobertaForMaskedLM(shape).save_pretrained(tmp_path / "roberta")
    with pytest.raises(UsageError, match="it is roberta, which looks ahead"):
        ChatBase.load(str(tmp_path / "roberta"))

    folder = Path(make_chat_base(tmp_path / "endless"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="no end-of-text token"):
        ChatBase.load(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="isn't a causal language model"):
        ChatBase.load(str(tmp_path / "empty"))
    pickled = Path(make_chat_base(tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(UsageError, match="isn't a causal language model"):
        ChatBase.load(str(pickled))


def test_threads_may_ask_many_adapters_over_one_base_at_once(
    config: TrainConfig, base: ChatBase, weatherman: ChatAdapter
) -> None:
    other = fit_chat(batches(PASSWORD), config, base=base)
    other = ChatAdapter.load(
        other.to_bytes(), other.card, base=base
    )  # not prepared yet: the first questions race for it
    wanted = {
        id(adapter): (adapter.generate(PARCEL[0][:1], max_new_tokens=8), adapter.loss(PASSWORD))
        for adapter in (weatherman, ChatAdapter.load(other.to_bytes(), other.card, base=base))
    }
    expected = list(wanted.values())

    def ask(number: int) -> bool:
        adapter = (weatherman, other)[number % 2]
        said = adapter.generate(PARCEL[0][:1], max_new_tokens=8)
        return said == expected[number % 2][0] and adapter.loss(PASSWORD) == pytest.approx(expected[number % 2][1])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(16)))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_gpt2_whose_maps_are_turned_is_learnt_and_exported_alike(config: TrainConfig, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from treering.training.lora import export_peft

    path = make_chat_base(tmp_path / "gpt2", kind="gpt2")
    adapter = fit_chat(batches(PARCEL), config.changed(base=path))
    assert {name.rpartition(".")[2] for name in adapter.header.lora.modules} == {"c_attn", "c_proj", "c_fc"}
    assert adapter.header.lora.transposed
    assert adapter.card.stats is not None
    assert adapter.card.stats.loss_last < 0.8 * adapter.card.stats.loss_first
    export_peft(tmp_path / "out", adapter.tensors, adapter.header.lora, base=path, task_type="CAUSAL_LM")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), str(tmp_path / "out")).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(peft(ids).logits, adapter._prepared()(input_ids=ids).logits)


def test_lora_sits_on_the_maps_of_attention_and_feed_forward(base: ChatBase) -> None:
    found = {name.rpartition(".")[2] for name in target_modules(base.model)}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
