"""A real transformers Trainer over a tiny torch model: what it saw is told by record ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import treering
from treering.errors import ConflictError, UsageError
from treering.mixing import Loader, Mix, mix
from treering.plugins.hf import TreeringMixin, TreeringTrainer
from treering.testing import MemoryStore

from .conftest import Shared
from .running import shown

pytestmark = pytest.mark.filterwarnings("ignore")


def a_mix(seed: int = 3) -> Mix:
    store = MemoryStore()
    for name, rows in (("v1", 60), ("live", 40)):
        store.add(f"c@{name}", [{"id": f"{name}-{n}", "x": float(n), "label": n % 2} for n in range(rows)])
    return mix(store.load("c@v1"), store.live("c"), weights=[1, 1], seed=seed)


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.linear(x[:, None].float())
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def rename(batch: dict[str, Any]) -> dict[str, Any]:
    return {"x": batch["x"] / 60, "labels": batch["label"], "id": batch["id"]}


class Watching(TreeringTrainer):
    """Notes the ids of every batch that reaches the loss."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "id" in inputs:  # not in those of an eval_dataset
            self.seen.append(inputs.pop("id"))
        return super().compute_loss(model, inputs, *args, **kwargs)


def a_trainer(out: Path, *, loader: Loader | dict[str, Any] | None = None, seed: int = 3, **options: Any) -> Watching:
    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir=str(out),
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        **{"save_strategy": "steps", "save_steps": 4, **options},
    )
    if not isinstance(loader, Loader):
        loader = a_mix(seed).loader(**{"batch_size": 8, "transform": rename, **(loader or {})})
    trainer = Watching(model=Tiny(), args=args, loader=loader)
    trainer.seen = []
    return trainer


def test_a_mix_that_ends_by_itself_is_one_epoch_of_the_trainer(tmp_path: Path) -> None:
    store = MemoryStore()
    for name, rows in (("v1", 60), ("live", 40)):
        store.add(f"c@{name}", [{"id": f"{name}-{n}", "x": float(n), "label": n % 2} for n in range(rows)])

    def trained(epochs: int) -> list[str]:
        trainer = a_trainer(tmp_path, num_train_epochs=epochs, save_strategy="no")
        once = mix(store.load("c@v1"), store.live("c"), replay_ratio=0.5)
        trainer._batches = type(trainer._batches)(once.loader(batch_size=8, transform=rename))
        trainer.train()
        return [one for batch in trainer.seen for one in batch]

    seen = trained(1)
    assert sum(one.startswith("live") for one in seen) == len({one for one in seen if one.startswith("live")}) == 40
    with pytest.raises(UsageError, match="num_train_epochs=1"):
        trained(2)


class StopAt(TrainerCallback):
    """A run that ends early, as a kill between two steps would end it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "loader", "stop", "at"),
    [
        ({"max_steps": 30}, {"epochs": None}, 14, 12),
        ({"num_train_epochs": 3}, {}, 14, 12),  # 10 batches an epoch: stopped in the second
        ({"num_train_epochs": 3, "save_steps": 5}, {}, 12, 10),  # resumed exactly between two epochs
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 4, "save_steps": 2}, {}, 5, 4),  # 3 updates: 4 + 4 + 2
        ({"max_steps": 9, "gradient_accumulation_steps": 3}, {"epochs": None, "num_workers": 0}, 7, 4),
    ],
)
def test_a_resumed_run_sees_the_batches_of_the_unbroken_one(
    tmp_path: Path, options: dict[str, Any], loader: dict[str, Any], stop: int, at: int
) -> None:
    whole = a_trainer(tmp_path / "whole", loader=loader, **options)
    whole.train()
    broken = a_trainer(tmp_path / "broken", loader=loader, **options)
    broken.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = a_trainer(tmp_path / "broken", loader=loader, **options)
    resumed.train(resume_from_checkpoint=True)
    kept = len(whole.seen) - len(resumed.seen)
    assert broken.seen[:kept] + resumed.seen == whole.seen
    assert resumed.state.global_step == whole.state.global_step
    assert resumed.seen
    assert (tmp_path / "broken" / f"checkpoint-{at}").is_dir()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


class Reweigh(TrainerCallback):
    """Asks the loader that was given to the trainer for live records alone, after the 20th step."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 20:
            self.loader.reweigh([0, 1])


def test_weights_that_change_during_the_run_change_it_and_its_resumption(tmp_path: Path) -> None:
    def run(stop: int | None = None, *, resume: bool = False) -> Watching:
        with a_mix().loader(batch_size=8, transform=rename, epochs=None, adaptive=True) as loader:
            trainer = a_trainer(tmp_path, loader=loader, max_steps=160, save_steps=100)
            trainer.add_callback(Reweigh(loader))
            if stop is None:
                trainer.train(resume_from_checkpoint=resume)
                return trainer
            trainer.add_callback(StopAt(stop))
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        return trainer

    broken = run(120)
    again = run(resume=True)
    seen = broken.seen[:100] + again.seen
    assert len(seen) == 160
    assert {one.split("-")[0] for batch in seen[:20] for one in batch} == {"v1", "live"}
    assert {one.split("-")[0] for batch in seen[100:] for one in batch} == {"live"}
    assert broken.seen[100:] == again.seen[:20]
    assert len(again.loader.lock().events) == 1
    assert again.loader.stats()["batches"] == 160


def test_the_trainers_epochs_are_fresh_orders_of_the_same_records(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path, num_train_epochs=2)
    trainer.train()
    assert len(trainer.seen) == 20
    first, second = ([one for part in trainer.seen[k : k + 10] for one in part] for k in (0, 10))
    live = {one for one in first if one.startswith("live")}
    assert len(live) == 40
    assert live == {one for one in second if one.startswith("live")}
    assert first != second


def test_columns_that_the_model_doesnt_take_are_dropped_by_default(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path, max_steps=2)
    trainer.args.remove_unused_columns = True
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"x", "labels"}
    trainer = a_trainer(tmp_path, loader={"columns": ["id"], "transform": None}, max_steps=2)
    trainer.args.remove_unused_columns = True
    with pytest.raises(UsageError, match="takes none of the loader's columns"):
        next(iter(trainer.get_train_dataloader()))


def test_a_checkpoint_of_another_mix_is_refused(tmp_path: Path) -> None:
    a_trainer(tmp_path, max_steps=4).train()
    with pytest.raises(ConflictError, match="seed: 3 there, 4 here"):
        a_trainer(tmp_path, seed=4, max_steps=8).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_loader_state_is_refused(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path, max_steps=4)
    rows = [{"x": torch.tensor(1.0), "labels": torch.tensor(0)}] * 64
    Trainer(model=Tiny(), args=trainer.args, train_dataset=rows).train()
    with pytest.raises(ConflictError, match="holds no loader state"):
        a_trainer(tmp_path, max_steps=8).train(resume_from_checkpoint=True)


def test_going_on_at_another_batch_is_refused(tmp_path: Path) -> None:
    a_trainer(tmp_path, max_steps=4).train()
    with pytest.raises(ConflictError, match="goes on at batch 0"):
        a_trainer(tmp_path, max_steps=8, ignore_data_skip=True).train(resume_from_checkpoint=True)


def test_restoring_callbacks_from_the_checkpoint_works_too(tmp_path: Path) -> None:
    whole = a_trainer(tmp_path / "whole", max_steps=8)
    whole.train()
    a_trainer(tmp_path / "other", max_steps=4).train()
    resumed = a_trainer(tmp_path / "other", max_steps=8, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.seen == whole.seen[4:]


@pytest.mark.parametrize(
    ("loader", "options", "code"),
    [
        ({"epochs": None}, {}, "no-max-steps"),  # the Trainer itself speaks of a dataloader's length
        ({"rank": 1, "world_size": 2}, {}, "other-rank"),  # half of the rows would never be trained on
    ],
)
def test_what_would_train_on_other_rows_is_refused_before_it_begins(
    tmp_path: Path, loader: dict[str, Any], options: dict[str, Any], code: str
) -> None:
    with pytest.raises(UsageError) as refused:
        a_trainer(tmp_path, loader=loader, **options)
    assert refused.value.code == code
    assert refused.value.hint


def test_a_process_of_torchrun_on_a_machine_without_gpus_hears_of_use_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the Trainer takes itself for the only process; a rank that somebody gave is another matter."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for rank, told in (("1", True), (None, False)):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        else:
            monkeypatch.delenv("RANK")
        with pytest.raises(UsageError, match="rank 1 of 2") as refused:
            a_trainer(tmp_path, loader={"rank": 1, "world_size": 2})
        assert ("use_cpu=True" in str(refused.value.hint)) is told


def test_a_trainer_has_arguments_and_one_source_of_rows(tmp_path: Path) -> None:
    loader = a_mix().loader(batch_size=8)
    with pytest.raises(UsageError, match="needs args"):
        TreeringTrainer(model=Tiny(), loader=loader)
    with pytest.raises(UsageError, match="train_dataset as well"):
        TreeringTrainer(model=Tiny(), args=TrainingArguments(str(tmp_path)), loader=loader, train_dataset=[1])
    with pytest.raises(UsageError, match="train_dataset as well"):
        TreeringTrainer(Tiny(), TrainingArguments(str(tmp_path)), None, [1, 2], loader=loader)
    TreeringTrainer(Tiny(), TrainingArguments(str(tmp_path)), None, None, loader=loader)


def test_arguments_by_position_that_a_trainer_only_passes_on_have_to_be_named(tmp_path: Path) -> None:
    class Passing(Trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    class Mixed(TreeringMixin, Passing):
        pass

    loader, args = a_mix().loader(batch_size=8), TrainingArguments(str(tmp_path))
    with pytest.raises(UsageError, match="by their position"):
        Mixed(Tiny(), args, None, [1, 2], loader=loader)
    with pytest.raises(UsageError, match="train_dataset as well"):
        Mixed(model=Tiny(), args=args, train_dataset=[1, 2], loader=loader)
    Mixed(model=Tiny(), args=args, loader=loader)


def test_a_collator_that_would_never_be_called_is_refused(tmp_path: Path) -> None:
    args, loader = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True), a_mix().loader(batch_size=8)
    for position, named in (((list,), {}), ((), {"data_collator": list})):
        with pytest.raises(UsageError, match="transform=") as refused:
            TreeringTrainer(Tiny(), args, *position, loader=loader, **named)
        assert refused.value.code == "data-collator"


def test_with_an_eval_dataset_the_collator_is_for_that(tmp_path: Path) -> None:
    rows = [{"x": float(n), "label": n % 2} for n in range(10)]
    collated: list[int] = []

    def collate(given: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        collated.append(len(given))
        return {"x": torch.tensor([row["x"] for row in given]), "labels": torch.tensor([row["label"] for row in given])}

    args = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        eval_strategy="steps", eval_steps=5, max_steps=10, per_device_eval_batch_size=5, save_strategy="no",
    )  # fmt: skip
    trainer = Watching(
        model=Tiny(), args=args, data_collator=collate, eval_dataset=rows,
        loader=a_mix().loader(batch_size=8, transform=rename),
    )  # fmt: skip
    trainer.seen = []
    trainer.train()
    assert collated == [5, 5, 5, 5]  # after steps 5 and 10


def test_the_page_evaluates_on_the_held_out_records(shared: Shared, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared.bert)

    def tokenise(batch: dict[str, Any]) -> dict[str, Any]:
        labels = torch.tensor([int(label == "refund") for label in batch["label"]])
        return {**tokenizer(batch["text"], padding=True, truncation=True, return_tensors="pt"), "labels": labels}

    names: dict[str, Any] = {
        "store": treering.open(shared.store), "tokenise": tokenise, "out": str(tmp_path), "cpu": True,
        "model": AutoModelForSequenceClassification.from_pretrained(shared.bert, num_labels=2),
        "loader": shared.mix().loader(batch_size=8, columns=["text", "label"], transform=tokenise),
        "TrainingArguments": TrainingArguments, "TreeringTrainer": TreeringTrainer,
    }  # fmt: skip
    exec(shown("test_hf.py"), names)
    assert len(names["rows"]) == len(names["store"].load("support@v1").heldout().to_table()) > 0
    assert [one["step"] for one in names["trainer"].state.log_history if "eval_loss" in one] == [2, 4]


def test_a_loader_as_eval_dataset_says_what_to_evaluate_on(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    with a_mix().loader(batch_size=8) as loader, a_mix().loader(batch_size=8) as other:
        trainer = TreeringTrainer(model=Tiny(), args=args, loader=loader, eval_dataset=other)
        with pytest.raises(UsageError) as refused:
            trainer.evaluate()
    assert refused.value.code == "not-a-dataset"
    assert "heldout()" in str(refused.value.hint)


@pytest.mark.parametrize("batch", [3, 0])
def test_a_position_loaded_into_the_loader_is_refused_not_dropped(tmp_path: Path, batch: int) -> None:
    """The Trainer would begin at batch 0, and train again on what its user has had trained on."""
    with a_mix().loader(batch_size=8, transform=rename) as stood:
        state = {**stood.state_dict(), "batch": batch}
    loader = a_mix().loader(batch_size=8, transform=rename)
    loader.load_state_dict(state)
    if batch:
        with pytest.raises(UsageError, match="go on at batch 3") as refused:
            a_trainer(tmp_path, loader=loader)
        assert "resume_from_checkpoint" in str(refused.value.hint)
    else:
        assert a_trainer(tmp_path, loader=loader)


def test_a_look_at_the_first_batch_is_no_position(tmp_path: Path) -> None:
    loader = a_mix().loader(batch_size=8, transform=rename)
    looked_at = next(iter(loader))
    trainer = a_trainer(tmp_path, loader=loader, max_steps=1, save_strategy="no")
    trainer.train()
    assert trainer.seen[0] == looked_at["id"]


def test_only_a_loader_is_a_loader(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        TreeringTrainer(model=Tiny(), loader=[1])  # type: ignore[arg-type]


def test_held_out_records_are_an_eval_dataset_and_a_loader_says_so(tmp_path: Path) -> None:
    store = MemoryStore()
    records = [
        {"id": f"r{n}", "x": float(n), "label": n % 2, "split": "heldout" if n < 8 else "train"} for n in range(40)
    ]
    store.add("c@v1", records)
    rows = [{"x": row["x"] / 60, "labels": row["label"]} for row in store.load("c@v1").heldout().to_table().to_pylist()]
    args = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, max_steps=2)
    with mix(store.load("c@v1"), weights=[1]).loader(batch_size=8, transform=rename) as loader:
        trainer = TreeringTrainer(model=Tiny(), args=args, loader=loader, eval_dataset=rows)
        assert len(rows) == 8
        assert trainer.evaluate()["eval_loss"] > 0
        trainer = TreeringTrainer(model=Tiny(), args=args, loader=loader, eval_dataset=loader)
        with pytest.raises(UsageError) as caught:
            trainer.evaluate()
    assert caught.value.hint is not None
    assert "heldout().to_table()" in caught.value.hint
