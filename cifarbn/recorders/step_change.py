"""What the optimizer's true step does to the gradient, and what the change of minibatch does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.data.interface import Batch
from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, by_name, due, last_layer_of, measuring, trained
from cifarbn.runs.measures import Key, StepChangeKeys
from cifarbn.smoothness.evaluation import loss_and_gradient, parameters_at
from cifarbn.smoothness.gradient_change import drift_noise_split, gradient_change


class StepChange(Recorder):
    """Records two controls that none of the three definitions has, every so many steps.

    `change`, `moved`, `ratio`: c_t = ||grad L_t(theta_{t+1}) - grad L_t(theta_t)||, the step's length, and their
    quotient: the same minibatch before and after the true step, so valid for Adam and momentum. `loss_before` and
    `loss_after` are L_t at the two points.

    `total`, `drift`, `noise`, `inner`: how the difference of the gradients of steps t and t + 1, the report's
    Lipschitz_t but over all parameters, splits into the step's doing and the minibatch's; `head_...`: the same for
    the last layer's weight alone, which is the report's.

    Costs four forward-backward passes; holds one copy of the parameters and two gradients until the next step, since
    that brings the other minibatch. A probe at an epoch's last step has no such successor within the epoch; its split
    is taken at the next epoch's first.

    Args:
        folder: the run folder.
        every: steps between measurements, at least 2.
    """

    table = StepChangeKeys

    def __init__(self, folder: Path, every: int = 50) -> None:
        super().__init__()
        if every < 2:
            raise UserError("record.step_change.every must be at least 2: a measurement spans two steps")
        self.every = every
        self._before: tuple[Tensor, ...] = ()  # theta_t
        self._gradient: tuple[Tensor, ...] = ()  # grad L_t(theta_t)
        self._entry: dict[Key, Any] = {}
        self._layer = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the last layer."""
        self._layer = last_layer_of(pl_module)

    def constants(self) -> dict[Key, NDArray]:
        """Return the name of the last layer, which `head_...` belongs to."""
        return {self.table.layer: np.array(self._layer)}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Close the measurement of the step before, then begin this step's if it is due."""
        if self._entry:
            self._split(pl_module, batch)
        if due(trainer, self.every):
            parameters = list(trained(pl_module).values())
            with measuring(pl_module, batch) as loss_fn:
                loss, self._gradient = loss_and_gradient(loss_fn, parameters)
            self._before = tuple(p.detach().clone() for p in parameters)
            self._entry = {self.table.step: trainer.global_step, self.table.loss_before: loss}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The same minibatch after the step."""
        if not self._entry:
            return
        parameters = list(trained(pl_module).values())
        with measuring(pl_module, batch) as loss_fn:
            loss, gradient = loss_and_gradient(loss_fn, parameters)
        change = gradient_change(self._gradient, gradient, self._before, parameters)
        self._entry |= {
            self.table.loss_after: loss,
            self.table.change: change.change,
            self.table.moved: change.moved,
            self.table.ratio: change.ratio,
        }

    def _split(self, pl_module: pl.LightningModule, batch: Batch) -> None:
        parameters = list(trained(pl_module).values())
        with measuring(pl_module, batch) as loss_fn:
            following = loss_and_gradient(loss_fn, parameters).gradient
            with parameters_at(parameters, self._before):
                crossed = loss_and_gradient(loss_fn, parameters).gradient
        split = drift_noise_split(self._gradient, crossed, following)
        head = list(trained(pl_module)).index(f"{self._layer}.weight".lstrip("."))
        of_head = drift_noise_split(*([g[head]] for g in (self._gradient, crossed, following)))
        self.note(
            {
                **self._entry,
                self.table.total: split.total,
                self.table.drift: split.drift,
                self.table.noise: split.noise,
                self.table.inner: split.inner,
                self.table.head_total: of_head.total,
                self.table.head_drift: of_head.drift,
                self.table.head_noise: of_head.noise,
                self.table.head_inner: of_head.inner,
            }
        )
        self._entry, self._before, self._gradient = {}, (), ()

    def state_dict(self) -> dict[str, Any]:
        """With a measurement that is half done, as a checkpoint within an epoch may find it."""
        half_done = {"before": self._before, "gradient": self._gradient, "entry": by_name(self._entry)}
        return super().state_dict() | half_done

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint."""
        super().load_state_dict(state_dict)
        self._before, self._gradient = state_dict["before"], state_dict["gradient"]
        self._entry = self.by_key(state_dict["entry"])
