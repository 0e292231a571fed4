"""Loss, accuracy, learning rate and gradient norm of every step, in `metrics.csv` and in the run's logger."""

import csv
import hashlib
import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

from cifarbn.durable import naming, replace_file, sync_file
from cifarbn.errors import Diverged, FolderLost
from cifarbn.runs.old_names import METRICS_STATE
from cifarbn.runs.schema import COLUMNS, METRICS
from cifarbn.training.callbacks.host_copy import HostCopy
from cifarbn.training.loggers.run_logger import RunLogger

POINTS_PER_EPOCH = 50  # of each step curve in the logger; TensorBoard is slow with every step of a long run
FLUSH_SECONDS = 10  # the longest time between writes of rows while training
DDP_ASK_EVERY = 10  # steps between collective decisions of the ranks to write rows
LOSS, ACC, NORM = range(3)  # columns of the device buffer


class MetricsLogger(pl.Callback):
    """Writes `metrics.csv`: one row per step; the last row of each epoch also has the columns of the epoch.

    Steps are counted from 0: `step/loss` of step t is L_t(theta_t), before the update, and `step/grad_norm` is the
    2-norm of that loss's gradient over all parameters, unscaled and before clipping. The numbers stay on the device and
    are copied to the host in blocks. No step waits for a copy; the rows are written once it is complete. (With DDP,
    every process waits, so that all of them stop at the same step.)

    Args:
        folder: the run folder.
        flush_every: write rows, and check for a non-finite loss, after this many steps or `FLUSH_SECONDS`. On the CPU,
            where the check is free, check every step. Each check finds the first step with a non-finite loss.
        check_folder: called before rows are written; raises an error if the folder is no longer this run's.

    Raises:
        Diverged: if the loss is not finite.
        FolderLost: if another program changes the file during the run.
    """

    state_key = METRICS_STATE

    def __init__(
        self, folder: Path, flush_every: int = 50, *, check_folder: Callable[[], object] = lambda: None
    ) -> None:
        self.file = Path(folder) / METRICS
        self.flush_every = flush_every
        self.check_folder = check_folder
        self.rows = 0  # number of steps in the finished epochs
        self._buffer = torch.empty(0, 3)  # (steps, 3) of this epoch, on the device
        self._written = 0  # number of the buffer's rows that are in the file; these are means over all ranks
        self._sizes: list[int] = []  # number of images in each batch of this epoch
        self._lrs: list[float] = []
        self._last_norm: float | None = None  # gradient norm of the last step of the finished epochs
        self._validated = False  # whether validation has run in this epoch
        self._flushed_at = 0.0
        self._arriving: tuple[HostCopy, int] | None = None  # rows to be written, and the number of steps they complete
        self._parameters: list[nn.Parameter] = []
        self._bytes, self._sha256 = 0, hashlib.sha256()  # of the file's content
        self.epoch_metrics: dict[str, float] = {}  # of the last epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the rows after the checkpoint: their steps are computed again."""
        self._flushed_at = time.monotonic()
        self._parameters = list(pl_module.parameters())  # iterating over the modules is too slow for every step
        if trainer.is_global_zero:
            keep_rows(self.file, self.rows + self._written)
            content = self.file.read_bytes() if self.file.exists() else b""
            self._bytes, self._sha256 = len(content), hashlib.sha256(content)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write rows if they are due, except the epoch's last one, which waits for the columns of the epoch.

        The learning rate is read here, since the schedule changes it within the step.
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
        """Store the norm of the gradient, before clipping."""
        norms = torch._foreach_norm([grad for p in self._parameters if (grad := p.grad) is not None])
        self._buffer[len(self._sizes), NORM] = torch.linalg.vector_norm(torch.stack(norms))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the step's loss and accuracy; on the CPU, check that the loss is finite."""
        row = self._buffer[len(self._sizes)]
        row[LOSS], row[ACC] = outputs["loss"].detach(), outputs["acc"]
        self._sizes.append(len(batch[1]))
        if pl_module.device.type == "cpu" and trainer.world_size == 1:
            self._raise_if_diverged(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the logged metrics are those of this epoch; after a stop by `max_steps` they are not."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's remaining rows, with the columns of the epoch in the last one."""
        steps = len(self._sizes)
        self._receive(trainer, wait=True)
        new = self._fetch(trainer, steps)
        values = self._buffer[:steps].cpu().numpy()
        loss, acc, _ = np.average(values, axis=0, weights=self._sizes)
        evaluated = {k: float(v) for k, v in trainer.callback_metrics.items()} if self._validated else {}
        means = {"train/loss": float(loss)} | ({"train/acc": float(acc)} if np.isfinite(acc) else {})
        pl_module.log_dict(means, sync_dist=trainer.world_size > 1)  # equal on all ranks; avoids Lightning's warning
        self.epoch_metrics = evaluated | means
        if trainer.is_global_zero:
            self._write(new, trainer.current_epoch, self.epoch_metrics)
            self._draw(new, trainer)
        self.rows += steps
        self._last_norm = float(values[-1, NORM])
        self._sizes, self._lrs, self._written, self._validated = [], [], 0, False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the steps so far, for the curve of a diverged run; a resumed run truncates them."""
        self._arriving = None
        if trainer.is_global_zero and self._sizes and not isinstance(exception, FolderLost):
            self.epoch_metrics = {}
            self._write(self._buffer[self._written : len(self._sizes)].cpu().numpy(), trainer.current_epoch, {})
            sync_file(self.file)
            self._sizes = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Sync the rows that the checkpoint refers to, and store their size and hash in it.

        The state consists of tensors, lists and numbers, so that a checkpoint can be loaded with `weights_only`. The
        latest step's row is not written yet, since it may be the epoch's last: its values go into the checkpoint.
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
        """Continue from the checkpoint, also within an epoch."""
        self.rows, self._buffer = state_dict["rows"], state_dict["buffer"]
        self._written = state_dict.get("written", 0)  # old versions wrote rows only at the end of an epoch
        self._sizes, self._lrs = list(state_dict["sizes"]), list(state_dict["lrs"])
        self._last_norm, self.epoch_metrics = state_dict["last_norm"], dict(state_dict["epoch_metrics"])

    def _send(self, trainer: pl.Trainer) -> None:
        """Start copying the rows of the waiting steps; with DDP, write them at once."""
        steps = len(self._sizes)
        if trainer.world_size > 1:
            self._flush(trainer, steps)
            return
        self._flushed_at = time.monotonic()
        self._arriving = HostCopy(self._buffer[self._written : steps]), steps
        self._receive(trainer)

    def _receive(self, trainer: pl.Trainer, wait: bool = False) -> None:
        """Write the rows whose copy is complete."""
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
        self._put(self._fetch(trainer, steps), steps, trainer)

    def _fetch(self, trainer: pl.Trainer, steps: int) -> np.ndarray:
        """Return the rows that are not written yet of the epoch's first `steps` steps, averaged over the ranks."""
        self._raise_if_diverged(trainer)
        self._flushed_at = time.monotonic()
        values = _mean_over_ranks(self._buffer[self._written : steps], trainer)
        self._buffer[self._written : steps] = values
        return values.cpu().numpy()

    def _raise_if_diverged(self, trainer: pl.Trainer) -> None:
        values = self._buffer[: len(self._sizes)]
        bad = (~values[self._written :, LOSS].isfinite()).nonzero()  # written rows were checked before
        diverged = bool(len(bad))
        if trainer.world_size > 1:
            # All ranks must stop together: otherwise the others would wait for this rank's gradients.
            diverged = trainer.strategy.reduce_boolean_decision(diverged, all=False)
        if not diverged:
            return
        first = self._written + int(bad[0]) if len(bad) else len(values) - 1
        finite = values[:first, NORM]
        finite = finite[finite.isfinite()]
        raise Diverged(self.rows + first, self._lrs[first], float(finite[-1]) if len(finite) else self._last_norm)

    def _write(self, values: np.ndarray, epoch: int, epoch_metrics: dict[str, float]) -> None:
        """Append rows, all of them or none; the last one includes `epoch_metrics`."""
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
            self.check_folder()
            with naming(self.file), self.file.open("ab") as file:
                if file.tell() != self._bytes:
                    raise FolderLost(
                        f"{self.file} was changed by another program during the run; run the same command again"
                    )
                file.write(content)
        except (OSError, FolderLost) as error:
            self._sizes = []  # so that `on_exception` writes nothing
            if isinstance(error, OSError):
                with suppress(OSError):
                    os.truncate(self.file, self._bytes)
            raise
        self._bytes += len(content)
        self._sha256.update(content)

    def _draw(self, values: np.ndarray, trainer: pl.Trainer) -> None:
        """Add thinned curves to the logger."""
        every = -(-int(trainer.num_training_batches) // POINTS_PER_EPOCH)
        for logger in trainer.loggers:
            for i, row in enumerate(values, self._written):
                if i % every:
                    continue
                values_of_step = {"step/loss": row[LOSS], "step/acc": row[ACC], "step/grad_norm": row[NORM]}
                values_of_step["step/lr"] = self._lrs[i]
                logger.log_metrics({name: float(value) for name, value in values_of_step.items()}, self.rows + i)
            if isinstance(logger, RunLogger):
                logger.flush()


def _mean_over_ranks(values: torch.Tensor, trainer: pl.Trainer) -> torch.Tensor:
    return trainer.strategy.reduce(values.clone(), reduce_op="mean") if len(values) else values


def keep_rows(file: Path, rows: int) -> None:
    """Truncate a CSV file atomically to its header and first `rows` rows; remove the file if `rows` is 0."""
    if not file.exists():
        return
    if rows == 0:
        file.unlink()
        return
    with file.open("rb") as old:
        replace_file(file, lambda shorter: shorter.writelines(islice(old, rows + 1)))
