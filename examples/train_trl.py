"""TRL's SFTTrainer on a mix of conversations; started again it goes on at the exact batch. STORE MODEL OUT; also under torchrun."""

import sys
from pathlib import Path

import torch
from trl import SFTConfig

import treering
from treering.plugins.trl import TreeringSFTTrainer

store, base, out = treering.open(sys.argv[1]), sys.argv[2], sys.argv[3]
cpu = not torch.accelerator.is_available()  # unsaid, each process of torchrun's would take itself for the only one
mix = store.mix("chats@v1", "chats@live", weights=[0.5, 0.5], seed=7)
trainer = TreeringSFTTrainer(
    model=base,
    args=SFTConfig(
        out, max_steps=50, save_steps=10, assistant_only_loss=True, use_cpu=cpu, bf16=torch.cuda.is_available()
    ),
    loader=mix.loader(batch_size=4, columns=["id", "messages", "tools"], epochs=None),
)
trainer.train(resume_from_checkpoint=any(Path(out).glob("checkpoint-*")))
