"""Training longer: whether a run may continue another one that has fewer epochs."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarbn.errors import RunConflict
from cifarbn.runs.identity import Tag, differences, keys_with
from cifarbn.runs.old_names import modern_config
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
    before = f"the run in resume_from={source}"
    if result["status"] == Status.DIVERGED:
        raise RunConflict(f"{before} diverged, so it cannot be continued; leave out resume_from to train from scratch")
    changed = differences(modern_config(result["config"]), config)
    others = [change for change in changed if not change.startswith(LENGTH)]
    of_schedule = [change for change in others if change.startswith("schedule.")]
    schedule = config.get("schedule")
    target = str(schedule.get("_target_")) if isinstance(schedule, Mapping) else ""
    if changed and others == of_schedule and (others or _moves_with_total_steps(target)):
        why = "; ".join(of_schedule) or f"{target} takes the total number of steps"
        raise RunConflict(
            f"{before} cannot be continued for more epochs: its schedule depends on the length of the run ({why}), so "
            "a longer run would have had other learning rates from its first step. Leave out resume_from to train from "
            "scratch"
        )
    if others:
        raise RunConflict(
            f"{before} has a different config ({'; '.join(others)}); only the number of epochs may differ. Leave out "
            "resume_from to train from scratch"
        )
    theirs, ours = result["config"].get("epochs") or 0, config.get("epochs") or 0
    if theirs > ours:
        raise RunConflict(f"{before} already has {theirs} epochs, more than epochs={ours}; raise epochs")


def _moves_with_total_steps(target: str) -> bool:
    """Return whether this scheduler takes the total number of steps, `total_steps`."""
    module, _, name = target.rpartition(".")
    try:
        return "total_steps" in inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return False  # instantiating it will raise the error
