"""How far an optimizer step, and the change to the next minibatch, move the gradient."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nan

from cifarbn.smoothness.vectors import distance, dot, norm


class GradientChange(NamedTuple):
    """The change of the gradient over one step, as scalars on the parameters' device."""

    change: Tensor
    """c_t = ||grad L_t(theta_{t+1}) - grad L_t(theta_t)||."""
    moved: Tensor
    """||theta_{t+1} - theta_t||."""
    ratio: Tensor
    """change / moved, in units of curvature; NaN if nothing moved."""


def gradient_change(
    gradient_before: Sequence[Tensor],
    gradient_after: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> GradientChange:
    """Return how much an optimizer step changes the gradient of one minibatch.

    The minibatch B_t is the same before and after the step, so the result contains no minibatch noise and no choice of
    step sizes, and is valid for every optimizer.

    Trap: both gradients are of L_t. The gradient that training computes next is of L_{t+1}, see `drift_noise_split`.

    Args:
        gradient_before: grad L_t(theta_t).
        gradient_after: grad L_t(theta_{t+1}).
        before: theta_t.
        after: theta_{t+1}.
    """
    change, moved = distance(gradient_after, gradient_before), distance(after, before)
    return GradientChange(change, moved, change / moved.where(moved > 0, nan))


class DriftNoiseSplit(NamedTuple):
    """Norms and an inner product, scalars on the gradients' device: total^2 = drift^2 + noise^2 + 2 inner."""

    total: Tensor
    """||grad L_{t+1}(theta_{t+1}) - grad L_t(theta_t)||; of the last layer, the course report's Lipschitz_t."""
    drift: Tensor
    """||grad L_{t+1}(theta_{t+1}) - grad L_{t+1}(theta_t)||: the effect of the step, on one minibatch."""
    noise: Tensor
    """||grad L_{t+1}(theta_t) - grad L_t(theta_t)||: the effect of the change of minibatch, at one point."""
    inner: Tensor
    """<drift, noise>, the inner product of the two differences."""


def drift_noise_split(
    grad_t: Sequence[Tensor], grad_next_batch_old_params: Sequence[Tensor], grad_next: Sequence[Tensor]
) -> DriftNoiseSplit:
    """Split the difference of two consecutive gradients into the effect of the step and that of the minibatch.

    The difference is taken via the new minibatch at the old parameters. Going via the old minibatch at the new
    parameters would cost the same but be biased, since theta_{t+1} was computed from B_t. At theta_t both minibatches
    are new, so E noise^2 = 2 tr(Sigma) / |B| exactly if they are independent.

    Args:
        grad_t: grad L_t(theta_t).
        grad_next_batch_old_params: grad L_{t+1}(theta_t), which costs one extra pass.
        grad_next: grad L_{t+1}(theta_{t+1}).
    """
    drift = [new - old for new, old in zip(grad_next, grad_next_batch_old_params, strict=True)]
    noise = [new - old for new, old in zip(grad_next_batch_old_params, grad_t, strict=True)]
    return DriftNoiseSplit(distance(grad_next, grad_t), norm(drift), norm(noise), dot(drift, noise))
