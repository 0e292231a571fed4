"""How curved the loss is for every weight by itself, whatever the weight's scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from cifarbn.data.interface import Batch
from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, due, measuring, trained
from cifarbn.runs.measures import Key, ScaleInvariantBetaKeys
from cifarbn.smoothness.weight_probes import SHARES, probe_each_weight


class ScaleInvariantBeta(Recorder):
    """Records, every so many steps, each weight's walk against its own gradient by shares of its own norm.

    A weight is a trained parameter of more than one dimension: a bias before a normalisation has no gradient but
    rounding, and the scale of a normalisation is no weight that a normalisation follows. The arrays are those of
    `smoothness.weight_probes.WeightProbes`, one entry a measurement, with the weights' names in `weights`;
    `smoothness.weight_probes.scale_invariant_beta` makes beta ||w||^2 of them.

    Costs one forward-backward pass, and len(shares) passes for every weight (VGG-A has 11), whose backward part goes
    no deeper than that weight. Holds one gradient of all weights and two copies of one weight.

    Args:
        folder: the run folder.
        every: steps between measurements.
        shares: how far each weight is moved, in units of its norm.

    Raises:
        UserError: for a number out of range.
    """

    table = ScaleInvariantBetaKeys

    def __init__(self, folder: Path, every: int = 200, shares: Sequence[float] = SHARES) -> None:
        super().__init__()
        if every < 1:
            raise UserError("record.scale_invariant_beta.every must be at least 1")
        if not shares or min(shares) <= 0:
            raise UserError(f"record.scale_invariant_beta.shares must be positive numbers, not {list(shares)}")
        self.every = every
        self.shares = tuple(float(share) for share in shares)
        self._names: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the weights' names."""
        self._names = list(weights(pl_module))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """DirectionalProbe before the step is taken."""
        if not due(trainer, self.every):
            return
        walked = weights(pl_module)
        if list(walked) != self._names:
            raise UserError(
                "record.scale_invariant_beta: this net freezes or frees weights during training, so its measurements "
                "cannot be compared between steps; leave this recorder out"
            )
        with measuring(pl_module, batch) as loss_fn:
            seen = probe_each_weight(loss_fn, walked.values(), self.shares)
        self.note(
            {
                self.table.step: trainer.global_step,
                self.table.loss: seen.loss,
                self.table.gradient_distance: seen.gradient_distance,
                self.table.distance_moved: seen.distance_moved,
                self.table.weight_norm: seen.weight_norm,
            }
        )

    def constants(self) -> dict[Key, NDArray]:
        """Return how often it measures, the shares, and the names of the weights."""
        return {
            self.table.every: np.array(self.every),
            self.table.shares: np.array(self.shares),
            self.table.weights: np.array(self._names),
        }


def weights(pl_module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    """The net's trained parameters of more than one dimension, by name."""
    return {name: p for name, p in trained(pl_module).items() if p.ndim > 1}
