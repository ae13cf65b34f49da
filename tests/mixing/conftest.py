from __future__ import annotations

import multiprocessing
import sys
from multiprocessing import forkserver

import pytest

from treering.testing import MemoryStore


def records(prefix: str, rows: int, *, heldout_every: int = 5) -> list[dict[str, object]]:
    """Labelled-like records with a fixed-size, a ragged, a nested and a text column; every fifth is held out."""
    return [
        {
            "id": f"{prefix}-{n:05d}",
            "text": f"{prefix} says {n}",
            "label": n % 7,
            "tokens": list(range(n % 5 + 1)),
            "messages": [{"role": "user", "content": f"{prefix} {n}"}],
            "split": "heldout" if heldout_every and n % heldout_every == 3 else "train",
        }
        for n in range(rows)
    ]


@pytest.fixture(scope="session", autouse=True)
def _a_fork_server_that_stays() -> None:
    """What runs before a loader needs it isn't ended with it: else each of some hundred loaders would start its own."""
    if sys.platform != "win32":
        multiprocessing.set_forkserver_preload(["treering.mixing.loader"])
        forkserver.ensure_running()


@pytest.fixture
def memory() -> MemoryStore:
    """Two snapshots and live, of 300, 200 and 150 records."""
    store = MemoryStore()
    store.add("support@v1", records("a", 300))
    store.add("support@v2", records("b", 200))
    store.add("support@live", records("c", 150))
    return store
