"""Mean, standard deviation and confidence interval over runs that differ only in their seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """An estimate of the expected value over seeds from n runs.

    Attributes:
        n: number of runs.
        mean: of the n values.
        std: sample standard deviation (n - 1 in the denominator); None for a single run.
        half_width: of the confidence interval of the mean, `mean ± half_width`; None for a single run.
    """

    n: int
    mean: float
    std: float | None
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean with Student's t interval, which is exact for normally distributed values.

    Raises:
        ValueError: if there are no values.
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
    """Return the t with P(-t < T < t) = confidence, for Student's T with `degrees` degrees of freedom."""
    return float(stdtrit(degrees, (1 + confidence) / 2))  # equals scipy.stats.t.ppf, which is slower to import
