"""The band of a family of runs: the least and the greatest value at every step; and how bands differ between seeds."""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class SeedBand:
    """Several seeds' bands as one: its middle, and how far any of them reaches; all arrays have shape (steps,)."""

    steps: NDArray[np.int64]
    low: NDArray[np.float64]
    """Median over seeds of the lower edge."""
    high: NDArray[np.float64]
    """Median over seeds of the upper edge."""
    lowest: NDArray[np.float64]
    """Least lower edge of any seed."""
    highest: NDArray[np.float64]
    """Greatest upper edge of any seed."""
    seeds: int
    """How many seeds there are."""


def over_seeds(bands: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]) -> SeedBand:
    """The median of several bands' edges at every step that any of them has, and their extremes; one band is itself.

    The minimum and maximum that made each band come first, the median over seeds after: a band of seed-averaged curves
    would be another, narrower thing.

    Args:
        bands: of each seed the steps, the lower and the upper edge, all (T,); a line has both edges alike. Aligned by
            step; a step at which an edge is not finite is not counted.

    Raises:
        ValueError: without any band.
    """
    if not bands:
        raise ValueError("there is no band to take the median of")
    arrays = [[np.asarray(a) for a in band] for band in bands]
    steps = np.unique(np.concatenate([own for own, _, _ in arrays]))
    edges = np.full((2, len(arrays), len(steps)), np.nan)
    for i, (own, low, high) in enumerate(arrays):
        defined = np.isfinite(low) & np.isfinite(high)
        edges[:, i, np.searchsorted(steps, own[defined])] = low[defined], high[defined]
    known = np.isfinite(edges[0]).any(axis=0)
    low, high = edges[:, :, known]
    return SeedBand(
        steps=steps[known],
        low=np.nanmedian(low, axis=0),
        high=np.nanmedian(high, axis=0),
        lowest=np.nanmin(low, axis=0),
        highest=np.nanmax(high, axis=0),
        seeds=len(arrays),
    )


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
