"""Internal covariate shift of every layer."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import CovariateShiftKeys, Key
from cifarbn.smoothness.evaluation import parameters_at
from cifarbn.smoothness.internal_covariate_shift import internal_covariate_shift
from cifarbn.smoothness.layers import layers_of
from cifarbn.smoothness.minibatch_loss import Batch


class CovariateShift(Recorder):
    """Records ||G - G'||, cos(G, G') and ||G|| of every layer, every `every` steps.

    This is internal covariate shift by Santurkar et al. 2018 (arXiv 1805.11604), definition 2.1 and figure 3: G is the
    layer's gradient at step t, G' the same with the layers before it already updated. Layers are those of
    `smoothness.layers.layers_of`. Costs one forward and backward pass per layer; holds three copies of the parameters
    and two gradients.

    Args:
        folder: the run folder.
        every: steps between measurements.

    Raises:
        UserError: if `every` is below 1.
    """

    table = CovariateShiftKeys

    def __init__(self, folder: Path | None = None, every: int = 200) -> None:
        super().__init__(folder)
        if every < 1:
            raise UserError("record.covariate_shift.every must be at least 1")
        self.every = every
        self._before: list[Tensor] = []
        self._names: list[str] = []

    def start(self, training: Training) -> None:
        """Note the layers' names."""
        self._names = list(layers_of(training.model))

    def before_step(self, training: Training, batch: Batch) -> None:
        """Keep theta_t."""
        if training.step % self.every == 0:
            self._before = [p.detach().clone() for layer in layers_of(training.model).values() for p in layer]

    def after_step(self, training: Training, batch: Batch) -> None:
        """Measure at theta_t, now that theta_{t+1} is known."""
        if not self._before:
            return
        layers = list(layers_of(training.model).values())
        parameters = [p for layer in layers for p in layer]
        with training.minibatch_loss(batch) as loss_fn, parameters_at(parameters, self._before) as after:
            remaining = iter(after)
            shift = internal_covariate_shift(loss_fn, layers, [[next(remaining) for _ in layer] for layer in layers])
        self.note(
            {
                self.table.step: training.step,
                self.table.distance: shift.distance,
                self.table.cosine: shift.cosine,
                self.table.gradient_norm: shift.gradient_norm,
            }
        )
        self._before = []

    def constants(self) -> dict[Key, NDArray]:
        """Return the layers' names."""
        return {self.table.layers: np.array(self._names)}
