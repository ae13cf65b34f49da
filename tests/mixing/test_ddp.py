"""Two ranks under torchrun, real processes over gloo: one launch, whose findings the tests below read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import treering

from .ddp_worker import RESUMED, STEPS, STOP

BATCH = 16
SAVED = 5  # batches that a single process hands out before the two ranks go on
SCHEMA = pa.schema([("tokens", pa.list_(pa.int32(), 8)), ("target", pa.int64())])


def fill(corpus: treering.Corpus, prefix: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    tokens, target = rng.integers(0, 50, (rows, 8)).tolist(), rng.integers(0, 5, rows).tolist()
    with corpus.capture() as live:
        live.extend([{"id": f"{prefix}-{n}", "tokens": tokens[n], "target": target[n]} for n in range(rows)])


def ids(batch: dict[str, Any]) -> list[str]:
    return list(batch["id"])


class Ranks:
    """What both ranks found, and a single process with the same lock."""

    def __init__(self, root: Path) -> None:
        self.store = treering.open(root / "store")
        corpus = self.store.create("support", schema=SCHEMA)
        fill(corpus, "a", 300)
        corpus.snapshot()
        fill(corpus, "b", 260)
        mix = self.store.mix("support@v1", "support@live", weights=[0.3, 0.7], seed=5)
        self.lock = mix.lock(BATCH, columns=["id", "tokens", "target"], chunk_rows=4, pool_rows=64)
        self.lock.save(root / "mix.lock.json")
        with self.loader() as loader:
            self.whole = [ids(batch) for batch in loader]
        with self.loader() as loader:
            list(islice(loader, SAVED))
            (root / "single.json").write_text(json.dumps(loader.state_dict()))
        self.found = self._launch(root)

    def loader(self, **options: Any) -> Any:
        return self.lock.loader(self.store, **{"rank": 0, "world_size": 1, **options})

    def _launch(self, root: Path) -> list[dict[str, Any]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        worker = Path(__file__).with_name("ddp_worker.py")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--nnodes", "1",
            "--master-addr", "127.0.0.1", "--master-port", str(port),
            str(worker), str(root / "store"), str(root / "mix.lock.json"), str(root),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr[-4_000:]
        return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("ddp"))


def test_torchrun_decides_the_rank_of_a_loader(ranks: Ranks) -> None:
    assert [(one["rank"], one["world_size"]) for one in ranks.found] == [(0, 2), (1, 2)]


def test_two_ranks_get_disjoint_slices_of_the_batches_that_one_process_gets(ranks: Ranks) -> None:
    first, second = (one["ids"] for one in ranks.found)
    assert [list(chain(*parts)) for parts in zip(first, second, strict=True)] == ranks.whole
    for number in range(len(first) - 1):  # the last batch of an epoch begins the next pass
        assert not set(first[number]) & set(second[number])


def test_both_ranks_make_the_same_number_of_steps(ranks: Ranks) -> None:
    lengths = {one["length"] for one in ranks.found} | {len(one["ids"]) for one in ranks.found}
    assert lengths == {len(ranks.whole)}
    assert {len(part) for one in ranks.found for part in one["ids"]} == {BATCH // 2}


def test_both_ranks_save_the_same_state_and_another_world_size_goes_on_from_it(ranks: Ranks) -> None:
    state, other = (one["state"] for one in ranks.found)
    assert state == other
    with ranks.loader() as loader:
        loader.load_state_dict(state)
        assert [ids(batch) for batch in loader] == ranks.whole[STOP:]
    slices = []
    for rank in range(4):
        with ranks.loader(rank=rank, world_size=4) as loader:
            loader.load_state_dict(state)
            slices.append([ids(batch) for batch in loader])
    assert [list(chain(*parts)) for parts in zip(*slices, strict=True)] == ranks.whole[STOP:]


def test_two_ranks_go_on_from_the_state_of_one_process(ranks: Ranks) -> None:
    parts = zip(*(one["resumed"] for one in ranks.found), strict=True)
    assert [list(chain(*part)) for part in parts] == ranks.whole[SAVED : SAVED + RESUMED]


def test_a_model_trained_by_both_ranks_ends_with_equal_weights(ranks: Ranks) -> None:
    first, second = (one["trained"] for one in ranks.found)
    assert first["weights"] == second["weights"]
    assert len(first["losses"]) == len(second["losses"]) == STEPS
    assert first["losses"] != second["losses"]  # each rank saw rows of its own


def test_two_ranks_learn_what_one_process_learns_from_the_whole_batches(ranks: Ranks) -> None:
    """The mean of two half batches' gradients is the whole batch's: the same rows give the same model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Flatten(), torch.nn.Linear(64, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ranks.loader() as loader:
        for batch in islice(loader, STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch["tokens"].long()), batch["target"]).backward()
            optimizer.step()
    alone = [float(p.detach().double().sum()) for p in model.parameters()]
    assert ranks.found[0]["trained"]["weights"] == pytest.approx(alone, rel=1e-3, abs=1e-3)
