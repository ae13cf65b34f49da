from __future__ import annotations

import os
from pathlib import Path

import pytest

import treering

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def store(tmp_path: Path) -> treering.Store:
    return treering.open(tmp_path / "store")


@pytest.fixture
def support(store: treering.Store) -> treering.Corpus:
    return store.create("support", "labelled")
