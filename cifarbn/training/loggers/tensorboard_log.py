"""TensorBoard's event file in the run folder."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from cifarbn.durable import naming
from cifarbn.runs.identity import identifies, key_of
from cifarbn.training.loggers.run_logger import RunLogger


def hparams(overrides: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a run: the value of each key that its command line sets.

    >>> hparams(["optim.lr=1e-3", "model=vgg_a", "name=x"], {"optim": {"lr": 0.001}, "model": {"depth": 11}})
    {'optim.lr': 0.001, 'model': 'vgg_a'}
    """
    values = {}
    for override in overrides:
        key, text = key_of(override), override.partition("=")[2]
        if not identifies(override):
            continue
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        values[key] = value if isinstance(value, (bool, int, float, str)) else text
    return values


class TensorBoardLog(TensorBoardLogger, RunLogger):
    """Lightning's TensorBoardLogger with one event file per start, in the run folder.

    Lightning itself would close the file after training and after the test, and open another one each time.

    Args:
        folder: the run folder, which holds the file.
        run_id: not used; all starts of a run write into the same folder.
        purge_step: hide the values that an earlier start logged from this step on.
    """

    def __init__(self, folder: Path, run_id: str | None = None, purge_step: int | None = None) -> None:
        TensorBoardLogger.__init__(self, folder, name="", version="", purge_step=purge_step)
        self.folder = Path(folder)

    def save(self) -> None:
        """Do nothing: Lightning would flush the events at every step and write hparams.yaml.

        `MetricsLogger` flushes, and result.json has the config.
        """

    def finish(self, overrides: Sequence[str], config: Mapping[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log the values of the overrides and the final metrics for the HParams tab."""
        self.log_hyperparams(hparams(overrides, config), metrics, step=step)

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a figure as an image."""
        self.experiment.add_figure(name, figure, step)

    def flush(self) -> None:
        """Write the events that are still in memory."""
        if self._experiment is not None:
            self._experiment.flush()

    def finalize(self, status: str) -> None:
        """Flush the events; `__exit__` closes the file."""
        self.flush()

    def __enter__(self) -> "TensorBoardLog":
        self._earlier_hook, threading.excepthook = threading.excepthook, self._on_thread_error
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if self._experiment is not None:
                with naming(self.folder):
                    self._experiment.close()
        except OSError:
            if error is None:
                raise
        finally:
            threading.excepthook = self._earlier_hook
            self._experiment = None

    def _on_thread_error(self, args: Any) -> None:
        # The thread that writes the file raises its error in the next call that writes.
        if not isinstance(args.thread, _AsyncWriterThread):
            self._earlier_hook(args)
