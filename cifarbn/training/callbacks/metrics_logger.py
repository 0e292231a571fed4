"""Loss, accuracy, learning rate and gradient norm of every step, in `metrics.csv` and TensorBoard."""

import csv
import hashlib
import io
import os
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.optim import Optimizer

from cifarbn.errors import Diverged, UserError
from cifarbn.runs.checkpoints import METRICS_STATE
from cifarbn.runs.durable import naming, replace_file, sync_file
from cifarbn.runs.schema import COLUMNS, METRICS
from cifarbn.training.callbacks.host_copy import HostCopy

POINTS_PER_EPOCH = 50  # of each step curve in TensorBoard, which is slow with every step of a long run
FLUSH_SECONDS = 10  # at the most between writing rows, as long as steps are taken
DDP_ASK_EVERY = 10  # steps between the ranks' agreeing whether it is time
LOSS, ACC, NORM = range(3)  # columns of the device buffer


class MetricsLogger(pl.Callback):
    """Writes `metrics.csv`: a row a step; the last row of each epoch holds the epoch's columns as well.

    Steps count from 0: `step/loss` of step t is L_t(theta_t), before the update, and `step/grad_norm` is the 2-norm
    over all parameters of that loss's gradient, unscaled and not yet clipped. The numbers stay on the device and are
    copied to the host together, and no step waits for the copy: its rows are written once it has arrived. (Under DDP
    every process waits, so that all of them stop at the same step.)

    Args:
        folder: the run folder.
        flush_every: write rows, and look for a non-finite loss, after so many steps or `FLUSH_SECONDS`; on the CPU,
            where looking is free, look at every step. Whenever it looks, it finds the first bad step.

    Raises:
        Diverged: when it sees a non-finite loss.
        UserError: if somebody else changes the file meanwhile.
    """

    state_key = METRICS_STATE

    def __init__(self, folder: Path, flush_every: int = 50) -> None:
        self.file = Path(folder) / METRICS
        self.flush_every = flush_every
        self.rows = 0  # steps of the finished epochs
        self._buffer = torch.empty(0, 3)  # (steps, 3) of this epoch, on the device
        self._written = 0  # of them in the file, and from then on means over all ranks
        self._sizes: list[int] = []  # images in each step's batch, this epoch
        self._lrs: list[float] = []
        self._last_norm: float | None = None  # of the finished epochs' last step
        self._validated = False  # in this epoch
        self._flushed_at = 0.0
        self._arriving: tuple[HostCopy, int] | None = None  # rows to be written, and how many steps they complete
        self._parameters: list[nn.Parameter] = []
        self._bytes, self._sha256 = 0, hashlib.sha256()  # of the file
        self.epoch_metrics: dict[str, float] = {}  # of the last epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows that the checkpoint does not know: their steps are taken again."""
        self._flushed_at = time.monotonic()
        self._parameters = list(pl_module.parameters())  # walking through the modules takes long, at every step
        if trainer.is_global_zero:
            keep_rows(self.file, self.rows + self._written)
            content = self.file.read_bytes() if self.file.exists() else b""
            self._bytes, self._sha256 = len(content), hashlib.sha256(content)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write rows where it is time; none is the epoch's last, which waits for the epoch's columns.

        Note the learning rate now: the schedule moves it within the step.
        """
        if len(self._buffer) <= batch_idx or self._buffer.device != pl_module.device:
            grown = torch.full((int(trainer.num_training_batches), 3), torch.nan, device=pl_module.device)
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown
        self._receive(trainer)
        if self._flush_due(trainer):
            self._send(trainer)
        self._lrs.append(float(trainer.optimizers[0].param_groups[0]["lr"]))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the norm of the gradient as it was computed."""
        norms = torch._foreach_norm([p.grad for p in self._parameters if p.grad is not None])
        self._buffer[len(self._sizes), NORM] = torch.linalg.vector_norm(torch.stack(norms))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's loss and accuracy; where looking is free, look whether the loss is still finite."""
        row = self._buffer[len(self._sizes)]
        row[LOSS], row[ACC] = outputs["loss"].detach(), outputs["acc"]
        self._sizes.append(len(batch[1]))
        if pl_module.device.type == "cpu" and trainer.world_size == 1:
            self._raise_if_diverged(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The metrics at hand are this epoch's, which after a stop by `max_steps` they are not."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's last rows, with its own columns in the last of them."""
        steps = len(self._sizes)
        self._receive(trainer, wait=True)
        new = self._bring(trainer, steps)
        values = self._buffer[:steps].cpu().numpy()
        loss, acc, _ = np.average(values, axis=0, weights=self._sizes)
        evaluated = {k: float(v) for k, v in trainer.callback_metrics.items()} if self._validated else {}
        means = {"train/loss": float(loss)} | ({"train/acc": float(acc)} if np.isfinite(acc) else {})
        pl_module.log_dict(means)
        self.epoch_metrics = evaluated | means
        if trainer.is_global_zero:
            self._write(new, trainer.current_epoch, self.epoch_metrics)
            self._draw(new, trainer)
        self.rows += steps
        self._last_norm = float(values[-1, NORM])
        self._sizes, self._lrs, self._written, self._validated = [], [], 0, False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the steps so far: a diverged run has a curve too, and a resumed one will cut them off again."""
        self._arriving = None
        if trainer.is_global_zero and self._sizes:
            self.epoch_metrics = {}
            self._write(self._buffer[self._written : len(self._sizes)].cpu().numpy(), trainer.current_epoch, {})
            sync_file(self.file)
            self._sizes = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Force to the disk the rows that the checkpoint will count on, and say in it what they are.

        Plain tensors, lists and numbers, so that a checkpoint can be loaded with `weights_only`. The latest step's row
        is not written yet, since it may turn out to be the epoch's last: its values go into the checkpoint.
        """
        steps = len(self._sizes)
        self._receive(trainer, wait=True)
        self._flush(trainer, max(self._written, steps - 1))
        latest = _mean_over_ranks(self._buffer[self._written : steps], trainer)
        if trainer.is_global_zero and self._bytes:
            sync_file(self.file)
        checkpoint["callbacks"][self.state_key] = {
            "rows": self.rows,
            "buffer": torch.cat([self._buffer[: self._written], latest]).cpu(),
            "written": self._written,
            "sizes": self._sizes[:],
            "lrs": self._lrs[:steps],
            "last_norm": self._last_norm,
            "epoch_metrics": dict(self.epoch_metrics),
            "file": {"bytes": self._bytes, "sha256": self._sha256.hexdigest()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint, in the middle of an epoch too."""
        self.rows, self._buffer = state_dict["rows"], state_dict["buffer"]
        self._written = state_dict.get("written", 0)  # rows once were written at an epoch's end only
        self._sizes, self._lrs = list(state_dict["sizes"]), list(state_dict["lrs"])
        self._last_norm, self.epoch_metrics = state_dict["last_norm"], dict(state_dict["epoch_metrics"])

    def _send(self, trainer: pl.Trainer) -> None:
        """Let the waiting steps' rows be written: now under DDP, else as soon as they have arrived."""
        steps = len(self._sizes)
        if trainer.world_size > 1:
            self._flush(trainer, steps)
            return
        self._flushed_at = time.monotonic()
        self._arriving = HostCopy(self._buffer[self._written : steps]), steps
        self._receive(trainer)

    def _receive(self, trainer: pl.Trainer, wait: bool = False) -> None:
        """Write the rows that have arrived."""
        if self._arriving is None or not (wait or self._arriving[0].ready):
            return
        (arrived, steps), self._arriving = self._arriving, None
        values = arrived.numpy()
        if not np.isfinite(values[:, LOSS]).all():
            self._raise_if_diverged(trainer)
        self._put(values, steps, trainer)

    def _put(self, values: np.ndarray, steps: int, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero and len(values):
            self._write(values, trainer.current_epoch, {})
            self._draw(values, trainer)
        self._written = steps

    def _flush_due(self, trainer: pl.Trainer) -> bool:
        if self._arriving is not None:
            return False
        waiting = len(self._sizes) - self._written
        due = waiting >= self.flush_every or (waiting > 0 and time.monotonic() - self._flushed_at >= FLUSH_SECONDS)
        if trainer.world_size > 1:
            asked = len(self._sizes) % DDP_ASK_EVERY == 0
            return asked and trainer.strategy.reduce_boolean_decision(due, all=False)
        return due

    def _flush(self, trainer: pl.Trainer, steps: int) -> None:
        """Write the rows of the epoch's first `steps` steps that are not written yet."""
        self._put(self._bring(trainer, steps), steps, trainer)

    def _bring(self, trainer: pl.Trainer, steps: int) -> np.ndarray:
        """The values of the rows that are not written yet, up to the epoch's first `steps`, as means over the ranks."""
        self._raise_if_diverged(trainer)
        self._flushed_at = time.monotonic()
        values = _mean_over_ranks(self._buffer[self._written : steps], trainer)
        self._buffer[self._written : steps] = values
        return values.cpu().numpy()

    def _raise_if_diverged(self, trainer: pl.Trainer) -> None:
        values = self._buffer[: len(self._sizes)]
        bad = (~values[self._written :, LOSS].isfinite()).nonzero()  # it has looked before it writes
        diverged = bool(len(bad))
        if trainer.world_size > 1:
            # All or none: a rank that stops alone leaves the others waiting for its gradients.
            diverged = trainer.strategy.reduce_boolean_decision(diverged, all=False)
        if not diverged:
            return
        first = self._written + int(bad[0]) if len(bad) else len(values) - 1
        finite = values[:first, NORM]
        finite = finite[finite.isfinite()]
        raise Diverged(self.rows + first, self._lrs[first], float(finite[-1]) if len(finite) else self._last_norm)

    def _write(self, values: np.ndarray, epoch: int, epoch_metrics: dict[str, float]) -> None:
        """Append rows, all of them or none; the last one with the epoch's columns, if there are any."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        if not self._bytes:
            writer.writeheader()
        for i, (loss, acc, norm) in enumerate(values.tolist(), self._written):
            row = {"step": self.rows + i, "epoch": epoch, "lr": self._lrs[i]}
            row |= {"step/loss": loss, "step/acc": acc, "step/grad_norm": norm}
            writer.writerow(row | epoch_metrics if i == self._written + len(values) - 1 else row)
        content = text.getvalue().encode()
        try:
            with naming(self.file), self.file.open("ab") as file:
                if file.tell() != self._bytes:
                    raise UserError(f"{self.file} was changed by another program while this run was writing it")
                file.write(content)
        except (OSError, UserError) as error:
            self._sizes = []  # nothing more is written
            if isinstance(error, OSError):
                with suppress(OSError):
                    os.truncate(self.file, self._bytes)
            raise
        self._bytes += len(content)
        self._sha256.update(content)

    def _draw(self, values: np.ndarray, trainer: pl.Trainer) -> None:
        """Thinned curves for TensorBoard."""
        every = -(-int(trainer.num_training_batches) // POINTS_PER_EPOCH)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            for i, row in enumerate(values, self._written):
                if i % every:
                    continue
                for name, column in (("loss", LOSS), ("acc", ACC), ("grad_norm", NORM)):
                    logger.experiment.add_scalar(f"step/{name}", row[column], self.rows + i)
                logger.experiment.add_scalar("step/lr", self._lrs[i], self.rows + i)
            logger.experiment.flush()


def _mean_over_ranks(values: torch.Tensor, trainer: pl.Trainer) -> torch.Tensor:
    return trainer.strategy.reduce(values.clone(), reduce_op="mean") if len(values) else values


def keep_rows(file: Path, rows: int) -> None:
    """Cut a CSV file down to its header and first `rows` rows, at once or not at all; no rows: no file."""
    if not file.exists():
        return
    if rows == 0:
        file.unlink()
        return
    with file.open("rb") as old:
        replace_file(file, lambda shorter: shorter.writelines(islice(old, rows + 1)))
