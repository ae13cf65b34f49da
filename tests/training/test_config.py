from __future__ import annotations

import pytest

from treering.errors import StoreError, UsageError
from treering.training import ModelCard, TrainConfig


def test_a_config_names_every_bad_and_unknown_field_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig(steps="many", lr=-1.0, learning_rate=1.0)
    assert all(name in caught.value.message for name in ("steps", "lr", "learning_rate"))
    assert "batch_size" in str(caught.value.hint)


@pytest.mark.parametrize("bad", [{"steps": 1.5}, {"steps": "3"}, {"lr": float("nan")}, {"seed": -1}, {"max_tokens": 1}])
def test_nothing_is_coerced_and_nothing_impossible_passes(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**bad)


def test_a_config_survives_json() -> None:
    config = TrainConfig(strategy="joint", lr=3e-4, adapt_layers=2)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_a_changed_config_is_checked_too() -> None:
    assert TrainConfig().changed(steps=5).steps == 5
    with pytest.raises(UsageError):
        TrainConfig().changed(steps=0)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": "treering.model-card/1"}', b'{"config": {"steps": -1}}'])
def test_what_is_no_model_card_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(StoreError, match="not a model card"):
        ModelCard.parse(data)
