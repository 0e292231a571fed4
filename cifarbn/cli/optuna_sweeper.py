"""The sweeper `optuna`: a search by Optuna instead of a grid."""

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.utils import instantiate
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from cifarbn.cli.errors import instantiation_errors
from cifarbn.cli.outcomes import End
from cifarbn.cli.search_space import SearchSpace
from cifarbn.cli.study import Study, Trial
from cifarbn.errors import UserError
from cifarbn.formatting import number
from cifarbn.runs.identity import identifying
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import Result, Status

METRICS = ("val/acc", "val/loss")
DIRECTIONS = ("maximize", "minimize")


def search(
    sweeper: Sweeper,
    overrides: Sequence[str],
    *,
    n_trials: int,
    n_jobs: int,
    metric: str,
    direction: str,
    storage: str,
    study_name: str | None,
    sampler: Mapping[str, Any],
) -> None:
    """Execute the trials that the study lacks, and those that earlier commands left unfinished.

    Args:
        sweeper: with the context, config and launcher of the sweep.
        overrides: of the command line, among them the search space.
        n_trials: number of trials at which the study ends.
        n_jobs: number of trials that are asked for and launched at a time.
        metric: name of a validation metric of `result.json`.
        direction: "maximize" or "minimize".
        storage: a database URL, or a path for a file in Optuna's journal format.
        study_name: None for a name that follows from the search.
        sampler: config of an Optuna sampler.

    Raises:
        UserError: if an option or the search space is wrong, or runs do not have the metric.
    """
    assert sweeper.config and sweeper.launcher and sweeper.hydra_context
    _check(n_trials, n_jobs, metric, direction, sweeper.config.hydra.launcher)
    launcher = sweeper.launcher
    space = SearchSpace(overrides, sweeper.hydra_context.config_loader)
    folder = Path(sweeper.config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    # Keys that do not identify a run, such as `retry`, do not define the search either.
    defining = " ".join([*sorted(identifying(space.overrides)), f"{direction} {metric}"])
    name = study_name or f"cifarbn-{hashlib.sha256(defining.encode()).hexdigest()[:8]}"
    study = Study(folder / ".sweeps", storage, name, defining, direction, space, lambda index: _sampler(sampler, index))
    if n_jobs > 1 and str(sweeper.config.hydra.launcher._target_).endswith(".BasicLauncher"):
        print(
            f"note: hydra.sweeper.n_jobs={n_jobs} trials are chosen at a time, but executed one after the other; add "
            "hydra/launcher=local to execute them in parallel",
            file=sys.stderr,
        )
    launched, folders = 0, dict[tuple[str, ...], Path]()

    def execute(trials: Sequence[Trial]) -> None:
        """Launch trials and store their outcomes; equal trials are one run, which is executed once and then skipped."""
        nonlocal launched
        while trials:
            batch: dict[tuple[str, ...], Trial] = {}
            for trial in trials:
                batch.setdefault(trial.chosen, trial)
            skipped = {chosen: ["resume=true"] for chosen in batch if chosen in folders}  # instead of resume=false
            runs = [[*space.fixed, *chosen, *skipped.get(chosen, [])] for chosen in batch]
            sweeper.validate_batch_is_legal(runs)
            for trial, run in zip(batch.values(), launcher.launch(runs, initial_job_idx=launched), strict=True):
                folders[trial.chosen] = _folder(run)
                study.tell(trial, *_outcome(run, metric))
            launched += len(batch)
            trials = [trial for trial in trials if trial is not batch[trial.chosen]]

    earlier = study.earlier()
    for start in range(0, len(earlier), n_jobs):
        execute(earlier[start : start + n_jobs])
    while trials := study.ask(n_jobs, n_trials):
        execute(trials)
    if best := study.best():
        trial, value = best
        text = f"best of {len(study)} trials: {metric} {number(value, 4)} with {' '.join(trial.chosen)}"
        print(f"\n{text}\n{folders.get(trial.chosen, 'executed by another command')}", flush=True)


def _check(n_trials: Any, n_jobs: Any, metric: str, direction: str, launcher: Mapping[str, Any]) -> None:
    for key, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
        if type(value) is not int or value < 1:
            raise UserError(f"hydra.sweeper.{key} takes a whole number of at least 1, not {value}")
    parallel = launcher.get("jobs")  # of hydra/launcher=local
    if isinstance(parallel, int) and parallel > n_jobs:
        raise UserError(
            f"hydra.launcher.jobs={parallel} has no effect, because a search starts hydra.sweeper.n_jobs={n_jobs} runs "
            f"at a time; use hydra.sweeper.n_jobs={parallel}, too"
        )
    if metric not in METRICS:
        raise UserError(
            f"hydra.sweeper.metric takes {' or '.join(METRICS)}, not {metric}: test metrics are not allowed, since "
            "nothing may be selected by the test set"
        )
    if direction not in DIRECTIONS:
        raise UserError(f"hydra.sweeper.direction takes {' or '.join(DIRECTIONS)}, not {direction}")


def _sampler(config: Mapping[str, Any], index: int) -> BaseSampler:
    """Return the sampler of one trial.

    Each trial has its own seed, because a sampler that is created again after a kill would otherwise repeat the random
    numbers of the first trials. Then an interrupted search chooses the same trials as an undisturbed one. A quasi-Monte
    Carlo sampler keeps its seed, which defines its sequence.
    """
    own = dict(config)
    if not isinstance(own.get("seed", 0), (int, type(None))):
        raise UserError(f"hydra.sweeper.sampler.seed takes a whole number or null, not {own['seed']}")
    if own.get("seed") is not None and not str(own.get("_target_")).endswith("QMCSampler"):
        own["seed"] = int(hashlib.sha256(f"{own['seed']} {index}".encode()).hexdigest()[:8], 16)
    with instantiation_errors("hydra.sweeper.sampler"):
        sampler = instantiate(own)
    if not isinstance(sampler, BaseSampler):
        raise UserError(f"hydra.sweeper.sampler._target_ must be a sampler of Optuna, not {type(sampler).__name__}")
    return sampler


def _outcome(run: JobReturn, metric: str) -> tuple[TrialState | None, float | None]:
    """Return the state and the value of the trial whose run a launcher has returned.

    A diverged run is like a trial that Optuna has pruned: worse than all that have a value. A run that was interrupted,
    that another process executes, or that conflicts with its folder leaves its trial as it is.

    Raises:
        UserError: if the run does not have the metric.
    """
    folder = _folder(run)
    error = run._return_value if isinstance(run._return_value, End) else None  # see `SweepCallback.on_job_end`
    if error in (End.CONFLICT, End.LOCKED):
        return None, None
    try:
        result: Result = read_result(folder) or {}
    except UserError:
        return None, None
    status = result.get("status")
    if status is Status.FAILED:
        return TrialState.FAIL, None
    if status is Status.DIVERGED:
        return TrialState.PRUNED, None
    if status is not Status.DONE or error:
        return None, None
    value = result.get("metrics", {}).get(metric)
    if value is None:
        raise UserError(
            f"a search needs the {metric} of each run, but {folder} has none: end the run with a whole epoch (for "
            "example without trainer.max_steps), and do not turn validation off (trainer.limit_val_batches=0)"
        )
    return (TrialState.COMPLETE, value) if math.isfinite(value) else (TrialState.PRUNED, None)


def _folder(run: JobReturn) -> Path:
    assert run.hydra_cfg
    return Path(run.hydra_cfg.hydra.runtime.output_dir)
