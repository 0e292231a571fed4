"""How far a true optimizer step, and a change of minibatch, move the gradient: controls for the report's curves."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cifarbn.smoothness.vectors import distance, dot, norm


class StepChange(NamedTuple):
    """Scalars on the parameters' device."""

    change: Tensor
    """c_t = ||grad L_t(theta_{t+1}) - grad L_t(theta_t)||."""
    moved: Tensor
    """||theta_{t+1} - theta_t||."""
    ratio: Tensor
    """change / moved, units of curvature; NaN where nothing moved."""


def step_change(
    gradient_before: Sequence[Tensor],
    gradient_after: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> StepChange:
    """The same-batch step change: one minibatch B_t, its gradient at theta_t and at theta_{t+1}, and both points.

    Free of minibatch noise and of any choice of s, so valid for momentum and Adam too (a control of ours).
    Trap: both gradients are of L_t. The next step's own gradient is of L_{t+1}: see `drift_noise_split`.
    """
    change, moved = distance(gradient_after, gradient_before), distance(after, before)
    return StepChange(change, moved, change / moved.where(moved > 0, torch.nan))


class ConsecutiveSplit(NamedTuple):
    """Norms, and one inner product: total^2 = drift^2 + noise^2 + 2 inner. Scalars on the gradients' device."""

    total: Tensor
    """||grad L_{t+1}(theta_{t+1}) - grad L_t(theta_t)||; of the last layer's weight alone, the report's Lipschitz_t."""
    drift: Tensor
    """||grad L_{t+1}(theta_{t+1}) - grad L_{t+1}(theta_t)||: the step's doing, on one minibatch."""
    noise: Tensor
    """||grad L_{t+1}(theta_t) - grad L_t(theta_t)||: the minibatch's doing, at one point."""
    inner: Tensor
    """<drift, noise>."""


def drift_noise_split(
    now: Sequence[Tensor], crossed: Sequence[Tensor], following: Sequence[Tensor]
) -> ConsecutiveSplit:
    """What the difference of two consecutive steps' gradients owes to the step and what to the change of minibatch.

    The difference passes through the new minibatch at the old parameters. The other way round, through the old
    minibatch at the new parameters, would cost no more but be biased: theta_{t+1} was made from B_t. At theta_t
    both minibatches are fresh, so E noise^2 = 2 tr(Sigma) / |B| exactly for independent ones.

    Args:
        now: grad L_t(theta_t).
        crossed: grad L_{t+1}(theta_t), the one extra pass.
        following: grad L_{t+1}(theta_{t+1}).
    """
    drift = [f - c for f, c in zip(following, crossed, strict=True)]
    noise = [c - n for c, n in zip(crossed, now, strict=True)]
    return ConsecutiveSplit(distance(following, now), norm(drift), norm(noise), dot(drift, noise))
