"""The launcher `ray` of sweeps: each run is a task of a Ray cluster, with a process of its own.

The plugin hydra-ray-launcher 1.2.2 cannot do this: it always asks for the memory of a new cluster, which Ray refuses
for a running one; its runs write into the folder in which each machine's Ray was started; and a lost worker ends the
sweep.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig

from cifarbn.cli.local_launcher import execute, sweep_runs
from cifarbn.cli.parallel_runs import print_line
from cifarbn.cli.ray_task import run_process
from cifarbn.cli.slots import parse_jobs
from cifarbn.errors import UserError

# Variables that the runs have from this process; hydra.job.env_copy names more. Others are the machine's own.
PASSED = ("CIFARBN_DATA", "HYDRA_FULL_ERROR", "PYTHONPATH")
POLL_SECONDS = 0.5
SECONDS_TO_SAVE = 120  # after Ctrl-C or SIGTERM


@dataclass(frozen=True)
class Options:
    """Keys of conf/hydra/launcher/ray.yaml.

    Raises:
        UserError: if a value is not valid.
    """

    address: str | None
    jobs: Any
    cpus: float
    gpus: Any
    retries: int

    def __post_init__(self) -> None:
        parse_jobs(str(self.jobs), "hydra.launcher.jobs")
        for key in ("cpus", "gpus", "retries"):
            value = getattr(self, key)
            if not (key == "gpus" and value == "auto" or _is_number(value)):
                auto = ", or auto" if key == "gpus" else ""
                raise UserError(f"hydra.launcher.{key} takes a number of at least 0{auto}, not {value!r}")


def launch(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int, options: Mapping[str, Any]
) -> list[JobReturn]:
    """Execute the runs of a sweep on a Ray cluster and return their results, in order.

    Args:
        context: of Hydra.
        config: of the sweep.
        jobs: the overrides of each run.
        first: number of the first run.
        options: fields of `Options`.

    Raises:
        UserError: if Ray is not installed or has no such cluster, or an option is not valid.
    """
    checked = Options(**options)
    runs = sweep_runs(context, config, jobs, first)
    names = [*PASSED, *config.hydra.job.env_copy]
    variables = {name: os.environ[name] for name in names if name in os.environ}
    if any(run.starts_processes for run in runs):
        raise UserError(
            "hydra/launcher=ray executes each run in one process; use trainer.devices=1, or hydra/launcher=local"
        )
    return execute(runs, RayTasks(checked, [run.accelerator for run in runs], variables), quiet=True)


class RayTasks:
    """Processes on a Ray cluster, one task each; the same methods as `ParallelProcesses`.

    An exception in the block, such as Ctrl-C, cancels the tasks and waits until their runs have saved.

    Args:
        options: of the launcher.
        accelerators: trainer.accelerator of each process.
        variables: environment variables of the processes.
    """

    def __init__(self, options: Options, accelerators: Sequence[str], variables: Mapping[str, str]) -> None:
        self.options, self.accelerators, self.variables = options, accelerators, variables
        self._running: dict[Any, tuple[int, str]] = {}  # reference of the task -> key and label
        self._ended: list[tuple[int, int]] = []

    def __enter__(self) -> "RayTasks":
        """Connect to the cluster."""
        try:
            import ray
        except ImportError as error:
            raise UserError("hydra/launcher=ray needs Ray: pip install 'cifarbn[ray]'") from error
        self._ray = ray
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _check_address(self.options.address)
            ray.init(self.options.address or "local", logging_level="warning")
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"hydra.launcher.address={self.options.address}: no Ray cluster ({reason}). Start one with "
                "`ray start --head`, or use hydra.launcher.address=null for this machine only"
            ) from error
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which exits with 15
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for task in self._running:
                self._ray.cancel(task)
            deadline = time.monotonic() + SECONDS_TO_SAVE
            while self._running and time.monotonic() < deadline:
                self._collect()
        finally:
            self._ray.shutdown()

    def wait_for_slot(self) -> None:
        """Wait until the cluster has room for another process, or, with hydra.launcher.jobs=N, fewer than N run."""
        while len(self._running) >= self._room():
            self._collect()

    def start(self, key: int, arguments: Sequence[str], label: str) -> None:
        """Submit a process as a task.

        Args:
            key: index of its accelerator.
            arguments: the command line, including the program, for which the worker uses its own Python.
            label: name of the task; Ray prints it in front of the task's output.
        """
        task = self._ray.remote(run_process).options(
            name=label, num_cpus=self.options.cpus, num_gpus=self._gpus(key), max_retries=self.options.retries
        )
        self._running[task.remote(list(arguments[1:]), str(Path.cwd()), self.variables)] = key, label

    def wait_for_all(self) -> None:
        """Wait until all tasks have ended."""
        while self._running:
            self._collect()

    def ended(self) -> list[tuple[int, int]]:
        """Return key and exit code of each process that has ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _collect(self) -> None:
        tasks = list(self._running)
        done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
        if not done:
            # Not in Ray's wait, which turns the exception of a signal handler into exit code 1.
            time.sleep(POLL_SECONDS)
        for task in done:
            key, label = self._running.pop(task)
            try:
                code = self._ray.get(task)
            except self._ray.exceptions.TaskCancelledError:
                code = -signal.SIGTERM
            except self._ray.exceptions.RayError as error:  # its machine or worker was lost too often
                print_line(f"[{label}] {str(error).strip().splitlines()[0]}")
                code = -signal.SIGKILL
            self._ended.append((key, code))

    def _room(self) -> int:
        jobs = parse_jobs(str(self.options.jobs))
        if jobs is not None:
            return jobs
        total, gpus = self._ray.cluster_resources(), max(map(self._gpus, range(len(self.accelerators))))
        rooms = [total.get(kind, 0) // needed for kind, needed in (("CPU", self.options.cpus), ("GPU", gpus)) if needed]
        return max(1, int(min(rooms, default=len(self.accelerators))))

    def _gpus(self, key: int) -> float:
        """Return the number of GPUs that a process needs."""
        if self.options.gpus != "auto":
            return float(self.options.gpus)
        return 1.0 if self.accelerators[key] != "cpu" and self._ray.cluster_resources().get("GPU") else 0.0


def _check_address(address: str | None) -> None:
    """Raise OSError if nothing listens at HOST:PORT, since Ray would wait for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
