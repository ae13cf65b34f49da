"""Two processes of `accelerate launch` over gloo: one launch, whose findings the tests below read."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from .conftest import Shared
from .running import bare, free_port, start

for package in ("transformers", "accelerate", "trl", "torchdata"):
    pytest.importorskip(package)


class Found:
    def __init__(self, out: Path, shared: Shared) -> None:
        launch = [
            "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(),
        ]  # fmt: skip
        script = Path(__file__).with_name("two_ranks.py")
        done = start([*launch, script, shared.store, shared.chat, out], watch=out / "watch")
        assert done.returncode == 0, done.stderr[-4_000:]
        self.ranks: list[dict[str, Any]] = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
        self.ragged = json.loads((out / "ragged.json").read_text())
        self.shared = shared

    def bare(self, corpus: str = "support", batches: int | None = None) -> list[list[list[str]]]:
        """What the bare loader gives to each rank."""
        mix = self.shared.mix(corpus)
        return [bare(mix, batches, batch_size=8, rank=rank, world_size=2) for rank in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, shared: Shared) -> Found:
    return Found(tmp_path_factory.mktemp("ranks"), shared)


def test_huggingface_gives_each_rank_its_rows_of_strings_of_any_length(found: Found) -> None:
    seen = [one["whole"]["seen"] for one in found.ranks]
    assert seen == found.bare()
    assert {len(part) for rank in seen for part in rank} == {4}
    rows = [one for rank in seen for part in rank[:-1] for one in part]  # the last batch begins the next pass
    assert len(rows) == len(set(rows)) == 64


def test_every_rank_gets_the_same_number_of_batches_though_the_rows_do_not_divide(found: Found) -> None:
    assert {len(one["whole"]["seen"]) for one in found.ranks} == {9}  # 35 new records, 4 of them in each batch of 8
    assert {one["whole"]["steps"] for one in found.ranks} == {5}


def test_two_ranks_of_huggingface_go_on_at_the_exact_batch(found: Found) -> None:
    for rank, one in enumerate(found.ranks):
        assert len(one["stopped"]["seen"]) == 6
        assert one["stopped"]["seen"] + one["resumed"]["seen"] == found.bare()[rank]
        assert one["resumed"]["steps"] == one["whole"]["steps"]
        assert one["resumed"]["weights"] == one["whole"]["weights"] != one["stopped"]["weights"]
    assert found.ranks[0]["whole"]["weights"] == found.ranks[1]["whole"]["weights"]


def test_trl_gives_each_rank_its_conversations(found: Found) -> None:
    assert [one["trl"] for one in found.ranks] == found.bare("chats", 4)


@pytest.mark.parametrize("how", ["prepared", "prepared torchdata"])
def test_a_loader_handed_to_accelerate_keeps_every_row(found: Found, how: str) -> None:
    assert [one[how] for one in found.ranks] == found.bare()


def test_a_loader_takes_its_rank_from_the_process_group_where_the_environment_has_none(found: Found) -> None:
    assert [one["without environment"] for one in found.ranks] == found.bare()


def test_a_loader_made_before_the_processes_were_connected_is_refused(found: Found) -> None:
    """Both would take themselves for the only one, and train on the same rows."""
    assert [one["early"] for one in found.ranks] == ["other-rank", "other-rank"]


@pytest.mark.parametrize("how", ["dispatched", "sharded twice"])
def test_accelerate_loses_half_of_what_shards_itself(found: Found, how: str) -> None:
    """The trap that the plug-ins go round: 16 rows, which each rank's dataset has halved already."""
    rows = list(chain(*(batch for one in found.ranks for batch in one[how])))
    assert len(rows) == len(set(rows)) == 8


def test_accelerate_breaks_on_ragged_batches(found: Found) -> None:
    """The same for what an IterableDataset gives by default, which is why the loader isn't one."""
    assert "batches of different size" in found.ragged
