"""The distribution of each layer's output during training."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifarbn.errors import UserError
from cifarbn.recorders.global_batch import mean_and_std, mean_over_processes
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import ActivationDriftKeys, Key
from cifarbn.smoothness.minibatch_loss import Batch


class ActivationDrift(Recorder):
    """Records histogram, mean and standard deviation of every layer's output, every `every` steps.

    A layer is a convolution or linear map; its output, on the minibatch of step t, is taken after its normalisation, if
    there is one, and before the activation. Histograms have fixed edges: `bins` bins over [-reach, reach], with values
    outside counted in the outermost bins; entries are fractions. Costs one forward pass.

    Values are NaN for a layer that the pass does not call, such as the output projection within torch's attention.

    Args:
        folder: the run folder.
        every: steps between measurements.
        bins: number of bins of the histogram.
        reach: half the width of the histogram, in units of the activation.

    Raises:
        UserError: if a number is out of range, or when training starts, if the model has no such layer.
    """

    table = ActivationDriftKeys

    def __init__(self, folder: Path | None = None, every: int = 200, bins: int = 64, reach: float = 5.0) -> None:
        super().__init__(folder)
        if every < 1 or bins < 1 or not 0 < reach < math.inf:
            raise UserError("record.activation_drift: every and bins must be at least 1, and reach a positive number")
        self.every, self.bins, self.reach = every, bins, reach
        self._names: list[str] = []

    def start(self, training: Training) -> None:
        """Note the layers' names."""
        self._names = list(outputs(training.model))
        if not self._names:
            raise UserError(
                "record.activation_drift: the model has no convolution (nn.Conv2d) or linear layer (nn.Linear) to "
                "measure; remove this recorder"
            )

    def before_step(self, training: Training, batch: Batch) -> None:
        """Measure in an extra forward pass."""
        if training.step % self.every:
            return
        device = next(training.model.parameters()).device
        rows = {
            name: torch.full((2 + self.bins,), math.nan, dtype=torch.float32, device=device) for name in self._names
        }
        hooks = [
            module.register_forward_hook(partial(self._summarise, rows, name))
            for name, module in outputs(training.model).items()
        ]
        try:
            with training.minibatch_loss(batch) as loss_fn, torch.no_grad():
                loss_fn()
        finally:
            for hook in hooks:
                hook.remove()
        stacked = torch.stack([rows[name] for name in self._names])
        moments = {self.table.mean: stacked[:, 0], self.table.std: stacked[:, 1]}
        self.note({self.table.step: training.step, **moments, self.table.histogram: stacked[:, 2:]})

    def _summarise(self, rows: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Computed in the hook, because an in-place activation overwrites the output.
        values = output.detach().float().flatten()
        clamped = values.clamp(-self.reach, self.reach)
        counts = torch.histc(clamped, self.bins, -self.reach, self.reach)
        mean, std = mean_and_std(values)
        rows[name] = torch.cat([mean[None], std[None], mean_over_processes(counts / len(values))])

    def constants(self) -> dict[Key, NDArray]:
        """Return the layers' names and the histogram's edges."""
        edges = np.linspace(-self.reach, self.reach, self.bins + 1)
        return {self.table.layers: np.array(self._names), self.table.edges: edges}


def outputs(model: nn.Module) -> dict[str, nn.Module]:
    """Return, by the layer's name, the module that gives its output: its normalisation, or else the layer itself."""
    modules: dict[str, nn.Module] = {}
    layer = None
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            layer = name
            modules[layer] = module
        elif layer is not None and (own := list(module.parameters(recurse=False))) and all(p.ndim == 1 for p in own):
            modules[layer] = module
    return modules
