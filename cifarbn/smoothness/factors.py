"""By which factor a measure differs between two families of runs, with an interval over probes and seeds."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

CONFIDENCE = 0.95
REPLICATES = 1000
AT_ONCE = 2_000_000  # resampled values held in memory
FEWEST = 5  # probes of a family, for an interval: the resamples of fewer are too much alike


class Factor(NamedTuple):
    """The median of one family over that of another."""

    medians: tuple[float, float]
    """Of the first and of the second family, over all their probes."""
    factor: float
    """The first over the second."""
    interval: tuple[float, float] | None
    """95 %; None where a family has fewer than 5 probes."""
    runs: tuple[int, int]
    """How many runs of each family count."""
    probes: tuple[int, int]
    """How many values of each family count, over all its runs."""

    @property
    def over_seeds(self) -> bool:
        """Whether the interval covers the seeds of both families, and not probes only."""
        return min(self.runs) > 1


def factor(first: Sequence[ArrayLike], second: Sequence[ArrayLike], *, seed: int = 0) -> Factor | None:
    """The median over all probes of the first family, divided by that of the second.

    The interval is a percentile interval of the hierarchical bootstrap: in every replicate as many runs of each family
    are drawn as there are, with replacement, and of each drawn run as many probes as it has, in circular blocks of
    about the cube root of their number, since probes of neighbouring steps are alike (Politis and Romano 1992).

    Args:
        first: of each run the values at its probes, (T,), in the order of the steps; what is not finite is left out.
        second: the same of the other family.
        seed: of the resampling, so that the same runs always give the same interval.

    Returns:
        None where a family has no value, or either median is not positive.

    Trap: with a single run the interval covers its probes only, and says nothing about other seeds; with two or three
    runs it is too narrow, for so few seeds cannot show how far seeds spread.
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
    """The same over those probes that `pair_by_loss` pairs, so that both families stand equally far down.

    Every replicate of the bootstrap pairs anew. `probes` counts the pairs.

    Args:
        first: of each run the losses at which its probes start, and its values there, both (T,).
        second: the same of the other family.
        tolerance: how far the losses of a pair may differ, relative to the smaller one.
        seed: of the resampling.

    Returns:
        None where no two probes pair, or either median is not positive.
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
        found = []
        for rows in zip(*(_resamples(runs, generator, at_once=1) for runs in families), strict=True):
            a, b, _ = medians(*(values[own[own >= 0]] for values, own in zip(whole, rows, strict=True)))
            found.append(a / b if b > 0 else np.nan)
        ratios = np.array(found)
    return _factor((numerator, denominator), ratios, families, (pairs, pairs))


def pair_by_loss(first: ArrayLike, second: ArrayLike, tolerance: float = 0.1) -> tuple[NDArray, NDArray]:
    """Pair as many entries of two lists of losses as can be, each at most once: indices into both, shape (pairs,).

    Two losses pair where the larger is at most 1 + tolerance times the smaller. Losses that are not positive and
    finite pair with nothing. Walking up both sorted lists and taking every pair that comes gives the most pairs.
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
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return order_a[found[:, 0]], order_b[found[:, 1]]


def _ascending(losses: ArrayLike) -> tuple[Indices, list[float]]:
    """Where the positive, finite losses are, from the least to the greatest, and these losses."""
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
    """Rows of the concatenated runs for every replicate, (some replicates, rows); -1 where a drawn run is shorter."""
    lengths = np.array([len(run) for run in runs])
    blocks = np.rint(np.cbrt(lengths)).astype(np.int64)  # their length
    first_rows = np.cumsum(lengths) - lengths
    position = np.arange(lengths.max())
    at_once = at_once or max(AT_ONCE // (len(runs) * len(position)), 1)
    for done in range(0, REPLICATES, at_once):
        drawn = generator.integers(len(runs), size=(min(at_once, REPLICATES - done), len(runs)))
        length, block = lengths[drawn][..., None], blocks[drawn][..., None]
        starts = (generator.random((*drawn.shape, len(position))) * length).astype(np.int64)
        start = np.take_along_axis(starts, position // block, axis=-1)
        rows = first_rows[drawn][..., None] + (start + position % block) % length
        yield np.where(position < length, rows, -1).reshape(len(drawn), -1)


def _medians(values: Array) -> Array:
    """The median of each row's values, NaN where there is none; faster than NumPy's own for rows with NaN."""
    values = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1)
    row = np.arange(len(values))
    return (values[row, (count - 1) // 2] + values[row, count // 2]) / 2


def _finite(runs: Sequence[Array]) -> list[Array]:
    """Each run's rows without what is not finite, and without runs of which nothing is left."""
    finite = [rows[np.isfinite(rows).all(axis=1)] for rows in runs]
    return [rows for rows in finite if len(rows)]
