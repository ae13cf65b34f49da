"""Ray Train on a mix: in each worker its rank's rows, and after a failure on from the newest checkpoint's batch.

    from treering.plugins.ray import report, worker_loader

    def work(config):                                        # what TorchTrainer(work, …) runs
        loader = worker_loader(mix.loader, batch_size=32)
        for batch in loader:
            ...
            report({"loss": loss.item()}, loader, folder)    # with the files of the model saved in folder

Ray starts, restarts and places the workers; records are read by each worker's own loader, not by Ray Data.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

from treering.errors import ConflictError, UsageError
from treering.mixing.loader import Loader
from treering.plugins import missing, refuse_ranks

try:
    import ray.train
except ImportError as exc:
    raise missing("ray (on Python below 3.14)", "'treering[ray]'") from exc

__all__ = ["STATE", "report", "worker_loader"]

STATE = "treering-loader.json"  # in a checkpoint: where the loader stands


def worker_loader(make: Callable[..., Loader], *args: Any, **options: Any) -> Loader:
    """The loader of this worker, standing where the run's newest checkpoint was reported, or at batch 0.

    make: `mix.loader`, or `lock.loader` and the store; called with the arguments that follow, and the worker's `rank` and
    `world_size`. Raises UsageError outside a worker, ConflictError for a checkpoint of another mix or not by `report`.
    """
    rank, world_size = _ranks()
    refuse_ranks(options, "Ray")
    loader = make(*args, **options, rank=rank, world_size=world_size)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = Path(folder) / STATE
            if not state.is_file():
                raise ConflictError(
                    f"the checkpoint at {checkpoint.path} holds no loader state",
                    code="no-loader-state",
                    hint="report checkpoints with treering.plugins.ray.report",
                )
            loader.load_state_dict(json.loads(state.read_text("utf-8")))
    return loader


def report(
    metrics: Mapping[str, Any], loader: Loader, folder: str | PathLike[str] | None = None, **options: Any
) -> None:
    """`ray.train.report`, with a checkpoint that says where the loader stands beside what lies in `folder`.

    Every worker calls it, as Ray wants it. Rank 0 writes the state, which is that of all; with `folder` on rank 0 alone,
    or on each for sharded models. `options` go to Ray.
    """
    rank, _ = _ranks()
    with ExitStack() as stack:
        if rank == 0:
            if folder is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            (Path(folder) / STATE).write_text(json.dumps(loader.state_dict()), "utf-8")
        checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report(dict(metrics), checkpoint=checkpoint, **options)


def _ranks() -> tuple[int, int]:
    try:
        context = ray.train.get_context()
        return int(context.get_world_rank()), int(context.get_world_size())
    except (RuntimeError, AssertionError, AttributeError, TypeError) as exc:
        raise UsageError(
            "this isn't a worker of Ray Train", code="no-worker", hint="call it in what TorchTrainer(…) runs"
        ) from exc
