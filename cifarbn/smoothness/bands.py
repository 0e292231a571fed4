"""The band of a family of runs: the least and the greatest value at every step."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Band:
    """Least and greatest value over runs at each step; all arrays have shape (steps,)."""

    steps: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    count: NDArray[np.int64]
    """How many runs have a value at the step."""
    omitted: dict[str, str]
    """Runs left out, by name, each with the reason: a figure must show them."""


def band(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], omit: Mapping[str, str] | None = None) -> Band:
    """[min over runs, max over runs] of the runs' curves at every step that any of them has.

    Runs are aligned by step number, never by position, and may be of unequal length or stride. NaNs at a curve's
    beginning are steps where it is not defined yet; after them its first non-finite value ends it. Nothing is
    smoothed before the minimum and maximum: the band of smoothed curves is another, narrower thing (smooth low and
    high afterwards if you must, and say so).

    Args:
        curves: for each run's name its steps, strictly increasing, and its values, both of shape (T,).
        omit: for each run to leave out (dead, diverged) the reason. One without a finite value is left out as well.

    Raises:
        ValueError: a curve that is not 1-D, whose steps do not increase, or an unknown name in `omit`.
    """
    omitted = dict(omit or {})
    if unknown := omitted.keys() - curves.keys():
        raise ValueError(f"cannot leave out {sorted(unknown)}: the runs are {sorted(curves)}")
    kept = {}
    for name, (steps, values) in curves.items():
        if name in omitted:
            continue
        curve = _defined_part(name, np.asarray(steps), np.asarray(values, dtype=np.float64))
        if len(curve[0]):
            kept[name] = curve
        else:
            omitted[name] = "no finite value"

    steps = np.unique(np.concatenate([s for s, _ in kept.values()] or [np.empty(0, dtype=np.int64)]))
    low, high = np.full(len(steps), np.inf), np.full(len(steps), -np.inf)
    count = np.zeros(len(steps), dtype=np.int64)
    for own_steps, values in kept.values():
        at = np.searchsorted(steps, own_steps)
        low[at], high[at] = np.minimum(low[at], values), np.maximum(high[at], values)
        count[at] += 1
    return Band(steps, low, high, count, omitted)


def _defined_part(name: str, steps: NDArray, values: NDArray) -> tuple[NDArray, NDArray]:
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(
            f"run {name!r}: steps and values must be 1-D and of one length, not {steps.shape} and {values.shape}"
        )
    if np.any(np.diff(steps) <= 0):
        raise ValueError(f"run {name!r}: its steps do not increase strictly")
    defined = np.flatnonzero(~np.isnan(values))
    begin = defined[0] if len(defined) else len(values)
    broken = np.flatnonzero(~np.isfinite(values[begin:]))
    end = begin + broken[0] if len(broken) else len(values)
    return steps[begin:end], values[begin:end]
