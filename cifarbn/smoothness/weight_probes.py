"""Every weight walked alone, by shares of its own norm: curvature that does not depend on a weight's mere scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cifarbn.smoothness.directional_probe import probe_along
from cifarbn.smoothness.evaluation import LossAndGradient, LossFunction, loss_and_gradient
from cifarbn.smoothness.probe_curves import effective_beta
from cifarbn.smoothness.vectors import norm

SHARES = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class WeightProbes:
    """What P weights saw, each moved alone against its own gradient; S shares; on the weights' device."""

    loss: Tensor
    """The loss with the weight moved, shape (S, P)."""
    gradient_distance: Tensor
    """||grad_w L there - grad_w L here||, of the moved weight's own gradient, shape (S, P)."""
    distance_moved: Tensor
    """share * ||w||, shape (S, P)."""
    weight_norm: Tensor
    """||w||, shape (P,)."""


def probe_each_weight(
    loss_fn: LossFunction, weights: Iterable[Tensor], shares: Sequence[float] = SHARES
) -> WeightProbes:
    """Loss and own gradient of each weight w at w - share ||w|| g / ||g||, g its gradient, all others at rest.

    Costs one forward-backward pass, and S forward passes a weight with a backward pass that goes no deeper than that
    weight. Holds one gradient of all weights and two copies of one weight. The weights are back in place, bit for bit,
    afterwards, and no `.grad` is touched. A weight without a gradient gives NaN.

    Args:
        loss_fn: the loss on one fixed minibatch, see `walk.walk`.
        weights: the parameters to walk, such as those of more than one dimension.
        shares: how far to move, in units of the weight's norm, each positive.

    Raises:
        ValueError: no share, or one that is not positive.
        RuntimeError: a weight has no part in the loss.
    """
    weights = list(weights)
    start = loss_and_gradient(loss_fn, weights)
    walks = []
    for weight, gradient in zip(weights, start.gradient, strict=True):
        direction = gradient * (norm([weight]) / norm([gradient])).to(gradient.dtype)
        own = LossAndGradient(start.loss, (gradient,))
        walks.append(probe_along(loss_fn, [weight], shares, start=own, direction=[direction]))
    return WeightProbes(
        loss=torch.stack([seen.loss for seen in walks], dim=1),
        gradient_distance=torch.stack([seen.gradient_distance for seen in walks], dim=1),
        distance_moved=torch.stack([seen.distance_moved for seen in walks], dim=1),
        weight_norm=torch.cat([seen.parameter_norm for seen in walks]),
    )


def scale_invariant_beta(
    gradient_distance: ArrayLike, distance_moved: ArrayLike, weight_norm: ArrayLike
) -> NDArray[np.float64]:
    """The beta ||w||^2 of each weight, shape (..., P), from `WeightProbes`: (..., S, P) twice and (..., P).

    beta is the greatest, over the shares, of the weight's own gradient distance over the distance that it moved.
    Where w -> c w leaves the loss alone (a convolution before batch normalisation), the gradient is divided by c and
    the curvature by c^2, while the same share of the norm is c times as far: beta ||w||^2 stays as it is, at every c.

    Trap: holds for weights walked one at a time only. In a walk of all weights together each one's distance is set by
    the length of the common gradient, and the others' moves enter its gradient.
    """
    distance, moved = (
        np.moveaxis(np.asarray(a, dtype=np.float64), -2, -1) for a in (gradient_distance, distance_moved)
    )
    return effective_beta(distance, moved) * np.square(np.asarray(weight_norm, dtype=np.float64))
