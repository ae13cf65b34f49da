from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import treering

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Begun by a shell in the background: the commands that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path: Path) -> treering.Store:
    return treering.open(tmp_path / "store")


@pytest.fixture
def support(store: treering.Store) -> treering.Corpus:
    return store.create("support", "labelled")


@pytest.fixture(autouse=True)
def unhurried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy this machine is decides no test: to gates, an answer took at most 50 ms. Measuring has tests of its own."""
    if request.path.name == "test_budget.py" or "s3" in request.path.parts:
        return
    from treering.rounds import budget

    measured = budget._pass
    monkeypatch.setattr(budget, "_pass", lambda answer, texts: [min(ms, 50.0) for ms in measured(answer, texts)])
