"""A loader in the hands of what would shard, shuffle or batch it again: it works, or it says what to do."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import treering
from treering.errors import UsageError
from treering.mixing import Mix, mix
from treering.testing import MemoryStore

SOURCE = Path(treering.__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore")


def a_mix() -> Mix:
    store = MemoryStore()
    store.add("c@v1", [{"id": f"r{n}", "x": float(n)} for n in range(32)])
    return mix(store.load("c@v1"), weights=[1], seed=1)


@pytest.mark.parametrize("options", [{}, {"batch_size": None}, {"batch_size": 4, "shuffle": True}, {"num_workers": 1}])
def test_a_dataloader_around_a_loader_says_to_leave_it_out(options: dict[str, Any]) -> None:
    with a_mix().loader(batch_size=8) as loader, pytest.raises(UsageError, match="without a DataLoader around it"):
        next(iter(DataLoader(loader, **options)))


def test_a_dataloader_around_an_endless_loader_ends_too() -> None:
    with a_mix().loader(batch_size=8, epochs=None) as loader, pytest.raises(TypeError, match="iterate it"):
        next(iter(DataLoader(loader)))


def test_torchdatas_own_loader_around_a_loader_says_what_to_use() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    with a_mix().loader(batch_size=8) as loader, pytest.raises(UsageError, match="TreeringDataLoader"):
        next(iter(stateful.StatefulDataLoader(loader, batch_size=None)))


def test_a_stock_trainer_given_a_loader_says_which_trainer_takes_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    args = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    with a_mix().loader(batch_size=8) as loader:
        trainer = transformers.Trainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=loader)
        with pytest.raises(UsageError, match="TreeringTrainer"):
            trainer.train()


def test_trl_takes_no_torch_iterable_dataset_and_so_no_loader(tmp_path: Path) -> None:
    """The reason for `TreeringSFTTrainer`: should TRL take one some day, we would like to know."""
    trl = pytest.importorskip("trl")

    class Rows(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield {"text": "a"}

    args = trl.SFTConfig(str(tmp_path), bf16=False, use_cpu=True, max_steps=1)
    with a_mix().loader(batch_size=8) as loader:
        for refused in (Rows(), loader):
            with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`"):
                trl.SFTTrainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=refused)


def test_accelerate_leaves_a_loader_as_it_is() -> None:
    accelerate = pytest.importorskip("accelerate")
    torchdata = pytest.importorskip("treering.plugins.torchdata")
    accelerator = accelerate.Accelerator(cpu=True)
    with a_mix().loader(batch_size=8) as loader:
        wrapped = torchdata.TreeringDataLoader(loader)
        assert accelerator.prepare(loader) is loader
        assert accelerator.prepare(wrapped) is wrapped


def test_accelerate_saves_and_restores_a_loader_that_is_registered(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    with a_mix().loader(batch_size=8) as loader:
        whole = [batch["id"] for batch in loader]
    with a_mix().loader(batch_size=8) as loader:
        accelerator.register_for_checkpointing(loader)
        running = iter(loader)
        next(running)
        accelerator.save_state(str(tmp_path))
        list(running)
        accelerator.load_state(str(tmp_path))
        assert [batch["id"] for batch in loader] == whole[1:]


def test_processes_without_a_rank_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning starts them: each would take itself for rank 0, and train on the same rows."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK isn't set"):
        a_mix().loader(batch_size=8)
    assert a_mix().loader(batch_size=8, rank=1, world_size=2).rank == 1


def test_ranks_that_are_given_hold_whatever_the_processes_are_connected_as(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensor parallelism several processes share the rows of one rank, which only the caller knows."""
    from treering.mixing import loader as module

    with a_mix().loader(batch_size=8, rank=0, world_size=1) as given, a_mix().loader(batch_size=8) as early:
        monkeypatch.setattr(module, "_connected", lambda: (1, 2))
        for loader in (given, given.endless()):
            assert len(next(iter(loader))["id"]) == 8
        for loader in (early, early.endless()):
            with pytest.raises(UsageError, match="rank 1 of 2 by now"):
                iter(loader)
    with a_mix().loader(batch_size=8) as late:
        assert (late.rank, late.world_size) == (1, 2)


def test_ranks_that_are_given_beat_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with a_mix().loader(batch_size=8) as loader:
        assert (loader.rank, loader.world_size) == (1, 2)
    with a_mix().loader(batch_size=8, rank=0, world_size=4) as loader:
        assert (loader.rank, loader.world_size) == (0, 4)


@pytest.mark.parametrize(
    ("plugin", "package", "command"),
    [
        ("hf", "transformers", "treering[train]"),
        ("trl", "trl", "treering[trl]"),
        ("lightning", "pytorch_lightning", "treering[lightning]"),
        ("torchdata", "torchdata", "torchdata"),
        ("ray", "ray", "treering[ray]"),
    ],
)
def test_a_plugin_without_its_framework_names_the_command_that_installs_it(
    plugin: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"treering.plugins.{plugin}", raising=False)
    import treering.plugins

    monkeypatch.delattr(treering.plugins, plugin, raising=False)
    with pytest.raises(UsageError) as refused:
        importlib.import_module(f"treering.plugins.{plugin}")
    assert refused.value.code == "missing-extra"
    assert "pip install" in str(refused.value)
    assert command in str(refused.value)


def test_only_the_plugins_themselves_import_their_frameworks() -> None:
    frameworks = {"trl", "pytorch_lightning", "torchdata", "ray", "accelerate", "datasets"}
    importing = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        if name.split(".")[0] in frameworks
    }  # fmt: skip
    assert importing == {*(f"plugins/{name}.py" for name in ("trl", "lightning", "torchdata", "ray")), "engine/ray.py"}
