"""A real Lightning trainer over a tiny module: what it saw is told by record ids. Two ranks: `test_examples.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import pytorch_lightning as pl

from treering.errors import ConflictError, UsageError
from treering.mixing import Mix, mix
from treering.plugins.lightning import TreeringDataModule
from treering.testing import MemoryStore

from .running import bare

pytestmark = pytest.mark.filterwarnings("ignore")


def a_mix(seed: int = 3, **how: Any) -> Mix:
    store = MemoryStore()
    for name, rows in (("v1", 60), ("live", 40)):
        store.add(f"c@{name}", [{"id": f"{name}-{n}", "x": float(n), "domain": "a"} for n in range(rows)])
    return mix(store.load("c@v1"), store.live("c"), seed=seed, **(how or {"weights": [1, 1]}))


class Watching(pl.LightningModule):
    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.seen: list[list[str]] = []
        self.stop = stop

    def training_step(self, batch: dict[str, Any], number: int) -> Any:
        if len(self.seen) == self.stop:
            raise InterruptedError
        self.seen.append(list(batch["id"]))
        return self.linear(batch["x"][:, None].float() / 60).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(out: Path, *, stop: int | None = None, loader: dict[str, Any] | None = None, every: int | None = 3, seed: int = 3,
        **options: Any) -> list[list[str]]:  # fmt: skip
    """What a run saw that saves every so many updates, or (None) at the end of each epoch; it goes on from `last.ckpt`."""
    torch.manual_seed(0)
    keep = pl.callbacks.ModelCheckpoint(
        out, every_n_train_steps=every, save_last=True, save_on_train_epoch_end=every is None
    )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=keep,
        **{"max_epochs": 2, **options},
    )  # fmt: skip
    model = Watching(stop)
    settings = {"batch_size": 8, "columns": ["id", "x", "domain"], **(loader or {})}
    data = TreeringDataModule(a_mix(seed).loader, **settings)
    if stop is None:
        trainer.fit(model, data, ckpt_path="last" if (out / "last.ckpt").exists() else None)
    else:
        with pytest.raises(InterruptedError):
            trainer.fit(model, data)
    return model.seen


@pytest.mark.parametrize(
    ("options", "loader", "stop", "every"),
    [
        ({}, {}, 8, 3),  # 10 batches an epoch: stopped in the first
        ({}, {}, 14, 3),  # in the second
        ({}, {}, 12, 10),  # saved after the last batch of an epoch, before its end
        ({"accumulate_grad_batches": 2}, {}, 15, 3),
        ({"limit_train_batches": 6, "max_epochs": 3}, {}, 9, 4),  # goes on where an epoch was cut off
        ({"reload_dataloaders_every_n_epochs": 1}, {"adaptive": True}, 14, 3),
        ({"max_steps": 17, "max_epochs": -1}, {"epochs": None}, 13, 3),  # no length: Lightning fetches ahead
        ({"max_steps": 17, "max_epochs": -1}, {"epochs": None, "prefetch": 0, "transform": dict}, 13, 3),
    ],
)
def test_a_resumed_run_sees_the_batches_of_the_unbroken_one(
    tmp_path: Path, options: dict[str, Any], loader: dict[str, Any], stop: int, every: int
) -> None:
    whole = fit(tmp_path / "whole", loader=loader, every=every, **options)
    assert whole == bare(a_mix(), len(whole), batch_size=8)
    assert len(whole) == options.get("max_steps", options.get("max_epochs", 2) * options.get("limit_train_batches", 10))
    broken = fit(tmp_path / "broken", stop=stop, loader=loader, every=every, **options)
    assert len(broken) == stop
    resumed = fit(tmp_path / "broken", loader=loader, every=every, **options)
    assert 0 < len(resumed) < len(whole)
    assert broken[: len(whole) - len(resumed)] + resumed == whole


def test_a_checkpoint_made_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "one", max_epochs=1, every=None)
    assert fit(tmp_path / "one", max_epochs=2) == whole[len(whole) // 2 :]


def test_lightning_saves_and_restores_a_bare_loader_but_counts_what_it_fetched_ahead(tmp_path: Path) -> None:
    """Facts about Lightning that the data module rests on: should they change, we would like to know."""

    def run(make: Any, **options: Any) -> tuple[list[list[str]], int]:
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, **options,
        )  # fmt: skip
        model = Watching()
        with make() as loader:
            trainer.fit(model, loader)
            trainer.save_checkpoint(tmp_path / "bare.ckpt")
        saved = torch.load(tmp_path / "bare.ckpt", weights_only=True)
        return model.seen, saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batch"]

    make = partial(a_mix().loader, batch_size=8, columns=["id", "x"])
    seen, saved = run(make, max_steps=4, max_epochs=-1)
    assert seen == bare(a_mix(), 4, batch_size=8)
    assert saved == 4
    seen, saved = run(partial(make, epochs=None), max_steps=4, max_epochs=-1)
    assert len(seen) == 4
    assert saved == 5  # one batch would be lost


def test_epochs_are_fresh_orders_of_the_same_records(tmp_path: Path) -> None:
    seen = fit(tmp_path)
    first, second = ([one for part in seen[k : k + 10] for one in part] for k in (0, 10))
    live = {one for one in first if one.startswith("live")}
    assert len(live) == 40
    assert live == {one for one in second if one.startswith("live")}
    assert first != second


def test_a_trainer_that_fits_again_goes_on(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_epochs=1,
    )  # fmt: skip
    model, data = Watching(), TreeringDataModule(a_mix().loader, batch_size=8, columns=["id", "x"])
    trainer.fit(model, data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data)
    assert model.seen == bare(a_mix(), 20, batch_size=8)


def test_a_mix_that_ends_by_itself_is_one_epoch(tmp_path: Path) -> None:
    def run(epochs: int) -> list[str]:
        model = Watching()
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, max_epochs=epochs,
        )  # fmt: skip
        trainer.fit(model, TreeringDataModule(a_mix(replay_ratio=0.5).loader, batch_size=8, columns=["id", "x"]))
        return [one for batch in model.seen for one in batch]

    assert len([one for one in run(1) if one.startswith("live")]) == 40
    with pytest.raises(UsageError, match="max_epochs=1"):
        run(2)


def test_a_checkpoint_of_another_mix_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1)
    with pytest.raises(ConflictError, match="seed: 3 there, 4 here"):
        fit(tmp_path, seed=4)


class Reweigh(pl.Callback):
    """Asks for live records alone, in the first epoch."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        if trainer.current_epoch == 0 and number == 0:
            trainer.datamodule.loader.reweigh([0, 1])


def test_weights_that_change_hold_in_a_loader_that_lightning_asks_for_anew(tmp_path: Path) -> None:
    """The new one goes on with the events of the one before; weights change at batch 64, in the seventh epoch."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_epochs=12, reload_dataloaders_every_n_epochs=1, callbacks=Reweigh(),
    )  # fmt: skip
    model = Watching()
    data = TreeringDataModule(a_mix().loader, batch_size=8, columns=["id", "x"], adaptive=True)
    trainer.fit(model, data)
    assert len(model.seen) == 120
    assert all(any(one.startswith("v1") for one in batch) for batch in model.seen[:20])
    assert all(one.startswith("live") for batch in model.seen[80:] for one in batch)
    assert len(data.loader.lock().events) == 1


def test_overfitting_a_batch_is_not_for_the_data_module(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="overfit_batches"):
        fit(tmp_path, overfit_batches=1)


def test_the_module_makes_its_loader_itself() -> None:
    mixed = a_mix()
    with mixed.loader(batch_size=8) as loader, pytest.raises(UsageError, match="makes its loader itself"):
        TreeringDataModule(loader)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rank and world_size come from"):
        TreeringDataModule(mixed.loader, batch_size=8, rank=0, world_size=2)
    with pytest.raises(UsageError, match="rank comes from") as refused:
        TreeringDataModule(mixed.loader, batch_size=8, rank=0)
    assert refused.value.hint == "leave it out"
    with pytest.raises(UsageError, match="isn't in use"):
        TreeringDataModule(mixed.loader, batch_size=8).train_dataloader()
