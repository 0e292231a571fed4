"""The runs under some folders, grouped by everything but their seed."""

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
from cifarbn.report.labels import leaves, name_groups
from cifarbn.report.read import read_metrics, read_recordings
from cifarbn.runs.identity import EXECUTION_KEYS, SEED, role_of
from cifarbn.runs.measures import Key
from cifarbn.runs.old_names import modern_config
from cifarbn.runs.schema import COLUMNS, EPOCH_COLUMNS, RESULT, STEP_COLUMNS, Result, Status, StepColumn
from cifarbn.runs.untrusted import clean, stored_result
from cifarbn.smoothness.dead_runs import dead_since

DEAD_STEPS = 100  # at the end of a run without a sign of life, for it to be dead


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What one run folder says.

    Attributes:
        folder: where it is.
        name: the folder, relative to the report's.
        result: what its `result.json` holds.
        same_as: the name of another run of the same experiment and seed, which counts in place of this one.
        faults: why its metrics.csv or recordings.npz could not be read; complete when both were asked for.
    """

    folder: Path
    name: str
    result: Result
    same_as: str | None = None
    faults: list[str] = field(default_factory=list)

    @cached_property
    def exclusion_reason(self) -> str | None:
        """Why this run counts in no mean, or None: only a run that was finished and did not die counts."""
        status = self.result["status"]
        if status == Status.RUNNING:
            return "unfinished: still running, or killed; the same command continues it"
        if status == Status.INTERRUPTED:
            return "interrupted; the same command continues it"
        if status != Status.DONE:
            # An old result's error may have several lines, or say where things were.
            return f"{status}: {without_folders(self.result.get('error') or 'without a message')}"
        if bad := [name for name, value in self.result.get("metrics", {}).items() if not math.isfinite(value)]:
            return f"its {', '.join(bad)} is not a finite number"
        if (step := self._died()) is not None:
            return f"dead since step {step}: its loss stays at that of a guess, or it has no gradient"
        if self.same_as:
            return f"the same experiment and seed as {self.same_as}, which counts"
        return None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, without paths."""
        return self.result["config"]

    @property
    def seed(self) -> int | None:
        """The run's seed, if its config has one."""
        return self.config.get(SEED)

    @property
    def data(self) -> str:
        """The data set's name on the command line, such as cifar10 or shapes; it is part of the names of files."""
        target = str(self.config.get("data", {}).get("_target_", "unknown data"))
        name = self.result.get("data", {}).get("name") or target.rpartition(".")[2].lower()
        return re.sub(r"[^\w +-]", "_", name, flags=re.ASCII)[:40]

    @property
    def epochs(self) -> dict[str, np.ndarray]:
        """Column of metrics.csv -> (E,) float64, NaN where not measured: `epoch` (from 0), `train/loss`, ..."""
        measured = np.any([np.isfinite(self._metrics[name]) for name in EPOCH_COLUMNS], axis=0)
        return {name: column[measured] for name, column in self._metrics.items()}

    @property
    def steps(self) -> dict[StepColumn, np.ndarray]:
        """Column of metrics.csv -> (T,) float64: `step` (from 0), `lr`, `step/loss`, `step/acc`, `step/grad_norm`."""
        return {name: self._metrics[name] for name in STEP_COLUMNS}

    @cached_property
    def recordings(self) -> dict[Key, np.ndarray]:
        """Arrays of recordings.npz; empty where the run recorded nothing, or nothing that can be read."""
        try:
            return read_recordings(self.folder)
        except UserError as fault:
            self.faults.append(f"{fault}; the run is in no figure of smoothness")
            return {}

    @cached_property
    def _metrics(self) -> dict[str, np.ndarray]:
        try:
            return read_metrics(self.folder)
        except UserError as fault:
            self.faults.append(f"{fault}; the run has no curves")
            return {name: np.empty(0) for name in COLUMNS}

    def _died(self) -> int | None:
        losses, norms = self.steps["step/loss"], self.steps["step/grad_norm"]
        return dead_since(losses, constant_loss(self.result), norms, patience=DEAD_STEPS)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: what sets this group apart from the others, to be read by people.
        runs: those that count, by seed; maybe none.
        excluded: those that count in no mean, with `exclusion_reason`.
    """

    label: str
    runs: list[RunRecord]
    excluded: list[RunRecord]

    @property
    def data(self) -> str:
        """The data set's name."""
        return (self.runs + self.excluded)[0].data

    @property
    def config(self) -> dict[str, Any]:
        """The config of one of its runs."""
        return (self.runs + self.excluded)[0].config

    @property
    def target(self) -> float | None:
        """The accuracy that the experiment expects, as a fraction, if it states one.

        None, too, where the command line changed the experiment, for then it is another one.
        """
        overrides = (self.runs + self.excluded)[0].result.get("overrides", [])
        kept = all(role_of(override) for override in overrides)
        return self.config.get("target") if kept else None

    def metric(self, name: str) -> list[float]:
        """The final values of a metric such as `test/acc`, of the runs that have it."""
        values = (run.result.get("metrics", {}).get(name) for run in self.runs)
        return [value for value in values if value is not None]

    def curves(self, name: str) -> np.ndarray:
        """(runs, epochs) of a column such as `val/acc`, NaN where a run has no value."""
        return _pad([run.epochs[name] for run in self.runs])


@dataclass(frozen=True, eq=False)
class RunSet:
    """All runs under some folders.

    Attributes:
        roots: these folders.
        groups: the best first, in the order of data set and accuracy; those of which no run counts come last.
        same: override -> value, of the overrides that are the same in all runs.
        unreadable: folder -> what is wrong, of the run folders whose result.json cannot be read.
    """

    roots: Sequence[Path]
    groups: list[Group]
    same: dict[str, str]
    unreadable: dict[str, str]

    @property
    def counted(self) -> list[Group]:
        """The groups with a run that counts."""
        return [group for group in self.groups if group.runs]

    @property
    def constant(self) -> dict[str, str]:
        """Key of the config -> value, of all keys that are the same in all runs; the seed is not among them."""
        first, *others = (dict(leaves(group.config)) for group in self.groups)
        return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}

    @property
    def excluded(self) -> list[tuple[str, str, str]]:
        """(run, group, reason) of every run that counts in no mean."""
        runs = [(run.name, group.label, str(run.exclusion_reason)) for group in self.groups for run in group.excluded]
        return runs + [(folder, "", reason) for folder, reason in self.unreadable.items()]

    @property
    def read_in_part(self) -> list[tuple[str, str, str]]:
        """(run, group, reason) of the runs of which a file could not be read; complete once the sections are made."""
        runs = ((group, run) for group in self.groups for run in group.runs + group.excluded)
        return [(run.name, group.label, "; ".join(run.faults)) for group, run in runs if run.faults]


def gather(*roots: Path) -> RunSet:
    """Read every run folder under some folders, or these folders themselves. Links to folders are followed.

    Raises:
        UserError: if there is none.
    """
    unreadable: dict[str, str] = {}
    by_config: dict[str, list[RunRecord]] = {}
    for folder, name in _run_folders([Path(root) for root in roots], unreadable):
        try:
            result = stored_result(folder)
            if result is None:
                raise UserError(f"{RESULT} is a link that leads nowhere")
        except UserError as error:
            unreadable[name] = f"unreadable: {without_folders(str(error))}"
            continue
        result["config"] = modern_config(result["config"])
        result["overrides"] = [without_folders(override) for override in result.get("overrides", [])]
        experiment = json.dumps(_identity(result["config"]), sort_keys=True)
        by_config.setdefault(experiment, []).append(RunRecord(folder, name, result))
    if not by_config:
        found = "; ".join(f"{name}: {reason}" for name, reason in unreadable.items())
        raise UserError(f"{found}. `python -m cifarbn.train` makes runs under multirun_outputs/")
    together = [_once_each(runs) for runs in by_config.values()]
    labels, same = name_groups([runs[0].result for runs in together])
    groups = [
        Group(label, [run for run in runs if not run.exclusion_reason], [run for run in runs if run.exclusion_reason])
        for label, runs in zip(labels, together, strict=True)
    ]
    return RunSet(roots, sorted(groups, key=_rank), same, unreadable)


def constant_loss(result: Result) -> float | None:
    """What a constant prediction would cost under the run's own loss, or None where that is not known.

    Results from before `constant_prediction_loss` was recorded name their loss only; the default is cross entropy.
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


def _run_folders(roots: Sequence[Path], unreadable: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """Every run folder under the roots and its name, sorted; into `unreadable` goes what cannot be looked into.

    Hidden folders are passed over. Each folder is visited once, by whatever way, and no link to a folder that its
    root lies in: a link may lead back.
    """
    visited: set[str] = set()
    names = [clean(root.resolve().name) for root in roots]
    for i, root in enumerate(roots):
        before = names[i] + (f" ({names[:i].count(names[i]) + 1})" if names[i] in names[:i] else "")
        if os.path.realpath(root) in visited:
            continue
        above = {str(folder) for folder in root.resolve().parents}
        errors: list[OSError] = []
        found = False
        for here, below, files in os.walk(root, followlinks=True, onerror=errors.append):
            real = os.path.realpath(here)
            if real in visited or real in above:
                below[:] = []
                continue
            visited.add(real)
            if RESULT in (*files, *below):
                found = True
                yield Path(here), _name(here, root, before, len(roots) > 1)
            below[:] = sorted(name for name in below if not name.startswith("."))
        for error in errors:
            unreadable[_name(error.filename, root, before, len(roots) > 1)] = f"unreadable: {error.strerror}"
        if not found and not errors:
            unreadable[before] = f"there is no run folder (with a {RESULT})"


def _name(folder: str, root: Path, root_name: str, several: bool) -> str:
    """A folder's name, relative to its root; with the root's own name where that is one of several, or the run."""
    parts = Path(os.path.relpath(folder, root)).parts
    return clean("/".join([root_name, *parts] if several or not parts else parts))


def _identity(node: Any, prefix: str = "") -> Any:
    """What the configs of one experiment's runs have in common: no seed, and 1e-3, 0.001 and "1e-3" are one number."""
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


def _once_each(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of one experiment by seed; of several that count with one seed, all but the first know which does."""
    counting: dict[int, str] = {}
    told = []
    for run in sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.name)):
        if run.seed is not None and not run.exclusion_reason:
            first = counting.setdefault(run.seed, run.name)
            run = run if first == run.name else replace(run, same_as=first, faults=[])
        told.append(run)
    return told


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
