"""Gradients of the last linear layer's weight at every step, and how they differ from step to step."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, last_layer_of, trained
from cifarbn.runs.durable import sync_file, temporary_path
from cifarbn.runs.measures import Key, LastLayerKeys
from cifarbn.runs.schema import RAW_GRADIENTS
from cifarbn.smoothness.differences import GradientDifferences

POINTS_PER_EPOCH = 50  # in TensorBoard


class LastLayerGradients(Recorder):
    """Records ||G_t||, ||G_t - G_{t-1}|| and ||2 G_{t-1} - G_t - G_{t-2}|| of every step, and on request G_t itself.

    G_t, (classes, in_features) float32, is the gradient of the last linear layer's weight, `head.weight` in this
    package's nets, as the optimizer receives it: unscaled, not yet clipped. `layer` in the recording names the layer.
    The differences are formed on the device as a stream, so memory does not grow with the gradients.
    `smoothness.differences` turns the arrays into the report's and the course's curves, which carry other indices.

    Args:
        folder: the run folder.
        raw: also write every G_t into `last_layer_gradients.npy`, float32 (steps, 10, in_features), memory-mapped;
            its size is announced before the run.
    """

    table = LastLayerKeys

    def __init__(self, folder: Path, raw: bool = False) -> None:
        super().__init__()
        self.raw_file = Path(folder) / RAW_GRADIENTS if raw else None
        self._stream = GradientDifferences()
        self._layer = ""
        self._weight = nn.Parameter()
        self._raw: np.memmap | None = None
        self._waiting: list[Tensor] = []  # raw gradients of this epoch so far
        self._written = 0
        self._drawn = 0  # steps that TensorBoard has

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layer, and make room for the raw gradients where they are wanted."""
        self._layer = last_layer_of(pl_module)
        self._weight = trained(pl_module)[f"{self._layer}.weight".lstrip(".")]
        if self.raw_file is None or not trainer.is_global_zero:
            return
        shape = (int(trainer.estimated_stepping_batches), *self._weight.shape)
        gib = 4 * np.prod(shape) / 2**30
        print(f"raw gradients of the last layer: {self.raw_file.name}, {gib:.2f} GiB for {shape[0]} steps")
        self._raw = _room(self.raw_file, shape, self._written)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Push G_t."""
        gradient = self._weight.grad
        if gradient is None:
            raise UserError(
                f"record.last_layer_gradients: the model's last linear layer, {self._layer}, has no part in the loss; "
                "call the one that gives the logits `head`, or set record=none"
            )
        norm, first, second = self._stream.push(gradient)
        differences = {self.table.first_difference: first, self.table.second_difference: second}
        self.note({self.table.step: trainer.global_step, self.table.norm: norm, **differences})
        if self.raw_file is not None:
            self._waiting.append(gradient.detach().float().clone())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's raw gradients, and a thinned curve into TensorBoard."""
        self._flush_raw()
        arrays = self.arrays()
        epoch = slice(self._drawn, None)
        self._drawn = len(arrays[self.table.step])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                steps = arrays[self.table.step][epoch]
                for key in (self.table.norm, self.table.first_difference, self.table.second_difference):
                    values = arrays[key][epoch]
                    for i in range(0, len(steps), -(-len(steps) // POINTS_PER_EPOCH)):
                        if np.isfinite(values[i]):
                            logger.experiment.add_scalar(f"last_layer/{key.short}", values[i], int(steps[i]))

    def constants(self) -> dict[Key, NDArray]:
        """Return the layer's name."""
        return {self.table.layer: np.array(self._layer)}

    def _flush_raw(self) -> None:
        if self._raw is not None and self.raw_file is not None and self._waiting:
            new = torch.stack(self._waiting).cpu().numpy()
            self._raw[self._written : self._written + len(new)] = new
            self._raw.flush()
            sync_file(self.raw_file)
            self._written += len(new)
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """The arrays, and the two gradients that the next differences need."""
        self._flush_raw()
        return super().state_dict() | {
            "stream": self._stream.state_dict(),
            "written": self._written,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint."""
        super().load_state_dict(state_dict)
        self._stream.load_state_dict(state_dict["stream"])
        self._written, self._drawn = state_dict["written"], state_dict["drawn"]


def _room(file: Path, shape: tuple[int, ...], written: int) -> np.memmap:
    """Open the file of raw gradients with room for all steps of the run; one that continues a shorter run grows."""
    if written and np.load(file, mmap_mode="r").shape != shape:
        larger = temporary_path(file)
        grown = open_memmap(larger, "w+", np.float32, shape)
        grown[:written] = np.load(file, mmap_mode="r")[:written]
        grown.flush()
        sync_file(larger)
        os.replace(larger, file)
    return open_memmap(file, "r+" if written else "w+", np.float32, shape)
