"""Mean, standard deviation and confidence interval of a few runs that differ in nothing but their seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """What n runs say about the mean of all runs that could have been made.

    Attributes:
        n: number of runs.
        mean: of the n values.
        std: with n - 1 in the denominator; None for a single run, which says nothing about its spread.
        half_width: of the confidence interval of the mean, `mean ± half_width`; None for a single run.
    """

    n: int
    mean: float
    std: float | None
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean with Student's t, which is exact for few runs where these are normal about their mean.

    Raises:
        ValueError: without any value.
    """
    n = len(values)
    if not n:
        raise ValueError("an estimate needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(n, mean, std, student_t(CONFIDENCE, n - 1) * std / math.sqrt(n))


def student_t(confidence: float, degrees: int) -> float:
    """Return the t with P(-t < T < t) = confidence, for Student's T with so many degrees of freedom."""
    return float(stdtrit(degrees, (1 + confidence) / 2))  # as scipy.stats.t.ppf, which takes longer to import
