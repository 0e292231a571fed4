"""Internal covariate shift of every layer, as the paper defines it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch import Tensor, nn

from cifarbn.data.interface import Batch
from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, due, measuring, net_of
from cifarbn.runs.measures import CovariateShiftKeys, Key
from cifarbn.smoothness.evaluation import parameters_at
from cifarbn.smoothness.internal_covariate_shift import internal_covariate_shift


class CovariateShift(Recorder):
    """Records for every layer ||G - G'||, cos(G, G') and ||G|| every so many steps (definition 2.1, figure 3).

    G is the layer's gradient at step t, G' the same with the layers before it already updated. A layer is a
    convolution or a linear map with the parameters of the normalisation that follows it. Costs one pass a layer;
    holds three copies of the parameters and two gradients.

    Args:
        folder: the run folder.
        every: steps between measurements.
    """

    table = CovariateShiftKeys

    def __init__(self, folder: Path, every: int = 200) -> None:
        super().__init__()
        if every < 1:
            raise UserError("record.covariate_shift.every must be at least 1")
        self.every = every
        self._before: list[Tensor] = []
        self._names: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the layers' names."""
        self._names = [name for name, _ in layers(net_of(pl_module))]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep theta_t."""
        if due(trainer, self.every):
            self._before = [p.detach().clone() for _, layer in layers(net_of(pl_module)) for p in layer]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """With theta_{t+1} at hand, go back to theta_t and measure."""
        if not self._before:
            return
        groups = [layer for _, layer in layers(net_of(pl_module))]
        everything = [p for layer in groups for p in layer]
        with measuring(pl_module, batch) as loss_fn, parameters_at(everything, self._before) as after:
            remaining = iter(after)
            shift = internal_covariate_shift(loss_fn, groups, [[next(remaining) for _ in layer] for layer in groups])
        self.note(
            {
                self.table.step: trainer.global_step - 1,
                self.table.distance: shift.distance,
                self.table.cosine: shift.cosine,
                self.table.gradient_norm: shift.gradient_norm,
            }
        )
        self._before = []

    def constants(self) -> dict[Key, NDArray]:
        """Return the layers' names, in the order of the forward pass."""
        return {self.table.layers: np.array(self._names)}


def layers(net: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Each convolution or linear map by name, with its parameters and those of the modules up to the next one."""
    found: list[tuple[str, list[nn.Parameter]]] = []
    for name, module in net.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            found.append((name, own))
        elif own and found:
            found[-1][1].extend(own)
    return [(name, own) for name, own in found if own]
