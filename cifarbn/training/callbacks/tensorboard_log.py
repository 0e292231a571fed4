"""TensorBoard's event file in the run folder."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from cifarbn.runs.durable import naming
from cifarbn.runs.identity import EXECUTION_KEYS, key_of


def hparams(overrides: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a run: the value of each key that its command line sets.

    >>> hparams(["optim.lr=1e-3", "model=vgg_a", "name=x"], {"optim": {"lr": 0.001}, "model": {"depth": 11}})
    {'optim.lr': 0.001, 'model': 'vgg_a'}
    """
    values = {}
    for override in overrides:
        key, text = key_of(override), override.partition("=")[2]
        if key in EXECUTION_KEYS:
            continue
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        values[key] = value if isinstance(value, (bool, int, float, str)) else text
    return values


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger with one event file per start; a context manager that closes the file.

    Lightning itself would close the file after training and after the test, and open another one each time.

    Args:
        folder: the run folder, which holds the file.
        purge_step: hide the values that an earlier start logged from this step on.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        super().__init__(folder, name="", version="", purge_step=purge_step)
        self.folder = Path(folder)

    def save(self) -> None:
        """Do nothing: Lightning would flush the events at every step and write hparams.yaml.

        `MetricsLogger` flushes, and result.json has the config.
        """

    def finalize(self, status: str) -> None:
        """Flush the events; `__exit__` closes the file."""
        if self._experiment is not None:
            self._experiment.flush()

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
