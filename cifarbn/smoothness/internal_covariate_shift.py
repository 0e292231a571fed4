"""Internal covariate shift as Santurkar et al. 2018 (arXiv 1805.11604) define it: definition 2.1, figure 3."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cifarbn.smoothness.evaluation import LossFunction, loss_and_gradient, place, restore_parameters
from cifarbn.smoothness.vectors import distance, dot, norm


class LayerShifts(NamedTuple):
    """The covariate shift of k layers: tensors of shape (k,), on the parameters' device."""

    distance: Tensor
    """||G_{t,i} - G'_{t,i}||; exactly 0 for the first layer, which has no layer before it."""
    cosine: Tensor
    """cos(G_{t,i}, G'_{t,i}); NaN if a gradient is 0."""
    gradient_norm: Tensor
    """||G_{t,i}||."""


def internal_covariate_shift(
    loss_fn: LossFunction, layers: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]]
) -> LayerShifts:
    """Return how much the update of the earlier layers changes each layer's gradient, on one minibatch B_t.

    G_{t,i} = grad_{W_i} L(W_1^t, ..., W_k^t; B_t); G'_{t,i} is the same with W_1 ... W_{i-1} already at step t + 1.
    Costs k forward passes, each with a backward pass down to layer i (for the first, to layer 1). Holds one copy of
    the parameters and one gradient. The parameters are restored bit for bit.

    Args:
        loss_fn: L on B_t, in train mode.
        layers: each layer's parameters, in the order of the forward pass, with their values at theta_t. Parameters
            in no layer stay at theta_t throughout.
        after: their values at theta_{t+1}, nested in the same way; copies, not the parameters themselves.

    Raises:
        ValueError: if `after` is not nested or shaped like `layers`.
    """
    parameters = [w for layer in layers for w in layer]
    remaining = iter(loss_and_gradient(loss_fn, parameters).gradient)
    gradients = [[next(remaining) for _ in layer] for layer in layers]
    rows = [_compare(gradients[0], gradients[0])]
    with restore_parameters(parameters):
        for earlier, updated, layer, gradient in zip(
            layers[:-1], after[: len(layers) - 1], layers[1:], gradients[1:], strict=True
        ):
            place(earlier, updated)
            rows.append(_compare(gradient, loss_and_gradient(loss_fn, layer).gradient))
    return LayerShifts(*torch.stack(rows, dim=1))


def _compare(gradient: Sequence[Tensor], shifted: Sequence[Tensor]) -> Tensor:
    length = norm(gradient)
    return torch.stack([distance(gradient, shifted), dot(gradient, shifted) / (length * norm(shifted)), length])
