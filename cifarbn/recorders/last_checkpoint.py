"""`last.ckpt`, from which a run that was cut off goes on, bit for bit on the CPU."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.errors import Interrupted
from cifarbn.recorders.timing import Timing
from cifarbn.runs import CHECKPOINT

SECONDS_BETWEEN_EPOCHS = 10  # at the least, between checkpoints at the ends of epochs
DDP_ASK_EVERY = 10  # steps between the ranks' agreeing whether to save or stop


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of each epoch, every so many minutes within one, and when the run is interrupted.

    Ctrl-C or SIGTERM lets the step in progress finish, saves and stops; the second Ctrl-C stops at once. The file is
    written beside its name and then renamed, so that it is whole whenever the process dies.

    Args:
        folder: the run folder.
        minutes: time between checkpoints within an epoch; 0 saves after every step.
        timing: where the seconds spent here are counted.

    Raises:
        Interrupted: after the save that follows a signal.
    """

    def __init__(self, folder: Path, minutes: float, timing: Timing) -> None:
        self.path = Path(folder) / CHECKPOINT
        self.minutes = minutes
        self.timing = timing
        self._signal: int | None = None
        self._saved_at = 0.0
        self._old_handlers: dict[int, Any] = {}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._old_handlers:
            signal.signal(*self._old_handlers.popitem())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for the signals, which only the main thread may; the time to the next checkpoint counts from here.

        Not before: Lightning sets its own handler of SIGTERM after every callback's `setup`, and ends a validation or
        a last step by it before anything is saved.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch where it is time, or where the run is to stop."""
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # the epoch's end saves
        if trainer.world_size > 1 and batch_idx % DDP_ASK_EVERY:
            return
        self._save_if(trainer, time.monotonic() - self._saved_at >= 60 * self.minutes)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; Lightning calls this after every other callback's, so their states are up to date.

        Epochs of a second are not saved one by one, for writing takes about as long.
        """
        late = time.monotonic() - self._saved_at >= min(SECONDS_BETWEEN_EPOCHS, 60 * self.minutes)
        self._save_if(trainer, late or trainer.global_step >= trainer.estimated_stepping_batches)

    def _save_if(self, trainer: pl.Trainer, late: bool) -> None:
        """Save where it is late or the run is to stop, and then stop it."""
        stop = self._signal is not None
        if trainer.world_size > 1:
            # Saving is a collective act: every rank must do it at the same step.
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            late = trainer.strategy.reduce_boolean_decision(late, all=False)
        if stop or late:
            self._save(trainer)
        if stop:
            raise Interrupted

    def _save(self, trainer: pl.Trainer) -> None:
        self.timing.mark("train")
        beside = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            os.replace(beside, self.path)
        self._saved_at = time.monotonic()
        self.timing.mark("checkpoint")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is None:
            rank_zero_only(print)("\nstopping after this step, and saving; Ctrl-C again stops at once", flush=True)
        self._signal = number
