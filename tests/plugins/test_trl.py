"""TRL's real trainers over tiny causal models: what they were given is told by record ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import treering
from treering.errors import UsageError
from treering.plugins.trl import TreeringDPOTrainer, TreeringSFTTrainer, rows_of

from .conftest import Shared
from .running import bare, epoch, shown

pytestmark = pytest.mark.filterwarnings("ignore")


class Noting:
    """TRL's collator, which notes the ids of the rows that it is given: those, and no others, are learnt."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seen: list[list[str]] = []
        self.inputs: list[dict[str, Any]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        self.seen.append([row["id"] for row in rows])
        self.inputs.append(self.inner(rows))
        return self.inputs[-1]


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def a_trainer(shared: Shared, out: Path, *, loader: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"batch_size": 4, "columns": ["id", "messages", "tools"], **(loader or {})}
    args = SFTConfig(
        str(out), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, logging_strategy="no",
        **{"save_strategy": "steps", "save_steps": 4, **options},
    )  # fmt: skip
    trainer = TreeringSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(shared.chat),
        processing_class=AutoTokenizer.from_pretrained(shared.chat),
        args=args,
        loader=shared.mix("chats").loader(**settings),
    )
    trainer.data_collator = Noting(trainer.data_collator)
    return trainer


@pytest.mark.parametrize(
    ("options", "loader", "stop"),
    [
        ({"max_steps": 14}, {"epochs": None}, 10),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 4}, {}, 6),  # 18 batches an epoch: 4 + 4 + 4 + 4 + 2
    ],
)
def test_a_resumed_run_learns_from_the_batches_of_the_unbroken_one(
    shared: Shared, tmp_path: Path, options: dict[str, Any], loader: dict[str, Any], stop: int
) -> None:
    whole = a_trainer(shared, tmp_path / "whole", loader=loader, **options)
    whole.train()
    seen = whole.data_collator.seen
    mix = shared.mix("chats")
    expected = 14 if "max_steps" in options else 2 * epoch(mix, 4)
    assert seen == bare(mix, expected, batch_size=4)
    broken = a_trainer(shared, tmp_path / "broken", loader=loader, **options)
    broken.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = a_trainer(shared, tmp_path / "broken", loader=loader, **options)
    resumed.train(resume_from_checkpoint=True)
    again = resumed.data_collator.seen
    assert 0 < len(again) < len(seen)
    assert broken.data_collator.seen[: len(seen) - len(again)] + again == seen
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_what_is_learnt_is_what_trl_makes_of_the_same_records(shared: Shared, tmp_path: Path) -> None:
    """Ragged conversations with and without tools: tokens and labels as from a stock SFTTrainer's dataset."""
    from trl import SFTTrainer

    trainer = a_trainer(shared, tmp_path, max_steps=3, assistant_only_loss=True, save_strategy="no")
    trainer.train()
    with shared.mix("chats").loader(batch_size=4, columns=["id", "messages", "tools"]) as loader:
        rows = [row for _, batch in zip(range(3), loader, strict=False) for row in rows_of(batch)]
    assert any(row["tools"] for row in rows)
    assert len({len(row["messages"][0]["content"]) for row in rows}) > 1
    stock = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(shared.chat),
        processing_class=AutoTokenizer.from_pretrained(shared.chat),
        args=SFTConfig(str(tmp_path), use_cpu=True, bf16=False, assistant_only_loss=True),
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
    )
    stock_rows = list(stock.train_dataset)
    ours = [
        (row[mask.bool()].tolist(), label[mask.bool()].tolist())
        for batch in trainer.data_collator.inputs
        for row, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    assert len(ours) == 12
    assert ours == [(row["input_ids"], row["labels"]) for row in stock_rows]
    assert all(-100 in labels and set(labels) != {-100} for _, labels in ours)


def test_packing_packs_the_rows_of_each_batch(shared: Shared, tmp_path: Path) -> None:
    trainer = a_trainer(shared, tmp_path, max_steps=4, packing=True, max_length=128, save_strategy="no")
    trainer.data_collator = trainer.data_collator.inner
    assert isinstance(trainer.data_collator, DataCollatorForLanguageModeling)
    whole = a_trainer(shared, tmp_path, max_steps=4, save_strategy="no")
    whole.train()
    packed = [batch["input_ids"].numel() for _, batch in zip(range(4), trainer.get_train_dataloader(), strict=False)]
    assert packed == [int(one["attention_mask"].sum()) for one in whole.data_collator.inputs]


def test_preferences_train_a_dpo_trainer(shared: Shared, tmp_path: Path) -> None:
    trainer = TreeringDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(shared.chat),
        processing_class=AutoTokenizer.from_pretrained(shared.chat),
        args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, max_steps=6, save_strategy="no"),
        loader=shared.mix("choices").loader(batch_size=4, columns=["id", "prompt", "chosen", "rejected"], epochs=None),
    )  # fmt: skip
    trainer.data_collator = Noting(trainer.data_collator)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.data_collator.seen == bare(shared.mix("choices"), 6, batch_size=4)
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_an_endless_loader_needs_max_steps(shared: Shared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs max_steps"):
        a_trainer(shared, tmp_path, loader={"epochs": None})


def test_a_position_loaded_into_the_loader_is_refused_not_dropped(shared: Shared, tmp_path: Path) -> None:
    with shared.mix("chats").loader(batch_size=4, columns=["messages"]) as loader:
        loader.load_state_dict({**loader.state_dict(), "batch": 3})
        with pytest.raises(UsageError, match="go on at batch 3"):
            TreeringSFTTrainer(shared.chat, SFTConfig(str(tmp_path), bf16=False, use_cpu=True), loader=loader)


@pytest.mark.parametrize(
    ("trainer", "arguments"), [(TreeringSFTTrainer, "SFTConfig"), (TreeringDPOTrainer, "DPOConfig")]
)
def test_the_hint_names_the_arguments_of_the_trainer(shared: Shared, trainer: Any, arguments: str) -> None:
    with shared.mix("chats").loader(batch_size=4) as loader, pytest.raises(UsageError) as refused:
        trainer(shared.chat, loader=loader)
    assert refused.value.hint == f'args={arguments}("out")'


def test_the_page_evaluates_on_the_held_out_conversations(shared: Shared, tmp_path: Path) -> None:
    with shared.mix("chats").loader(batch_size=4, columns=["messages", "tools"], epochs=None) as loader:
        names: dict[str, Any] = {
            "store": treering.open(shared.store), "out": str(tmp_path), "cpu": True, "base": shared.chat,
            "loader": loader, "SFTConfig": SFTConfig, "TreeringSFTTrainer": TreeringSFTTrainer,
        }  # fmt: skip
        exec(shown("test_trl.py"), names)
    assert len(names["held"]) == len(names["store"].load("chats@v1").heldout().to_table()) > 0
    assert [one["step"] for one in names["trainer"].state.log_history if "eval_loss" in one] == [2, 4]


def test_a_batch_without_a_token_to_learn_says_so(shared: Shared, tmp_path: Path) -> None:
    trainer = a_trainer(shared, tmp_path, max_steps=1, assistant_only_loss=True, max_length=2)
    with pytest.raises(UsageError, match="within max_length"):
        trainer.train()


def test_a_message_that_is_not_to_be_learnt_is_refused() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "wrong", "weight": 0}]
    with pytest.raises(UsageError, match="record r1 has a message of weight 0"):
        rows_of({"id": ["r1"], "messages": [said]})


def test_batches_become_rows_without_padding() -> None:
    padded = {"input_ids": torch.tensor([[1, 2], [3, 0]]), "input_ids.lengths": torch.tensor([2, 1])}
    assert rows_of({"id": ["a", "b"], **padded}) == [{"id": "a", "input_ids": [1, 2]}, {"id": "b", "input_ids": [3]}]
    flat = {"input_ids": torch.tensor([1, 2, 3]), "input_ids.offsets": torch.tensor([0, 2, 3])}
    assert rows_of(flat) == [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    made = [{"text": "a"}]
    assert rows_of(made) is made
    for wrong in (torch.zeros(2), {}, "text"):
        with pytest.raises(UsageError, match="a batch is"):
            rows_of(wrong)


def test_the_tools_and_calls_are_as_templates_take_them(shared: Shared) -> None:
    source = treering.open(shared.store).load("chats@v1")
    with treering.mix(source, weights=[1]).loader(batch_size=16, columns=["messages", "tools"]) as loader:
        rows = rows_of(next(iter(loader)))
    calling = next(row for row in rows if row["tools"])
    assert calling["tools"][0]["function"]["name"] == "get_weather"
    assert calling["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert all(value is not None for message in calling["messages"] for value in message.values())


@pytest.mark.parametrize(("trainer", "config"), [(TreeringSFTTrainer, "SFTConfig"), (TreeringDPOTrainer, "DPOConfig")])
def test_missing_args_are_asked_for_by_trls_own_name(shared: Shared, trainer: Any, config: str) -> None:
    loader = shared.mix("chats").loader(batch_size=2)
    with loader, pytest.raises(UsageError) as caught:
        trainer(model=None, loader=loader)
    assert caught.value.hint == f'args={config}("out")'
