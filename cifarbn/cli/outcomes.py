"""How the runs of a sweep or a suite ended: one line each of the table that either prints at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cifarbn.errors import RunLocked, UserError, without_folders
from cifarbn.formatting import number, text_table
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import RESULT, Status


class End(str, Enum):
    """How one run ended, in the order of summaries. JSON and f-strings show the value."""

    DONE = Status.DONE.value
    DIVERGED = Status.DIVERGED.value
    FAILED = Status.FAILED.value
    INTERRUPTED = Status.INTERRUPTED.value
    REFUSED = "refused"  # its folder holds another run
    ELSEWHERE = "elsewhere"  # another process is making it

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
        run: its folder's name.
        overrides: of its command line.
        status: how it ended.
        accuracy: on the test set, a fraction; None where it was not tested.
        seconds: that the run took, over all its starts.
        why: it failed, was refused or diverged.
        found: whether it had ended before this sweep began.
    """

    run: str
    overrides: list[str]
    status: End
    accuracy: float | None = None
    seconds: float | None = None
    why: str | None = None
    found: bool = False


def read_outcome(
    folder: Path,
    overrides: list[str],
    *,
    why: str | None = None,
    missing: str = f"its {RESULT} is gone",
    found: bool = False,
    stopped: bool = False,
) -> Outcome:
    """Return how the run in a folder ended, as its `result.json` says it.

    Args:
        folder: of the run.
        overrides: of its command line.
        why: what its process said when it failed; None if it did not.
        missing: what to say if there is no `result.json`.
        found: whether it had ended before.
        stopped: whether it was told to stop: one that is still "running" was interrupted then, else killed.
    """
    try:
        result = read_result(folder)
    except UserError as unreadable:
        return Outcome(folder.name, overrides, End.FAILED, why=why or short(str(unreadable), folder))
    if result is None:
        return Outcome(folder.name, overrides, End.FAILED, why=why or missing)
    reason = why or short(result.get("error") or "", folder) or None
    if why:
        status = End.FAILED
    elif result["status"] in (Status.NEW, Status.RUNNING):
        status, reason = (End.INTERRUPTED, None) if stopped else (End.FAILED, "its process was killed")
    else:
        status = End(result["status"].value)
    accuracy, seconds = result.get("metrics", {}).get("test/acc"), result.get("seconds", {}).get("total")
    return Outcome(folder.name, overrides, status, accuracy, seconds, reason, found)


def not_made(folder: Path, overrides: list[str], error: Exception) -> Outcome:
    """Return the outcome of a run that an error kept from being made, such as another run in its folder."""
    status = End.ELSEWHERE if isinstance(error, RunLocked) else End.REFUSED
    return Outcome(folder.name, overrides, status, why=short(str(error), folder))


def is_failure(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a command that ends with these must exit with an error."""
    return any(outcome.status in (End.FAILED, End.REFUSED) for outcome in outcomes)


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a run, aligned: status, test accuracy, seconds, what sets it apart, and why it is not done."""
    in_all = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()
    lines = [("status", "test acc", "seconds", "run")]
    for outcome in outcomes:
        own = " ".join(override for override in outcome.overrides if override not in in_all) or outcome.run
        status = outcome.status + (" before" if outcome.found else "")
        own += f": {outcome.why}" if outcome.why else ""
        lines.append((status, number(outcome.accuracy, 4), number(outcome.seconds, 0), own))
    return text_table(lines, "<>><")


def short(said: str, folder: Path) -> str:
    """Return the first line of a message, without the folders in it."""
    return without_folders(said.split("\n")[0].replace(f"{folder} ", ""), folder)
