from __future__ import annotations

from typing import Any

import pytest

from treering.errors import UsageError
from treering.training import MixSource, Strategy, TrainConfig, register, strategy

OLD = MixSource("support@v1", 0.2, 1000, replay=True)
NEW = MixSource("support@v2", 0.8, 300, replay=False)
NEVER = MixSource("support@v3", 0.0, 50, replay=False)


def weights(name: str, sources: list[MixSource], **fields: Any) -> list[float]:
    return [draw.weight for draw in strategy(name).draw(sources, TrainConfig(**fields))]


def test_naive_draws_new_data_only() -> None:
    assert weights("naive", [OLD, NEW]) == [0.0, 0.8]
    with pytest.raises(UsageError, match="new data only"):
        weights("naive", [OLD, NEVER])


def test_replay_draws_the_mix_as_given() -> None:
    assert weights("replay", [OLD, NEW, NEVER]) == [0.2, 0.8, 0.0]


def test_joint_draws_every_record_equally_often_and_starts_from_scratch() -> None:
    assert weights("joint", [OLD, NEW, NEVER]) == [1000.0, 300.0, 0.0]
    assert not strategy("joint").continues


def test_an_unknown_strategy_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown strategy 'ewc2'") as caught:
        strategy("ewc2")
    assert "joint, lora, lora-replay" in str(caught.value.hint)


def test_a_strategys_name_is_taken_once() -> None:
    class Mine(Strategy):
        name = "replay"

    with pytest.raises(UsageError, match="already"):
        register(Mine())
