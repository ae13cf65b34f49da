from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.tiny import batches, make_base, records
from treering.errors import ConflictError, UsageError
from treering.training import Adapter, DivergedError, Step, Strategy, TrainConfig, fit, register

BILLING, SHIPPING = records("billing"), records("shipping")


def accuracy(adapter: Adapter, rows: list[dict[str, str]]) -> float:
    predicted = adapter.predict([row["text"] for row in rows])
    return float(np.mean([p == row["label"] for p, row in zip(predicted, rows, strict=True)]))


@pytest.mark.parametrize("layers", [0, 2])
def test_the_same_batches_config_and_base_give_the_same_bytes(
    config: TrainConfig, cache_dir: Path, layers: int
) -> None:
    config = config.changed(adapt_layers=layers, steps=10)
    cold = fit(batches(BILLING), config, cache_dir=cache_dir)
    warm = fit(batches(BILLING), config, cache_dir=cache_dir)
    nowhere = fit(iter(batches(BILLING)), config)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = fit(batches(BILLING), config)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert cold.to_bytes() == warm.to_bytes() == nowhere.to_bytes() == two.to_bytes()
    assert cold.card.stats is not None
    assert warm.card.stats is not None
    assert (cold.card.stats.texts_encoded, warm.card.stats.texts_encoded) == (40, 0)
    assert fit(batches(BILLING), config.changed(seed=1)).digest != cold.digest


def test_another_process_gives_the_same_digest(config: TrainConfig) -> None:
    here = fit(batches(BILLING), config)
    script = (
        "import json, sys\n"
        "from tests.training.tiny import batches, records\n"
        "from treering.training import TrainConfig, fit\n"
        "config = TrainConfig(**json.loads(sys.argv[1]))\n"
        "print(fit(batches(records('billing')), config).digest)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(config.model_dump())],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == here.digest


def test_global_random_state_is_neither_read_nor_changed(config: TrainConfig) -> None:
    torch.manual_seed(1)
    first, state = fit(batches(BILLING), config.changed(steps=3)), torch.get_rng_state()
    torch.manual_seed(2)
    assert fit(batches(BILLING), config.changed(steps=3)).digest == first.digest
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layers", [0, 2])
def test_it_learns(config: TrainConfig, layers: int) -> None:
    adapter = fit(batches(BILLING), config.changed(adapt_layers=layers))
    assert accuracy(adapter, BILLING) == 1.0
    assert adapter.card.stats is not None
    assert adapter.card.stats.loss_last < adapter.card.stats.loss_first


def test_classes_and_domains_grow_behind_the_parents(config: TrainConfig) -> None:
    parent = fit(batches(SHIPPING), config)
    child = fit(batches(BILLING + SHIPPING), config, parent=parent)
    assert parent.classes == ("shipping-a", "shipping-b")
    assert child.classes == ("shipping-a", "shipping-b", "billing-a", "billing-b")
    assert child.domains == ("shipping", "billing")
    assert accuracy(child, SHIPPING) > 0.8


def test_new_data_alone_forgets_and_the_mix_does_not(config: TrainConfig) -> None:
    parent = fit(batches(BILLING), config)
    naive = fit(batches(SHIPPING), config, parent=parent)
    rows = [row for pair in zip(BILLING, SHIPPING, strict=True) for row in pair]
    replay = fit(batches(rows), config.changed(steps=150), parent=parent)
    assert accuracy(naive, BILLING) < 0.5
    assert accuracy(replay, BILLING) > 0.9
    assert accuracy(replay, SHIPPING) > 0.9


def test_protected_classes_keep_their_rows_while_the_mix_lacks_them(config: TrainConfig) -> None:
    parent = fit(batches(BILLING), config)
    still = config.changed(weight_decay=0.0)
    competing = fit(batches(SHIPPING), still, parent=parent)
    protected = fit(batches(SHIPPING), still.changed(absent_classes="protect"), parent=parent)
    old = parent.tensors["head.weight"]
    assert torch.equal(protected.tensors["head.weight"][:2], old)
    assert not torch.equal(competing.tensors["head.weight"][:2], old)


def test_a_strategy_from_scratch_owes_nothing_to_the_parent(config: TrainConfig) -> None:
    joint = config.changed(strategy="joint")
    parent = fit(batches(SHIPPING), config)
    assert fit(batches(BILLING), joint, parent=parent).to_bytes() == fit(batches(BILLING), joint).to_bytes()


def test_how_often_a_class_was_drawn_is_no_bias_of_the_model(config: TrainConfig) -> None:
    # The same text under both labels, nine to one: all that can be learnt is how often each came.
    rows = [{"text": "the same", "label": "often" if n % 10 else "seldom", "domain": "d"} for n in range(40)]
    config = config.changed(steps=150)
    corrected = fit(batches(rows), config).probabilities(["the same"])[0]
    plain = fit(batches(rows), config.changed(prior_correction=False)).probabilities(["the same"])[0]
    assert corrected[0] == pytest.approx(0.5, abs=0.05)
    assert plain[0] == pytest.approx(0.9, abs=0.05)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_weights_are_kept(config: TrainConfig) -> None:
    with pytest.raises(DivergedError, match="the loss isn't finite after") as caught:
        fit(batches(BILLING), config.changed(lr=1e30))
    good = caught.value.adapter
    assert good is not None
    assert all(bool(torch.isfinite(value).all()) for value in good.tensors.values())
    assert caught.value.exit_code == 3


def test_weights_that_overflow_in_the_last_update_are_not_returned(config: TrainConfig) -> None:
    class Steep(Strategy):
        """A finite loss whose gradient isn't."""

        name = "steep"

        def loss(self, step: Step) -> Tensor:
            return super().loss(step) + (0.0 * step.out.answer).sqrt().sum()

    register(Steep())
    with pytest.raises(DivergedError):
        fit(batches(BILLING), config.changed(strategy="steep", steps=1))


def test_records_without_a_label_are_counted_and_left_out(config: TrainConfig) -> None:
    rows = [{**row, "label": None} if n % 4 == 0 else row for n, row in enumerate(BILLING)]
    adapter = fit(batches(rows), config.changed(steps=3))  # type: ignore[arg-type]
    stats = adapter.card.stats
    assert stats is not None
    assert (stats.rows_drawn, stats.rows_unlabelled) == (30, 10)
    with pytest.raises(UsageError, match="nothing to train on"):
        fit(batches([{**row, "label": None} for row in BILLING]), config)  # type: ignore[arg-type]


def test_batches_without_the_columns_say_so(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="no column text and label"):
        fit([{"messages": []}], config)
    with pytest.raises(UsageError, match="nothing to train on"):
        fit([], config)


def test_records_without_a_domain_share_one(config: TrainConfig) -> None:
    rows = [{"text": row["text"], "label": row["label"]} for row in BILLING]
    loader = [{name: [row[name] for row in rows] for name in ("text", "label")}]
    assert fit(loader, config).domains == ("(none)",)


def test_the_card_tells_what_happened(config: TrainConfig) -> None:
    loader = Loader(batches(BILLING + SHIPPING))
    adapter = fit(loader, config.changed(steps=5))
    card = adapter.card
    stats = card.stats
    assert stats is not None
    assert stats.rows_per_source == {"support@v1": 40, "support@v2": 40}
    assert stats.rows_distinct == 80
    assert stats.trainable_parameters == sum(v.numel() for n, v in adapter.tensors.items() if n != "counts")
    assert card.class_counts == dict.fromkeys(["billing-a", "billing-b", "shipping-a", "shipping-b"], 20)
    assert json.loads(card.model_dump_json())["weights_digest"] == adapter.digest


class Loader(list[dict[str, object]]):
    """Batches as a mix's loader gives them: with source numbers, and the refs they stand for."""

    refs = ("support@v1", "support@v2")

    def __init__(self, given: list[dict[str, list[str]]]) -> None:
        numbered = [
            {**batch, "_ref": torch.tensor([int(domain == "shipping") for domain in batch["domain"]])}
            for batch in given
        ]
        super().__init__(numbered)


def test_a_parent_of_another_base_or_shape_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    parent = fit(batches(BILLING), config.changed(steps=2))
    with pytest.raises(ConflictError, match="another base"):
        fit(batches(BILLING), config.changed(base=make_base(tmp_path / "other", seed=1)), parent=parent)
    with pytest.raises(UsageError, match="bottleneck 8, the config 4"):
        fit(batches(BILLING), config.changed(bottleneck=4), parent=parent)


def test_a_strategy_of_ones_own_takes_a_few_lines(config: TrainConfig) -> None:
    class Shy(Strategy):
        """Learns the head on frozen features alone."""

        name = "shy"

        def loss(self, step: Step) -> Tensor:
            assert step.out.frozen is not None
            return self.classify(step, step.out.frozen)

    register(Shy())
    shy = fit(batches(BILLING), config.changed(strategy="shy", weight_decay=0.0))
    fresh = fit(batches(BILLING), config.changed(strategy="shy", weight_decay=0.0, steps=1))
    assert accuracy(shy, BILLING) == 1.0
    assert torch.equal(shy.tensors["up.weight"], fresh.tensors["up.weight"])


def test_progress_is_told_of_reading_and_of_every_update(config: TrainConfig) -> None:
    told: list[tuple[str, int, int]] = []
    fit(batches(BILLING), config.changed(steps=3), progress=lambda *event: told.append(event))
    assert told == [("read", 3, 3), ("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]


def test_the_learning_rate_rises_and_falls_within_its_peak() -> None:
    from treering.training.loop import _schedule

    config = TrainConfig(steps=100, warmup=10)
    rates = [_schedule(step, config) for step in range(100)]
    assert max(rates) <= 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.001
    assert all(math.isfinite(rate) for rate in rates)
