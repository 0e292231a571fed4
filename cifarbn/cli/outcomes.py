"""Outcomes of the runs of a sweep or suite: one line each in the table that both print at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cifarbn.errors import RunConflict, RunLocked, UserError, without_folders
from cifarbn.formatting import number, text_table
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import RESULT, Status


class End(str, Enum):
    """How one run ended, in the order of summaries. JSON and f-strings show the value."""

    DONE = Status.DONE.value
    DIVERGED = Status.DIVERGED.value
    FAILED = Status.FAILED.value
    INTERRUPTED = Status.INTERRUPTED.value
    CONFLICT = "conflict"  # its folder holds a different run
    LOCKED = "locked"  # another process is executing it

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run.

    Attributes:
        run: name of its folder.
        overrides: its command-line overrides.
        status: how it ended.
        accuracy: test accuracy, a fraction; None if it was not tested.
        seconds: total time over all starts of the run.
        reason: why it failed, diverged or conflicts with its folder; None otherwise.
        ended_before: whether it had ended before this sweep began.
    """

    run: str
    overrides: list[str]
    status: End
    accuracy: float | None = None
    seconds: float | None = None
    reason: str | None = None
    ended_before: bool = False


def read_outcome(
    folder: Path,
    overrides: list[str],
    *,
    error: str | None = None,
    missing: str = f"its {RESULT} is missing",
    ended_before: bool = False,
    stopped: bool = False,
) -> Outcome:
    """Return the outcome of the run in a folder, read from its `result.json`.

    Args:
        folder: the run folder.
        overrides: the run's command-line overrides.
        error: error message of the run's process; None if it did not fail.
        missing: the reason to give if there is no `result.json`.
        ended_before: whether the run had ended before this sweep.
        stopped: whether the run was told to stop; a run that is still "running" was then interrupted, otherwise killed.
    """
    try:
        result = read_result(folder)
    except UserError as unreadable:
        return Outcome(folder.name, overrides, End.FAILED, reason=error or short(str(unreadable), folder))
    if result is None:
        return Outcome(folder.name, overrides, End.FAILED, reason=error or missing)
    reason = error or short(result.get("error") or "", folder) or None
    if error:
        status = End.FAILED
    elif result["status"] in (Status.NEW, Status.RUNNING):
        status, reason = (End.INTERRUPTED, None) if stopped else (End.FAILED, "its process was killed")
    else:
        status = End(result["status"].value)
    accuracy, seconds = result.get("metrics", {}).get("test/acc"), result.get("seconds", {}).get("total")
    return Outcome(folder.name, overrides, status, accuracy, seconds, reason, ended_before)


def error_outcome(folder: Path, overrides: list[str], error: Exception) -> Outcome:
    """Return the outcome of a run that could not start in its folder: locked, a conflict, or failed."""
    status = End.FAILED
    if isinstance(error, RunConflict):
        status = End.LOCKED if isinstance(error, RunLocked) else End.CONFLICT
    return Outcome(folder.name, overrides, status, reason=short(str(error), folder))


def is_failure(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a command with these outcomes must exit with an error."""
    return any(outcome.status in (End.FAILED, End.CONFLICT) for outcome in outcomes)


def table(outcomes: Sequence[Outcome]) -> str:
    """Format one line per run: status, test accuracy, seconds, the overrides that not all share, and the reason."""
    in_all = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()
    lines = [("status", "test acc", "seconds", "run")]
    for outcome in outcomes:
        run = " ".join(override for override in outcome.overrides if override not in in_all) or outcome.run
        run += f": {outcome.reason}" if outcome.reason else ""
        status = outcome.status + (" before" if outcome.ended_before else "")
        lines.append((status, number(outcome.accuracy, 4), number(outcome.seconds, 0), run))
    return text_table(lines, "<>><")


def short(message: str, folder: Path) -> str:
    """Return the first line of a message without the local folders in it."""
    return without_folders(message.split("\n")[0].replace(f"{folder} ", ""), folder)
