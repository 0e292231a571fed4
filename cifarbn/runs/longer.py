"""Training longer: whether a run may begin where another, of fewer epochs, ended."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarbn.errors import RunConflict
from cifarbn.runs.identity import Tag, completed, differences, keys_with
from cifarbn.runs.schema import Result, Status

LENGTH = tuple(f"{key}: " for key in keys_with(Tag.LENGTH))


def check_longer(source: Path, result: Result, config: Mapping[str, Any]) -> None:
    """Refuse a run whose first steps would not have been those of the run in `source`.

    Args:
        source: the other run's folder.
        result: what its `result.json` holds.
        config: of the run that is to begin where that one ended.

    Raises:
        RunConflict: naming the keys of the config that differ, or the reason.
    """
    before = f"the run in resume_from={source}"
    if result["status"] == Status.DIVERGED:
        raise RunConflict(f"{before} diverged: there is nothing to continue")
    changed = differences(completed(result["config"]), config)
    others = [change for change in changed if not change.startswith(LENGTH)]
    of_schedule = [change for change in others if change.startswith("schedule.")]
    schedule = config.get("schedule")
    target = str(schedule.get("_target_")) if isinstance(schedule, Mapping) else ""
    if changed and others == of_schedule and (others or _moves_with_total_steps(target)):
        why = "; ".join(of_schedule) or f"{target} is told the number of steps"
        raise RunConflict(
            f"{before} cannot be continued to other epochs: its schedule depends on the length ({why}), so the steps "
            "that it took are not the first ones of a longer run. Leave out resume_from to train anew"
        )
    if others:
        raise RunConflict(
            f"{before} is of another config ({'; '.join(others)}); only the number of epochs may differ. Leave out "
            "resume_from to train anew"
        )
    theirs, ours = result["config"].get("epochs") or 0, config.get("epochs") or 0
    if theirs > ours:
        raise RunConflict(f"{before} is longer already: {theirs} epochs, and this one is to have {ours}")


def _moves_with_total_steps(target: str) -> bool:
    """Whether the Classifier tells this scheduler the number of steps in all."""
    module, _, name = target.rpartition(".")
    try:
        return "total_steps" in inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return False  # instantiating it will say what is wrong
