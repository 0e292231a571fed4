"""What a run needs of a logger, in addition to Lightning's `Logger`."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger
from typing_extensions import Self


class RunLogger(Logger):
    """A logger that is opened and closed by `with`, once per start of a run.

    Subclasses take the run folder, `run_id` (the id of the tracked run that a resumed run continues, or None) and
    `purge_step` (the step from which a resumed run continues, or None), and options from conf/logger.
    """

    @property
    def run_id(self) -> str | None:
        """The id under which a tracking service knows the run; None without one."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None

    def start(self, config: Mapping[str, Any]) -> None:
        """Log the run's config before the first step."""

    def finish(self, overrides: Sequence[str], config: Mapping[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log the run's overrides and final metrics after the test."""

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a figure under a name such as "test/confusion"."""

    def flush(self) -> None:
        """Write the values that are still in memory."""
