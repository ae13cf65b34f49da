"""Two rounds on a tiny base in a store, and adapters that were broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import treering
from tests.training.tiny import WIDTH, records
from treering.registry import Registry
from treering.training import Adapter

Tensors = dict[str, torch.Tensor]


def config(base: str, **changed: object) -> treering.TrainConfig:
    fields = {
        "base": base, "steps": 80, "batch_size": 16, "lr": 2e-2, "bottleneck": WIDTH, "feature_noise": 0.1,
        "precision": "fp32", "max_tokens": 32, "warmup": 5, "strategy": "replay", **changed,
    }  # fmt: skip
    return treering.TrainConfig(**fields)


def seal(store: treering.Store, topic: str, n: int = 48) -> str:
    """One snapshot of one domain, a quarter of it held out."""
    corpus = store.corpus("support")
    with corpus.capture() as live:
        live.extend(
            {**row, "id": f"{topic}-{k}", "split": "heldout" if k // 4 % 4 == 0 else "train"}
            for k, row in enumerate(records(topic, n))
        )
    snapshot = corpus.snapshot()
    assert snapshot is not None
    return snapshot.ref


def two_rounds(folder: Path, base: str) -> treering.Store:
    """`support:1` learnt v1 (billing), `support:2` v2 (shipping) with replay of v1."""
    store = treering.open(folder)
    store.create("support", "labelled")
    first = treering.train(store, store.mix(seal(store, "billing")), config(base))
    v2 = seal(store, "shipping")
    treering.train(store, store.mix("support@v1", v2), config(base), parent=first.adapter.ref)
    return store


def broken(store: treering.Store, parent: str, change: Callable[[Adapter, Tensors], None]) -> str:
    """A further round whose adapter is its parent's with some tensors changed."""
    registry = Registry(store, "support")
    adapter = Adapter.load(registry.weights(parent), registry.card(parent))
    tensors = {name: value.clone() for name, value in adapter.tensors.items()}
    change(adapter, tensors)
    made = Adapter(adapter.header, tensors)
    card = adapter.card.model_copy(update={"weights_digest": made.digest, "parent": parent})
    before = registry.get(parent)
    return registry.add(
        weights=made.to_bytes(), card=card, parent=parent, base=before.base, base_digest=before.base_digest,
        strategy=before.strategy, config=before.config,
    ).ref  # fmt: skip


def swap_the_head(adapter: Adapter, tensors: Tensors) -> None:
    """The output has drifted: what the features say of billing is read the wrong way round."""
    a, b = (adapter.header.classes.index(name) for name in ("billing-a", "billing-b"))
    for name in ("head.weight", "head.bias"):
        tensors[name][[a, b]] = tensors[name][[b, a]]


def cancel_the_features(adapter: Adapter, tensors: Tensors) -> None:
    """Knowledge is destroyed: the adapter takes away what the frozen features hold, and puts noise in its place.

    gelu(z) is z far above 0, so down(x) = x + 100 and up(y) = 100 - y add up to 0 with x itself.
    """
    assert adapter.header.bottleneck == WIDTH
    shape = tensors["down.weight"].shape
    tensors["down.weight"] = torch.eye(WIDTH).expand(shape).contiguous()
    tensors["down.bias"] = torch.full_like(tensors["down.bias"], 100.0)
    tensors["up.weight"] = -torch.eye(WIDTH).expand(shape).contiguous()
    tensors["up.bias"] = torch.full_like(tensors["up.bias"], 100.0)
    tensors["gates"] = torch.ones_like(tensors["gates"])
