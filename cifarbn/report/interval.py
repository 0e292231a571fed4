"""Mean, standard deviation and confidence interval of a few runs that differ in nothing but their seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

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


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
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
    return Estimate(n, mean, std, student_t(confidence, n - 1) * std / math.sqrt(n))


def student_t(confidence: float, degrees: int) -> float:
    """The t with P(-t < T < t) = confidence, for Student's T with a whole number of degrees of freedom.

    Bisects the closed form of that probability (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), which is a finite sum
    for a whole number of degrees; good to about 12 digits.
    """
    low, high = 0.0, math.pi / 2  # theta = atan(t / sqrt(degrees)): a finite range, whatever t
    while low < (middle := (low + high) / 2) < high:
        if _probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def _probability(theta: float, degrees: int) -> float:
    """P(-t < T < t) at t = sqrt(degrees) tan(theta)."""
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= math.cos(theta) ** 2 * (k - 1) / k
        total += term
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total
