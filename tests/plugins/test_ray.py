"""Ray Train's real API: two ranks in its local mode. Two workers of a cluster: the slow test in `test_examples.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ray")

from treering.errors import UsageError

from .conftest import Shared
from .running import bare, start, torchrun

pytestmark = pytest.mark.filterwarnings("ignore")


def test_two_ranks_get_their_rows_and_go_on_where_a_checkpoint_stands(shared: Shared, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ray_local.py")
    done = start([*torchrun(), script, shared.store, tmp_path], watch=tmp_path / "watch", RAY_USAGE_STATS_ENABLED="0")
    assert done.returncode == 0, done.stderr[-4_000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert (found["rank"], found["world_size"]) == (rank, 2)
        assert len(found["first"]) == 4
        assert found["first"] + found["rest"] == bare(shared.mix(), batch_size=8, rank=rank, world_size=2)
        assert found["refused"] == "no-loader-state"


def test_outside_a_worker_it_says_so(shared: Shared) -> None:
    from treering.plugins.ray import report, worker_loader

    mix = shared.mix()
    with pytest.raises(UsageError, match="isn't a worker"):
        worker_loader(mix.loader, batch_size=8)
    with mix.loader(batch_size=8) as loader, pytest.raises(UsageError, match="isn't a worker"):
        report({}, loader)
