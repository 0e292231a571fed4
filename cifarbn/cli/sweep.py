"""Sweeps, `python -m cifarbn.train -m ...`: continue after failed runs, print progress, end with a table."""

import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.plugin import Plugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifarbn.cli.command_line import exit_after, friendly_errors
from cifarbn.cli.outcomes import End, Outcome, error_outcome, is_failure, read_outcome, short, table
from cifarbn.errors import Interrupted, RunConflict, UserError, machine_fault
from cifarbn.formatting import duration
from cifarbn.runs.identity import key_of
from cifarbn.runs.locks import Held, Lock
from cifarbn.runs.schema import RESULT
from cifarbn.training.trainer import starts_processes
from hydra_plugins.cifarbn_optuna import OptunaSweeper

# Start of the keys of Hydra that a single run does not use.
OF_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep")


class Journal:
    """Events of one sweep, kept in a file because a launcher may execute the runs in other processes.

    Args:
        file: the journal; one JSON event per line, each appended in one write.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock: Lock | None = None

    @classmethod
    def begin(cls, folder: Path) -> "Journal":
        """Create a journal in a folder, locked as long as this object exists; remove those of killed sweeps."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.jsonl"):
            with suppress(Held, OSError):
                if (dead := Lock(file)).works:  # else there is no way to tell whether its sweep is alive
                    file.unlink()
                dead.release()
        while True:
            descriptor, name = tempfile.mkstemp(".jsonl", dir=folder)
            os.close(descriptor)
            journal = cls(Path(name))
            with suppress(Held):  # another sweep may take the new file for that of a killed sweep
                journal._lock = Lock(journal.file)
                if journal._lock.in_place:
                    return journal

    def started(self, job: int | str) -> None:
        """Append that a job starts, or starts again after its launcher has requeued it."""
        self._append({"started": job})

    def ended(self, outcome: Outcome) -> None:
        """Append the outcome of a run."""
        self._append({"ended": asdict(outcome)})

    def read(self) -> tuple[int, list[Outcome]]:
        """Return the number of runs in progress and the outcomes of those that have ended."""
        events = []
        for line in self.file.read_text().split("\n"):
            with suppress(ValueError):  # a line that is incomplete because the disk was full
                events.append(json.loads(line))
        outcomes = [
            Outcome(**event["ended"] | {"status": End(event["ended"]["status"])})
            for event in events
            if "ended" in event
        ]
        return len({event["started"] for event in events if "started" in event}) - len(outcomes), outcomes

    def end(self) -> None:
        """Remove the file."""
        self.file.unlink(missing_ok=True)
        if self._lock:
            self._lock.release()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the lock, which does not move to other processes."""
        return self.__dict__ | {"_lock": None}

    def _append(self, event: dict[str, Any]) -> None:
        try:
            with self.file.open("a") as file:
                file.write(f"\n{json.dumps(event)}\n")
        except OSError as error:  # Hydra would turn it into a warning about a callback
            print(f"warning: {machine_fault(error, self.file.parent)}", file=sys.stderr, flush=True)


class SweepCallback(Callback):
    """Hydra callback that reports failed runs in the final table and then exits with 1.

    Without it, Hydra would raise the first failure after the last run. Launchers pickle the callback to send it to
    their workers; the journal returns the outcomes from there.
    """

    running: ClassVar["SweepCallback | None"] = None  # the sweep that this process has started

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.planned: int | None = None
        self.began = 0.0  # by this machine's monotonic clock
        self.process = _this_process()
        self._before: dict[Path, bytes | None] = {}  # run folder -> content of its result.json when the run started

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Exit if a single run has options of a sweep, which Hydra would ignore."""
        with friendly_errors():
            if ignored := [each for each in config.hydra.overrides.hydra if key_of(each).startswith(OF_SWEEPS)]:
                raise UserError(f"{' '.join(ignored)} has an effect on sweeps only: add -m")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the sweep and count its runs; exit on errors, since Hydra turns exceptions here into warnings."""
        with friendly_errors():
            check_processes(config.get("trainer") or {}, config.hydra)
            if not _is(config.hydra.sweeper, BasicSweeper) and OmegaConf.select(config, "data.val_size") == 0:
                raise UserError(
                    f"{config.hydra.sweeper._target_} optimizes the validation accuracy, but data.val_size=0 leaves "
                    "no images to measure it on; raise data.val_size"
                )
            self.planned = _planned(config)
            if self.planned == 0 and _is(config.hydra.sweeper, BasicSweeper):
                raise UserError("the sweep has no runs, because a key has no values; write for example 'seed=range(3)'")
            if config.hydra.launcher._target_.endswith(".SlurmLauncher") and not shutil.which("srun"):
                raise UserError(
                    "hydra/launcher=slurm needs SLURM, but there is no srun here. Start the sweep where "
                    "SLURM accepts jobs, or use hydra/launcher=local"
                )
            if not _is(config.hydra.launcher, BasicLauncher):
                # A launcher that stops its runs when its own process ends must learn of SIGTERM. The basic launcher
                # executes the runs in this process, and they handle it.
                signal.signal(signal.SIGTERM, lambda number, frame: exit_after(Interrupted(number)))
            self.journal = Journal.begin(Path(config.hydra.sweep.dir) / ".sweeps")
        self.began = time.monotonic()
        SweepCallback.running = self

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Print the progress of the sweep."""
        if self.journal:
            folder = Path(config.hydra.runtime.output_dir)
            self._before[folder] = _content(folder)
            self.journal.started(OmegaConf.select(config, "hydra.job.num", default=folder.name))
            print(self._progress(), flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Append the outcome to the journal, and hide a failure from Hydra."""
        if not self.journal:
            return
        folder = Path(config.hydra.runtime.output_dir)
        failed = job_return.status is JobStatus.FAILED
        error = job_return._return_value if failed else None
        if isinstance(error, Interrupted):
            if self.process == _this_process():
                self.journal.ended(_outcome(folder, list(job_return.overrides or []), None, None, False))
                exit_after(error)  # Hydra lets an exit pass
            error = None  # this is one run of the sweep, and its process must return to the launcher
        message = str(error) if isinstance(error, UserError) else machine_fault(error, folder) if error else None
        if message:
            print(f"error: {message}", file=sys.stderr, flush=True)
        elif error:
            traceback.print_exception(error)
        before = self._before.pop(folder, None)
        ended_before = error is None and before is not None and before == _content(folder)
        outcome = _outcome(folder, list(job_return.overrides or []), error, message, ended_before)
        self.journal.ended(outcome)
        if failed:
            # Not the exception itself: its frames would keep the failed run's model in memory.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, outcome.status
        if self.planned is None and (failed or job_return.return_value is None):  # a sweeper that searches must know
            reason = outcome.reason or "it has no validation accuracy"
            job_return.status = JobStatus.FAILED
            job_return.return_value = UserError(f"the sweeper cannot use {outcome.run} ({outcome.status}): {reason}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table of outcomes.

        Raises:
            SystemExit: with 1 if a run failed, was interrupted or conflicts with its folder.
        """
        outcomes = self.end()
        # Of a search, another command may execute the other trials.
        if self.planned is not None and len(outcomes) < self.planned and _is(config.hydra.sweeper, BasicSweeper):
            print(
                f"error: {self.planned - len(outcomes)} runs left no outcome; run the same command again",
                file=sys.stderr,
            )
            sys.exit(1)
        if is_failure(outcomes) or any(outcome.status is End.INTERRUPTED for outcome in outcomes):
            sys.exit(1)

    def end(self, *, early: bool = False) -> list[Outcome]:
        """Print the table of outcomes, remove the journal and return the outcomes.

        Args:
            early: whether an error or a signal ends the sweep; before its first run, there is no table.
        """
        assert self.journal
        running, outcomes = self.journal.read()
        self.journal.end()
        SweepCallback.running = None
        if running or outcomes or not early:
            print(f"\n{table(outcomes)}\n\n{self._summary(outcomes)}", flush=True)
        return outcomes

    def _progress(self) -> str:
        assert self.journal
        running, outcomes = self.journal.read()
        text = f"sweep: {self._summary(outcomes)}, {running} running"
        if self.planned is None:
            return text
        left = self.planned - len(outcomes) - running
        executed = sum(not outcome.ended_before for outcome in outcomes)
        text += f", {left} left"
        if executed and platform.node() == self.process[0]:  # monotonic clocks of two machines cannot be compared
            seconds_per_run = (time.monotonic() - self.began) / executed
            text += f", about {duration(seconds_per_run * (left + running))} to go"
        return text

    def _summary(self, outcomes: Sequence[Outcome]) -> str:
        counts = {status: sum(outcome.status == status for outcome in outcomes) for status in End}
        parts = [f"{count} {status}" for status, count in counts.items() if count or status is End.DONE]
        total = "" if self.planned is None else f" of {self.planned}"
        return f"{', '.join(parts)}{total}"


@contextmanager
def table_on_exit() -> Iterator[None]:
    """Print the table of the sweep also if an error or a signal ends it early, and restore its handler of SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except BaseException:
        if SweepCallback.running:
            SweepCallback.running.end(early=True)
        raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def check_processes(trainer: Mapping[str, Any], hydra_config: Any) -> None:
    """Raise an error if a run of a sweep starts processes, but its launcher executes it in the sweep's own process.

    Args:
        trainer: the run's options of conf/trainer.
        hydra_config: Hydra's part of the config.

    Raises:
        UserError: naming the remedy.
    """
    own_process = OmegaConf.select(hydra_config, "runtime.choices.hydra/launcher") == "local"
    if hydra_config.mode is RunMode.MULTIRUN and not own_process and starts_processes(trainer):
        raise UserError(
            "a run on several devices starts processes of its own, so it cannot run inside the process of a sweep; "
            "add hydra/launcher=local, or leave out -m and start one command for each combination"
        )


def _is(plugin: DictConfig, kind: type[Plugin]) -> bool:
    """Return whether the config of a sweeper or a launcher is of this class."""
    return bool(plugin._target_ == f"{kind.__module__}.{kind.__qualname__}")


def _outcome(
    folder: Path, overrides: list[str], error: BaseException | None, message: str | None, ended_before: bool
) -> Outcome:
    if isinstance(error, RunConflict):
        return error_outcome(folder, overrides, error)
    reason = short(message or f"{type(error).__name__}: {error}", folder) if error else None
    return read_outcome(folder, overrides, error=reason, ended_before=ended_before)


def _this_process() -> tuple[str, int]:
    """Return machine and process id."""
    return platform.node(), os.getpid()


def _content(folder: Path) -> bytes | None:
    """Return the bytes of the folder's result.json; None if it is not a readable file."""
    file = folder / RESULT
    with suppress(OSError):
        return file.read_bytes() if file.is_file() else None
    return None


def _planned(config: DictConfig) -> int | None:
    """Return the number of runs in the sweep; None if only its sweeper knows it.

    Raises:
        UserError: if a grid has an interval instead of values.
    """
    sweeper = config.hydra.sweeper
    if _is(sweeper, OptunaSweeper):
        return sweeper.n_trials if isinstance(sweeper.n_trials, int) else None
    if not _is(sweeper, BasicSweeper):
        return None
    arguments = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(arguments)
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: a grid needs a list of values; add hydra/sweeper=optuna to search an interval"
            )
    return sum(len(batch) for batch in BasicSweeper.split_arguments(overrides, None))
