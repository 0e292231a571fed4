"""The measures of Santurkar et al. 2018 (arXiv 1805.11604), computed from probes: section 3.2, figures 4, 10, 11.

In every function S is the axis of a probe's points. Axes before it, such as one entry per probed step, are kept: a band
is the minimum and maximum over the points of one probe, never over steps.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def loss_band(loss: ArrayLike) -> tuple[Array, Array]:
    """Return [min_s, max_s] of L_t(theta_t(s)), from shape (..., S); NaN for a probe with a NaN."""
    return _band(loss)


def predictiveness_band(gradient_distance: ArrayLike) -> tuple[Array, Array]:
    """Return [min_s, max_s] of d_t(s) = ||grad L_t(theta_t(s)) - g_t||, from shape (..., S).

    Trap: predictiveness is the distance of two gradients, not the norm or the mean absolute value of one.
    """
    return _band(gradient_distance)


def effective_beta(gradient_distance: ArrayLike, distance_moved: ArrayLike) -> Array:
    """Return beta_t = max_s d_t(s) / (s ||g_t||), from two arrays (..., S); in units of curvature, NaN without a move.

    Trap: the divisor is the distance that each point was moved, which does not depend on the learning rate of training.
    Beta is not invariant to reparametrisation: multiplying a convolution before batch norm by c does not change the
    loss but divides its curvature by c^2, see `weight_probes.scale_invariant_beta`. State this in every figure that
    compares models with and without batch norm.
    """
    return np.max(_slope(gradient_distance, distance_moved), axis=-1)


def relative_distance(gradient_distance: ArrayLike, gradient_norm: ArrayLike) -> Array:
    """Return d_t(s) / ||g_t||, shape (..., S), from distances (..., S) and norms (...); NaN if the gradient is 0."""
    return _slope(gradient_distance, np.asarray(gradient_norm)[..., None])


def at_distance(distance_moved: ArrayLike, values: ArrayLike, wanted: ArrayLike) -> Array:
    """Interpolate the values of T probes at other distances, shape (T,).

    Interpolation is linear in the distance, which is exact for the gradient distance of a quadratic loss. Values are
    not extrapolated: the result is NaN if the distance is outside the probe's points by more than 0.01 %.

    Args:
        distance_moved: distance of each probe's points, (T, S), in any order.
        values: at these points, such as the gradient distance, (T, S).
        wanted: the distance for each probe, (T,), such as a fraction of the optimizer's step.
    """
    rows = []
    for moved, row, distance in zip(*map(_float64, (distance_moved, values, wanted)), strict=True):
        order = np.argsort(moved)
        ends = moved[order[[0, -1]]]
        inside = ends[0] * (1 - 1e-4) <= distance <= ends[1] * (1 + 1e-4)
        rows.append(np.interp(distance, moved[order], row[order]) if inside else np.nan)
    return np.array(rows)


def _float64(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _band(values: ArrayLike) -> tuple[Array, Array]:
    values = np.asarray(values, dtype=np.float64)
    return values.min(axis=-1), values.max(axis=-1)


def _slope(rise: ArrayLike, run: ArrayLike) -> Array:
    rise, run = np.broadcast_arrays(np.asarray(rise, dtype=np.float64), np.asarray(run, dtype=np.float64))
    return np.divide(rise, run, out=np.full(rise.shape, np.nan), where=run != 0)
