"""The file `recordings.npz`, which holds the arrays of all recorders."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from cifarbn.durable import replace_file
from cifarbn.errors import FolderLost
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import LightningTraining
from cifarbn.runs.schema import RECORDINGS


class RecordingsFile(pl.Callback):
    """Writes the arrays of all recorders into `recordings.npz`, at the end of each epoch and of the run.

    `cifarbn.runs.measures` defines its keys. The file is replaced atomically and synced to disk, so a reader never sees
    a partial file, and a power cut after the last checkpoint loses nothing.
    """

    def __init__(
        self, folder: Path, recorders: Sequence[Recorder], check_folder: Callable[[], object] = lambda: None
    ) -> None:
        self.folder = Path(folder)
        self.recorders = recorders
        self.check_folder = check_folder  # raises an error if the folder is no longer this run's
        self._training = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the recorders have started."""
        self._training = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the recordings so far."""
        write_recordings(self.folder, self.recorders, trainer.is_global_zero)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file again if it is damaged, and training had ended before this run was interrupted."""
        if not self._training and not _is_intact(self.folder / RECORDINGS):
            for recorder in self.recorders:
                recorder.start(LightningTraining(trainer, pl_module, trainer.global_step))
            write_recordings(self.folder, self.recorders, trainer.is_global_zero)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the recordings of a diverged or interrupted run."""
        # A run that resumes in its test has not started its recorders. After an OSError the disk may be full.
        if self._training and not isinstance(exception, (OSError, FolderLost)):
            self.check_folder()
            write_recordings(self.folder, self.recorders, trainer.is_global_zero)


def _is_intact(file: Path) -> bool:
    try:
        with file.open("rb") as opened, np.load(opened) as archive:
            return all(archive[name] is not None for name in archive)  # reading verifies each array's checksum
    except Exception:  # a damaged archive can raise anything
        return False


def write_recordings(folder: Path, recorders: Sequence[Recorder], write: bool = True) -> None:
    """Write the arrays of all recorders so far; without any, no file is written.

    Args:
        folder: the run folder.
        recorders: whose arrays to write.
        write: False transfers the arrays from the device only: under DDP, one process writes.
    """
    arrays = {
        str(key): array
        for recorder in recorders
        for key, array in {**recorder.constants(), **recorder.arrays()}.items()
    }
    if arrays and write:
        replace_file(folder / RECORDINGS, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
