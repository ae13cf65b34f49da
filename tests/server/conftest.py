from __future__ import annotations

from collections.abc import Iterator

import pytest

import treering

from .running import Running, running


@pytest.fixture
def notes(store: treering.Store) -> treering.Corpus:
    return store.create("notes", "labelled")


@pytest.fixture
def server(store: treering.Store, notes: treering.Corpus) -> Iterator[Running]:
    """A server on loopback, without keys."""
    with running(store) as found:
        yield found
