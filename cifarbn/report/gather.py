"""The runs under a folder, grouped by everything but their seed."""

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cifarbn.errors import UserError
from cifarbn.recorders.step_history import COLUMNS
from cifarbn.report.names import leaves, name_groups
from cifarbn.runs import RECORDINGS, Result, find_runs, read_result, role_of
from cifarbn.smoothness.dead_runs import dead_since

STEP_COLUMNS = [name for name in COLUMNS if name in ("step", "epoch", "lr") or name.startswith("step/")]
EPOCH_COLUMNS = COLUMNS[len(STEP_COLUMNS) :]
DEAD_STEPS = 100  # at the end of a run without a sign of life, for it to be dead


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What one run folder says.

    Attributes:
        folder: where it is.
        name: the folder, relative to the report's.
        result: what its `result.json` holds.
    """

    folder: Path
    name: str
    result: Result

    @cached_property
    def trouble(self) -> str | None:
        """Why this run counts in no mean, or None: only a run that was finished and did not die counts."""
        status = self.result.get("status", "unknown")
        if status == "running":
            return "unfinished: still running, or killed; the same command continues it"
        if status == "interrupted":
            return "interrupted; the same command continues it"
        if status != "done":
            return f"{status}: {self.result.get('error') or 'without a message'}"
        if bad := [name for name, value in self.result.get("metrics", {}).items() if not math.isfinite(value)]:
            return f"its {', '.join(bad)} is not a finite number"
        if self._died(self._epochs_and_last_steps[1]) is not None:
            return f"dead since step {self._died(self.steps)}: its loss stays at that of a guess, or it has no gradient"
        return None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, without paths."""
        return self.result.get("config", {})

    @property
    def seed(self) -> int | None:
        """The run's seed, if its config has one."""
        return self.config.get("seed")

    @property
    def data(self) -> str:
        """The data set's name on the command line, such as cifar10 or shapes."""
        target = self.config.get("data", {}).get("_target_", "unknown data")
        return self.result.get("data", {}).get("name") or target.rpartition(".")[2].lower()

    @property
    def epochs(self) -> dict[str, np.ndarray]:
        """Column of metrics.csv -> (E,) float64, NaN where not measured: `epoch` (from 0), `train/loss`, ..."""
        return self._epochs_and_last_steps[0]

    @cached_property
    def steps(self) -> dict[str, np.ndarray]:
        """Column of metrics.csv -> (T,) float64: `step` (from 0), `lr`, `step/loss`, `step/acc`, `step/grad_norm`."""
        return _columns(self._lines(), STEP_COLUMNS)

    @cached_property
    def recordings(self) -> dict[str, np.ndarray]:
        """Array of recordings.npz by name; empty where the run recorded nothing."""
        try:
            with np.load(self.folder / RECORDINGS) as file:
                return dict(file)
        except FileNotFoundError:
            return {}

    @cached_property
    def _epochs_and_last_steps(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        # A row that is only a step's ends in as many commas as there are columns for epochs. Passing over these before
        # they are parsed makes the difference between seconds and minutes for a hundred long runs.
        only_a_step = "," * len(EPOCH_COLUMNS)
        ends, last = [], deque[str](maxlen=DEAD_STEPS)
        for line in self._lines():
            last.append(line)
            if not line.endswith(only_a_step):
                ends.append(line)
        return _columns(ends, COLUMNS), _columns(last, STEP_COLUMNS)

    def _died(self, steps: Mapping[str, np.ndarray]) -> int | None:
        level = constant_loss(self.result)
        return dead_since(steps["step/loss"], level, steps["step/grad_norm"], patience=DEAD_STEPS)

    def _lines(self) -> Iterator[str]:
        """The rows of metrics.csv; nothing where there is none, or it is not in the order that this code writes."""
        try:
            with (self.folder / "metrics.csv").open() as file:
                if next(file, "").rstrip("\n") == ",".join(COLUMNS):
                    # A killed run may have left a row cut short.
                    yield from (line[:-1] for line in file if line.endswith("\n"))
        except FileNotFoundError:
            return


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: what sets this group apart from the others, to be read by people.
        runs: those that count, by seed; maybe none.
        left_out: those that count in no mean, with `trouble`.
    """

    label: str
    runs: list[RunRecord]
    left_out: list[RunRecord]

    @property
    def data(self) -> str:
        """The data set's name."""
        return (self.runs + self.left_out)[0].data

    @property
    def config(self) -> dict[str, Any]:
        """The config of one of its runs."""
        return (self.runs + self.left_out)[0].config

    @property
    def target(self) -> float | None:
        """The accuracy that the experiment expects, as a fraction, if it states one.

        None, too, where the command line changed the experiment, for then it is another one.
        """
        overrides = (self.runs + self.left_out)[0].result.get("overrides", [])
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
class Sweep:
    """All runs under one folder.

    Attributes:
        root: that folder.
        groups: the best first, in the order of data set and accuracy; those of which no run counts come last.
        same: override -> value, of the overrides that are the same in all runs.
        unreadable: folder -> what is wrong, of the run folders whose result.json cannot be read.
    """

    root: Path
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
    def left_out(self) -> list[tuple[str, str, str]]:
        """(run, group, reason) of every run that counts in no mean."""
        runs = [(run.name, group.label, str(run.trouble)) for group in self.groups for run in group.left_out]
        return runs + [(folder, "", reason) for folder, reason in self.unreadable.items()]


def gather(root: Path) -> Sweep:
    """Read every run folder under `root`, or `root` itself.

    Raises:
        UserError: if there is none.
    """
    root = Path(root)
    unreadable: dict[str, str] = {}
    by_config: dict[str, list[RunRecord]] = {}
    for folder in find_runs(root):
        name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
        try:
            result = read_result(folder)
        except (UserError, OSError) as error:
            # Without the path, for that is the machine's.
            unreadable[name] = f"unreadable: {error}".replace(f"{folder}{os.sep}", "")
            continue
        if result:
            key = json.dumps(without_seed(result.get("config", {})), sort_keys=True)
            by_config.setdefault(key, []).append(RunRecord(folder, name, result))
    if not by_config:
        found = "; ".join(unreadable.values()) or "there is no run folder (with a result.json)"
        raise UserError(f"{root}: {found}. `python -m cifarbn.train` makes runs under multirun_outputs/")
    together = [sorted(runs, key=lambda run: (run.seed is None, run.seed, run.name)) for runs in by_config.values()]
    labels, same = name_groups([runs[0].result for runs in together])
    groups = [
        Group(label, [run for run in runs if not run.trouble], [run for run in runs if run.trouble])
        for label, runs in zip(labels, together, strict=True)
    ]
    return Sweep(root, sorted(groups, key=_rank), same, unreadable)


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without `seed`, wherever in it that is repeated."""
    nested = {key: without_seed(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    return {key: value for key, value in nested.items() if key != "seed"}


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


def _rank(group: Group) -> tuple[bool, str, float, str]:
    for metric, sign in (("test/acc", -1), ("val/acc", -1), ("val/loss", 1), ("train/loss", 1)):
        if values := group.metric(metric):
            return False, group.data, sign * sum(values) / len(values), group.label
    return not group.runs, group.data, math.inf, group.label


def _columns(lines: Iterable[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    rows = [line.split(",") for line in lines]
    return {name: np.array([float(row[i] or "nan") for row in rows]) for i, name in enumerate(names)}


def _pad(curves: list[np.ndarray]) -> np.ndarray:
    padded = np.full((len(curves), max(map(len, curves), default=0)), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve
    return padded
