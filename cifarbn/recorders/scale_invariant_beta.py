"""The curvature of the loss in every single weight, independent of the weight's scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import Key, ScaleInvariantBetaKeys
from cifarbn.smoothness.minibatch_loss import Batch
from cifarbn.smoothness.weight_probes import SHARES, probe_each_weight


class ScaleInvariantBeta(Recorder):
    """Records a probe of each weight against its own gradient, by fractions of its norm, every `every` steps.

    A weight is a trained parameter of two or more dimensions. (A bias before a normalisation has no gradient except
    rounding errors, and the scale of a normalisation is not itself normalised.) The arrays are those of
    `smoothness.weight_probes.WeightProbes`; `smoothness.weight_probes.scale_invariant_beta` computes beta ||w||^2.

    Costs one forward and backward pass, and len(shares) passes per weight (VGG-A has 11), whose backward pass ends at
    that weight. Holds one gradient of all weights and two copies of one weight.

    Args:
        folder: the run folder.
        every: steps between measurements.
        shares: distances to move each weight, as fractions of its norm.

    Raises:
        UserError: if a number is out of range, or the set of trained weights changes during training.
    """

    table = ScaleInvariantBetaKeys

    def __init__(self, folder: Path | None = None, every: int = 200, shares: Sequence[float] = SHARES) -> None:
        super().__init__(folder)
        if every < 1:
            raise UserError("record.scale_invariant_beta.every must be at least 1")
        if not shares or min(shares) <= 0:
            raise UserError(f"record.scale_invariant_beta.shares must be positive numbers, not {list(shares)}")
        self.every = every
        self.shares = tuple(float(share) for share in shares)
        self._names: list[str] = []

    def start(self, training: Training) -> None:
        """Note the weights' names."""
        self._names = list(weights(training))

    def before_step(self, training: Training, batch: Batch) -> None:
        """Measure at theta_t."""
        if training.step % self.every:
            return
        probed = weights(training)
        if list(probed) != self._names:
            raise UserError(
                "record.scale_invariant_beta: the model freezes or unfreezes weights during training, so measurements "
                "at different steps cannot be compared; remove this recorder from record="
            )
        with training.minibatch_loss(batch) as loss_fn:
            probes = probe_each_weight(loss_fn, probed.values(), self.shares)
        self.note(
            {
                self.table.step: training.step,
                self.table.loss: probes.loss,
                self.table.gradient_distance: probes.gradient_distance,
                self.table.distance_moved: probes.distance_moved,
                self.table.weight_norm: probes.weight_norm,
            }
        )

    def constants(self) -> dict[Key, NDArray]:
        """Return the interval in steps, the shares, and the weights' names."""
        return {
            self.table.every: np.array(self.every),
            self.table.shares: np.array(self.shares),
            self.table.weights: np.array(self._names),
        }


def weights(training: Training) -> dict[str, nn.Parameter]:
    """Return the trained parameters of two or more dimensions, by name."""
    return {name: p for name, p in training.trained.items() if p.ndim > 1}
