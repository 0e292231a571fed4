"""MLflow."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.errors import UserError
from cifarbn.training.loggers.run_logger import RunLogger


class MLFlowLog(MLFlowLogger, RunLogger):
    """Lightning's MLFlowLogger; a resumed run continues its MLflow run, under the same id.

    Args:
        folder: the run folder; its name is the name of the MLflow run.
        run_id: the id of the MLflow run to continue; None creates one.
        purge_step: not used; MLflow keeps the values of steps that are computed again.
        experiment: the name of the MLflow experiment.
        tracking_uri: the server or store; None is MLFLOW_TRACKING_URI, or else the folder `mlruns`.

    Raises:
        UserError: if mlflow is not installed, or the store cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str | None = None,
        purge_step: int | None = None,
        *,
        experiment: str = "cifarbn",
        tracking_uri: str | None = None,
    ) -> None:
        self._continues = run_id is not None
        arguments: dict[str, Any] = {"tracking_uri": tracking_uri} if tracking_uri else {}
        # MLflow 3 disables folders as stores by default, but mlflow-skinny has no other local store.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            MLFlowLogger.__init__(
                self, experiment, run_name=Path(folder).name, run_id=run_id, log_model=False, **arguments
            )
        except ImportError as error:
            raise UserError("logger=mlflow needs mlflow: pip install 'cifarbn[mlflow]'") from error
        except Exception as error:  # besides MlflowException, MLflow raises others for unsupported URIs
            reason = str(error).split("\n")[0]
            raise UserError(
                f"logger: MLflow cannot be used ({reason}); set logger.tracking_uri to a server or a folder"
            ) from error

    @rank_zero_only
    def start(self, config: Mapping[str, Any]) -> None:
        """Log the run's config as parameters, once: MLflow does not allow to change them in a resumed run."""
        from mlflow.exceptions import MlflowException

        try:
            if not self._continues:
                self.log_hyperparams(dict(config))
        except MlflowException as error:
            raise UserError(f"logger: MLflow cannot be used ({str(error).splitlines()[0]})") from error

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a figure as a PNG artifact."""
        self.experiment.log_figure(self.run_id, figure, f"{name}.png")

    def finalize(self, status: str = "success") -> None:
        """Do nothing: Lightning would end the MLflow run after training, before the test."""

    @rank_zero_only
    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._initialized:
            ended = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
            self.experiment.set_terminated(self.run_id, ended)
