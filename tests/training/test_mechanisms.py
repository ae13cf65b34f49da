"""What each method is said to do, it does: one mechanism a test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.tiny import batches, records
from treering.errors import UsageError
from treering.training import Adapter, Base, Draw, MixSource, Round, Step, Strategy, TrainConfig, fit, register
from treering.training.lora import fresh_and_past
from treering.training.nets import Net, Out, Seen, header_for, make_net
from treering.training.statistic import Statistic
from treering.training.strategies import strategy
from treering.training.strategies.base import Records

BILLING, SHIPPING, ACCOUNT = records("billing"), records("shipping"), records("account")
OLD, NEW = MixSource("support@v1", 0.2, 40, replay=True), MixSource("support@v2", 0.8, 40, replay=False)
GENERAL = MixSource("general@v1", 0.0, 1000, replay=False, general=True)


def mixed(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], size: int = 16) -> list[dict[str, Any]]:
    """Batches of both, alternating; source 0 is the old one. Ids are texts."""
    rows = [
        {**row, "_ref": ref, "id": row["text"]} for pair in zip(old, new, strict=True) for ref, row in enumerate(pair)
    ]
    parts = [rows[k : k + size] for k in range(0, len(rows), size)]
    return [{name: [row[name] for row in part] for name in (*BILLING[0], "id", "_ref")} for part in parts]


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@pytest.fixture
def quick(config: TrainConfig) -> TrainConfig:
    return config.changed(steps=12)


# EWC


@pytest.mark.parametrize("kind", ["gated", "linear", "lora"])
def test_ewc_with_lambda_0_is_naive_to_the_byte(quick: TrainConfig, kind: str) -> None:
    same = quick.changed(kind=kind, prior_correction=False, rank=4, adapt_layers=int(kind == "lora"), steps=4)
    digests = []
    for fields in ({"strategy": "naive"}, {"strategy": "ewc", "strength": 0.0}, {"strategy": "ewc", "strength": 1e4}):
        first = fit(batches(BILLING), same.changed(**fields))
        digests.append(fit(batches(SHIPPING), same.changed(**fields), parent=first).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_penalty_of_ewc_has_the_gradient_it_is_said_to_have(quick: TrainConfig, tiny: Base) -> None:
    ewc = quick.changed(strategy="ewc", strength=3.0)
    parent = fit(batches(BILLING), ewc)
    config = ewc.settled({})
    net = make_net(
        header_for(config, tiny, [*parent.classes, "new"], [*parent.domains, "other"]),
        tiny,
        generator=torch.Generator(),
    )
    net.load(parent.header, parent.tensors)
    with torch.no_grad():
        for value in net.trainable().values():
            value += 0.1
    round_ = bare_round(net, config, parent)
    strategy("ewc").before(round_)
    penalty = strategy("ewc").regulariser(round_)
    assert penalty is not None
    penalty.backward()  # type: ignore[no-untyped-call]
    weight = net.trainable()["head.weight"]
    fisher, anchor = parent.state["fisher.head.weight"], parent.tensors["head.weight"]
    assert float(fisher.sum()) > 0
    assert weight.grad is not None
    assert torch.allclose(weight.grad[:2], 3.0 * fisher * (weight.detach()[:2] - anchor), rtol=1e-4)
    assert not weight.grad[2].any()  # a new class is free


def test_fisher_information_is_summed_over_rounds_and_holds_what_mattered(quick: TrainConfig) -> None:
    ewc = quick.changed(strategy="ewc", strength=1e5, weight_decay=0.0)
    first = fit(batches(BILLING), ewc)
    held = fit(batches(SHIPPING), ewc, parent=first)
    before, after = first.state["fisher.head.weight"], held.state["fisher.head.weight"]
    assert bool((after[:2] >= before).all())
    assert bool((after[:2] > before).any())
    free = fit(batches(SHIPPING), ewc.changed(strength=1e-9), parent=first)
    old = first.tensors["head.weight"]
    moved = [float((one.tensors["head.weight"][:2] - old).norm()) for one in (held, free)]
    assert moved[0] < 0.5 * moved[1]


# LwF


def test_lwf_learns_from_the_parent_and_from_nobody_else(quick: TrainConfig) -> None:
    parent = fit(batches(BILLING), quick.changed(strategy="naive", lr=1e-3))  # not too sure of itself
    heard: list[Tensor] = []

    class Heard(type(strategy("lwf"))):  # type: ignore[misc]
        name = "lwf-heard"

        def loss(self, step: Step) -> Tensor:
            heard.append(step.round.run(step.round.parent_net(), step.texts).answer.softmax(1))
            return super().loss(step)  # type: ignore[no-any-return]

    register(Heard())
    config = quick.changed(prior_correction=False, strength=5.0, feature_noise=0.0, steps=30)
    kept = fit(batches(SHIPPING), config.changed(strategy="lwf-heard"), parent=parent)
    texts = [row["text"] for row in SHIPPING]
    assert np.allclose(heard[0].numpy(), parent.probabilities(texts[:16]), atol=1e-6)
    assert torch.equal(heard[0], heard[3])  # the same three batches over and over: the parent stays the teacher

    def away(adapter: Adapter) -> float:
        old = adapter.probabilities(texts)[:, :2]
        return float(np.abs(old / old.sum(1, keepdims=True) - parent.probabilities(texts)).mean())

    naive = fit(batches(SHIPPING), config.changed(strategy="lwf", strength=0.0), parent=parent)
    assert away(kept) < 0.5 * away(naive)


# DER


def test_der_keeps_the_logits_of_insertion(quick: TrainConfig) -> None:
    der = quick.changed(strategy="der", prior_correction=False)
    one = fit(batches(BILLING), der)
    assert not one.state
    two = fit(mixed(BILLING, SHIPPING), der, parent=one, sources=[OLD, NEW])
    # Round three replays billing, in the buffer since round one, and shipping, inserted at the end of round two.
    three = fit(mixed(BILLING[:20] + SHIPPING[:20], ACCOUNT), der, parent=two, sources=[OLD, NEW])
    found = dict(zip((k.tobytes() for k in three.state["der.keys"].numpy()), range(40), strict=True))
    for rows, by, classes in ((BILLING[:20], one, 2), (SHIPPING[:20], two, 4)):
        weight, bias = by.head
        for row, features in zip(rows, by.features([row["text"] for row in rows]), strict=True):
            at = found[key(row["text"])]
            assert three.state["der.classes"][at] == classes
            assert np.allclose(three.state["der.logits"][at, :classes], features @ weight.T + bias, atol=1e-4)
    assert b"billing" not in three.to_bytes().partition(b"}}")[2]  # numbers and hashes, no text


def test_ders_term_is_the_distance_to_the_remembered_logits(tiny: Base, quick: TrainConfig) -> None:
    config = quick.changed(strategy="der", strength=0.5, prior_correction=False).settled({})
    net = make_net(header_for(config, tiny, ["a", "b", "c"], ["d"]), tiny, generator=torch.Generator().manual_seed(1))
    round_ = bare_round(net, config, None)
    keys = np.array([[1, 1], [2, 2], [3, 3]])
    round_.memory["der"] = (
        torch.from_numpy(keys),
        torch.tensor([[1.0, 2.0], [5.0, 9.0], [0.0, 0.0]]),
        torch.tensor([2, 1, 2]),
    )
    round_.memory["row"] = {k.tobytes(): n for n, k in enumerate(keys)}
    answer = torch.zeros(2, 3, requires_grad=True)
    step = bare_step(round_, answer, keys[[1, 0]])
    found = strategy("der").loss(step) - Strategy().loss(step)
    # the second record knew one class alone: its 9 doesn't count; (5² + 1² + 2²) / 3 remembered logits
    assert float(found.detach()) == pytest.approx(0.5 * (25 + 1 + 4) / 3)


# O-LoRA


def test_o_loras_penalty_has_the_gradient_it_is_said_to_have_and_overlap_falls(quick: TrainConfig) -> None:
    config = quick.changed(strategy="o-lora", rank=4, steps=30, adapt_layers=1)
    first = fit(batches(BILLING), config)

    def overlap(strength: float) -> tuple[float, Adapter]:
        grown = fit(batches(SHIPPING), config.changed(strength=strength), parent=first)
        total = 0.0
        for name, value in grown.tensors.items():
            if name.endswith(".A"):
                assert torch.equal(value[:4], first.tensors[name])  # what earlier rounds taught stays as it was
                total += float(((value[:4] @ value[4:].T) ** 2).sum())
        return total, grown

    loose, orthogonal = overlap(0.0)[0], overlap(50.0)
    assert orthogonal[0] < 0.1 * loose
    assert orthogonal[1].header.lora is not None
    assert orthogonal[1].header.lora.rank == 8

    net = make_net(orthogonal[1].header, orthogonal[1].base, generator=torch.Generator().manual_seed(2), past=4)
    net.load(first.header, first.tensors)
    penalty = strategy("o-lora").regulariser(bare_round(net, config.changed(strength=2.0).settled({}), first))
    assert penalty is not None
    penalty.backward()  # type: ignore[no-untyped-call]
    for fresh, past in fresh_and_past(net.model):
        assert fresh.grad is not None
        assert torch.allclose(fresh.grad, 2 * 2.0 * fresh.detach() @ past.T @ past, rtol=1e-3, atol=1e-6)


# SLDA


def test_slda_equals_a_computation_over_everything_and_order_does_not_matter(quick: TrainConfig) -> None:
    slda = quick.changed(strategy="slda")
    rows = BILLING + SHIPPING
    whole = fit(batches(rows), slda)
    backwards = fit(batches(rows[::-1], size=7), slda)
    round_by_round = fit(batches(SHIPPING), slda, parent=fit(batches(BILLING), slda))
    texts = [row["text"] for row in rows]
    for other in (backwards, round_by_round):
        order = [other.classes.index(name) for name in whole.classes]
        assert np.allclose(other.probabilities(texts)[:, order], whole.probabilities(texts), atol=1e-3)
    features, labels = whole.features(texts).astype(np.float64), np.array([row["label"] for row in rows])
    means = np.stack([features[labels == name].mean(0) for name in whole.classes])
    centred = features - means[[whole.classes.index(label) for label in labels]]
    assert np.allclose(whole.tensors["stat.means"], means, atol=1e-5)
    assert np.allclose(whole.tensors["stat.scatter"], centred.T @ centred, atol=1e-3)
    assert whole.card.stats is not None
    assert (whole.card.stats.steps, whole.card.stats.trainable_parameters) == (0, 0)


def test_slda_counts_a_record_once_however_often_it_is_drawn(quick: TrainConfig) -> None:
    slda = quick.changed(strategy="slda")
    once, twice = fit(batches(BILLING), slda), fit(batches(BILLING + BILLING[:8]), slda)
    assert torch.equal(once.tensors["stat.counts"], twice.tensors["stat.counts"])
    assert torch.allclose(once.tensors["head.weight"], twice.tensors["head.weight"])


def test_the_discriminant_is_that_of_gaussians_with_one_covariance() -> None:
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=random)
    labels = torch.arange(3).repeat(2000)
    features = torch.randn(6000, 4, generator=random) @ mix + 3.0 * torch.eye(3, 4)[labels]
    statistic = Statistic(4, 4)
    for part in torch.arange(6000).split(701):
        statistic.add(features[part], labels[part])
    weight, bias = statistic.head(0.0)
    inverse = torch.linalg.inv((mix.T @ mix).double())
    truth = (3.0 * torch.eye(3, 4).double()) @ inverse
    assert torch.allclose(weight[:3], truth.float(), rtol=0.2, atol=0.1)
    assert (features @ weight.T + bias).argmax(1).max() == 2  # nothing is known of the fourth class: never the answer


# What is drawn


def test_a_budget_is_shared_by_replay_sources_as_one_reservoir_would_be() -> None:
    older = MixSource("support@v0", 0.1, 360, replay=True)
    lora = strategy("lora-replay")
    config = TrainConfig(strategy="lora-replay").settled(lora.defaults)
    assert lora.draw([older, OLD, NEW], config.changed(replay_rows=100)) == [
        Draw(0.1, rows=90),
        Draw(0.2, rows=10),
        Draw(0.8),
    ]
    assert lora.draw([older, OLD, NEW], config)[0].rows is None  # 500 rows hold all 400
    assert config.replay_rows == 500


def test_the_general_stream_takes_its_share_of_replay_and_of_the_budget() -> None:
    dual = strategy("dual-replay")
    big = MixSource("support@v1", 0.2, 5000, replay=True)
    config = TrainConfig(strategy="dual-replay").settled(dual.defaults)
    domain, new, general = dual.draw([big, NEW, GENERAL], config)
    assert (domain.weight, new.weight, general.weight) == pytest.approx((0.14, 0.8, 0.06))
    assert (domain.rows, general.rows) == (350, 150)
    assert (domain.by, domain.spread) == ("importance", "label")
    assert general.by == "reservoir"
    alone = dual.draw([big, NEW], config)
    assert [(draw.weight, draw.rows) for draw in alone] == [(0.2, 500), (0.8, None)]
    assert dual.draw([big, NEW], config.changed(replay_by="reservoir"))[0].by == "reservoir"


def test_the_general_stream_holds_the_features_and_teaches_no_class(quick: TrainConfig) -> None:
    rows = [{"text": f"of {n} things", "label": "chatter", "domain": "world"} for n in range(40)]
    held = [float(distance_from_frozen(quick, rows, strength)) for strength in (0.0, 1000.0)]
    assert held[1] < 0.5 * held[0]


def distance_from_frozen(quick: TrainConfig, general: list[dict[str, Any]], strength: float) -> Any:
    sources = [MixSource("general@v1", 0.3, 40, replay=False, general=True), NEW]
    config = quick.changed(strategy="dual-replay", strength=strength, steps=40)
    adapter = fit(mixed(general, BILLING), config, sources=sources)
    assert adapter.classes == ("billing-a", "billing-b")
    assert adapter.domains == ("billing",)
    base = adapter.base
    pooled = torch.from_numpy(base.encode([row["text"] for row in general]).pooled)
    frozen = adapter.net(base).scaled(pooled, None).numpy()
    return np.square(adapter.features([row["text"] for row in general]) - frozen).mean()


def test_a_learned_router_routes(config: TrainConfig) -> None:
    adapter = fit(batches(BILLING + SHIPPING, size=32), config.changed(strategy="dual-replay", steps=150))
    right = adapter.route([row["text"] for row in BILLING + SHIPPING]).argmax(1) == np.repeat([0, 1], 40)
    assert right.mean() > 0.9
    assert "router.weight" in adapter.tensors


@pytest.mark.parametrize("gates", ["soft", "hard", "off"])
def test_gates_decide_how_domains_shape_the_features(tiny: Base, config: TrainConfig, gates: str) -> None:
    header = header_for(config.changed(gates=gates), tiny, ["a", "b"], ["d", "e"])
    net = make_net(header, tiny, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.get_buffer("counts").copy_(torch.tensor([[1, 0], [0, 1]]))
        for name, value in net.trainable().items():
            if name in ("up.weight", "head.weight"):
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    seen = Seen(torch.from_numpy(tiny.encode(["a bill", "a parcel 7"]).pooled))
    before = net(seen)
    route = net.route(before)
    with torch.no_grad():
        net.trainable()["gates"][:, 1] = 5.0  # of the second domain
    moved = (net(seen).features - before.features).abs().amax(1) > 1e-4
    wanted = {"soft": [True, True], "hard": (route.argmax(1) == 1).tolist(), "off": [False, False]}
    assert moved.tolist() == wanted[gates]


# Features of several layers


def test_features_of_several_layers_are_their_means_each_of_one_length(tiny: Base, quick: TrainConfig) -> None:
    text = ["a bill and a refund"]
    three = tiny.encode(text, layers=3).pooled
    assert np.array_equal(three[:, 64:], tiny.encode(text).pooled)
    adapter = fit(batches(BILLING), quick.changed(strategy="recommended", kind="linear"))
    features = adapter.features(text).reshape(3, 32)
    assert np.allclose(np.linalg.norm(features, axis=1), 2.0 * np.sqrt(32), rtol=1e-4)
    assert np.allclose(features / np.linalg.norm(features, axis=1)[:, None], norm(three.reshape(3, 32)), atol=1e-5)
    again = Adapter.load(adapter.to_bytes(), adapter.card)
    assert np.array_equal(again.features(text), adapter.features(text))
    with pytest.raises(UsageError, match="features of several layers"):
        fit(batches(BILLING), quick.changed(strategy="lora", feature_layers=2))
    with pytest.raises(UsageError, match="feature_layers 3, the config 1"):
        fit(batches(BILLING), quick.changed(kind="linear", feature_layers=1), parent=adapter)


def norm(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1)[:, None]


# Hooks and refusals


def test_what_a_strategy_keeps_reaches_the_next_round_and_has_to_be_finite(quick: TrainConfig) -> None:
    from treering.training import DivergedError

    told: list[dict[str, Tensor]] = []

    class Counting(Strategy):
        """Counts its rounds."""

        name = "counting"

        def before(self, round_: Round) -> None:
            told.append(dict(round_.state))

        def after(self, round_: Round) -> dict[str, Tensor]:
            return {"rounds": round_.state.get("rounds", torch.zeros(1)) + 1 / round_.config.strength}

    register(Counting())
    config = quick.changed(strategy="counting", steps=1)
    first = fit(batches(BILLING), config)
    second = fit(batches(SHIPPING), config, parent=Adapter.load(first.to_bytes(), first.card))
    assert told == [{}, {"rounds": torch.ones(1)}]
    assert second.state["rounds"] == 2
    with pytest.raises(DivergedError):
        fit(batches(SHIPPING), config.changed(strength=1e-320), parent=first)  # 1 / strength overflows


def test_the_strategy_of_the_docstring_trains_as_it_is_written(quick: TrainConfig) -> None:
    import inspect
    import textwrap

    doc = inspect.getdoc(Strategy)
    assert doc is not None
    example = textwrap.dedent(doc.partition("whole:\n\n")[2]).replace(
        "treering.train(store, mix, ", "adapter = fit(data, "
    )
    assert len(example.splitlines()) < 40
    example = example.replace('TrainConfig(strategy="focal")', 'TrainConfig(strategy="focal", **rest)')
    rest = {**quick.model_dump(exclude_unset=True), "steps": 60}
    rest.pop("strategy")
    import treering

    scope: dict[str, Any] = {
        "Strategy": Strategy, "Step": Step, "Tensor": Tensor, "register": register, "treering": treering,
        "fit": fit, "data": batches(BILLING), "rest": rest,
    }  # fmt: skip
    exec(example, scope)
    adapter = scope["adapter"]
    assert adapter.config.strength == 2.0
    assert not adapter.config.prior_correction
    texts = [row["text"] for row in BILLING]
    assert adapter.predict(texts) == [row["label"] for row in BILLING]


ALL = ["naive", "lora", "full", "ewc", "lwf", "der", "o-lora", "slda", "dual-replay", "recommended", "lora-replay"]


@pytest.mark.parametrize("name", ALL)
def test_every_strategy_trains_where_products_are_in_bf16(quick: TrainConfig, name: str) -> None:
    general = [{"text": f"of {n} things", "label": "chatter", "domain": "world"} for n in range(40)]
    sources = [MixSource("general@v1", 0.3, 40, replay=False, general=True), NEW]
    config = quick.changed(strategy=name, steps=3, rank=4, precision="bf16")
    parent = fit(mixed(general, BILLING), config, sources=sources)
    adapter = fit(mixed(general, SHIPPING), config, sources=sources, parent=parent)
    assert all(value.dtype in (torch.float32, torch.int64) for value in adapter.tensors.values())
    assert adapter.features(["parcel"]).dtype == np.float32


@pytest.mark.parametrize("name", ["naive", "lora", "full", "ewc", "lwf", "der", "o-lora", "dual-replay", "recommended"])
def test_no_strategy_returns_weights_that_are_not_finite(config: TrainConfig, name: str) -> None:
    from treering.training import DivergedError

    with pytest.raises(DivergedError) as caught:
        fit(batches(BILLING), config.changed(strategy=name, lr=1e30, steps=6, rank=4))
    assert caught.value.adapter is not None
    assert all(bool(torch.isfinite(value).all()) for value in caught.value.adapter.tensors.values())


@pytest.mark.parametrize(("name", "kind"), [("slda", "gated"), ("replay", "slda"), ("o-lora", "full")])
def test_a_kind_that_is_not_for_a_strategy_is_refused(quick: TrainConfig, name: str, kind: str) -> None:
    with pytest.raises(UsageError, match="kind"):
        fit(batches(BILLING), quick.changed(strategy=name, kind=kind))


def test_fields_that_are_given_win_over_the_strategys_own_and_those_over_the_defaults() -> None:
    defaults = strategy("lora-replay").defaults
    settled = TrainConfig(strategy="lora-replay", steps=7).changed(seed=3).settled(defaults)
    assert (settled.steps, settled.seed, settled.replay_rows, settled.kind) == (7, 3, 500, "lora")
    assert settled.weight_decay == TrainConfig().weight_decay
    assert settled.settled({"steps": 1}) == settled


def test_a_lineage_goes_on_with_another_strategy(quick: TrainConfig) -> None:
    free = TrainConfig(base=quick.base, steps=2, batch_size=16, precision="fp32", max_tokens=32)
    first = fit(batches(BILLING), free.changed(bottleneck=8))
    assert (first.config.strategy, first.header.feature_layers) == ("recommended", 3)
    for name in ("naive", "ewc", "dual-replay"):
        child = fit(batches(SHIPPING), free.changed(strategy=name), parent=first)
        assert (child.config.feature_layers, child.config.bottleneck) == (3, 8)
    lora = fit(batches(BILLING), free.changed(strategy="lora", rank=4))
    assert fit(batches(SHIPPING), free.changed(strategy="ewc"), parent=lora).header.kind == "lora"
    grown = fit(batches(SHIPPING), free.changed(strategy="o-lora", rank=3), parent=lora).header.lora
    assert grown is not None
    assert grown.rank == 7
    with pytest.raises(UsageError, match="the parent has kind gated, the config lora"):
        fit(batches(SHIPPING), free.changed(strategy="lora"), parent=first)


def bare_round(net: Net, config: TrainConfig, parent: Adapter | None) -> Round:
    nobody = Records(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.int64), np.empty(0, np.bool_))

    def run(net: Net, numbers: Any) -> Out:
        raise AssertionError

    return Round(
        net=net,
        parent=parent,
        config=config,
        records=nobody,
        state={} if parent is None else parent.state,
        run=run,
        parent_net=lambda: net,
        generator=torch.Generator().manual_seed(0),
    )


def bare_step(round_: Round, answer: Tensor, keys: Any) -> Step:
    n = len(answer)
    zeros = torch.zeros(n, dtype=torch.int64)
    return Step(
        round=round_,
        out=Out(lambda: torch.zeros(n, 4), answer),
        labels=zeros,
        domains=zeros,
        sources=zeros,
        replayed=zeros.bool(),
        texts=np.zeros(n, np.int64),
        keys=keys,
        seen=Seen(torch.zeros(n, 4)),
        log_prior=torch.zeros(answer.shape[1]),
    )
