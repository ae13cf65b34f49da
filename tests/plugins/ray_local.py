"""One rank of `test_ray.py`, started by torchrun: Ray Train in its local mode, which needs no cluster.

torchrun --nproc-per-node 2 ray_local.py STORE OUT
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

import treering
from treering.errors import ConflictError
from treering.plugins.ray import STATE, report, worker_loader


def work(config: dict[str, Any]) -> None:
    out = Path(config["out"])
    mix = treering.open(config["store"]).mix("support@v1", "support@live", weights=[0.5, 0.5], seed=7)
    options = {"batch_size": 8, "columns": ["id"]}
    loader = worker_loader(mix.loader, **options)
    with loader:
        first = [list(batch["id"]) for batch in islice(loader, 4)]
        # with a cluster Ray brings rank 0's checkpoint to all; here each process keeps its own
        folder = out / "checkpoint"
        folder.mkdir(exist_ok=True)
        report({"batches": 4}, loader, folder)
    torch.distributed.barrier()
    with worker_loader(mix.loader, **options) as loader:
        rest = [list(batch["id"]) for batch in loader]
    found = {"rank": loader.rank, "world_size": loader.world_size, "first": first, "rest": rest}
    torch.distributed.barrier()
    (folder / STATE).unlink(missing_ok=True)
    try:
        worker_loader(mix.loader, **options)
    except ConflictError as exc:
        found["refused"] = exc.code
    (out / f"rank{loader.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    settings = {"store": sys.argv[1], "out": sys.argv[2]}
    TorchTrainer(work, train_loop_config=settings, scaling_config=ScalingConfig(num_workers=0)).fit()
