"""A sweep, `python -m cifarbn.train -m ...`: goes on after a failed run, says how far it is, ends with a table."""

import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifarbn.cli.command_line import friendly_errors
from cifarbn.cli.outcomes import End, Outcome, is_failure, not_made, read_outcome, short, table
from cifarbn.errors import Interrupted, RunConflict, UserError, machine_fault
from cifarbn.formatting import duration
from cifarbn.runs.locks import Held, Lock
from cifarbn.runs.schema import RESULT
from cifarbn.training.trainer import check_one_process


class Journal:
    """What happened in one sweep so far: a file, since a launcher may make the runs in other processes.

    Args:
        file: a line an event, appended whole.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock: Lock | None = None

    @classmethod
    def begin(cls, folder: Path) -> "Journal":
        """A new journal in a folder, locked for as long as this object lives; those of killed sweeps are removed."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.jsonl"):
            with suppress(Held, OSError):
                if (dead := Lock(file)).works:  # else nobody can tell whether its sweep lives
                    file.unlink()
                dead.release()
        while True:
            descriptor, name = tempfile.mkstemp(".jsonl", dir=folder)
            os.close(descriptor)
            journal = cls(Path(name))
            with suppress(Held):  # another sweep takes the new file for a killed one's
                journal._lock = Lock(journal.file)
                if journal._lock.stands:
                    return journal

    def started(self, job: int | str) -> None:
        """A job begins, or begins again because its launcher has requeued it."""
        self._append({"started": job})

    def ended(self, outcome: Outcome) -> None:
        """A run is over."""
        self._append({"ended": asdict(outcome)})

    def read(self) -> tuple[int, list[Outcome]]:
        """How many runs are in progress, and how the others ended, in this order."""
        events = [json.loads(line) for line in self.file.read_text().splitlines()]
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
        """What another process needs; the lock stays here."""
        return self.__dict__ | {"_lock": None}

    def _append(self, event: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(event) + "\n")


class SweepCallback(Callback):
    """Hydra's callback: turns a failed run into a line of the final table, which a failure makes exit with 1.

    It takes the place of Hydra's own way, which is to raise the first failure after the last run. Launchers carry it
    to their workers by pickling, and the journal brings back what it saw there.
    """

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.planned: int | None = None
        self.began = 0.0  # of this machine's monotonic clock
        self.machine = platform.node()
        self._before: dict[Path, bytes | None] = {}  # run folder -> its result.json when the run began

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Plan; Hydra takes an exception here for a warning, but not an exit."""
        with friendly_errors():
            check_one_process(config.get("trainer") or {})
            if searches(config.hydra) and OmegaConf.select(config, "data.val_size") == 0:
                raise UserError(
                    f"{config.hydra.sweeper._target_} searches by the validation accuracy, and data.val_size=0 leaves "
                    "no images to measure it on; raise data.val_size"
                )
            self.journal = Journal.begin(Path(config.hydra.sweep.dir) / ".sweeps")
            self.planned = _planned(config)
        self.began = time.monotonic()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Say how far the sweep is."""
        if self.journal:
            folder = Path(config.hydra.runtime.output_dir)
            self._before[folder] = _content(folder)
            self.journal.started(OmegaConf.select(config, "hydra.job.num", default=folder.name))
            print(self._progress(), flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Keep the outcome; of a failure, Hydra hears nothing."""
        if not self.journal:
            return
        folder = Path(config.hydra.runtime.output_dir)
        failed = job_return.status is JobStatus.FAILED
        error = job_return._return_value if failed else None
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt  # which Hydra lets end the sweep
        said = str(error) if isinstance(error, UserError) else machine_fault(error, folder) if error else None
        if said:
            print(f"error: {said}", file=sys.stderr, flush=True)
        elif error:
            traceback.print_exception(error)
        before = self._before.pop(folder, None)
        found = error is None and before is not None and before == _content(folder)
        outcome = _outcome(folder, list(job_return.overrides or []), error, said, found)
        self.journal.ended(outcome)
        if failed:
            # Not the exception: it holds on to the frames of the failed run, and so to its net.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        if self.planned is None and job_return.return_value is None:  # a sweeper that searches must hear of it
            why = outcome.why or "without a validation accuracy"
            job_return.status = JobStatus.FAILED
            job_return.return_value = UserError(f"{outcome.run} is no result to search by: {outcome.status}, {why}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table.

        Raises:
            SystemExit: with 1 if a run failed or was refused.
        """
        assert self.journal
        outcomes = self.journal.read()[1]
        self.journal.end()
        print(f"\n{table(outcomes)}\n\n{self._summary(outcomes)}", flush=True)
        if is_failure(outcomes):
            sys.exit(1)

    def _progress(self) -> str:
        assert self.journal
        running, outcomes = self.journal.read()
        said = f"sweep: {self._summary(outcomes)}, {running} running"
        if self.planned is None:
            return said
        left = self.planned - len(outcomes) - running
        made = sum(not outcome.found for outcome in outcomes)
        said += f", {left} left"
        if made and platform.node() == self.machine:  # another machine's clock counts from another moment
            each = (time.monotonic() - self.began) / made
            said += f", about {duration(each * (left + running))} to go"
        return said

    def _summary(self, outcomes: Sequence[Outcome]) -> str:
        counts = {status: sum(outcome.status == status for outcome in outcomes) for status in End}
        parts = [f"{count} {status}" for status, count in counts.items() if count or status is End.DONE]
        total = "" if self.planned is None else f" of {self.planned}"
        return f"{', '.join(parts)}{total}"


def searches(hydra_config: Any) -> bool:
    """Return whether the sweeper asks each run for a number, by which it chooses the next; Hydra's own does not."""
    sweeper = str(OmegaConf.select(hydra_config, "sweeper._target_"))
    return hydra_config.mode is RunMode.MULTIRUN and not sweeper.endswith(f".{BasicSweeper.__name__}")


def _outcome(folder: Path, overrides: list[str], error: BaseException | None, said: str | None, found: bool) -> Outcome:
    if isinstance(error, RunConflict):
        return not_made(folder, overrides, error)
    why = short(said or f"{type(error).__name__}: {error}", folder) if error else None
    return read_outcome(folder, overrides, why=why, found=found)


def _content(folder: Path) -> bytes | None:
    """What is in the folder's result.json, as it is; None where that is no file."""
    file = folder / RESULT
    with suppress(OSError):
        return file.read_bytes() if file.is_file() else None
    return None


def _planned(config: DictConfig) -> int | None:
    """How many runs the sweep has; None if its sweeper is not Hydra's own."""
    if searches(config.hydra):
        return None
    sweeper = config.hydra.sweeper
    said = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(said)
    return sum(len(batch) for batch in BasicSweeper.split_arguments(overrides, None))
