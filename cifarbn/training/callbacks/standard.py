"""The callbacks of every run, in the order in which Lightning must call them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from cifarbn.fast.threads import Threads
from cifarbn.recorders import Recorder, RecordingsFile
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.callbacks.progress import EpochLine, ProgressBar
from cifarbn.training.callbacks.resume_checkpoint import ResumeCheckpoint
from cifarbn.training.callbacks.thread_watch import ThreadWatch
from cifarbn.training.callbacks.timing import Timing


class StandardCallbacks:
    """The callbacks of a run, in order; Lightning calls each hook of all callbacks in that order.

    Args:
        folder: the run folder.
        recorders: the run's recorders; their order does not matter.
        checkpoint_minutes: time between checkpoints within an epoch; 0 saves after every step.
        threads: the initial number of CPU threads, which is watched and changed; None never changes it.
        progress_bar: show the progress bar.
        check_folder: called before writing; raises an error if the folder is no longer this run's.

    Attributes:
        timing: has the run's seconds.
        metrics_logger: has the run's metrics.
        in_order: the list for the Trainer's `callbacks`.

    Raises:
        UserError: if `checkpoint_minutes` is negative.
    """

    def __init__(
        self,
        folder: Path,
        recorders: Sequence[Recorder],
        checkpoint_minutes: float = 5.0,
        *,
        threads: Threads | None = None,
        progress_bar: bool = True,
        check_folder: Callable[[], object] = lambda: None,
    ) -> None:
        self.timing = Timing()
        self.metrics_logger = MetricsLogger(folder, check_folder=check_folder)
        self._thread_watch = [ThreadWatch(threads)] if threads is not None else []
        self.in_order: list[pl.Callback] = [
            # First, so that the seconds of a step do not include the other callbacks.
            self.timing,
            *self._thread_watch,
            # Before the recorders: it raises Diverged, after which nothing is recorded of the step.
            self.metrics_logger,
            *recorders,
            # After the recorders: it writes their arrays in the same hook.
            RecordingsFile(folder, recorders, check_folder),
            # The bar clears its line before the epoch's line is printed, which reads the metrics and the timing.
            *([ProgressBar()] if progress_bar else []),
            EpochLine(self.metrics_logger, self.timing),
            # Last, since it saves the state of all others. Lightning moves checkpoint callbacks to the end in any case.
            ResumeCheckpoint(folder, checkpoint_minutes, self.timing, check_folder),
        ]

    @property
    def thread_changes(self) -> list[dict[str, Any]]:
        """Return one entry for each change of the number of threads, see `ThreadWatch`."""
        return [change for watch in self._thread_watch for change in watch.changes]
