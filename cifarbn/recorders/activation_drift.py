"""How the distribution of each layer's output drifts during training."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifarbn.data.interface import Batch
from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, due, measuring, net_of
from cifarbn.runs.measures import ActivationDriftKeys, Key


class ActivationDrift(Recorder):
    """Records histogram, mean and standard deviation of every layer's output, every so many steps.

    The output of a convolution or linear map, on step t's minibatch, is taken where the next layer receives it up to
    the activation: after the normalisation, where there is one. Histograms have fixed edges, `bins` of them over
    [-reach, reach], with what lies beyond in the outermost; their entries are fractions. Costs one forward pass.

    Args:
        folder: the run folder.
        every: steps between measurements.
        bins: of the histogram.
        reach: half its width, in the activations' own units.
    """

    table = ActivationDriftKeys

    def __init__(self, folder: Path, every: int = 200, bins: int = 64, reach: float = 5.0) -> None:
        super().__init__()
        if every < 1 or bins < 1 or not 0 < reach < math.inf:
            raise UserError("record.activation_drift: every and bins must be at least 1, and reach a number above 0")
        self.every, self.bins, self.reach = every, bins, reach
        self._names: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the layers' names."""
        self._names = list(outputs(net_of(pl_module)))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look before the step is taken."""
        if not due(trainer, self.every):
            return
        seen: dict[str, Tensor] = {}
        watched = outputs(net_of(pl_module))
        hooks = [module.register_forward_hook(partial(self._look, seen, name)) for name, module in watched.items()]
        try:
            with measuring(pl_module, batch) as loss_fn, torch.no_grad():
                loss_fn()
        finally:
            for hook in hooks:
                hook.remove()
        rows = torch.stack([seen[name] for name in self._names])
        moments = {self.table.mean: rows[:, 0], self.table.std: rows[:, 1]}
        self.note({self.table.step: trainer.global_step, **moments, self.table.histogram: rows[:, 2:]})

    def _look(self, seen: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Reduced here: an in-place activation will overwrite the output.
        values = output.detach().float().flatten()
        inside = values.clamp(-self.reach, self.reach)
        counts = torch.histc(inside, self.bins, -self.reach, self.reach)
        seen[name] = torch.cat([values.mean()[None], values.std()[None], counts / len(values)])

    def constants(self) -> dict[Key, NDArray]:
        """Return the layers' names and the histogram's edges."""
        edges = np.linspace(-self.reach, self.reach, self.bins + 1)
        return {self.table.layers: np.array(self._names), self.table.edges: edges}


def outputs(net: nn.Module) -> dict[str, nn.Module]:
    """The module whose output is a layer's, by the layer's name: its normalisation, else the layer itself."""
    found: dict[str, nn.Module] = {}
    layer = None
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            layer = name
            found[layer] = module
        elif layer is not None and next(module.parameters(recurse=False), None) is not None:
            found[layer] = module
    return found
