"""Loss, accuracy, learning rate and gradient norm of every step, in `metrics.csv` and TensorBoard."""

import csv
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch.optim import Optimizer

from cifarbn.errors import Diverged

COLUMNS = (
    *("step", "epoch", "lr", "step/loss", "step/acc", "step/grad_norm"),
    *("train/loss", "train/acc", "val/loss", "val/acc", "test_curve/loss", "test_curve/acc"),
)
POINTS_PER_EPOCH = 50  # of each step curve in TensorBoard, which is slow with every step of a long run
LOSS, ACC, NORM = range(3)  # columns of the device buffer


class StepHistory(pl.Callback):
    """Writes `metrics.csv`: a row a step; the last row of each epoch holds the epoch's columns as well.

    Steps count from 0: `step/loss` of step t is L_t(theta_t), before the update, and `step/grad_norm` is the 2-norm
    over all parameters of that loss's gradient, unscaled and not yet clipped. The numbers stay on the device and cross
    to the host once an epoch, since reading one makes the host wait for the device.

    Args:
        folder: the run folder.
        check_every: look for a non-finite loss after so many steps; on the CPU, where looking is free, every step.
            Whenever it looks, it finds the first bad step.

    Raises:
        Diverged: when it sees a non-finite loss.
    """

    def __init__(self, folder: Path, check_every: int = 50) -> None:
        self.file = Path(folder) / "metrics.csv"
        self.check_every = check_every
        self.rows = 0  # that metrics.csv holds: the number of steps of the finished epochs
        self._buffer = torch.empty(0, 3)  # (steps, 3) of this epoch, on the device
        self._sizes: list[int] = []  # pictures in each step's batch, this epoch
        self._lrs: list[float] = []
        self._last_norm: float | None = None  # of the finished epochs' last step
        self._validated = False  # in this epoch
        self.epoch_metrics: dict[str, float] = {}  # of the last epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows that the checkpoint does not know: their steps are taken again."""
        if trainer.is_global_zero:
            keep_rows(self.file, self.rows)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate now: the schedule moves it within the step."""
        self._lrs.append(float(trainer.optimizers[0].param_groups[0]["lr"]))
        if len(self._buffer) <= batch_idx or self._buffer.device != pl_module.device:
            grown = torch.full((int(trainer.num_training_batches), 3), torch.nan, device=pl_module.device)
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the norm of the gradient as it was computed."""
        norms = torch._foreach_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        self._buffer[len(self._sizes), NORM] = torch.linalg.vector_norm(torch.stack(norms))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's loss and accuracy; now and then look whether the loss is still finite."""
        row = self._buffer[len(self._sizes)]
        row[LOSS], row[ACC] = outputs["loss"].detach(), outputs["acc"]
        self._sizes.append(len(batch[1]))
        alone_on_a_cpu = pl_module.device.type == "cpu" and trainer.world_size == 1
        if alone_on_a_cpu or len(self._sizes) % self.check_every == 0:
            self._raise_if_diverged(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The metrics at hand are this epoch's, which after a stop by `max_steps` they are not."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the epoch's numbers to the host, once, and write them."""
        self._raise_if_diverged(trainer)
        steps = len(self._sizes)
        values = trainer.strategy.reduce(self._buffer[:steps], reduce_op="mean").cpu().numpy()
        loss, acc, _ = np.average(values, axis=0, weights=self._sizes)
        evaluated = {k: float(v) for k, v in trainer.callback_metrics.items()} if self._validated else {}
        means = {"train/loss": float(loss)} | ({"train/acc": float(acc)} if np.isfinite(acc) else {})
        pl_module.log_dict(means)
        self.epoch_metrics = evaluated | means
        if trainer.is_global_zero:
            self._write(values, trainer.current_epoch)
            self._draw(values, trainer)
        self.rows += steps
        self._last_norm = float(values[-1, NORM])
        self._sizes, self._lrs, self._validated = [], [], False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the steps so far: a diverged run has a curve too, and a resumed one will cut them off again."""
        if trainer.is_global_zero and self._sizes:
            self.epoch_metrics = {}
            self._write(self._buffer[: len(self._sizes)].cpu().numpy(), trainer.current_epoch)
            self._sizes = []

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, lists and numbers, so that a checkpoint can be loaded with `weights_only`."""
        steps = len(self._sizes)
        return {
            "rows": self.rows,
            "buffer": self._buffer[:steps].cpu(),
            "sizes": self._sizes[:],
            "lrs": self._lrs[:steps],
            "last_norm": self._last_norm,
            "epoch_metrics": dict(self.epoch_metrics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint, in the middle of an epoch too."""
        self.rows, self._buffer = state_dict["rows"], state_dict["buffer"]
        self._sizes, self._lrs = list(state_dict["sizes"]), list(state_dict["lrs"])
        self._last_norm, self.epoch_metrics = state_dict["last_norm"], dict(state_dict["epoch_metrics"])

    def _raise_if_diverged(self, trainer: pl.Trainer) -> None:
        values = self._buffer[: len(self._sizes)]
        bad = (~values[:, LOSS].isfinite()).nonzero()
        diverged = bool(len(bad))
        if trainer.world_size > 1:
            # All or none: a rank that stops alone leaves the others waiting for its gradients.
            diverged = trainer.strategy.reduce_boolean_decision(diverged, all=False)
        if not diverged:
            return
        first = int(bad[0]) if len(bad) else len(values) - 1
        finite = values[:first, NORM]
        finite = finite[finite.isfinite()]
        raise Diverged(self.rows + first, self._lrs[first], float(finite[-1]) if len(finite) else self._last_norm)

    def _write(self, values: np.ndarray, epoch: int) -> None:
        new = not self.file.exists()
        with self.file.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            for i, (loss, acc, norm) in enumerate(values.tolist()):
                row = {"step": self.rows + i, "epoch": epoch, "lr": self._lrs[i]}
                row |= {"step/loss": loss, "step/acc": acc, "step/grad_norm": norm}
                writer.writerow(row | self.epoch_metrics if i == len(values) - 1 else row)

    def _draw(self, values: np.ndarray, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            for i in range(0, len(values), -(-len(values) // POINTS_PER_EPOCH)):
                for name, column in (("loss", LOSS), ("acc", ACC), ("grad_norm", NORM)):
                    logger.experiment.add_scalar(f"step/{name}", values[i, column], self.rows + i)
                logger.experiment.add_scalar("step/lr", self._lrs[i], self.rows + i)


def keep_rows(file: Path, rows: int) -> None:
    """Cut a CSV file down to its header and first `rows` rows, at once or not at all; no rows: no file."""
    if not file.exists():
        return
    if rows == 0:
        file.unlink()
        return
    shorter = file.with_suffix(".tmp")
    with file.open(newline="") as old, shorter.open("w", newline="") as new:
        new.writelines(islice(old, rows + 1))
    os.replace(shorter, file)
