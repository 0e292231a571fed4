"""Gradients of the last linear layer's weight at every step, and their differences from step to step."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from cifarbn.durable import sync_file, temporary_path
from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import Key, LastLayerKeys
from cifarbn.runs.schema import RAW_GRADIENTS
from cifarbn.smoothness.differences import GradientDifferences

POINTS_PER_EPOCH = 50  # in TensorBoard


class LastLayerGradients(Recorder):
    """Records ||G_t||, ||G_t - G_{t-1}|| and ||2 G_{t-1} - G_t - G_{t-2}|| at every step, and optionally G_t itself.

    G_t, (classes, in_features), is the gradient of the last linear layer's weight, unscaled and not yet clipped;
    `layer` in the recordings names the layer. Holds two gradients, since the differences are computed as a stream.
    `smoothness.differences` computes the curves of the course report and the course handout from the arrays, with the
    indices that these use.

    Args:
        folder: the run folder.
        raw: also write every G_t into `last_layer_gradients.npy`, float32 (steps, classes, in_features), memory-mapped.
            Its size is printed before the run.

    Raises:
        UserError: if the model has no trained linear layer, or the loss does not depend on the last one.
    """

    table = LastLayerKeys

    def __init__(self, folder: Path | None = None, raw: bool = False) -> None:
        super().__init__(folder)
        self.raw = raw
        self._stream = GradientDifferences()
        self._layer = ""
        self._weight = nn.Parameter()
        self._raw_file: np.memmap | None = None
        self._unwritten: list[Tensor] = []  # raw gradients of this epoch
        self._written = 0
        self._drawn = 0  # steps written to TensorBoard

    def start(self, training: Training) -> None:
        """Find the layer, and create the file of raw gradients if it is wanted."""
        self._layer = training.last_layer
        self._weight = training.last_weight
        if not self.raw or not training.is_writer:
            return
        if self.folder is None or training.total_steps is None:
            raise UserError("LastLayerGradients(raw=True) needs the run folder and the total number of steps")
        shape = (training.total_steps, *self._weight.shape)
        gib = 4 * np.prod(shape) / 2**30
        print(f"raw gradients of the last layer: {RAW_GRADIENTS}, {gib:.2f} GiB for {shape[0]} steps")
        self._raw_file = _open_raw_file(Path(self.folder) / RAW_GRADIENTS, shape, self._written)

    def after_backward(self, training: Training) -> None:
        """Add G_t."""
        gradient = self._weight.grad
        if gradient is None:
            raise UserError(
                f"record.last_layer_gradients: the loss does not depend on the model's last linear layer, "
                f"{self._layer}. Name the layer that computes the logits `head`, or set record=none"
            )
        norm, first, second = self._stream.push(gradient)
        differences = {self.table.first_difference: first, self.table.second_difference: second}
        self.note({self.table.step: training.step, self.table.norm: norm, **differences})
        if self.raw:
            self._unwritten.append(gradient.detach().float().clone())

    def after_epoch(self, training: Training) -> None:
        """Write the epoch's raw gradients, and a thinned curve for TensorBoard."""
        self._write_raw()
        arrays = self.arrays()
        epoch = slice(self._drawn, None)
        self._drawn = len(arrays[self.table.step])
        steps = arrays[self.table.step][epoch]
        for key in (self.table.norm, self.table.first_difference, self.table.second_difference):
            values = arrays[key][epoch]
            for i in range(0, len(steps), -(-len(steps) // POINTS_PER_EPOCH)):
                if np.isfinite(values[i]):
                    training.log_scalar(f"last_layer/{key.short}", values[i], int(steps[i]))

    def constants(self) -> dict[Key, NDArray]:
        """Return the layer's name."""
        return {self.table.layer: np.array(self._layer)}

    def _write_raw(self) -> None:
        if self._raw_file is not None and self.folder is not None and self._unwritten:
            new = torch.stack(self._unwritten).cpu().numpy()
            self._raw_file[self._written : self._written + len(new)] = new
            self._raw_file.flush()
            sync_file(Path(self.folder) / RAW_GRADIENTS)
            self._written += len(new)
        self._unwritten.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays, and the two gradients that the next differences need."""
        self._write_raw()
        return super().state_dict() | {
            "stream": self._stream.state_dict(),
            "written": self._written,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state_dict)
        self._stream.load_state_dict(state_dict["stream"])
        self._written, self._drawn = state_dict["written"], state_dict["drawn"]


def _open_raw_file(file: Path, shape: tuple[int, ...], written: int) -> np.memmap:
    """Open the file of raw gradients for all steps of the run, and enlarge it if it belongs to a shorter run."""
    if written and np.load(file, mmap_mode="r").shape != shape:
        larger = temporary_path(file)
        grown = open_memmap(larger, "w+", np.float32, shape)
        grown[:written] = np.load(file, mmap_mode="r")[:written]
        grown.flush()
        sync_file(larger)
        os.replace(larger, file)
    return open_memmap(file, "r+" if written else "w+", np.float32, shape)
