"""An Optuna study that survives a kill at any moment: no trial is lost, and none is executed twice."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from cifarbn.cli.search_space import SearchSpace
from cifarbn.errors import UserError, machine_fault
from cifarbn.runs.locks import Held, Lock

SEARCH = "search"  # user attribute of a study: what defines the search
# User attributes of a trial.
CHOSEN = "chosen"  # overrides of its values; the last thing that is stored when a trial is created
RETRY_OF = "retry_of"  # number of the trial that this one replaces, because its run was executed again
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Trial:
    """One trial, to be executed by this command.

    Attributes:
        number: its number in the study.
        chosen: overrides of its values.
    """

    number: int
    chosen: tuple[str, ...]

    @classmethod
    def of(cls, stored: FrozenTrial) -> "Trial":
        """Return a trial as the study has it."""
        return cls(stored.number, tuple(stored.user_attrs[CHOSEN]))


class Study:
    """The trials of one search, shared by all commands that execute them.

    A command holds a file lock on each trial that it executes. After a kill, the next command finds the trial without
    a lock and executes it with the same overrides, which continues the run in its folder.

    Args:
        folder: for the lock files; the same for all commands.
        storage: a database URL, or a path for a file in Optuna's journal format.
        name: of the study; created if the storage does not have it.
        search: what defines the search, as text; the study keeps it.
        direction: "maximize" or "minimize".
        space: from which trials are chosen.
        sampler: returns the sampler of the n-th trial.

    Raises:
        UserError: if the storage cannot be used, or its study of this name is of another search.
    """

    def __init__(
        self,
        folder: Path,
        storage: str,
        name: str,
        search: str,
        direction: str,
        space: SearchSpace,
        sampler: Callable[[int], BaseSampler],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage, self._space, self._sampler = storage, space, sampler
        self._locks = folder / f"optuna-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self._executing: dict[int, Lock] = {}
        with self._locked():
            self._study = optuna.create_study(
                storage=_open(storage),
                study_name=name,
                direction=StudyDirection[direction.upper()],
                load_if_exists=True,
            )
            if SEARCH not in self._study.user_attrs:
                self._study.set_user_attr(SEARCH, search)
        if self._study.user_attrs[SEARCH] != search:
            raise UserError(
                f"study {name} in {storage} is of another search ({self._study.user_attrs[SEARCH]}); use another "
                "hydra.sweeper.study_name"
            )

    def earlier(self) -> list[Trial]:
        """Return the trials of earlier commands, except those that another command executes now."""
        with self._locked():
            return [
                Trial.of(trial)
                for trial in _latest(self._trials())
                if trial.state.is_finished() or self._claim(trial.number)
            ]

    def ask(self, count: int, n_trials: int) -> list[Trial]:
        """Create the next trials.

        Args:
            count: the largest number to return.
            n_trials: the number of trials at which the study ends.
        """
        asked = []
        with self._locked():
            existing = _count(self._trials())
            for index in range(existing, min(existing + count, n_trials)):
                self._study.sampler = self._sampler(index)
                trial = self._study.ask(self._space.distributions)
                chosen = self._space.chosen(trial.params)
                self._claim(trial.number)
                trial.set_user_attr(CHOSEN, chosen)
                asked.append(Trial(trial.number, tuple(chosen)))
        return asked

    def tell(self, trial: Trial, state: TrialState | None, value: float | None) -> None:
        """Store the outcome of a trial; one that had ended is stored once more if its run now ends differently.

        That is a failed run that was retried, or one that was trained again with `resume=false`.

        Args:
            trial: from `earlier` or `ask`.
            state: its new state; None leaves the trial as it is, an unfinished one to the next command.
            value: of the metric, if the state is COMPLETE.
        """
        with self._locked():
            stored = _newest(self._trials(), trial.number)
            if state is not None and not stored.state.is_finished():
                self._study.tell(stored.number, value, state)
            elif state is not None and (state, value) != (stored.state, stored.value):
                attributes = {CHOSEN: list(trial.chosen), RETRY_OF: stored.number}
                again = create_trial(
                    state=state,
                    value=value,
                    params=stored.params,
                    distributions=stored.distributions,
                    user_attrs=attributes,
                )
                self._study.add_trial(again)
            self._release(trial.number)

    def best(self) -> tuple[Trial, float] | None:
        """Return the best trial and its value; None if no trial is complete."""
        with self._locked():
            complete = [
                (Trial.of(trial), trial.value)
                for trial in _latest(self._trials())
                if trial.state is TrialState.COMPLETE and trial.value is not None
            ]
        better = max if self._study.direction is StudyDirection.MAXIMIZE else min
        return better(complete, key=lambda each: each[1], default=None)

    def __len__(self) -> int:
        """Return the number of trials, not counting those that replace one."""
        with self._locked():
            return _count(self._trials())

    def _trials(self) -> list[FrozenTrial]:
        """Return the trials, under the lock; end those whose creation was interrupted by a kill."""
        trials = []
        for trial in self._study.get_trials(deepcopy=False):
            if CHOSEN in trial.user_attrs:
                trials.append(trial)
            elif not trial.state.is_finished():
                self._study.tell(trial.number, state=TrialState.FAIL)
        return trials

    def _claim(self, number: int) -> bool:
        """Lock a trial, under the lock of the study; return whether no other command executes it."""
        try:
            self._executing[number] = Lock(self._locks / f"{number}.lock")
        except Held:
            return False
        return True

    def _release(self, number: int) -> None:
        if lock := self._executing.pop(number, None):
            lock.file.unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the study.

        Raises:
            UserError: if the storage fails.
        """
        while True:
            try:
                lock = Lock(self._locks / "study.lock")
                break
            except Held:
                time.sleep(POLL_SECONDS)
        try:
            yield
        except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError, ValueError) as error:
            reason = str(error.__cause__ or error).split("\n")[0]
            raise UserError(f"cannot use the study in hydra.sweeper.storage={self._storage}: {reason}") from error
        except OSError as error:
            remedy = f"check the path and its permissions: hydra.sweeper.storage={self._storage}"
            raise UserError(machine_fault(error, elsewhere=remedy) or str(error)) from error
        finally:
            lock.release()


def _latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have not been stored once more."""
    repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def _newest(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """Return the trial with this number, or the last one that was stored in its place."""
    again = next((trial for trial in trials if trial.user_attrs.get(RETRY_OF) == number), None)
    return _newest(trials, again.number) if again else next(trial for trial in trials if trial.number == number)


def _count(trials: Sequence[FrozenTrial]) -> int:
    return sum(RETRY_OF not in trial.user_attrs for trial in trials)


def _open(storage: str) -> BaseStorage:
    if "://" in storage:
        return RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": 60}} if "sqlite" in storage else None)
    _remove_torn_line(Path(storage))
    return JournalStorage(JournalFileBackend(storage))


def _remove_torn_line(journal: Path) -> None:
    """Remove a last line that a full disk or a power failure cut short: Optuna would append to it."""
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)
