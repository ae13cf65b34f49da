"""One rank of `test_two_ranks.py`, started by accelerate launch: what several trainers are given of one mix.

python -m accelerate.commands.launch --multi_gpu --num_processes 2 two_ranks.py STORE CHAT OUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments
from trl import SFTConfig

import treering
from treering.errors import UsageError
from treering.plugins.hf import TreeringTrainer
from treering.plugins.torchdata import TreeringDataLoader
from treering.plugins.trl import TreeringSFTTrainer

STOP = 3


class Letters(torch.nn.Module):
    """Takes strings: a batch of texts of any length, as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.EmbeddingBag(256, 2)

    def forward(self, text: list[str], label: list[str], id: list[str]) -> dict[str, Any]:  # noqa: A002
        letters = [torch.frombuffer(bytearray(one, "utf-8"), dtype=torch.uint8) for one in text]
        logits = self.net(torch.nn.utils.rnn.pad_sequence(letters, batch_first=True).long())
        labels = torch.tensor([int(one == "refund") for one in label])
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Watching(TreeringTrainer):
    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.seen.append(list(inputs["id"]))
        return super().compute_loss(model, inputs, *args, **kwargs)


class StopAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STOP:
            control.should_training_stop = True
            control.should_save = True


def huggingface(mix: treering.Mix, out: Path, *, stop: bool) -> dict[str, Any]:
    """Strings of ragged length, gradients accumulated over two batches, accelerate's settings as they come."""
    args = TrainingArguments(
        str(out), num_train_epochs=1, gradient_accumulation_steps=2, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Watching(
        model=Letters(), args=args, loader=mix.loader(batch_size=8, columns=["id", "text", "label"]),
        callbacks=[StopAt()] if stop else [],
    )  # fmt: skip
    trainer.seen = []
    trainer.train(resume_from_checkpoint=bool(list(out.glob("checkpoint-*"))))
    weights = [float(value.detach().double().square().sum()) for value in trainer.model.parameters()]
    return {"seen": trainer.seen, "steps": trainer.state.global_step, "weights": weights}


def conversations(mix: treering.Mix, chat: str, out: Path) -> list[list[str]]:
    trainer = TreeringSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(chat),
        processing_class=AutoTokenizer.from_pretrained(chat),
        args=SFTConfig(
            str(out), max_steps=4, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no"
        ),
        loader=mix.loader(batch_size=8, columns=["id", "messages", "tools"]),
    )
    inner, seen = trainer.data_collator, []

    def noted(rows: list[dict[str, Any]]) -> Any:
        seen.append([row["id"] for row in rows])
        return inner(rows)

    trainer.data_collator = noted
    trainer.train()
    return seen


class Shard(IterableDataset[Any]):
    """The trap: a dataset that gives its rank's part, in the hands of accelerate."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Any:
        yield from ({"row": torch.tensor(row)} for row in range(self.rank, 16, 2))


class Texts(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ({"row": torch.arange(k + 1), "text": "a" * k} for k in range(8))


def trap(accelerator: Accelerator, dataset: Any, **how: Any) -> Any:
    """What accelerate makes of a torch DataLoader over an iterable dataset."""
    prepared = accelerator.prepare_data_loader(DataLoader(dataset, batch_size=2, **how))
    try:
        return [batch["row"].tolist() for batch in prepared]
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


def main(store: str, chat: str, out: Path) -> None:
    opened = treering.open(store)
    mix, chats = (opened.mix(f"{name}@v1", f"{name}@live", weights=[0.5, 0.5], seed=7) for name in ("support", "chats"))
    ranks = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    early = mix.loader(batch_size=8, columns=["id"])  # as in a notebook, before its processes are connected
    os.environ.update(ranks)
    found: dict[str, Any] = {"trl": conversations(chats, chat, out / "trl")}
    found["whole"] = huggingface(mix, out / "whole", stop=False)
    found["stopped"] = huggingface(mix, out / "resumed", stop=True)
    found["resumed"] = huggingface(mix, out / "resumed", stop=False)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(mix.loader(batch_size=8, columns=["id"]))
    found["prepared"] = [list(batch["id"]) for batch in loader]
    wrapped = accelerator.prepare(TreeringDataLoader(mix.loader(batch_size=8, columns=["id"])))
    found["prepared torchdata"] = [list(batch["id"]) for batch in wrapped]
    for name in ranks:
        del os.environ[name]
    found["without environment"] = [list(batch["id"]) for batch in mix.loader(batch_size=8, columns=["id"])]
    os.environ.update(ranks)
    try:
        next(iter(early))
    except UsageError as exc:
        found["early"] = exc.code
    plain = Accelerator(cpu=True)
    found["dispatched"] = trap(plain, Shard(plain.process_index))
    split = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    found["sharded twice"] = trap(split, Shard(split.process_index))
    (out / f"rank{plain.process_index}.json").write_text(json.dumps(found))
    plain.wait_for_everyone()
    # last, because it leaves the ranks at different places
    if plain.is_main_process:
        (out / "ragged.json").write_text(json.dumps(trap(plain, Texts(), collate_fn=lambda rows: {
            "row": torch.nn.utils.rnn.pad_sequence([row["row"] for row in rows], batch_first=True),
            "text": [row["text"] for row in rows],
        })))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
