"""Accuracy on pictures that are not trained on, every so many steps: the report's figure 11."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.seed import isolate_rng

from cifarbn.data.interface import inputs_and_labels, val_names
from cifarbn.errors import UserError
from cifarbn.losses import accuracy
from cifarbn.recorders.recorder import Recorder, due, loss_of, net_of
from cifarbn.runs.measures import HeldOutKeys, Key
from cifarbn.smoothness.preserve_state import preserve_state


class HeldOutAccuracy(Recorder):
    """Records loss and accuracy, in eval mode, every so many steps, on the first pictures of the first validation set.

    The report samples its accuracy every 40 steps and does not say on which pictures. Here they are held out from
    training; with `data.val_size=0 data.test_curve=true` they are the test set's, which nothing may be selected by.
    `source` in the recording says which.

    Args:
        folder: the run folder.
        every: steps between measurements; 40 in the report.
        pictures: how many; all of them if there are fewer.

    Raises:
        UserError: when training starts, if there are neither.
    """

    table = HeldOutKeys

    def __init__(self, folder: Path, every: int = 40, pictures: int = 1000) -> None:
        super().__init__()
        if every < 1 or pictures < 1:
            raise UserError("record.held_out_accuracy: every and pictures must be at least 1")
        self.every, self.pictures = every, pictures
        self._source = ""
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the pictures, normalised, once."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = val_names(data)
        if not names:
            raise UserError(
                "record.held_out_accuracy needs pictures to look at: raise data.val_size above 0, or say that it may "
                "look at the test set, by data.test_curve=true"
            )
        self._source = names[0]
        loaders = data.val_dataloader()
        wanted, self._batches = self.pictures, []
        with isolate_rng():  # a DataLoader draws as it begins
            for batch in loaders[0] if isinstance(loaders, (list, tuple)) else loaders:
                if wanted <= 0:
                    break
                pictures, labels = trainer.precision_plugin.convert_input(inputs_and_labels(batch))
                self._batches.append((pictures[:wanted].to(pl_module.device), labels[:wanted].to(pl_module.device)))
                wanted -= len(labels)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look before the step is taken."""
        if not due(trainer, self.every):
            return
        net, loss = net_of(pl_module), loss_of(pl_module)
        total = right = torch.zeros((), device=pl_module.device)
        count = 0
        with preserve_state(net, train=False), torch.no_grad(), trainer.precision_plugin.forward_context():
            for pictures, labels in self._batches:
                logits = net(pictures)
                total = total + loss(logits, labels) * len(labels)
                right = right + accuracy(logits, labels) * len(labels)
                count += len(labels)
        means = {self.table.loss: total / count, self.table.acc: right / count}
        self.note({self.table.step: trainer.global_step, **means})

    def constants(self) -> dict[Key, NDArray]:
        """Return which images they are: "val" or "test_curve"."""
        return {self.table.source: np.array(self._source)}
