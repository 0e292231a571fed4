"""`last.ckpt`, from which an interrupted run continues, bit for bit on the CPU."""

import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
from cifarbn.runs.checkpoints import forget_previous, write_checkpoint
from cifarbn.runs.old_names import RESUME_STATE
from cifarbn.runs.schema import CHECKPOINT
from cifarbn.terminal import leave_closed_output, print_in_handler
from cifarbn.training.callbacks.timing import Timing

SECONDS_BETWEEN_EPOCHS = 10  # the least time between checkpoints at the ends of epochs
DDP_ASK_EVERY = 10  # steps between collective decisions of the ranks to save or stop
STOPPING = [signal.SIGINT, signal.SIGTERM]
# A closed terminal sends SIGHUP. Clusters send SIGUSR1 or SIGUSR2 some time before they end a job.
WARNING = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


class ResumeCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of training and of each epoch, at intervals within an epoch, and on signals.

    On Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2, the current step finishes, a checkpoint is written and the run
    stops. A second Ctrl-C, or any signal while the step is being compiled, stops the run at once. If the program that
    started the run has its own handler for the signal, such as a launcher that requeues its job, that handler is called
    after the checkpoint is written, and the run stops only if the handler ends it. If the program ignores SIGHUP, as
    under `nohup`, SIGUSR1 or SIGUSR2, it stays ignored.

    Args:
        folder: the run folder.
        minutes: time between checkpoints within an epoch; 0 writes one after every step.
        timing: counts the seconds spent on checkpoints.
        check_folder: called before each checkpoint; raises an error if the folder is no longer this run's.

    Raises:
        Interrupted: after a signal, once the checkpoint is written.
    """

    state_key = RESUME_STATE

    def __init__(
        self, folder: Path, minutes: float, timing: Timing, check_folder: Callable[[], object] = lambda: None
    ) -> None:
        if not minutes >= 0:
            raise UserError(f"checkpoint_minutes must be at least 0, not {minutes}")
        self.path = Path(folder) / CHECKPOINT
        self.minutes = minutes
        self.timing = timing
        self.check_folder = check_folder
        self._signals: list[int] = []  # received, but not yet handled
        self._saved_at = 0.0
        self._saved_step = -1
        self._earlier: dict[int, Any] = {}  # the signal handlers from before the run
        self._step: TrainingStep | None = None
        self._stopped = False  # whether training ended before its last step, for example by a callback

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the signal handlers before Lightning sets its own, and replace Lightning's way to write checkpoints.

        Lightning writes through the temporary folder, which may be small, and does not sync to disk.
        """
        if stage == "fit":
            trainer.strategy.checkpoint_io = CheckpointFiles()
            self._earlier = {number: signal.getsignal(number) for number in STOPPING + WARNING}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self._stop_listening()
        self._earlier = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers; a diverged run is finished and needs one checkpoint only."""
        self.teardown(trainer, pl_module, "fit")
        if isinstance(exception, Diverged) and trainer.is_global_zero:
            forget_previous(self.path.parent)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not continue training if it had ended before this run was interrupted."""
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers (possible in the main thread only), and start the time to the next checkpoint.

        This cannot be done earlier: Lightning sets its own SIGTERM handler after every callback's `setup`, and that one
        would stop a validation or the last step before a checkpoint is written.
        """
        self._step = getattr(pl_module, "step", None)
        if threading.current_thread() is threading.main_thread():
            for number, earlier in self._earlier.items():
                if number in STOPPING or earlier not in (None, signal.SIG_IGN):
                    signal.signal(number, self._on_signal)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if a checkpoint is due, or after a signal."""
        if batch_idx + 1 >= trainer.num_training_batches or trainer.global_step == trainer.max_steps:
            return  # the epoch's end saves; with max_steps, an epoch may end early
        if trainer.world_size > 1 and batch_idx % DDP_ASK_EVERY:
            return
        self._save_if(trainer, time.monotonic() - self._saved_at >= 60 * self.minutes)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; Lightning calls this after all other callbacks, so their states are up to date.

        Epochs of about a second are not saved one by one, since writing a checkpoint takes about as long.
        """
        self._save_if(trainer, time.monotonic() - self._saved_at >= min(SECONDS_BETWEEN_EPOCHS, 60 * self.minutes))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights that will be tested, for any reason that training ended."""
        self._stopped = trainer.should_stop
        if self._stopped or self._saved_step != trainer.global_step:
            self._save(trainer)
        self._stop_listening()
        self._save_if(trainer, False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save also if there was no time for a single step."""
        if not self.path.exists():
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return whether training has ended before its last step."""
        return {"stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint."""
        self._stopped = state_dict["stopped"]

    def _save_if(self, trainer: pl.Trainer, late: bool) -> None:
        """Save if a checkpoint is due or a signal was received, and then handle the signal."""
        signals, self._signals = self._signals, []  # a signal during the save is handled next time
        stopping = [number for number in signals if not self._has_handler(number)]
        asked, stop = bool(signals), bool(stopping)
        if trainer.world_size > 1:
            # Saving is a collective operation: every rank must do it at the same step.
            late, asked, stop = (trainer.strategy.reduce_boolean_decision(x, all=False) for x in (late, asked, stop))
        if asked or late:
            self._save(trainer)
        for number in filter(self._has_handler, signals):
            self._earlier[number](number, inspect.currentframe())
        if stop:
            raise Interrupted(*stopping[:1])

    def _save(self, trainer: pl.Trainer) -> None:
        self.timing.mark("train")
        self.check_folder()
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self.timing.mark("checkpoint")

    def _stop_listening(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._earlier.items():
                if handler is not None:  # None: a handler that was not set from Python
                    signal.signal(number, handler)

    def _has_handler(self, number: int) -> bool:
        """Return whether the program that started the run handles the signal."""
        handler = self._earlier[number]
        return callable(handler) and handler not in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_output()
        if number == signal.SIGINT and self._signals:
            raise KeyboardInterrupt(number)
        if self._step is not None and self._step.building:
            # Compiling takes up to minutes, and no result of this step could be lost yet.
            if self._has_handler(number):
                self._earlier[number](number, frame)
            self._signals.append(number)  # kept, since Python drops an exception that is raised in a destructor
            raise KeyboardInterrupt(number)
        if not self._signals:
            action = "saving after this step" if self._has_handler(number) else "saving and stopping after this step"
            rank_zero_only(print_in_handler)(f"\n{action}; press Ctrl-C again to stop at once")
        self._signals.append(number)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files, with `write_checkpoint` for writing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, and keep the previous one."""
        write_checkpoint(Path(path), checkpoint)


@contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Restore every signal handler at the end of the block: a handler that stays would keep its run in memory."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
