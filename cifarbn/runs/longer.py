"""Training longer: whether a run may continue another one that has fewer epochs."""

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarbn.errors import RunConflict, UserError
from cifarbn.runs.identity import Tag, differences, keys_with
from cifarbn.runs.old_names import modern_config
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import Result, Status

LENGTH = tuple(f"{key}: " for key in keys_with(Tag.LENGTH))


def check_longer(source: Path, result: Result, config: Mapping[str, Any]) -> None:
    """Raise an error unless the run in `source` consists of the first steps of a run with this config.

    Args:
        source: the folder of the shorter run.
        result: the content of its `result.json`.
        config: the config of the run that shall continue it.

    Raises:
        RunConflict: naming the keys of the config that differ, or the reason.
    """
    if reason := why_not_longer(result, config):
        raise RunConflict(
            f"cannot continue the run in resume_from={source}: {reason}. Leave out resume_from to train from scratch"
        )


def why_not_longer(result: Result, config: Mapping[str, Any]) -> str | None:
    """Return why a run with this config cannot continue the run with this result; None if it can."""
    if result["status"] == Status.DIVERGED:
        return "it diverged"
    changed = differences(modern_config(result["config"]), config)
    others = [change for change in changed if not change.startswith(LENGTH)]
    of_schedule = [change for change in others if change.startswith("schedule.")]
    schedule = config.get("schedule")
    target = str(schedule.get("_target_")) if isinstance(schedule, Mapping) else ""
    if changed and others == of_schedule and (others or _moves_with_total_steps(target)):
        why = "; ".join(of_schedule) or f"{target} takes the total number of steps"
        return (
            f"its schedule depends on the length of the run ({why}), so a longer run would have had other learning "
            "rates from its first step"
        )
    if others:
        return f"it has a different config ({'; '.join(others)}); only the number of epochs may differ"
    theirs, ours = _epochs(result["config"]), _epochs(config)
    return f"it already has {theirs} epochs, more than epochs={ours}" if theirs > ours else None


def shorter_run(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Find the longest finished run that a new run can continue: of the same sweep and config, but with fewer epochs.

    Runs that ended before their last epoch (trainer.max_steps, trainer.max_time) are not considered.

    Args:
        folder: the folder of the new run. Its name and that of the shorter run may differ in `epochs=...` only.
        config: the config of the new run.
    """
    trainer = config.get("trainer", {})
    if not folder.parent.is_dir() or trainer.get("max_steps", -1) != -1 or trainer.get("max_time") is not None:
        return None
    candidates: dict[int, Path] = {}
    for other in sorted(folder.parent.iterdir()):
        if other.name == folder.name or _without_epochs(other.name) != _without_epochs(folder.name):
            continue
        try:
            result = read_result(other)
        except UserError:
            continue
        if result and result["status"] == Status.DONE and not why_not_longer(result, config):
            candidates[_epochs(result["config"])] = other
    return candidates[max(candidates)] if candidates else None


def _epochs(config: Mapping[str, Any]) -> int:
    return config.get("epochs") or 0


def _without_epochs(folder_name: str) -> str:
    """Return the name of a run folder without `epochs=...` and without the hash of names with special characters."""
    overrides = re.sub(r"-[0-9a-f]{8}$", "", folder_name).split(",")
    return ",".join(override for override in overrides if not override.startswith("epochs=")) or "defaults"


def _moves_with_total_steps(target: str) -> bool:
    """Return whether this scheduler takes the total number of steps, `total_steps`."""
    module, _, name = target.rpartition(".")
    try:
        return "total_steps" in inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return False  # instantiating it will raise the error
