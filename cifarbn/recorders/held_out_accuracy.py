"""Accuracy on held-out images during training."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cifarbn.errors import UserError
from cifarbn.losses import accuracy
from cifarbn.recorders.global_batch import mean_over_processes
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import HeldOutKeys, Key
from cifarbn.smoothness.minibatch_loss import Batch
from cifarbn.smoothness.preserve_state import preserve_state


class HeldOutAccuracy(Recorder):
    """Records loss and accuracy on the first held-out images, in eval mode, every `every` steps.

    The course report samples its accuracy every 40 steps (figure 11) and does not state on which images. Here they are
    the first images of the validation set, or with `data.val_size=0 data.test_curve=true` of the test set, which must
    then not be used to select anything. `source` in the recordings is "val" or "test_curve" accordingly.

    Args:
        folder: the run folder.
        every: steps between measurements.
        images: number of images; all of them if there are fewer.

    Raises:
        UserError: if a number is out of range, or when training starts, if the run has no held-out images.
    """

    table = HeldOutKeys

    def __init__(self, folder: Path | None = None, every: int = 40, images: int = 1000) -> None:
        super().__init__(folder)
        if every < 1 or images < 1:
            raise UserError("record.held_out_accuracy: every and images must be at least 1")
        self.every, self.images = every, images
        self._source = ""
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def start(self, training: Training) -> None:
        """Load the images once."""
        self._source, self._batches = training.held_out(self.images)

    def before_step(self, training: Training, batch: Batch) -> None:
        """Measure at theta_t."""
        if training.step % self.every:
            return
        loss_sum = correct = torch.zeros((), device=next(training.model.parameters()).device)
        count = 0
        with preserve_state(training.model, train=False), torch.no_grad(), training.forward_context():
            for images, labels in self._batches:
                logits = training.model(images)
                loss_sum = loss_sum + training.loss(logits, labels) * len(labels)
                correct = correct + accuracy(logits, labels) * len(labels)
                count += len(labels)
        sums = torch.stack([loss_sum, correct, torch.full_like(loss_sum, count)])
        loss_sum, correct, total = mean_over_processes(sums)
        means = {self.table.loss: loss_sum / total, self.table.acc: correct / total}
        self.note({self.table.step: training.step, **means})

    def constants(self) -> dict[Key, NDArray]:
        """Return the data split of the images: "val" or "test_curve"."""
        return {self.table.source: np.array(self._source)}
