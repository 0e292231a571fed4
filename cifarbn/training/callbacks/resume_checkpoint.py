"""`last.ckpt`, from which a run that was cut off goes on, bit for bit on the CPU."""

import inspect
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.errors import Diverged, Interrupted, UserError
from cifarbn.fast.training_step import TrainingStep
from cifarbn.runs.checkpoints import RESUME_STATE, forget_previous, write_checkpoint
from cifarbn.runs.schema import CHECKPOINT
from cifarbn.training.callbacks.timing import Timing

SECONDS_BETWEEN_EPOCHS = 10  # at the least, between checkpoints at the ends of epochs
DDP_ASK_EVERY = 10  # steps between the ranks' agreeing whether to save or stop
STOPPING = [signal.SIGINT, signal.SIGTERM]
# Sent by clusters some time before they take the machine away; not on Windows.
WARNING = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class ResumeCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of training and of each epoch, every so many minutes within one, and on signals.

    Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2 lets the step in progress finish, saves and stops; the second Ctrl-C, or any
    signal while the step is being compiled, stops at once. If the program that started the run has a handler of its own
    for the signal, such as a launcher that requeues its job, that is called after the save, in place of stopping.

    Args:
        folder: the run folder.
        minutes: time between checkpoints within an epoch; 0 saves after every step.
        timing: where the seconds spent here are counted.

    Raises:
        Interrupted: after the save that follows a signal.
    """

    state_key = RESUME_STATE

    def __init__(self, folder: Path, minutes: float, timing: Timing) -> None:
        if not minutes >= 0:
            raise UserError(f"checkpoint_minutes must be at least 0, not {minutes}")
        self.path = Path(folder) / CHECKPOINT
        self.minutes = minutes
        self.timing = timing
        self._signals: list[int] = []  # received and not yet answered
        self._saved_at = 0.0
        self._saved_step = -1
        self._earlier: dict[int, Any] = {}  # the signals' handlers before the run
        self._step: TrainingStep | None = None
        self._stopped = False  # whether training ended before its last epoch and step, as by a callback

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the signals' handlers before Lightning sets its own, and write checkpoints without its detour.

        Lightning writes through the temp folder, which may be small, and forces nothing to the disk.
        """
        if stage == "fit":
            trainer.strategy.checkpoint_io = CheckpointFiles()
            self._earlier = {number: signal.getsignal(number) for number in STOPPING + WARNING}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._stop_listening()
        self._earlier = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back; a diverged run is finished."""
        self.teardown(trainer, pl_module, "fit")
        if isinstance(exception, Diverged) and trainer.is_global_zero:
            forget_previous(self.path.parent)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not train on if training had ended before this run was cut off."""
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for the signals, which only the main thread may; the time to the next checkpoint counts from here.

        Not before: Lightning sets its own handler of SIGTERM after every callback's `setup`, and ends a validation or
        a last step by it before anything is saved.
        """
        self._step = getattr(pl_module, "step", None)
        if threading.current_thread() is threading.main_thread():
            ignored = [number for number in WARNING if self._earlier[number] in (None, signal.SIG_IGN)]
            for number in self._earlier.keys() - ignored:
                signal.signal(number, self._on_signal)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch where it is time, or where a signal asks for it."""
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # the epoch's end saves
        if trainer.world_size > 1 and batch_idx % DDP_ASK_EVERY:
            return
        self._save_if(trainer, time.monotonic() - self._saved_at >= 60 * self.minutes)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; Lightning calls this after every other callback's, so their states are up to date.

        Epochs of a second are not saved one by one, for writing takes about as long.
        """
        self._save_if(trainer, time.monotonic() - self._saved_at >= min(SECONDS_BETWEEN_EPOCHS, 60 * self.minutes))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights that will be tested, whatever ended the training."""
        self._stopped = trainer.should_stop
        if self._stopped or self._saved_step != trainer.global_step:
            self._save(trainer)
        self._stop_listening()
        self._save_if(trainer, False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save also where there was no time for a single step."""
        if not self.path.exists():
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Whether training is over, where the number of steps does not say it."""
        return {"stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint."""
        self._stopped = state_dict["stopped"]

    def _save_if(self, trainer: pl.Trainer, late: bool) -> None:
        """Save where it is late or a signal came, and then do what the signal asks for."""
        signals, self._signals = self._signals, []  # one that comes during the save is answered next time
        asked, stop = bool(signals), any(not self._has_handler(number) for number in signals)
        if trainer.world_size > 1:
            # Saving is a collective act: every rank must do it at the same step.
            late, asked, stop = (trainer.strategy.reduce_boolean_decision(x, all=False) for x in (late, asked, stop))
        if asked or late:
            self._save(trainer)
        for number in filter(self._has_handler, signals):
            self._earlier[number](number, inspect.currentframe())
        if stop:
            raise Interrupted

    def _save(self, trainer: pl.Trainer) -> None:
        self.timing.mark("train")
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self.timing.mark("checkpoint")

    def _stop_listening(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._earlier.items():
                if handler is not None:  # as one that was not set from Python is
                    signal.signal(number, handler)

    def _has_handler(self, number: int) -> bool:
        """Whether the program that started the run handles the signal."""
        handler = self._earlier[number]
        return callable(handler) and handler not in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signals:
            raise KeyboardInterrupt
        if self._step is not None and self._step.building:
            # Compiling takes up to minutes, and nothing of this step is computed yet that could be lost.
            if self._has_handler(number):
                self._earlier[number](number, frame)
            self._signals.append(number)  # Python drops an exception that is raised within a destructor
            raise KeyboardInterrupt
        if not self._signals:
            what = "saving after this step" if self._has_handler(number) else "stopping after this step, and saving"
            rank_zero_only(print)(f"\n{what}; Ctrl-C again stops at once", flush=True)
        self._signals.append(number)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to checkpoint files, with ours of writing them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write and keep the one before."""
        write_checkpoint(Path(path), checkpoint)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put every signal's handler back when the block ends, whatever way it ends: one that stays holds on to its run."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
