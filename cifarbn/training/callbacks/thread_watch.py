"""Adjusting the number of CPU threads during training."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm

from cifarbn.fast.cores import OtherProcesses, usable_cpus
from cifarbn.fast.threads import (
    LONG_WINDOW_SECONDS,
    WINDOW_SECONDS,
    WINDOW_STEPS,
    Decision,
    Threads,
    counted,
    set_threads,
)


class ThreadWatch(pl.Callback):
    """Measures the time of each training step, and changes the number of threads as `Decision` decides.

    A number set by the user is never changed.

    Args:
        threads: the initial choice.

    Attributes:
        changes: one entry per change: the first step with the new number, the number, and the reason.
    """

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.changes: list[dict[str, Any]] = []
        self._began = 0.0
        self._times: list[float] = []  # of the steps in this window
        self._warm = False  # whether a step was taken since the number changed
        self._window_began = 0.0
        cpus = usable_cpus()
        self._others = OtherProcesses(cpus)
        self._decision = Decision(threads.count, threads.most, len(cpus))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the number of threads, since Lightning sets its own when it starts processes."""
        set_threads(self._decision.count)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the beginning of the step."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the step."""
        if self.threads.watched:
            self.step(time.perf_counter() - self._began, trainer.global_step, tqdm.write)

    def step(self, seconds: float, next_step: int, write: Callable[[str], None]) -> None:
        """Add the time of a step, and change the number of threads if `Decision` decides so.

        Args:
            seconds: duration of the step.
            next_step: number of the step that follows.
            write: prints a line.
        """
        now = time.monotonic()
        if not self._warm:  # the first step after a change includes preparations
            self._warm, self._times, self._window_began = True, [], now
            self._others.cores()
            return
        self._times.append(seconds)
        elapsed = now - self._window_began
        if elapsed < WINDOW_SECONDS or (len(self._times) < WINDOW_STEPS and elapsed < LONG_WINDOW_SECONDS):
            return
        reason = self._decision.after(statistics.median(self._times), self._others.cores(), now)
        self._times, self._window_began = [], now
        if reason:
            count, self._warm = self._decision.count, False
            set_threads(count)
            self.changes.append({"step": next_step, "threads": count, "reason": reason})
            write(f"from step {next_step}: {count} of {counted(self.threads.most)} ({reason})")

    def state_dict(self) -> dict[str, Any]:
        """Return the changes so far, for the checkpoint."""
        return {"changes": [dict(change) for change in self.changes]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the changes; this start has chosen its own number of threads."""
        self.changes = [dict(change) for change in state_dict["changes"]]
