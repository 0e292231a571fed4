"""The base class of all recorders: hooks around a training step, and arrays that grow on the device."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from cifarbn.losses import at_least_float32
from cifarbn.recorders.training import LightningTraining, Training
from cifarbn.runs.measures import Key, Table
from cifarbn.smoothness.minibatch_loss import Batch


class Recorder(pl.Callback):
    """A recorder measures a training run without changing it: the weights end bit-equal with and without it.

    Subclasses override `start`, `before_step`, `after_backward`, `after_step` or `after_epoch`, which have nothing of
    Lightning in them. They are called by the Lightning hooks below, or by `RunRecorder` for any other training loop.

    `note` appends an entry to arrays and leaves it on its device, since reading it would make the CPU wait; `arrays`
    transfers them. The keys are those of `table`. Every recorder notes `table.step`, which counts from 0 as in
    metrics.csv: entry t belongs to theta_t, the parameters before step t.

    Trap: the next step overwrites `.grad` in place, so clone a gradient to keep it.

    Args:
        folder: the run folder, for recorders that write files of their own.
    """

    table: type[Table]

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._pending: dict[Key, list[Tensor]] = defaultdict(list)
        self._kept: dict[Key, NDArray] = {}

    def start(self, training: Training) -> None:
        """Prepare for a training run, or for the rest of one that resumes."""

    def before_step(self, training: Training, batch: Batch) -> None:
        """Measure before step t, at theta_t; `batch` is B_t."""

    def after_backward(self, training: Training) -> None:
        """Measure when `.grad` holds the gradient of step t, unscaled and not yet clipped."""

    def after_step(self, training: Training, batch: Batch) -> None:
        """Measure after step t, at theta_{t+1}; `batch` is still B_t, and `training.step` is still t."""

    def after_epoch(self, training: Training) -> None:
        """Do what is due at the end of an epoch, such as writing a file."""

    def note(self, entries: Mapping[Key, Tensor | float | Sequence[float] | NDArray]) -> None:
        """Append one entry to each array, of the same shape every time; half precision becomes float32."""
        for key, entry in entries.items():
            self._pending[key].append(at_least_float32(torch.as_tensor(entry).detach()))

    def arrays(self) -> dict[Key, NDArray]:
        """Return all entries so far, along the first axis. Waits for the device."""
        for key, entries in self._pending.items():
            new = torch.stack([e.to(entries[-1].device) for e in entries]).cpu().numpy()
            self._kept[key] = np.concatenate([self._kept[key], new]) if key in self._kept else new
        self._pending.clear()
        return self._kept

    def constants(self) -> dict[Key, NDArray]:
        """Return what readers need besides the arrays: settings and names."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays as tensors, so that a checkpoint can be loaded with `weights_only`."""
        return {"arrays": by_name({key: torch.from_numpy(array) for key, array in self.arrays().items()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._pending.clear()
        self._kept = {key: tensor.numpy() for key, tensor in self.by_key(state_dict["arrays"]).items()}

    def by_key(self, entries: Mapping[str, Any]) -> dict[Key, Any]:
        """Return the inverse of `by_name`."""
        return {Key(f"{self.table.step.prefix}.{name}"): entry for name, entry in entries.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call `start`."""
        self.start(LightningTraining(trainer, pl_module, trainer.global_step))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Call `before_step`."""
        self.before_step(LightningTraining(trainer, pl_module, trainer.global_step), batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Call `after_backward`."""
        self.after_backward(LightningTraining(trainer, pl_module, trainer.global_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call `after_step`."""
        self.after_step(LightningTraining(trainer, pl_module, trainer.global_step - 1), batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call `after_epoch`."""
        self.after_epoch(LightningTraining(trainer, pl_module, trainer.global_step))


def by_name(entries: Mapping[Key, Any]) -> dict[str, Any]:
    """Return the entries with plain names for a checkpoint: "norm" for the key "last_layer.norm"."""
    return {key.short: entry for key, entry in entries.items()}
