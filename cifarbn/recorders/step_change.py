"""How much the optimizer's step, and the change to the next minibatch, change the gradient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, by_name
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import Key, StepChangeKeys
from cifarbn.smoothness.evaluation import loss_and_gradient, parameters_at
from cifarbn.smoothness.gradient_change import drift_noise_split, gradient_change
from cifarbn.smoothness.layers import layers_of
from cifarbn.smoothness.minibatch_loss import Batch
from cifarbn.smoothness.vectors import distance


class StepChange(Recorder):
    """Records two controls for the other measures of smoothness, every `every` steps.

    `change`, `moved`, `ratio`: c_t = ||grad L_t(theta_{t+1}) - grad L_t(theta_t)||, the length of the step, and their
    quotient. The minibatch is the same before and after the step, so they are valid for every optimizer. `loss_before`
    and `loss_after` are L_t at the two points.

    `total`, `drift`, `noise`, `inner`: the difference of the gradients of steps t and t + 1, split into the effect of
    the step and that of the change of minibatch. `head_...`: the same for the last layer's weight alone, whose total is
    the Lipschitz_t of the course report.

    With `per_layer`, `layer_change`, `layer_moved`, `layer_drift` and `layer_noise`, (T, L), are those of each layer by
    itself; `layers` names the layers of `smoothness.layers.layers_of`.

    Costs four forward and backward passes; holds one copy of the parameters and two gradients until the next step,
    which brings the next minibatch. For the last step of an epoch that is the first one of the next epoch.

    Args:
        folder: the run folder.
        every: steps between measurements, at least 2.
        per_layer: also record the values of each layer.

    Raises:
        UserError: if `every` is below 2.
    """

    table = StepChangeKeys

    def __init__(self, folder: Path | None = None, every: int = 50, per_layer: bool = False) -> None:
        super().__init__(folder)
        if every < 2:
            raise UserError("record.step_change.every must be at least 2, because a measurement spans two steps")
        self.every, self.per_layer = every, per_layer
        self._before: tuple[Tensor, ...] = ()  # theta_t
        self._gradient: tuple[Tensor, ...] = ()  # grad L_t(theta_t)
        self._entry: dict[Key, Any] = {}
        self._layer = ""
        self._layers: dict[str, list[int]] = {}  # positions of each layer's parameters among the trained ones

    def start(self, training: Training) -> None:
        """Find the last layer, and all layers if they are recorded."""
        self._layer = training.last_layer
        if self.per_layer:
            position = {parameter: i for i, parameter in enumerate(training.trained.values())}
            layers = layers_of(training.model).items()
            self._layers = {name: [position[parameter] for parameter in layer] for name, layer in layers}

    def constants(self) -> dict[Key, NDArray]:
        """Return the name of the last layer, to which `head_...` refers, and those of all layers."""
        names = {self.table.layers: np.array(list(self._layers))} if self.per_layer else {}
        return {self.table.layer: np.array(self._layer)} | names

    def before_step(self, training: Training, batch: Batch) -> None:
        """Finish the measurement of the previous step, then start this step's if it is due."""
        if self._entry:
            self._split(training, batch)
        if training.step % self.every == 0:
            parameters = list(training.trained.values())
            with training.minibatch_loss(batch) as loss_fn:
                loss, self._gradient = loss_and_gradient(loss_fn, parameters)
            self._before = tuple(p.detach().clone() for p in parameters)
            self._entry = {self.table.step: training.step, self.table.loss_before: loss}

    def after_step(self, training: Training, batch: Batch) -> None:
        """Measure on the same minibatch after the step."""
        if not self._entry:
            return
        parameters = list(training.trained.values())
        with training.minibatch_loss(batch) as loss_fn:
            loss, gradient = loss_and_gradient(loss_fn, parameters)
        change = gradient_change(self._gradient, gradient, self._before, parameters)
        self._entry |= {
            self.table.loss_after: loss,
            self.table.change: change.change,
            self.table.moved: change.moved,
            self.table.ratio: change.ratio,
        }
        if self.per_layer:
            self._entry |= {
                self.table.layer_change: self._layer_distances(gradient, self._gradient),
                self.table.layer_moved: self._layer_distances(parameters, self._before),
            }

    def _split(self, training: Training, next_batch: Batch) -> None:
        parameters = list(training.trained.values())
        with training.minibatch_loss(next_batch) as loss_fn:
            grad_next = loss_and_gradient(loss_fn, parameters).gradient
            with parameters_at(parameters, self._before):
                grad_next_batch_old_params = loss_and_gradient(loss_fn, parameters).gradient
        gradients = self._gradient, grad_next_batch_old_params, grad_next
        split = drift_noise_split(*gradients)
        head = next(i for i, parameter in enumerate(parameters) if parameter is training.last_weight)
        head_split = drift_noise_split(*([gradient[head]] for gradient in gradients))
        if self.per_layer:
            self._entry |= {
                self.table.layer_drift: self._layer_distances(grad_next, grad_next_batch_old_params),
                self.table.layer_noise: self._layer_distances(grad_next_batch_old_params, self._gradient),
            }
        self.note(
            {
                **self._entry,
                self.table.total: split.total,
                self.table.drift: split.drift,
                self.table.noise: split.noise,
                self.table.inner: split.inner,
                self.table.head_total: head_split.total,
                self.table.head_drift: head_split.drift,
                self.table.head_noise: head_split.noise,
                self.table.head_inner: head_split.inner,
            }
        )
        self._entry, self._before, self._gradient = {}, (), ()

    def _layer_distances(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        layers = self._layers.values()
        return torch.stack([distance([first[i] for i in layer], [second[i] for i in layer]) for layer in layers])

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays and the unfinished measurement, which a checkpoint within an epoch may have."""
        unfinished = {"before": self._before, "gradient": self._gradient, "entry": by_name(self._entry)}
        return super().state_dict() | unfinished

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state_dict)
        self._before, self._gradient = state_dict["before"], state_dict["gradient"]
        self._entry = self.by_key(state_dict["entry"])
