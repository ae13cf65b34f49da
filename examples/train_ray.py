"""Ray Train on a mix, two workers; a worker that dies is started again and goes on at the exact batch. STORE OUT"""

import sys

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

import treering
from treering.plugins.ray import report, worker_loader


def work(config):
    model = prepare_model(torch.nn.EmbeddingBag(256, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mix = treering.open(config["store"]).mix("support@v1", "support@live", weights=[0.5, 0.5], seed=7)
    loader = worker_loader(mix.loader, batch_size=8, columns=["id", "text", "label"])  # stands where the run stood
    for batch in loader:
        letters = [torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8) for text in batch["text"]]
        scores = model(torch.nn.utils.rnn.pad_sequence(letters, batch_first=True).long())
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([int(x == "refund") for x in batch["label"]]))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        report({"loss": loss.item()}, loader)  # folder=…: with the files you saved there of the model


if __name__ == "__main__":
    run = RunConfig(storage_path=sys.argv[2], name="run", failure_config=FailureConfig(max_failures=1))
    where = ScalingConfig(num_workers=2)
    TorchTrainer(work, train_loop_config={"store": sys.argv[1]}, scaling_config=where, run_config=run).fit()
