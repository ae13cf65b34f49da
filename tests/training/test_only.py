from __future__ import annotations

import pytest
import torch

from tests.training.tiny import batches, records
from treering.errors import UsageError
from treering.training import Adapter, Base, TrainConfig, fit

ROWS = [*records("billing"), *records("shipping")]


@pytest.fixture
def parent(tiny: Base, config: TrainConfig) -> Adapter:
    return fit(batches(ROWS), config.changed(strategy="joint"), base=tiny)


def changed(old: Adapter, new: Adapter) -> set[str]:
    return {name for name, value in old.tensors.items() if not torch.equal(value, new.tensors[name])}


def test_only_the_head_is_trained(tiny: Base, config: TrainConfig, parent: Adapter) -> None:
    made = fit(batches(ROWS), config.changed(only="head"), base=tiny, parent=parent)
    assert changed(parent, made) == {"head.weight", "head.bias", "counts"}
    assert made.card.stats is not None
    assert made.card.stats.trainable_parameters == 4 * 33


def test_only_one_domains_gates_are_trained(tiny: Base, config: TrainConfig, parent: Adapter) -> None:
    made = fit(batches(ROWS), config.changed(only="gate:shipping"), base=tiny, parent=parent)
    assert changed(parent, made) == {"gates", "counts"}
    n = parent.domains.index("shipping")
    assert not torch.equal(made.tensors["gates"][:, n], parent.tensors["gates"][:, n])
    assert torch.equal(made.tensors["gates"][:, 1 - n], parent.tensors["gates"][:, 1 - n])  # weight decay included


@pytest.mark.parametrize(
    ("only", "has_parent", "said"),
    [
        ("head", False, "there is no parent"),
        ("gate:weather", True, "no gate for domain 'weather'"),
    ],
)
def test_what_cannot_be_touched_up_is_refused(
    tiny: Base, config: TrainConfig, parent: Adapter, only: str, has_parent: bool, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        fit(batches(ROWS), config.changed(only=only), base=tiny, parent=parent if has_parent else None)


def test_a_part_that_does_not_exist_is_a_bad_config(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="only"):
        config.changed(only="nose")


def test_a_hook_is_asked_every_so_many_updates_and_may_end_the_run(tiny: Base, config: TrainConfig) -> None:
    steps: list[int] = []

    def hook(step: int, adapter: Adapter) -> str | None:
        steps.append(step)
        assert len(adapter.predict(["bill bill 1"])) == 1
        return "enough" if step == 20 else None

    made = fit(batches(ROWS), config.changed(eval_every=10), base=tiny, on_step=hook)
    assert steps == [10, 20]
    assert made.card.stats is not None
    assert (made.card.stats.steps, made.card.stats.stopped) == (20, "enough")
