"""Scripts in processes of their own, as users start them, and which records their loaders handed out."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WATCH = Path(__file__).parent / "watch"  # its sitecustomize.py notes what is handed out, and kills

Batches = list[list[str]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(ranks: int = 2) -> list[str]:
    """What stands before a script for so many ranks."""
    return [
        "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(ranks),
        "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
    ]  # fmt: skip


def start(
    command: Sequence[object], *, watch: Path, kill: int | None = None, timeout: float = 200, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; `kill`: rank 0 dies by SIGKILL as it asks for the batch of this number."""
    watch.mkdir(exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not re.match(r"(LOCAL_|GROUP_|NODE_)?(RANK|WORLD_SIZE)$", k)}
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(WATCH), str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "WATCH": str(watch),
        **({} if kill is None else {"WATCH_KILL": str(kill)}),
        **more,
    }
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, cwd=watch.parent, env=environment, capture_output=True, text=True, timeout=timeout)


def seen(watch: Path, rank: int = 0) -> Batches:
    """The ids of each batch that a rank was handed, over all starts. A batch handed out again must be the same."""
    by_number: dict[int, list[str]] = {}
    for line in (watch / f"rank{rank}.txt").read_text().splitlines():
        number, _, ids = line.partition(" ")
        assert by_number.setdefault(int(number), ids.split(",")) == ids.split(","), f"batch {number} came out different"
    assert sorted(by_number) == list(range(len(by_number)))
    return [by_number[number] for number in range(len(by_number))]


def bare(mix: Any, batches: int | None = None, **options: Any) -> Batches:
    """The ids that the bare loader gives; of an endless one, so many batches."""
    options = {"rank": 0, "world_size": 1, "columns": ["id"], "epochs": 1 if batches is None else None, **options}
    with mix.loader(**options) as loader:
        return [list(batch["id"]) for batch in islice(loader, batches)]


def epoch(mix: Any, batch_size: int) -> int:
    """Batches of an epoch."""
    with mix.loader(batch_size=batch_size, rank=0, world_size=1) as loader:
        return len(loader)


def shown(test: str) -> str:
    """The block of docs/trainers.md that says that the tests of this file run it."""
    page = (ROOT / "docs" / "trainers.md").read_text("utf-8")
    (block,) = re.findall(rf'^```python no-run="[^"]*{test} runs it"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    return str(block)
