"""Internal covariate shift as the paper defines it (Santurkar et al. 2018, definition 2.1, figure 3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cifarbn.smoothness.evaluation import LossFunction, loss_and_gradient, place, restore_parameters
from cifarbn.smoothness.vectors import distance, dot, norm


class CovariateShift(NamedTuple):
    """One value per layer, shape (k,), on the parameters' device."""

    distance: Tensor
    """||G_{t,i} - G'_{t,i}||; exactly 0 for the first layer, which nothing precedes."""
    cosine: Tensor
    """cos(G_{t,i}, G'_{t,i}); NaN where a gradient is 0."""
    gradient_norm: Tensor
    """||G_{t,i}||."""


def covariate_shift(
    loss_fn: LossFunction, layers: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]]
) -> CovariateShift:
    """How much the update of the layers before it changes each layer's gradient, on one minibatch B_t.

    G_{t,i} = grad_{W_i} L(W_1^t, ..., W_k^t; B_t), G'_{t,i} the same with W_1 ... W_{i-1} already at t + 1. Costs k
    forward passes, k - 1 of them with a backward pass that goes no deeper than layer i, and one copy of the
    parameters beside one gradient and `after`; the parameters are back at theta_t, bit for bit, afterwards.

    Args:
        loss_fn: L on B_t, train mode.
        layers: each layer's parameters, in the order of the forward pass, standing at theta_t. Parameters in no
            layer stay at theta_t throughout.
        after: their values at theta_{t+1}, in the same nesting; copies, not the parameters themselves.

    Raises:
        ValueError: `after` is not nested or shaped like `layers`.
    """
    everything = [w for layer in layers for w in layer]
    remaining = iter(loss_and_gradient(loss_fn, everything).gradient)
    plain = [[next(remaining) for _ in layer] for layer in layers]
    rows = [_compare(plain[0], plain[0])]
    with restore_parameters(everything):
        for earlier, moved, layer, gradient in zip(
            layers[:-1], after[: len(layers) - 1], layers[1:], plain[1:], strict=True
        ):
            place(earlier, moved)
            rows.append(_compare(gradient, loss_and_gradient(loss_fn, layer).gradient))
    return CovariateShift(*torch.stack(rows, dim=1))


def _compare(plain: Sequence[Tensor], shifted: Sequence[Tensor]) -> Tensor:
    length = norm(plain)
    return torch.stack([distance(plain, shifted), dot(plain, shifted) / (length * norm(shifted)), length])
