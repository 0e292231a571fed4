"""The ratio of a measure between two families of runs, with an interval over probes and seeds."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

CONFIDENCE = 0.95
REPLICATES = 1000
AT_ONCE = 2_000_000  # resampled values held in memory
FEWEST = 5  # probes per family for an interval; resamples of fewer values hardly vary


class Factor(NamedTuple):
    """The median of one family divided by that of another."""

    medians: tuple[float, float]
    """Of the first and the second family, over all their probes."""
    factor: float
    """The first median divided by the second."""
    interval: tuple[float, float] | None
    """95 % interval; None if a family has fewer than 5 probes."""
    runs: tuple[int, int]
    """Number of runs in each family."""
    probes: tuple[int, int]
    """Number of values in each family, over all its runs."""

    @property
    def over_seeds(self) -> bool:
        """Whether the interval includes the variation between seeds in both families."""
        return min(self.runs) > 1


def factor(first: Sequence[ArrayLike], second: Sequence[ArrayLike], *, seed: int = 0) -> Factor | None:
    """Return the median over all probes of the first family, divided by that of the second.

    The interval is a percentile interval of the hierarchical bootstrap. Each replicate resamples the runs of each
    family with replacement, and the probes of each drawn run in circular blocks, whose length is about the cube root of
    the number of probes, since probes of neighbouring steps are correlated (Politis and Romano 1992).

    Trap: with one run per family the interval contains no variation between seeds; with two or three it is too narrow.

    Args:
        first: for each run the values at its probes, (T,), ordered by step; values that are not finite are ignored.
        second: the same for the other family.
        seed: of the resampling; the same runs always give the same interval.

    Returns:
        None if a family has no values, or a median is not positive.
    """
    families = [_finite([np.asarray(v, dtype=np.float64)[:, None] for v in family]) for family in (first, second)]
    if not all(families):
        return None
    whole, generator = [np.concatenate(runs)[:, 0] for runs in families], np.random.default_rng(seed)
    medians = float(np.median(whole[0])), float(np.median(whole[1]))
    probes = len(whole[0]), len(whole[1])
    ratios = None
    if min(probes) >= FEWEST:
        drawn = [
            np.concatenate([_medians(np.append(values, np.nan)[rows]) for rows in _resamples(runs, generator)])
            for values, runs in zip(whole, families, strict=True)
        ]
        ratios = drawn[0] / np.where(drawn[1] > 0, drawn[1], np.nan)
    return _factor(medians, ratios, families, probes)


def factor_at_matched_loss(
    first: Sequence[tuple[ArrayLike, ArrayLike]],
    second: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    tolerance: float = 0.1,
    seed: int = 0,
) -> Factor | None:
    """Return the factor over probes at equal training losses only, as paired by `pair_by_loss`.

    Each bootstrap replicate is paired separately. `probes` is the number of pairs.

    Args:
        first: for each run the loss at the start of each probe, and the values, both (T,).
        second: the same for the other family.
        tolerance: largest difference between the losses of a pair, relative to the smaller one.
        seed: of the resampling.

    Returns:
        None if no two probes can be paired, or a median is not positive.
    """
    families = [_finite([np.stack(np.broadcast_arrays(*run), axis=1) for run in family]) for family in (first, second)]
    if not all(families):
        return None
    whole, generator = [np.concatenate(runs) for runs in families], np.random.default_rng(seed)

    def medians(a: Array, b: Array) -> tuple[float, float, int]:
        i, j = pair_by_loss(a[:, 0], b[:, 0], tolerance)
        return (float(np.median(a[i, 1])), float(np.median(b[j, 1])), len(i)) if len(i) else (np.nan, np.nan, 0)

    numerator, denominator, pairs = medians(*whole)
    ratios = None
    if pairs >= FEWEST:
        replicates = []
        for rows in zip(*(_resamples(runs, generator, at_once=1) for runs in families), strict=True):
            a, b, _ = medians(*(values[index[index >= 0]] for values, index in zip(whole, rows, strict=True)))
            replicates.append(a / b if b > 0 else np.nan)
        ratios = np.array(replicates)
    return _factor((numerator, denominator), ratios, families, (pairs, pairs))


def pair_by_loss(first: ArrayLike, second: ArrayLike, tolerance: float = 0.1) -> tuple[NDArray, NDArray]:
    """Pair equal losses of two lists, each entry at most once; return indices into both lists, shape (pairs,).

    Two losses can form a pair if the larger is at most 1 + tolerance times the smaller; losses that are not positive
    and finite form none. Greedy pairing of the sorted lists gives the largest number of pairs.
    """
    (order_a, sorted_a), (order_b, sorted_b) = _ascending(first), _ascending(second)
    ratio, pairs, i, j = 1 + tolerance, [], 0, 0
    while i < len(sorted_a) and j < len(sorted_b):
        a, b = sorted_a[i], sorted_b[j]
        if a > b * ratio:
            j += 1
        elif b > a * ratio:
            i += 1
        else:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    indices = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return order_a[indices[:, 0]], order_b[indices[:, 1]]


def _ascending(losses: ArrayLike) -> tuple[Indices, list[float]]:
    """Return the indices of the positive, finite losses in ascending order, and these losses."""
    losses = np.asarray(losses, dtype=np.float64)
    usable = np.flatnonzero(np.isfinite(losses) & (losses > 0))
    order = usable[np.argsort(losses[usable], kind="stable")]
    return order, losses[order].tolist()


def _factor(
    medians: tuple[float, float], ratios: Array | None, families: Sequence[Sequence[Array]], probes: tuple[int, int]
) -> Factor | None:
    if not min(medians) > 0:
        return None
    interval = None
    if ratios is not None and np.isfinite(ratios).any():
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(ratios, (tail, 1 - tail))
        interval = float(low), float(high)
    return Factor(medians, medians[0] / medians[1], interval, (len(families[0]), len(families[1])), probes)


def _resamples(runs: Sequence[Array], generator: np.random.Generator, at_once: int | None = None) -> Iterator[Indices]:
    """Yield row indices into the concatenated runs, (replicates, rows); -1 is padding after shorter runs."""
    lengths = np.array([len(run) for run in runs])
    block_lengths = np.rint(np.cbrt(lengths)).astype(np.int64)
    first_rows = np.cumsum(lengths) - lengths
    position = np.arange(lengths.max())
    at_once = at_once or max(AT_ONCE // (len(runs) * len(position)), 1)
    for done in range(0, REPLICATES, at_once):
        drawn = generator.integers(len(runs), size=(min(at_once, REPLICATES - done), len(runs)))
        length, block = lengths[drawn][..., None], block_lengths[drawn][..., None]
        starts = (generator.random((*drawn.shape, len(position))) * length).astype(np.int64)
        start = np.take_along_axis(starts, position // block, axis=-1)
        rows = first_rows[drawn][..., None] + (start + position % block) % length
        yield np.where(position < length, rows, -1).reshape(len(drawn), -1)


def _medians(values: Array) -> Array:
    """Return the median of each row's finite values, NaN if there are none; faster than np.nanmedian."""
    values = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1)
    row = np.arange(len(values))
    return (values[row, (count - 1) // 2] + values[row, count // 2]) / 2


def _finite(runs: Sequence[Array]) -> list[Array]:
    """Return the rows of each run that are finite; runs without such rows are left out."""
    finite = [rows[np.isfinite(rows).all(axis=1)] for rows in runs]
    return [rows for rows in finite if len(rows)]
