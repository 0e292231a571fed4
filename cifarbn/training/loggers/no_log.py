"""No logger besides metrics.csv."""

from pathlib import Path
from typing import Any

from cifarbn.training.loggers.run_logger import RunLogger


class NoLog(RunLogger):
    """A logger that logs nothing: `metrics.csv` in the run folder has every step and epoch in any case."""

    def __init__(self, folder: Path, run_id: str | None = None, purge_step: int | None = None) -> None:
        super().__init__()

    @property
    def name(self) -> str:
        """The name that Lightning asks for."""
        return "none"

    @property
    def version(self) -> str:
        """The version that Lightning asks for."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Do nothing."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""
