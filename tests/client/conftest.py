from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import treering
from tests.server.running import Running, running


@pytest.fixture
def notes(store: treering.Store) -> treering.Corpus:
    return store.create("notes", "labelled")


@pytest.fixture
def server(store: treering.Store, notes: treering.Corpus) -> Iterator[Running]:
    with running(store) as found:
        yield found


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "client"
