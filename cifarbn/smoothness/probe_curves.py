"""What the paper reads off recorded walks (Santurkar et al. 2018, section 3.2, figures 4, 10, 11), as arrays.

In every function the points s of a walk lie on the axis named S; axes before it (one entry per probed step) pass
through. The bands are taken over S, never over the steps.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def loss_band(loss: ArrayLike) -> tuple[Array, Array]:
    """[min_s, max_s] of L_t(theta_t(s)), from (..., S); NaN at a step whose walk met a NaN."""
    return _band(loss)


def predictiveness_band(gradient_distance: ArrayLike) -> tuple[Array, Array]:
    """[min_s, max_s] of d_t(s) = ||grad L_t(theta_t(s)) - g_t||, from (..., S).

    Trap: the distance of two gradients. A gradient's norm, or its mean |g|, predicts nothing.
    """
    return _band(gradient_distance)


def effective_beta(gradient_distance: ArrayLike, distance_moved: ArrayLike) -> Array:
    """beta_t = max_s d_t(s) / (s ||g_t||), from two (..., S); units of curvature; NaN where nothing moved.

    Trap: divides by the distance each point was moved, whatever the learning rate of the training was. Not
    invariant to reparametrisation: a conv weight before batch normalisation times c leaves the loss alone and
    divides the curvature by c^2, see `weight_probes.scale_invariant_beta`. Say so beside every plot of BN against none.
    """
    return np.max(_slope(gradient_distance, distance_moved), axis=-1)


def relative_distance(gradient_distance: ArrayLike, gradient_norm: ArrayLike) -> Array:
    """d_t(s) / ||g_t||, shape (..., S), from distances (..., S) and norms (...); NaN where the gradient is 0."""
    return _slope(gradient_distance, np.asarray(gradient_norm)[..., None])


def at_distance(distance_moved: ArrayLike, values: ArrayLike, wanted: ArrayLike) -> Array:
    """What each walk's curve has at another distance than its own points', shape (T,), for T walks.

    Interpolates in a straight line in the distance, which is exact for the gradient distance of a quadratic loss. NaN
    where the wanted distance lies outside the walk's own points (by more than 0.01 %, for rounding): nothing is
    extrapolated, for d_t(s) bends.

    Args:
        distance_moved: of each walk's points, (T, S), in any order.
        values: at those points, such as the gradient distance, (T, S).
        wanted: the distance, (T,): a share of the true step's length, say.
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
