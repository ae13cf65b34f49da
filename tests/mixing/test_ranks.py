"""Real ranks under torchrun (gloo): what one of them decides, all of them do, and in the same batch."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.mixing import MixLock

from .test_store_mixing import SMALL, fill, first, ids

SCRIPT = """
import json, os, sys
import torch.distributed as dist
import treering

def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    folder, workers, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"
    store = treering.open(folder + "/store")
    loader = treering.MixLock.load(folder + "/begun.json").loader(store, follow=True, num_workers=workers)
    if resume:
        loader.load_state_dict(json.load(open(folder + "/state.json")))
    seen = []
    with loader:
        for number, batch in enumerate(loader):
            seen.append(batch["id"])
            if rank == 0 and number == 3 and not resume:
                loader.set_replay(0.5)
                with store.corpus("support").capture() as live:
                    live.extend([{"id": f"n-{n}", "text": "t", "label": "l"} for n in range(300)])
            if rank == 1 and number == 130 and not resume:
                json.dump(loader.state_dict(), open(folder + "/state.json", "w"))
        json.dump({"seen": seen, "lock": loader.lock().to_json()}, open(f"{folder}/rank{rank}.json", "w"))
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


def run(folder: Path, ranks: int, workers: int, how: str = "begin") -> list[dict[str, Any]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*torchrun, str(script), str(folder), str(workers), how], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.timeout(250)
def test_ranks_agree_on_every_event_and_a_single_process_goes_on_where_they_stood(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    fill(support, "a", 300)
    support.snapshot()
    fill(support, "b", 1_000)
    store.mix("support@v1", "support@live", weights=[1, 3], seed=4).lock(8, **SMALL).save(tmp_path / "begun.json")
    zero, one = run(tmp_path, ranks=2, workers=0)
    assert zero["lock"] == one["lock"]
    lock = MixLock.from_json(zero["lock"])
    assert {event.kind for event in lock.events} == {"weights", "growth"}
    assert len(zero["seen"]) == len(one["seen"])
    together = [a + b for a, b in zip(zero["seen"], one["seen"], strict=True)]
    assert first(lock.loader(store), 10**6) == together

    with MixLock.load(tmp_path / "begun.json").loader(store, num_workers=2) as alone:  # other ranks, other workers
        alone.load_state_dict(json.loads((tmp_path / "state.json").read_text()))
        assert [ids(batch) for batch in islice(alone, 60)] == together[131:191]


def test_ranks_that_arent_connected_cant_settle_anything(store: treering.Store, support: treering.Corpus) -> None:
    fill(support, "a", 100)
    with (
        store.mix("support@live").loader(8, rank=0, world_size=2, follow=True) as loader,
        pytest.raises(treering.UsageError, match="init_process_group"),
    ):
        next(iter(loader))
