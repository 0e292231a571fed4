"""Hydra finds launchers in this namespace only; the launcher `ray` itself is `cifarbn.cli.ray_launcher`."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RayLauncher(Launcher):
    """`hydra/launcher=ray`: the runs of a sweep as tasks of a Ray cluster.

    Args:
        **options: fields of `cifarbn.cli.ray_launcher.Options`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the context and config of the sweep; each process imports the task itself."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Execute the runs and return their results, in order."""
        from cifarbn.cli.ray_launcher import launch  # Hydra imports this module in every program that uses Hydra

        return launch(self.hydra_context, self.config, job_overrides, initial_job_idx, self.options)
