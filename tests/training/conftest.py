from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.tiny import make_base
from treering.training import Base, TrainConfig


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tiny(tiny_path: str) -> Base:
    return Base.load(tiny_path, precision="fp32", max_tokens=32)


@pytest.fixture
def config(tiny_path: str) -> TrainConfig:
    return TrainConfig(
        strategy="replay",
        base=tiny_path,
        steps=40,
        batch_size=16,
        lr=1e-2,
        bottleneck=8,
        feature_noise=0.1,
        precision="fp32",
        max_tokens=32,
    )


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"
