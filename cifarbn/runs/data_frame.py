"""Run folders as a table: one row per run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarbn.errors import UserError
from cifarbn.runs.folder import find_runs
from cifarbn.runs.old_names import modern_config
from cifarbn.runs.schema import Result, throughout
from cifarbn.runs.untrusted import stored_result

if TYPE_CHECKING:
    import pandas as pd

# Fields of result.json that are numbers or texts.
FIELDS = ("steps", "parameters", "images_per_second", "constant_prediction_loss", "resumed_from", "git_commit")
# Fields that may differ between the starts of a run; all values are joined by " and ".
FIELDS_OF_STARTS = ("device", "precision", "compile")


def frame(*folders: str | Path) -> "pd.DataFrame":
    """Return the runs under some folders as a pandas DataFrame with one row per run, sorted by folder.

    Columns: `folder`; `status` (a `Status`, or "unreadable"); `error`; the values of the config under their dotted keys
    ("model.width"; a group that was chosen by a `_target_` under "model._target_"); the final metrics ("test/acc"); the
    seconds ("seconds/train"); and `FIELDS` and `FIELDS_OF_STARTS` of result.json. Old runs have the current names of
    keys. A value that a run does not have is NaN.

    Example:
        >>> runs = cifarbn.runs.frame("multirun_outputs/train")  # doctest: +SKIP
        >>> runs.groupby("optim.lr")["test/acc"].agg(["mean", "std", "count"])  # doctest: +SKIP

    Args:
        *folders: run folders, or folders that contain run folders at any depth.

    Raises:
        UserError: if pandas is not installed, a folder does not exist, or there are no runs.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("cifarbn.runs.frame needs pandas: pip install 'cifarbn[pandas]'") from error
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; use one that contains runs, such as multirun_outputs/train")
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(Path(folder))))
    if not runs:
        raise UserError(f"there are no runs (folders with a result.json) under {', '.join(map(str, folders))}")
    return pd.DataFrame([_row(run) for run in runs])


def _row(folder: Path) -> dict[str, Any]:
    try:
        result = stored_result(folder)
    except UserError as error:
        return {"folder": str(folder), "status": "unreadable", "error": str(error)}
    assert result is not None
    return {
        "folder": str(folder),
        "status": str(result["status"].value),
        "error": result.get("error"),
        **_values(result),
    }


def _values(result: Result) -> dict[str, Any]:
    return {
        **dict(_flat(modern_config(result["config"]))),
        **result.get("metrics", {}),
        **{f"seconds/{kind}": seconds for kind, seconds in result.get("seconds", {}).items()},
        **{field: throughout(result, field) for field in FIELDS_OF_STARTS},
        **{field: result.get(field) for field in FIELDS},
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested config with their dotted keys; lists stay lists."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
