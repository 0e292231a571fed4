"""Read the runs under some folders and group them by everything except their seed."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cifarbn.errors import UserError, without_folders
from cifarbn.report.labels import leaves, name_groups_of_folders
from cifarbn.report.read import read_metrics, read_recordings
from cifarbn.runs.identity import EXECUTION_KEYS, SEED, role_of
from cifarbn.runs.measures import Key
from cifarbn.runs.old_names import modern_config, modern_override
from cifarbn.runs.result_file import check_unchanged
from cifarbn.runs.schema import (
    CHECKPOINT,
    COLUMNS,
    EPOCH_COLUMNS,
    METRICS,
    RECORDINGS,
    RESULT,
    STEP_COLUMNS,
    Result,
    Status,
    StepColumn,
)
from cifarbn.runs.untrusted import clean, stored_result
from cifarbn.smoothness.dead_runs import dead_since

DEAD_STEPS = 100  # a run whose last 100 steps or more made no progress is dead


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The contents of one run folder.

    Attributes:
        folder: path of the run folder.
        name: the folder, relative to the folder given to `gather`.
        result: the contents of `result.json`.
        root: name of the folder given to `gather` that holds the run, if there are several; else "".
        same_as: name of another run of the same experiment and seed, which is included instead of this one.
        faults: why metrics.csv or recordings.npz could not be read; complete once both have been accessed.
    """

    folder: Path
    name: str
    result: Result
    root: str = ""
    same_as: str | None = None
    faults: list[str] = field(default_factory=list)

    @cached_property
    def exclusion_reason(self) -> str | None:
        """Return why this run is excluded from all means, or None: only finished runs that did not die are included."""
        status = self.result["status"]
        if status == Status.RUNNING:
            return "unfinished: still running, or killed; rerun the same command to continue it"
        if status == Status.INTERRUPTED:
            return "interrupted; rerun the same command to continue it"
        if status != Status.DONE:
            # The error of an old result may have several lines, or contain paths.
            return f"{status}: {without_folders(self.result.get('error') or 'no error message')}"
        if bad := [name for name, value in self.result.get("metrics", {}).items() if not math.isfinite(value)]:
            return f"{', '.join(bad)} is not a finite number"
        if (step := self._died()) is not None:
            return f"dead since step {step}: the loss stays at that of a constant prediction, or the gradient is zero"
        if self.same_as:
            return f"same experiment and seed as {self.same_as}, which is included instead"
        return None

    @property
    def config(self) -> dict[str, Any]:
        """Return the resolved config, without paths."""
        return self.result["config"]

    @property
    def seed(self) -> int | None:
        """Return the run's seed, if its config has one."""
        return self.config.get(SEED)

    @property
    def data(self) -> str:
        """Return the data set's name on the command line, such as cifar10 or shapes; file names contain it."""
        target = str(self.config.get("data", {}).get("_target_", "unknown data"))
        name = self.result.get("data", {}).get("name") or target.rpartition(".")[2].lower()
        return re.sub(r"[^\w +-]", "_", name, flags=re.ASCII)[:40]

    @property
    def epochs(self) -> dict[str, np.ndarray]:
        """Return column of metrics.csv -> (E,) float64, NaN if not measured: `epoch` (from 0), `train/loss`, ..."""
        measured = np.any([np.isfinite(self._metrics[name]) for name in EPOCH_COLUMNS], axis=0)
        return {name: column[measured] for name, column in self._metrics.items()}

    @property
    def steps(self) -> dict[StepColumn, np.ndarray]:
        """Return column of metrics.csv -> (T,) float64: `step` (from 0), `lr`, `step/loss`, `step/acc`, ..."""
        return {name: self._metrics[name] for name in STEP_COLUMNS}

    @cached_property
    def recordings(self) -> dict[Key, np.ndarray]:
        """Return the arrays of recordings.npz; empty if there are none or the file cannot be read."""
        try:
            check_unchanged(self.folder, RECORDINGS, self.result)
            return read_recordings(self.folder)
        except UserError as fault:
            self.faults.append(f"{fault}; the run is omitted from smoothness figures")
            return {}

    @cached_property
    def _metrics(self) -> dict[str, np.ndarray]:
        try:
            check_unchanged(self.folder, METRICS, self.result)
            return read_metrics(self.folder)
        except UserError as fault:
            self.faults.append(f"{fault}; the run is omitted from training curves")
            return {name: np.empty(0) for name in COLUMNS}

    def _died(self) -> int | None:
        losses, norms = self.steps["step/loss"], self.steps["step/grad_norm"]
        return dead_since(losses, constant_loss(self.result), norms, patience=DEAD_STEPS)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs in one folder that differ only in their seed.

    Attributes:
        label: readable name that distinguishes the group; it begins with the folder if there are several.
        runs: the included runs, by seed; may be empty.
        excluded: runs excluded from all means; their `exclusion_reason` is set.
    """

    label: str
    runs: list[RunRecord]
    excluded: list[RunRecord]

    @property
    def data(self) -> str:
        """Return the data set's name."""
        return (self.runs + self.excluded)[0].data

    @property
    def config(self) -> dict[str, Any]:
        """Return the config of one of the group's runs."""
        return (self.runs + self.excluded)[0].config

    @property
    def target(self) -> float | None:
        """Return the published test accuracy of the experiment, as a fraction, if it states one.

        None if further overrides change the experiment, because the published accuracy does not apply then.
        """
        overrides = (self.runs + self.excluded)[0].result.get("overrides", [])
        kept = all(role_of(override) for override in overrides)
        return self.config.get("target") if kept else None

    def metric(self, name: str) -> list[float]:
        """Return the final values of a metric such as `test/acc`, for the runs that have it."""
        values = (run.result.get("metrics", {}).get(name) for run in self.runs)
        return [value for value in values if value is not None]

    def curves(self, name: str) -> np.ndarray:
        """Return a column such as `val/acc`, (runs, epochs), NaN where a run has no value."""
        return _pad([run.epochs[name] for run in self.runs])


@dataclass(frozen=True, eq=False)
class RunSet:
    """All runs under some folders.

    Attributes:
        roots: these folders.
        groups: ordered by data set, then best accuracy first; groups without included runs come last.
        same: override -> value, for overrides that are the same in all runs.
        unreadable: folder -> problem, for run folders whose result.json cannot be read.
    """

    roots: Sequence[Path]
    groups: list[Group]
    same: dict[str, str]
    unreadable: dict[str, str]

    @property
    def counted(self) -> list[Group]:
        """Return the groups with at least one included run."""
        return [group for group in self.groups if group.runs]

    @property
    def constant(self) -> dict[str, str]:
        """Return config key -> value, for keys that are the same in all runs; without the seed."""
        first, *others = (dict(leaves(group.config)) for group in self.groups)
        return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}

    @property
    def excluded(self) -> list[tuple[str, str, str]]:
        """Return (run, group, reason) of every excluded run."""
        runs = [(run.name, group.label, str(run.exclusion_reason)) for group in self.groups for run in group.excluded]
        return runs + [(folder, "", reason) for folder, reason in self.unreadable.items()]

    @property
    def read_in_part(self) -> list[tuple[str, str, str]]:
        """Return (run, group, reason) of runs with an unreadable file; complete once all sections are built."""
        runs = ((group, run) for group in self.groups for run in group.runs + group.excluded)
        return [(run.name, group.label, "; ".join(run.faults)) for group, run in runs if run.faults]


def gather(*roots: Path) -> RunSet:
    """Read every run folder under some folders; each may be a run folder itself. Symbolic links are followed.

    Runs in different folders are never in one group, so that sweeps can be compared. To average over their seeds, give
    the folder that holds them.

    Raises:
        UserError: if there is no run folder.
    """
    unreadable: dict[str, str] = {}
    by_config: dict[tuple[str, str], list[RunRecord]] = {}
    for folder, name, root in _run_folders([Path(root) for root in roots], unreadable):
        try:
            result = stored_result(folder)
            if result is None:
                raise UserError(f"{RESULT} is a broken link")
        except UserError as error:
            unreadable[name] = f"unreadable: {without_folders(str(error))}"
            continue
        result["config"] = modern_config(result["config"])
        result["overrides"] = [without_folders(modern_override(override)) for override in result.get("overrides", [])]
        experiment = json.dumps(_identity(result["config"]), sort_keys=True)
        by_config.setdefault((root, experiment), []).append(RunRecord(folder, name, result, root))
    if not by_config:
        problems = "; ".join(f"{name}: {reason}" for name, reason in unreadable.items())
        raise UserError(f"{problems}. `python -m cifarbn.train` creates run folders under multirun_outputs/")
    originals = _originals([run for runs in by_config.values() for run in runs])
    members = {key: _once_each(runs, originals) for key, runs in by_config.items()}
    labels, same = name_groups_of_folders({key: runs[0].result for key, runs in members.items()})
    groups = [
        Group(
            labels[key],
            [run for run in runs if not run.exclusion_reason],
            [run for run in runs if run.exclusion_reason],
        )
        for key, runs in members.items()
    ]
    return RunSet(roots, sorted(groups, key=_rank), same, unreadable)


def constant_loss(result: Result) -> float | None:
    """Return the loss of a constant prediction under the run's loss function, or None if unknown.

    Old results, without `constant_prediction_loss`, only name their loss function; the default is cross entropy.
    """
    if "constant_prediction_loss" in result:
        return result["constant_prediction_loss"]
    config = result.get("config", {})
    classes = config.get("model", {}).get("num_classes", 10)
    target = config.get("loss", {}).get("_target_", "torch.nn.CrossEntropyLoss")
    known = {
        "torch.nn.CrossEntropyLoss": math.log(classes),
        "cifarbn.losses.OneHotMSELoss": (1 - 1 / classes) / classes,
    }
    return known.get(target)


def _run_folders(roots: Sequence[Path], unreadable: dict[str, str]) -> Iterator[tuple[Path, str, str]]:
    """Yield every run folder under the roots, sorted, with its name and, if there are several roots, its root's name.

    Unreadable folders are added to `unreadable`.

    Hidden folders are skipped. Each folder is visited once, however many links lead to it, and links to a parent of
    its root are not followed.
    """
    visited: set[str] = set()
    names = [clean(root.resolve().name) for root in roots]
    for i, root in enumerate(roots):
        before = names[i] + (f" ({names[:i].count(names[i]) + 1})" if names[i] in names[:i] else "")
        if os.path.realpath(root) in visited:
            continue
        above = {str(folder) for folder in root.resolve().parents}
        errors: list[OSError] = []
        has_run = False
        for here, below, files in os.walk(root, followlinks=True, onerror=errors.append):
            real = os.path.realpath(here)
            if real in visited or real in above:
                below[:] = []
                continue
            visited.add(real)
            if RESULT in (*files, *below):
                has_run = True
                yield Path(here), _name(here, root, before, len(roots) > 1), before if len(roots) > 1 else ""
            below[:] = sorted(name for name in below if not name.startswith("."))
        for error in errors:
            unreadable[_name(error.filename, root, before, len(roots) > 1)] = f"unreadable: {error.strerror}"
        if not has_run and not errors:
            unreadable[before] = f"there is no run folder (a folder with a {RESULT})"


def _name(folder: str, root: Path, root_name: str, several: bool) -> str:
    """Return a folder's path relative to its root, preceded by the root's name if needed to identify the run."""
    parts = Path(os.path.relpath(folder, root)).parts
    return clean("/".join([root_name, *parts] if several or not parts else parts))


def _identity(node: Any, prefix: str = "") -> Any:
    """Return the part of a config that identifies the experiment, without the seed; 1e-3 and "0.001" are equal."""
    if isinstance(node, Mapping):
        return {
            key: _identity(value, f"{prefix}{key}.")
            for key, value in node.items()
            if key != SEED and f"{prefix}{key}" not in EXECUTION_KEYS
        }
    if isinstance(node, list):
        return [_identity(item) for item in node]
    try:
        return node if isinstance(node, bool) else float(node)
    except (TypeError, ValueError, OverflowError):
        return node


def _originals(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return result -> name of the run that is included of all copies of one run, preferably one with a checkpoint."""
    names: dict[str, str] = {}
    for run in sorted(runs, key=_has_no_checkpoint):
        names.setdefault(_content(run), run.name)
    return names


def _once_each(runs: Sequence[RunRecord], originals: Mapping[str, str]) -> list[RunRecord]:
    """Return the runs of one experiment by seed; repeated runs of a seed, and copies, refer to the included one."""
    included: dict[int, str] = {}
    runs_by_seed = []
    for run in sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, _has_no_checkpoint(run), run.name)):
        if not run.exclusion_reason:
            first = originals[_content(run)]
            if first == run.name and run.seed is not None:
                first = included.setdefault(run.seed, run.name)
            run = run if first == run.name else replace(run, same_as=first, faults=[])
        runs_by_seed.append(run)
    return runs_by_seed


def _has_no_checkpoint(run: RunRecord) -> bool:
    return not (run.folder / CHECKPOINT).exists()


def _content(run: RunRecord) -> str:
    """Return the run's result as text, which only copies of it share; without measured seconds, its name instead."""
    return json.dumps(run.result, sort_keys=True) if run.result.get("seconds") else run.name


def _rank(group: Group) -> tuple[bool, str, float, str]:
    for metric, sign in (("test/acc", -1), ("val/acc", -1), ("val/loss", 1), ("train/loss", 1)):
        if values := group.metric(metric):
            return False, group.data, sign * sum(values) / len(values), group.label
    return not group.runs, group.data, math.inf, group.label


def _pad(curves: list[np.ndarray]) -> np.ndarray:
    padded = np.full((len(curves), max(map(len, curves), default=0)), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve
    return padded
