"""Weights & Biases."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.errors import UserError
from cifarbn.training.loggers.run_logger import RunLogger


class WandbLog(WandbLogger, RunLogger):
    """Lightning's WandbLogger; a resumed run continues its run on Weights & Biases, under the same id.

    Args:
        folder: the run folder; wandb's files are in its subfolder `wandb`.
        run_id: the id of the wandb run to continue; None creates one.
        purge_step: not used; wandb keeps the values of steps that are computed again.
        project: the project on wandb.
        entity: the user or team; None is the default of the account.
        offline: keep the data in the run folder, to be uploaded later with `wandb sync`.

    Raises:
        UserError: if wandb is not installed.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str | None = None,
        purge_step: int | None = None,
        *,
        project: str = "cifarbn",
        entity: str | None = None,
        offline: bool = False,
    ) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError("logger=wandb needs wandb: pip install 'cifarbn[wandb]'") from error
        WandbLogger.__init__(
            self,
            name=Path(folder).name,
            save_dir=folder,
            project=project,
            entity=entity,
            id=run_id or uuid.uuid4().hex[:8],
            resume="allow",
            offline=offline,
            log_model=False,
        )

    @property
    def run_id(self) -> str | None:
        """The id of the wandb run."""
        return self._wandb_init["id"]

    def start(self, config: Mapping[str, Any]) -> None:
        """Log the run's config, and so start the run on Weights & Biases.

        Raises:
            UserError: if there is no account, or the server cannot be reached.
        """
        from wandb.errors import Error

        try:
            self.log_hyperparams(dict(config))
        except Error as error:
            raise UserError(
                f"logger: Weights & Biases cannot be used ({str(error).splitlines()[0]}). Run `wandb login`, or use "
                "logger.offline=true"
            ) from error

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a figure as an image."""
        import wandb

        self.experiment.log({name: wandb.Image(figure), "trainer/global_step": step})

    @rank_zero_only
    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(error is not None))
            self._experiment = None
