from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.tiny import batches, records
from treering.errors import StoreError, UsageError
from treering.training import Adapter, Base, TrainConfig, fit
from treering.training.lora import (
    LoraShape,
    attach,
    check_adapter_config,
    export_peft,
    import_peft,
    load_lora,
    lora_tensors,
    share,
    target_modules,
)

TEXTS = [row["text"] for row in records("billing", 12)]
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"], "bias": "none"}


@pytest.fixture
def shape(tiny: Base) -> LoraShape:
    return LoraShape(rank=4, alpha=8.0, modules=target_modules(tiny.model, top=2))


def pooled(model: Any, base: Base) -> torch.Tensor:
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state)


def test_what_is_adapted_are_linear_maps_of_the_top_layers(tiny: Base) -> None:
    names = target_modules(tiny.model, top=1)
    assert names["encoder.layer.2.attention.self.query"] == [32, 32]
    assert names["encoder.layer.2.intermediate.dense"] == [32, 64]
    assert all(".2." in name for name in names)
    assert len(target_modules(tiny.model)) == 3 * len(names)
    attention, mlp = (target_modules(tiny.model, top=1, targets=t) for t in ("attention", "mlp"))  # type: ignore[arg-type]
    assert attention.keys() | mlp.keys() == names.keys()
    assert not attention.keys() & mlp.keys()
    with pytest.raises(UsageError, match="has 3 layers, adapt_layers is 4"):
        target_modules(tiny.model, top=4)


def test_a_fresh_adapter_changes_nothing_and_the_base_stays_what_it_was(tiny: Base, shape: LoraShape) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    copy = share(tiny.model)
    state = torch.get_rng_state()
    attach(copy, shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pooled(copy, tiny), pooled(tiny.model, tiny))
    load_lora(copy, {name: torch.ones_like(value) for name, value in lora_tensors(copy).items()})
    assert not torch.allclose(pooled(copy, tiny), pooled(tiny.model, tiny))
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    weights = {id(p) for p in tiny.model.parameters()}
    assert sum(id(p) not in weights for p in copy.parameters()) == len(shape.shapes())


def test_a_past_is_used_and_not_trained(tiny: Base, shape: LoraShape) -> None:
    random = torch.Generator().manual_seed(0)
    one = share(tiny.model)
    attach(one, shape, generator=random)
    learnt = {name: torch.randn(value.shape, generator=random) * 0.1 for name, value in lora_tensors(one).items()}
    load_lora(one, learnt)
    two = share(tiny.model)
    attach(two, shape.grown(2), generator=random, past=shape.rank)
    load_lora(two, learnt)
    assert torch.allclose(pooled(one, tiny), pooled(two, tiny), atol=1e-5)
    grown = lora_tensors(two)
    assert all(torch.equal(grown[n][: v.shape[0], : v.shape[1]], v) for n, v in learnt.items())
    trained = [name for name, p in two.named_parameters() if p.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_exported_adapter_loads_in_peft_and_says_the_same(
    config: TrainConfig, tiny: Base, tiny_path: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    adapter = fit(batches(records("billing")), config.changed(strategy="lora", rank=4, steps=5, adapt_layers=2))
    assert adapter.header.lora is not None
    export_peft(tmp_path, adapter.tensors, adapter.header.lora, base=tiny_path)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_path), str(tmp_path)).eval()
    theirs = model(
        input_ids=(ids := torch.tensor([[2, 9, 8, 7, 3]])), attention_mask=torch.ones_like(ids)
    ).last_hidden_state
    ours = adapter.net(tiny).model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state  # type: ignore[operator]
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(theirs, pooled(tiny.model, tiny)[:, :1], atol=1e-3)
    shape, tensors = import_peft(
        *((tmp_path / f"adapter_{n}").read_bytes() for n in ("config.json", "model.safetensors"))
    )
    assert shape.shapes() == adapter.header.lora.shapes()
    assert all(torch.equal(value, adapter.tensors[name]) for name, value in tensors.items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_what_peft_itself_saves_is_read(tiny: Base, tiny_path: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    get_peft_model(AutoModel.from_pretrained(tiny_path), config).save_pretrained(str(tmp_path))
    shape, tensors = import_peft(
        *((tmp_path / f"adapter_{n}").read_bytes() for n in ("config.json", "model.safetensors"))
    )
    assert (shape.rank, shape.alpha, len(shape.modules)) == (4, 8.0, 6)
    assert set(tensors) == set(shape.shapes())


@pytest.mark.parametrize(
    "change",
    [
        {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"megatron_core": "os"},
        {"peft_type": "LOHA"},
        {"task_type": "../../x"},
        {"modules_to_save": ["classifier"]},
        {"use_dora": True},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
        {"custom": "x"},
        {"r": 0},
        {"r": True},
        {"r": 10**9},
        {"lora_alpha": 0},
        {"lora_alpha": "8"},
        {"target_modules": "all-linear"},
        {"target_modules": []},
        {"target_modules": ["a(b"]},
        {"bias": "all"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": ["gaussian"]},
        {"base_model_name_or_path": 3},
    ],
)
def test_an_adapter_config_that_asks_for_more_than_plain_lora_is_refused(change: dict[str, Any]) -> None:
    assert check_adapter_config(json.dumps(PLAIN).encode())["r"] == 4
    with pytest.raises(StoreError, match=r"adapter_config\.json says") as caught:
        check_adapter_config(json.dumps({**PLAIN, **change}).encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, pickle.dumps(PLAIN)])
def test_an_adapter_config_that_is_no_table_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"adapter_config\.json isn't"):
        check_adapter_config(data)


@pytest.mark.parametrize("what", ["pickle", "extra", "missing", "rank", "name", "nan"])
def test_weights_that_are_not_exactly_one_lora_are_refused(what: str) -> None:
    from safetensors.torch import save

    start = "base_model.model.encoder.layer.0.attention.self"
    tensors = {f"{start}.query.lora_A.weight": torch.zeros(4, 8), f"{start}.query.lora_B.weight": torch.zeros(8, 4)}
    config = json.dumps(PLAIN).encode()
    import_peft(config, save(tensors))
    if what == "extra":
        tensors["base_model.model.head.weight"] = torch.zeros(2, 2)
    elif what == "missing":
        tensors.popitem()
    elif what == "rank":
        tensors[f"{start}.query.lora_A.weight"] = torch.zeros(5, 8)
    elif what == "name":
        tensors = {name.replace("query", "key"): value for name, value in tensors.items()}
    elif what == "nan":
        tensors[f"{start}.query.lora_A.weight"][0, 0] = torch.nan
    with pytest.raises(StoreError):
        import_peft(config, pickle.dumps(tensors) if what == "pickle" else save(tensors))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("layers", [1, 0])
def test_encoder_kinds_learn_survive_their_bytes_and_go_on(config: TrainConfig, kind: str, layers: int) -> None:
    config = config.changed(strategy=kind, adapt_layers=layers, rank=4, steps=20, adapter_lr_scale=0.1)
    adapter = fit(batches(records("billing")), config)
    assert adapter.predict(TEXTS) == [row["label"] for row in records("billing", 12)]
    assert (adapter.header.kind, adapter.header.adapt_layers) == (kind, layers or 3)
    again = Adapter.load(adapter.to_bytes(), adapter.card.model_dump_json().encode())
    assert again.digest == adapter.digest
    assert np.array_equal(again.probabilities(TEXTS), adapter.probabilities(TEXTS))
    child = fit(batches(records("shipping")), config.changed(steps=2), parent=again)
    assert set(adapter.tensors) == set(child.tensors)
    assert child.classes[:2] == adapter.classes


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_base_whose_layers_cannot_be_run_one_by_one_is_run_whole(
    config: TrainConfig, tiny_path: str, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    path = str(tmp_path / "distil")
    shape = DistilBertConfig(
        vocab_size=140, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, dropout=0.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DistilBertModel(shape).save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_path).save_pretrained(path)
    config = config.changed(strategy=kind, base=path, adapt_layers=1, rank=4, steps=20, adapter_lr_scale=0.1)
    adapter = fit(batches(records("billing")), config, cache_dir=tmp_path)
    assert adapter.header.whole
    names = [name for name in adapter.tensors if name.startswith((f"{kind}.",))]
    assert names
    assert all(".layer.1." in name for name in names)
    assert adapter.predict(TEXTS) == [row["label"] for row in records("billing", 12)]
    again = Adapter.load(adapter.to_bytes(), adapter.card, cache_dir=tmp_path)
    assert np.allclose(again.probabilities(TEXTS), adapter.probabilities(TEXTS), atol=1e-6)
    with pytest.raises(UsageError, match="the gated adapter sits inside"):
        fit(batches(records("billing")), config.changed(strategy="replay", kind="gated"))


def test_a_file_that_names_parts_the_base_lacks_is_refused(config: TrainConfig, tiny: Base) -> None:
    adapter = fit(batches(records("billing")), config.changed(strategy="lora", adapt_layers=1, rank=4, steps=1))
    lora = adapter.header.lora
    assert lora is not None
    name = next(iter(lora.modules))
    for other in (name.replace("layer.2", "layer.7"), name):
        modules = {other if n == name else n: list(v) for n, v in lora.modules.items()}
        if other == name:
            modules[name] = [32, 31]
        header = adapter.header.model_copy(update={"lora": lora.model_copy(update={"modules": modules})})
        tensors = {n: torch.zeros(s) for n, s in header.shapes().items()}
        with pytest.raises(StoreError, match="parts that its base doesn't have"):
            Adapter(header, tensors, base=tiny).predict(TEXTS)
