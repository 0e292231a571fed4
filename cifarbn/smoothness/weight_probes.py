"""Probe each weight separately, by fractions of its own norm: curvature that is invariant to the weight's scale."""

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
    """Probes of P weights at S fractions, each weight moved alone against its gradient; on the weights' device."""

    loss: Tensor
    """The loss with the weight moved, shape (S, P)."""
    gradient_distance: Tensor
    """||grad_w L(moved w) - grad_w L(w)||, shape (S, P)."""
    distance_moved: Tensor
    """fraction * ||w||, shape (S, P)."""
    weight_norm: Tensor
    """||w||, shape (P,)."""


def probe_each_weight(
    loss_fn: LossFunction, weights: Iterable[Tensor], shares: Sequence[float] = SHARES
) -> WeightProbes:
    """Move each weight w by itself to w - share ||w|| g / ||g|| and compute the loss and the gradient g of that weight.

    Costs one forward and backward pass, and S forward passes per weight with a backward pass down to that weight. Holds
    one gradient of all weights and two copies of one weight. The weights are restored bit for bit, and no `.grad` is
    read or written. A weight whose gradient is 0 gives NaN.

    Args:
        loss_fn: the loss on one fixed minibatch, see `minibatch_loss.minibatch_loss`.
        weights: the parameters to probe, such as those of more than one dimension.
        shares: distances to move, as fractions of the weight's norm, each positive.

    Raises:
        ValueError: if there are no shares, or one is not positive.
    """
    weights = list(weights)
    start = loss_and_gradient(loss_fn, weights)
    probes = []
    for weight, gradient in zip(weights, start.gradient, strict=True):
        direction = gradient * (norm([weight]) / norm([gradient])).to(gradient.dtype)
        weight_start = LossAndGradient(start.loss, (gradient,))
        probes.append(probe_along(loss_fn, [weight], shares, start=weight_start, direction=[direction]))
    return WeightProbes(
        loss=torch.stack([probe.loss for probe in probes], dim=1),
        gradient_distance=torch.stack([probe.gradient_distance for probe in probes], dim=1),
        distance_moved=torch.stack([probe.distance_moved for probe in probes], dim=1),
        weight_norm=torch.cat([probe.parameter_norm for probe in probes]),
    )


def scale_invariant_beta(
    gradient_distance: ArrayLike, distance_moved: ArrayLike, weight_norm: ArrayLike
) -> NDArray[np.float64]:
    """Return beta ||w||^2 for each weight, shape (..., P), from the arrays of `WeightProbes`, (..., S, P) and (..., P).

    beta is the maximum over the fractions of the weight's gradient distance per distance moved. If w -> c w does not
    change the loss (a convolution before batch norm), the gradient is divided by c and the curvature by c^2, while the
    same fraction of the norm is c times as far: beta ||w||^2 is the same for every c.

    Trap: this holds only if weights are moved one at a time. In a probe of all weights together, each weight's distance
    depends on the length of the whole gradient, and the other weights' moves change its gradient.
    """
    distance, moved = (
        np.moveaxis(np.asarray(a, dtype=np.float64), -2, -1) for a in (gradient_distance, distance_moved)
    )
    return effective_beta(distance, moved) * np.square(np.asarray(weight_norm, dtype=np.float64))
