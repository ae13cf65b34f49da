from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tests.training.tiny import batches, make_base, records
from treering.errors import ConflictError, StoreError
from treering.training import Adapter, Base, ModelCard, TrainConfig, fit
from treering.training.nets import Header, Seen, make_net

TEXTS = [row["text"] for topic in ("billing", "shipping") for row in records(topic, 12)]


@pytest.fixture
def adapter(config: TrainConfig) -> Adapter:
    return fit(batches(records("billing") + records("shipping")), config.changed(steps=150))


def header(base: Base, classes: list[str], domains: list[str], layers: int = 0) -> Header:
    return Header(
        base_digest=base.digest, width=base.width, bottleneck=8, adapt_layers=layers, classes=classes, domains=domains
    )


@pytest.mark.parametrize("layers", [0, 2])
def test_an_adapter_survives_its_bytes(config: TrainConfig, layers: int) -> None:
    adapter = fit(batches(records("billing")), config.changed(adapt_layers=layers, steps=5))
    again = Adapter.load(adapter.to_bytes(), adapter.card.model_dump_json().encode())
    assert again.digest == adapter.digest == adapter.card.weights_digest
    assert again.predict(TEXTS) == adapter.predict(TEXTS)
    assert np.array_equal(again.probabilities(TEXTS), adapter.probabilities(TEXTS))
    assert (again.classes, again.domains, again.card) == (adapter.classes, adapter.domains, adapter.card)


def test_posteriors_are_distributions(adapter: Adapter) -> None:
    for found, names in ((adapter.probabilities(TEXTS), adapter.classes), (adapter.route(TEXTS), adapter.domains)):
        assert found.shape == (len(TEXTS), len(names))
        assert np.allclose(found.sum(1), 1.0, atol=1e-5)
    assert adapter.predict([]) == []


@pytest.mark.parametrize("layers", [0, 2])
def test_the_head_over_the_features_gives_the_answer(config: TrainConfig, layers: int) -> None:
    adapter = fit(batches(records("billing")), config.changed(adapt_layers=layers, steps=5))
    weight, bias = adapter.head
    features = adapter.features(TEXTS)
    assert features.shape == (len(TEXTS), weight.shape[1])
    logits = torch.from_numpy(features @ weight.T + bias)
    assert np.allclose(logits.softmax(1), adapter.probabilities(TEXTS), atol=1e-5)
    assert adapter.header.kind == "gated"


def test_requests_are_routed_by_their_text_alone(adapter: Adapter) -> None:
    assert adapter.domains == ("billing", "shipping")
    right = adapter.route(TEXTS).argmax(1) == np.repeat([0, 1], 12)
    assert right.mean() > 0.8


@pytest.mark.parametrize("layers", [0, 2])
def test_a_fresh_adapter_leaves_the_features_as_they_are(tiny: Base, layers: int) -> None:
    net = make_net(header(tiny, ["a", "b"], ["d"], layers), tiny, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(net.head["weight"])
    found = tiny.encode(TEXTS[:1], depth=layers)
    states = torch.from_numpy(found.states).float()[None] if layers else None
    mask = torch.ones(1, int(found.tokens[0]), dtype=torch.int64) if layers else None
    out = net(Seen(torch.from_numpy(found.pooled), states, mask))
    assert out.frozen is not None
    assert torch.allclose(out.frozen, out.answer, atol=2e-2 if layers else 0.0)


def test_growing_keeps_what_was_there(tiny: Base, adapter: Adapter) -> None:
    grown = header(tiny, [*adapter.classes, "new"], [*adapter.domains, "other"])
    net = make_net(grown, tiny, generator=torch.Generator().manual_seed(7))
    net.load(adapter.header, adapter.tensors)
    bigger = Adapter(grown, net.tensors(), base=tiny)
    small, large = adapter.probabilities(TEXTS), bigger.probabilities(TEXTS)[:, :-1]
    assert np.allclose(small, large / large.sum(1, keepdims=True), atol=1e-4)


def test_memory_grows_by_gates_and_head_rows_alone(tiny: Base) -> None:
    def size(classes: int, domains: int) -> int:
        shape = header(tiny, [str(n) for n in range(classes)], [str(n) for n in range(domains)]).shapes()
        return sum(int(np.prod(value)) for name, value in shape.items() if name != "counts")

    assert size(60, 60) - size(10, 10) == 50 * (8 + tiny.width + 1)


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, pickle.dumps({"head.weight": [1.0]}), b"PK\x03\x04"])
def test_a_pickle_or_junk_in_an_adapters_place_is_refused(adapter: Adapter, data: bytes) -> None:
    with pytest.raises(StoreError, match="not an adapter"):
        Adapter.load(data, adapter.card)


def test_a_torch_checkpoint_in_an_adapters_place_is_refused(adapter: Adapter) -> None:
    buffer = io.BytesIO()
    torch.save(adapter.tensors, buffer)
    with pytest.raises(StoreError, match="not an adapter"):
        Adapter.load(buffer.getvalue(), adapter.card)


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "nan", "header"])
def test_weights_that_are_not_what_their_header_says_are_refused(adapter: Adapter, change: str) -> None:
    tensors = load(adapter.to_bytes())
    metadata = {"treering": adapter.header.model_dump_json()}
    if change == "shape":
        tensors["gates"] = tensors["gates"][:, :1].contiguous()
    elif change == "missing":
        del tensors["head.bias"]
    elif change == "extra":
        tensors["more"] = torch.zeros(1)
    elif change == "nan":
        tensors["head.bias"][0] = torch.nan
    else:
        metadata = {"other": "{}"}
    with pytest.raises(StoreError, match="not an adapter"):
        Adapter.load(save(tensors, metadata=metadata), adapter.card)


def test_weights_and_card_of_different_adapters_are_refused(adapter: Adapter, config: TrainConfig) -> None:
    other = fit(batches(records("account")), config.changed(steps=2))
    with pytest.raises(StoreError, match="don't belong together"):
        Adapter.load(other.to_bytes(), adapter.card)


def test_an_adapter_on_another_base_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    said = adapter.card.base.model_copy(update={"name": other})
    moved = ModelCard.parse(adapter.card.model_copy(update={"base": said}).model_dump(mode="json"))
    with pytest.raises(ConflictError, match="belongs on another base"):
        Adapter.load(adapter.to_bytes(), moved).predict(["text"])
