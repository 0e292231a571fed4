"""Probe the loss and its gradient along a direction, on one minibatch.

This is the measurement of Santurkar et al. 2018 (arXiv 1805.11604), section 3.2 and figure 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.smoothness.evaluation import LossAndGradient, LossFunction, loss_and_gradient, restore_parameters
from cifarbn.smoothness.vectors import accumulation_dtype, dots, norms


@dataclass(frozen=True)
class DirectionalProbe:
    """Loss and gradient at the S points theta(s) = theta - s d, for P parameter tensors, on the parameters' device.

    g is the gradient at theta. `probe_curves` computes the measures of Santurkar et al. from it.
    """

    s: Tensor
    """Shape (S,)."""
    distance_moved: Tensor
    """s ||d||, shape (S,)."""
    loss_at_start: Tensor
    """L(theta), scalar."""
    gradient_norm: Tensor
    """||g||, scalar."""
    loss: Tensor
    """L(theta(s)), shape (S,)."""
    gradient_distance: Tensor
    """d_t(s) = ||grad L(theta(s)) - g||, shape (S,)."""
    cosine: Tensor
    """cos(grad L(theta(s)), g), shape (S,)."""
    parameter_distance: Tensor
    """d_t(s) of each parameter tensor, shape (S, P)."""
    parameter_moved: Tensor
    """s ||d|| of each parameter tensor, shape (S, P)."""
    parameter_norm: Tensor
    """||w|| of each parameter tensor at theta, shape (P,)."""

    def arrays(self) -> dict[str, NDArray]:
        """Return every field as a NumPy array, by name; waits for the device."""
        return {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}


def probe_along(
    loss_fn: LossFunction,
    parameters: Iterable[Tensor],
    s: Sequence[float],
    *,
    start: LossAndGradient | None = None,
    direction: Sequence[Tensor] | None = None,
) -> DirectionalProbe:
    """Compute loss and gradient at theta - s d for every s, and restore the parameters bit for bit.

    Costs S + 1 forward and backward passes, or S if `start` is given; no `.grad` is read or written. Holds two copies
    of the parameters, theta and g, and a few tensors as large as the largest parameter: each parameter's gradient is
    compared with g as soon as the backward pass has computed it, and then freed.

    Trap: if s ||d|| is below 1e-7 ||theta||, float32 rounding exceeds the move and the distances are meaningless.

    Args:
        loss_fn: L on one fixed minibatch, see `minibatch_loss.minibatch_loss`.
        parameters: all of them, on one device.
        s: the step sizes, positive, in the same units as a learning rate, such as `vgg_steps()`.
        start: loss and gradient at theta, if known; saves one pass.
        direction: d, one tensor per parameter; the default is g. `vectors.random_direction` returns one of the length
            of g. The optimizer's update is theta_t - theta_{t+1} with s = 1 (note the sign).

    Raises:
        ValueError: if there is no s, an s is not positive, or the direction's shapes differ from the parameters'.
    """
    parameters = list(parameters)
    s = [float(step) for step in s]
    if not s or not all(0 < step < float("inf") for step in s):
        raise ValueError(f"step sizes must be positive and finite, and at least one, not {s}")
    start = loss_and_gradient(loss_fn, parameters) if start is None else start
    direction = start.gradient if direction is None else direction
    if [d.shape for d in direction] != [p.shape for p in parameters]:
        raise ValueError("direction must have one tensor for each parameter, of the same shape")

    points = []
    with restore_parameters(parameters) as theta:
        for step in s:
            with torch.no_grad():
                torch._foreach_copy_(parameters, theta)
                torch._foreach_add_(parameters, list(direction), alpha=-step)
            points.append(_compare(loss_fn, parameters, start.gradient))
    losses, distances, lengths, inner = (torch.stack(column) for column in zip(*points, strict=True))

    sizes = torch.tensor(s, dtype=distances.dtype, device=distances.device)
    parameter_moved = sizes[:, None] * norms(direction)
    gradient_norm = torch.linalg.vector_norm(norms(start.gradient))
    return DirectionalProbe(
        s=sizes,
        distance_moved=torch.linalg.vector_norm(parameter_moved, dim=1),
        loss_at_start=start.loss,
        gradient_norm=gradient_norm,
        loss=losses,
        gradient_distance=torch.linalg.vector_norm(distances, dim=1),
        cosine=inner.sum(1) / (torch.linalg.vector_norm(lengths, dim=1) * gradient_norm),
        parameter_distance=distances,
        parameter_moved=parameter_moved,
        parameter_norm=norms(parameters),
    )


def vgg_steps(eta: float = 0.1, points: int = 8) -> tuple[float, ...]:
    """Return the step sizes of Santurkar et al. for VGG: [1/2, 4] x eta, log-spaced; they state no number of points."""
    return tuple((eta * np.geomspace(1 / 2, 4, points)).tolist())


def dln_steps(eta: float = 1e-6, points: int = 8) -> tuple[float, ...]:
    """Return the step sizes of Santurkar et al. for the 25-layer deep linear network: [1/100, 30] x eta, log-spaced."""
    return tuple((eta * np.geomspace(1 / 100, 30, points)).tolist())


def _compare(
    loss_fn: LossFunction, parameters: Sequence[Tensor], reference: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss, and per tensor ||h - g||, ||h||, <h, g> of the current gradient h and the reference g."""
    device = parameters[0].device
    values = torch.zeros(3, len(parameters), dtype=accumulation_dtype(device), device=device)

    def on_gradient(index: int, gradient: Tensor) -> Tensor:
        g = reference[index]
        values[:, index] = torch.cat([norms([gradient - g, gradient]), dots([gradient], [g])])
        # autograd.grad keeps the tensor that a hook returns; an expanded zero takes no memory.
        return gradient.new_zeros(()).expand_as(gradient)

    hooks = [p.register_hook(partial(on_gradient, i)) for i, p in enumerate(parameters)]
    try:
        loss, _ = loss_and_gradient(loss_fn, parameters)
    finally:
        for hook in hooks:
            hook.remove()
    return loss, *values
