"""PyTorch Lightning on a mix, two processes; started again it goes on at the exact batch. STORE OUT"""

import sys

import pytorch_lightning as pl
import torch

import treering
from treering.plugins.lightning import TreeringDataModule


class Classifier(pl.LightningModule):
    def configure_model(self):
        self.net = torch.nn.EmbeddingBag(256, 2)

    def training_step(self, batch, number):
        letters = [torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8) for text in batch["text"]]
        scores = self.net(torch.nn.utils.rnn.pad_sequence(letters, batch_first=True).long())
        return torch.nn.functional.cross_entropy(scores, torch.tensor([int(one == "refund") for one in batch["label"]]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


mix = treering.open(sys.argv[1]).mix("support@v1", "support@live", weights=[0.5, 0.5], seed=7)
data = TreeringDataModule(mix.loader, batch_size=8, columns=["id", "text", "label"])
keep = pl.callbacks.ModelCheckpoint(sys.argv[2], every_n_train_steps=3, save_last=True, save_on_train_epoch_end=False)
trainer = pl.Trainer(max_epochs=2, devices=2, accelerator="cpu", strategy="ddp", callbacks=keep, logger=False)
trainer.fit(Classifier(), data, ckpt_path="last")
