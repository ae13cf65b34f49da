"""Serving classifiers: memory as domains grow, threads, and adapters that swap while they are asked."""

from __future__ import annotations

import importlib.util
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.training.tiny import make_base, records
from treering.errors import NotFoundError, UsageError
from treering.rounds import Served
from treering.training import Adapter, Base, TrainConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"
_spec = importlib.util.spec_from_file_location("bench_serving", SCRIPT)
assert _spec
assert _spec.loader
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(path: str) -> Base:
    return Base.load(path, precision="fp32", max_tokens=32)


def held(adapter: Adapter) -> int:
    """Bytes of all memory that tensors of the loaded adapter hold and its base doesn't: what is saved, and what runs."""
    adapter.prepare()
    net: Any = adapter._net
    of_base = {value.untyped_storage().data_ptr() for value in adapter.base.model.state_dict().values()}
    storages = {}
    for value in [*adapter.tensors.values(), *net.state_dict().values(), *net.trainable().values()]:
        storage = value.untyped_storage()
        if storage.data_ptr() not in of_base:
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["gated", "lora", "linear"])
def test_60_domains_take_no_more_memory_than_10_beyond_gate_vectors_and_head_rows(base: Base, kind: str) -> None:
    few, many = (bench.adapter_of(base, kind, domains, 3, 1) for domains in (10, 60))
    width, bottleneck = few.header.width, few.header.bottleneck
    head_rows = 4 * (many.header.shapes()["head.weight"][0] - 30) * (width + 1)
    counts = 8 * (180 * 60 - 30 * 10)  # which class is of which domain: what routes
    gates = 4 * 50 * bottleneck * few.header.places if kind == "gated" else 0
    assert bench.tensor_bytes(many) - bench.tensor_bytes(few) == head_rows + counts + gates
    assert held(many) - held(few) == 2 * (head_rows + counts + gates)  # as saved, and as it runs


def test_a_further_adapter_takes_its_own_tensors_and_no_base(base: Base) -> None:
    one, two = (bench.adapter_of(base, "lora", 4, 3, 2, seed) for seed in range(2))
    for adapter in (one, two):
        assert held(adapter) <= 2 * bench.tensor_bytes(adapter)
    lent = [
        {value.data_ptr() for name, value in adapter._net.model.named_parameters() if "lora_" not in name}
        for adapter in (one, two)
    ]
    assert lent[0] == lent[1] == {value.data_ptr() for value in base.model.parameters()}


@pytest.mark.parametrize("kind", ["gated", "lora"])
def test_threads_get_the_answers_that_one_gets(base: Base, kind: str) -> None:
    texts = [f"bill {n} " + "refund " * (n % 40) for n in range(60)]  # some are cut, which changes the tokenizer's mind
    wanted = [bench.adapter_of(base, kind, 4, 3, 1).predict([text])[0] for text in texts]
    adapter = bench.adapter_of(base, kind, 4, 3, 1)  # not prepared yet: the first questions race for it
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: adapter.predict([text])[0], texts)) == wanted


def test_a_base_is_loaded_once_however_many_ask_at_once(tmp_path: Path) -> None:
    name = make_base(tmp_path, seed=7)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Base.load(name, precision="fp32", max_tokens=32), range(4)))
    assert len({id(one) for one in found}) == 1


@pytest.fixture
def served(tmp_path: Path, path: str) -> treering.Store:
    """Two adapters, the first in production."""
    store = treering.open(tmp_path / "store")
    support = store.create("support", "labelled")
    with support.capture() as live:
        live.extend({**one, "split": "heldout" if n % 5 == 4 else "train"} for n, one in enumerate(records("billing")))
    support.snapshot()
    config = TrainConfig(base=path, steps=5, batch_size=16, bottleneck=8, precision="fp32", max_tokens=32)
    for seed in range(2):
        treering.train(store, store.mix("support@v1"), config.changed(seed=seed), parent=None)
    promote(store, "support:1")
    return store


def promote(store: treering.Store, ref: str) -> None:
    policy = {"regression_tolerance": 1.0, "max_p99_ms": False, "max_memory_gb": False}
    assert treering.gate(store, ref, policy).passed
    store.promote(ref)


def test_a_served_model_follows_its_ref_when_it_is_told_to_look(served: treering.Store) -> None:
    model = treering.load_adapter(served, "support:production")
    assert isinstance(model, Served)
    assert (model.ref, model.refresh()) == ("support:1", False)
    assert list(model.classes) == ["billing-a", "billing-b"]
    assert model.probabilities(["bill"]).shape == (1, 2)
    promote(served, "support:2")
    first = model.adapter
    assert model.ref == "support:1"
    assert model.refresh()
    assert model.ref == "support:2"
    assert model.adapter.base is first.base
    served.rollback("support")
    assert model.refresh()
    assert model.ref == "support:1"
    with pytest.raises(UsageError, match="is a classifier"):
        model.generate([{"role": "user", "content": "hi"}])
    with pytest.raises(NotFoundError, match="no adapter support:9"):
        treering.load_adapter(served, "support:9")


def test_a_swap_that_fails_leaves_what_answered(served: treering.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model = treering.load_adapter(served, "support:production")
    promote(served, "support:2")
    monkeypatch.setattr(Adapter, "prepare", lambda self: (_ for _ in ()).throw(OSError("no memory")))
    with pytest.raises(OSError, match="no memory"):
        model.refresh()
    assert model.ref == "support:1"
    assert len(model.predict(["bill"])) == 1


def test_answers_go_on_while_adapters_are_swapped(served: treering.Store) -> None:
    model = treering.load_adapter(served, "support:production")
    texts = [f"bill {n}" for n in range(8)]
    wanted = {
        ref: treering.load_adapter(served, ref).probabilities(texts).tolist() for ref in ("support:1", "support:2")
    }
    assert wanted["support:1"] != wanted["support:2"]
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            found = model.probabilities(texts).tolist()
            if found not in wanted.values():
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for ref in ("support:2", "support:1", "support:2", "support:1"):
        promote(served, ref)
        assert model.refresh()
        assert model.ref == ref
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_serving_benchmark_runs(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--base", path, "--domains", "3", "--kinds", "gated", "--texts", "8", "--threads", "2", "--adapters", "2"]
    bench.main([*few, "--one", json.dumps({"kind": "gated", "domains": 3})])
    row = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["domains"], row["classes"]) == ("gated", 3, 45)
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    monkeypatch.setattr(bench, "_apart", lambda arguments, **one: row)  # a process each, otherwise
    bench.main([*few, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["results"] == [row]
    assert found["swap"]["answers"] > 0
    bench.main(few)
    assert "a swap: " in capsys.readouterr().out
