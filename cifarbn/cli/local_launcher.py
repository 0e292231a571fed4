"""The launcher `local` of sweeps: several runs in parallel on this machine, one process each."""

import copy
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from cifarbn.cli.parallel_runs import (
    RUN,
    ParallelProcesses,
    ended_run,
    exit_on_signals,
    print_line,
)
from cifarbn.cli.slots import make_slots, parse_jobs
from cifarbn.cli.sweep import OF_SWEEPS
from cifarbn.errors import RunLocked, UserError
from cifarbn.runs.folder import is_running
from cifarbn.runs.identity import key_of
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import Result, Status
from cifarbn.training.trainer import starts_processes

ENDED = (Status.DONE, Status.DIVERGED, Status.INTERRUPTED)


def launch(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int, parallel: str
) -> list[JobReturn]:
    """Execute the runs of a sweep in parallel and return their results, in order.

    Runs that have ended are skipped without starting a process. Ctrl-C and SIGTERM let all running processes save.

    Args:
        context: of Hydra.
        config: of the sweep.
        jobs: the overrides of each run.
        first: number of the first run.
        parallel: number of parallel runs, or "auto"; in a search, "auto" is hydra.sweeper.n_jobs if above 1.

    Raises:
        UserError: if `parallel` is neither.
    """
    runs = sweep_runs(context, config, jobs, first)
    limit = parse_jobs(parallel, "hydra.launcher.jobs")
    if any(run.starts_processes for run in runs):
        if limit not in (None, 1):
            raise UserError(
                f"hydra.launcher.jobs={limit}: a run with trainer=ddp uses all its devices itself, so such runs are "
                "executed one after the other; use hydra.launcher.jobs=1"
            )
        limit = 1
    elif limit is None and isinstance(at_a_time := config.hydra.sweeper.get("n_jobs"), int) and at_a_time > 1:
        limit = at_a_time  # the user's number for a search
    slots = make_slots(limit, [run.accelerator for run in runs])
    if len(slots) > 1:
        print_line(f"up to {len(slots)} parallel runs")
    return execute(runs, ParallelProcesses(slots), quiet=len(slots) > 1)


def sweep_runs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> list["SweepRun"]:
    """Compose the runs of a sweep; the arguments are those of `launch`."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [SweepRun(context, config, overrides, first + number, shared) for number, overrides in enumerate(jobs)]


class Processes(AbstractContextManager[Any], Protocol):
    """What executes the processes of the runs, see `ParallelProcesses`."""

    def wait_for_slot(self) -> object:
        """Wait until another process can start."""

    def start(self, key: int, arguments: Sequence[str], label: str) -> None:
        """Start a process."""

    def wait_for_all(self) -> None:
        """Wait until all processes have ended."""

    def ended(self) -> list[tuple[int, int]]:
        """Return key and exit code of each process that has ended since the last call."""


def execute(runs: Sequence["SweepRun"], processes: Processes, *, quiet: bool) -> list[JobReturn]:
    """Execute the runs that have not ended, and return the results of all, in order.

    Args:
        runs: of the sweep.
        processes: executes a process for each run.
        quiet: without progress bars, which those of parallel runs would overwrite.
    """

    def finish() -> None:
        for number, code in processes.ended():
            runs[number].end(code)

    try:
        with exit_on_signals(), processes:
            for number, run in enumerate(runs):
                processes.wait_for_slot()
                finish()
                run.begin()
                if run.must_execute():
                    processes.start(number, run.command(quiet=quiet), run.label)
            processes.wait_for_all()
    finally:
        finish()
    return [run.result for run in runs]


class SweepRun:
    """One run of the sweep, with the events that Hydra's callbacks expect of a launcher.

    Args:
        context: of Hydra.
        config: of the sweep.
        overrides: of the run.
        number: of the run within the sweep.
        shared: overrides that all runs have; the label omits them.
    """

    def __init__(
        self, context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int, shared: set[str]
    ) -> None:
        self._context, self._overrides = context, list(overrides)
        self._config = context.config_loader.load_sweep_config(config, self._overrides)
        HydraConfig.instance().set_config(self._config)  # for the interpolations of its folder
        hydra = self._config.hydra
        self.label = " ".join(override for override in self._overrides if override not in shared) or str(number)
        with open_dict(self._config), read_write(hydra.runtime), read_write(hydra.job):
            hydra.job.id = hydra.job.num = number
            self.folder = Path(hydra.sweep.dir, hydra.sweep.subdir).absolute()
            hydra.runtime.output_dir = str(self.folder)
        self.starts_processes = starts_processes(self._config.trainer)
        self.result = JobReturn(overrides=self._overrides, cfg=self._config, hydra_cfg=self._config)

    @property
    def accelerator(self) -> str:
        """The run's own trainer.accelerator, which may differ from the sweep's."""
        return str(self._config.trainer.accelerator)

    def begin(self) -> None:
        """Report the start."""
        HydraConfig.instance().set_config(self._config)
        self._context.callbacks.on_job_start(config=self._config, task_function=_task)

    def must_execute(self) -> bool:
        """Return whether the run needs a process; if it has ended, or cannot start, report its end."""
        cfg = copy.deepcopy(self._config)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        try:
            run = ended_run(self.folder, cfg, self._overrides)
            if run is None:
                return True
            self._report(JobStatus.COMPLETED, _accuracy(run.result))
        except (UserError, OSError) as error:
            self._report(JobStatus.FAILED, error)
        return False

    def command(self, *, quiet: bool) -> list[str]:
        """Return the command line of the run's process.

        Args:
            quiet: without a progress bar.
        """
        hydra = self._config.hydra
        folder = str(self.folder).replace("\\", "\\\\").replace('"', '\\"')
        of_sweep = ("hydra.mode", *OF_SWEEPS)
        own = [override for override in hydra.overrides.hydra if not key_of(override).startswith(of_sweep)]
        paths = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        flags = [flag for path in paths for flag in ("--config-dir", path.removeprefix("file://"))]
        bar = ["trainer.enable_progress_bar=false"] if quiet else []
        return [*RUN, *flags, *bar, *self._overrides, *own, f'hydra.run.dir="{folder}"', "hydra.mode=RUN"]

    def end(self, code: int) -> None:
        """Report the end of the run's process.

        Args:
            code: its exit code, -N after signal N.
        """
        try:
            result: Result = read_result(self.folder) or {}
        except UserError:
            result = {}
        if code > 0 and is_running(self.folder):
            self._report(JobStatus.FAILED, RunLocked(f"{self.folder} is in use: another process runs it"))
        elif result.get("status") in ENDED:
            self._report(JobStatus.COMPLETED, _accuracy(result))
        elif code == -signal.SIGTERM and not result:  # stopped before its training: like a run that was not started
            self.result.status, self.result.return_value = JobStatus.COMPLETED, None
        elif code < 0:
            self._report(JobStatus.FAILED, UserError(f"its process was killed by {signal.Signals(-code).name}"))
        else:
            reason = result.get("error") or f"its process ended with exit code {code}; see its messages above"
            self._report(JobStatus.FAILED, UserError(reason))

    def _report(self, status: JobStatus, value: Any) -> None:
        self.result.status, self.result.return_value = status, value
        self._context.callbacks.on_job_end(config=self._config, job_return=self.result)


def _task(_: Any) -> None:
    """Stand in for the task function in Hydra's events: the run's own process calls it."""


def _accuracy(result: Result) -> float | None:
    """Return the validation accuracy, which a sweeper that searches needs."""
    return result.get("metrics", {}).get("val/acc")
