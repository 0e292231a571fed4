"""Hydra finds sweepers in this namespace only; the sweeper `optuna` itself is `cifarbn.cli.optuna_sweeper`."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from cifarbn.errors import UserError


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`: a search by Optuna, which the same command continues after a kill at any moment.

    Args:
        params: search space, key -> sweep in Hydra's syntax, in addition to that of the command line.
        options: the other keys of conf/hydra/sweeper/optuna.yaml.
    """

    def __init__(self, params: Mapping[str, Any], **options: Any) -> None:
        self.params, self.options = params, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher of the trials' runs."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        """Execute the trials that the study lacks.

        Raises:
            UserError: if Optuna is not installed.
        """
        try:  # here, because Hydra imports this module in every program that uses Hydra
            from cifarbn.cli.optuna_sweeper import search
        except ModuleNotFoundError as error:
            raise UserError(f"hydra/sweeper=optuna needs {error.name}: pip install 'cifarbn[optuna]'") from error
        overrides = [*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments]
        search(self, overrides, **self.options)
