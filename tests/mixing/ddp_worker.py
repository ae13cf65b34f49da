"""One rank of `test_ddp.py`, started by torchrun: reads what its rank is given, and trains a tiny model.

python -m torch.distributed.run --nproc-per-node 2 ddp_worker.py STORE LOCK OUT
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import treering
from treering.mixing import MixLock

STOP = 7  # batches before the state is saved
RESUMED = 10  # batches after a state was loaded
STEPS = 12  # training steps


def ids(batch: dict[str, Any]) -> list[str]:
    return list(batch["id"])


def one_epoch(store: treering.Store, lock: MixLock) -> dict[str, Any]:
    """Every batch of an epoch, and the state after STOP of them. RANK and WORLD_SIZE come from torchrun."""
    with lock.loader(store) as loader:
        batches = iter(loader)
        got = [ids(batch) for batch in islice(batches, STOP)]
        state = loader.state_dict()
        got += [ids(batch) for batch in batches]
        return {"rank": loader.rank, "world_size": loader.world_size, "length": len(loader), "ids": got, "state": state}


def resumed(store: treering.Store, lock: MixLock, state: dict[str, Any]) -> list[list[str]]:
    """Going on from a state that a run of another world size saved."""
    with lock.loader(store) as loader:
        loader.load_state_dict(state)
        return [ids(batch) for batch in islice(loader, RESUMED)]


def trained(store: treering.Store, lock: MixLock) -> dict[str, list[float]]:
    """The weights of a tiny model after STEPS steps under DistributedDataParallel."""
    torch.manual_seed(dist.get_rank())  # DDP broadcasts rank 0's weights; the data is what could differ
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Flatten(), torch.nn.Linear(64, 5))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with lock.loader(store) as loader:
        for batch in islice(loader, STEPS):
            loss = torch.nn.functional.cross_entropy(model(batch["tokens"].long()), batch["target"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    return {"losses": seen, "weights": [float(p.detach().double().sum()) for p in model.parameters()]}


# Live follow has its place here: rank 0 decides an event and broadcasts it, both ranks record it in their lock.
def main() -> None:
    uri, lock_path, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    dist.init_process_group("gloo")
    try:
        store, lock = treering.open(uri), MixLock.load(lock_path)
        found = one_epoch(store, lock)
        found["resumed"] = resumed(store, lock, json.loads((out / "single.json").read_text()))
        found["trained"] = trained(store, lock)
        (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
