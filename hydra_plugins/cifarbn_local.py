"""Hydra finds launchers in this namespace only; the launcher `local` itself is `cifarbn.cli.local_launcher`."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: the runs of a sweep in parallel on this machine, one process each.

    Args:
        jobs: number of parallel runs; "auto" for as many as fit the machine.
    """

    def __init__(self, jobs: Any = "auto") -> None:
        self.jobs = str(jobs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the context and config of the sweep; each process imports the task itself."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Execute the runs and return their results, in order."""
        from cifarbn.cli.local_launcher import launch  # Hydra imports this module in every program that uses Hydra

        return launch(self.hydra_context, self.config, job_overrides, initial_job_idx, self.jobs)
