"""Plain torch: torchrun --nproc-per-node 2 train_torchrun.py STORE OUT; goes on at the exact batch, on any number of ranks."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model

import treering

torch.distributed.init_process_group("gloo")
out, net = Path(sys.argv[2]), torch.nn.EmbeddingBag(256, 2)
mix = treering.open(sys.argv[1]).mix("support@v1", "support@live", weights=[0.5, 0.5], seed=7)
loader = mix.loader(batch_size=8, columns=["id", "text", "label"], epochs=2)  # rank and world size come from torchrun
if (state := out / "loader.json").exists():
    load_model(net, out / "model.safetensors")
    loader.load_state_dict(json.loads(state.read_text()))
model = torch.nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(loader, loader.state_dict()["batch"] + 1):
    letters = [torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8) for text in batch["text"]]
    scores = model(torch.nn.utils.rnn.pad_sequence(letters, batch_first=True).long())
    torch.nn.functional.cross_entropy(scores, torch.tensor([int(x == "refund") for x in batch["label"]])).backward()
    optimizer.step(), optimizer.zero_grad()
    if number % 3 == 0 and loader.rank == 0:
        save_model(net, out / "model.safetensors"), state.write_text(json.dumps(loader.state_dict()))
torch.distributed.barrier()  # gloo's threads must have let go of the last gradient before Python ends
torch.distributed.destroy_process_group()
