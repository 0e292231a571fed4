"""The band over several runs: smallest and largest value at every step; and how bands differ between seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Band:
    """Smallest and largest value over runs at each step; all arrays have shape (steps,)."""

    steps: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    count: NDArray[np.int64]
    """The number of runs with a value at the step."""
    omitted: dict[str, str]
    """Omitted runs by name, each with the reason: a figure must list them."""


def band(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], omit: Mapping[str, str] | None = None) -> Band:
    """Return [min over runs, max over runs] at every step that any run has.

    Runs are aligned by step number and may differ in length and stride. A curve starts at its first value that is not
    NaN and ends at its first non-finite value after that.

    Trap: nothing is smoothed before the minimum and maximum, since the band of smoothed curves is narrower. If `low`
    and `high` are smoothed afterwards, state it.

    Args:
        curves: by the run's name its steps, strictly increasing, and its values, both of shape (T,).
        omit: by the run's name the reason to omit it (dead, diverged). A run without finite values is omitted, too.

    Raises:
        ValueError: if a curve is not 1-D, its steps do not increase, or `omit` has an unknown name.
    """
    omitted = dict(omit or {})
    if unknown := omitted.keys() - curves.keys():
        raise ValueError(f"omit names {sorted(unknown)}, but the runs are {sorted(curves)}")
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
    for run_steps, values in kept.values():
        at = np.searchsorted(steps, run_steps)
        low[at], high[at] = np.minimum(low[at], values), np.maximum(high[at], values)
        count[at] += 1
    return Band(steps, low, high, count, omitted)


@dataclass(frozen=True)
class SeedBand:
    """The bands of several seeds, summarised: medians and extremes of the edges; all arrays have shape (steps,)."""

    steps: NDArray[np.int64]
    low: NDArray[np.float64]
    """Median over seeds of the lower edge."""
    high: NDArray[np.float64]
    """Median over seeds of the upper edge."""
    lowest: NDArray[np.float64]
    """Smallest lower edge of any seed."""
    highest: NDArray[np.float64]
    """Largest upper edge of any seed."""
    seeds: int
    """The number of seeds."""


def over_seeds(bands: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]) -> SeedBand:
    """Return the median and the extremes of the bands' edges at every step that any band has.

    Each band is formed first and the median over seeds taken afterwards; a band of seed-averaged curves would be
    narrower.

    Args:
        bands: for each seed the steps, the lower and the upper edge, all (T,); a single curve has two equal edges.
            Bands are aligned by step, and steps with a non-finite edge are ignored.

    Raises:
        ValueError: if there are no bands.
    """
    if not bands:
        raise ValueError("bands is empty; there must be at least one band")
    arrays = [[np.asarray(a) for a in band] for band in bands]
    steps = np.unique(np.concatenate([band_steps for band_steps, _, _ in arrays]))
    edges = np.full((2, len(arrays), len(steps)), np.nan)
    for i, (band_steps, low, high) in enumerate(arrays):
        defined = np.isfinite(low) & np.isfinite(high)
        edges[:, i, np.searchsorted(steps, band_steps[defined])] = low[defined], high[defined]
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
            f"run {name!r}: steps and values must be 1-D and of equal length, not {steps.shape} and {values.shape}"
        )
    if np.any(np.diff(steps) <= 0):
        raise ValueError(f"run {name!r}: the steps must increase strictly")
    defined = np.flatnonzero(~np.isnan(values))
    begin = defined[0] if len(defined) else len(values)
    broken = np.flatnonzero(~np.isfinite(values[begin:]))
    end = begin + broken[0] if len(broken) else len(values)
    return steps[begin:end], values[begin:end]
