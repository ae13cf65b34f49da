"""Hugging Face's Trainer on a mix; started again it goes on at the exact batch. STORE MODEL OUT; also under torchrun."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import treering
from treering.plugins.hf import TreeringTrainer

store, base, out = treering.open(sys.argv[1]), sys.argv[2], sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)


def tokenise(batch):
    """A batch is a dict of columns: texts of any length become tensors here, a whole batch at once."""
    labels = torch.tensor([int(label == "refund") for label in batch["label"]])
    return {**tokenizer(batch["text"], padding=True, truncation=True, return_tensors="pt"), "labels": labels}


mix = store.mix("support@v1", "support@live", weights=[0.5, 0.5], seed=7)
loader = mix.loader(batch_size=8, columns=["id", "text", "label"], transform=tokenise)
cpu = not torch.accelerator.is_available()  # unsaid, each process of torchrun's would take itself for the only one
args = TrainingArguments(
    out, use_cpu=cpu, num_train_epochs=2, gradient_accumulation_steps=2, save_steps=3, report_to=[]
)
TreeringTrainer(model=model, args=args, loader=loader).train(resume_from_checkpoint=any(Path(out).glob("checkpoint-*")))
