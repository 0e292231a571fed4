"""A walk along a direction on one minibatch: the paper's probe (Santurkar et al. 2018, section 3.2, figure 4)."""

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
    """What the walk theta(s) = theta - s d saw at its S points; P parameter tensors; on the parameters' device.

    g is the gradient at theta. The curves the paper draws from it are in `probe_curves`.
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
    """d_t(s) of each parameter tensor by itself, shape (S, P)."""
    parameter_moved: Tensor
    """s ||d|| of each parameter tensor by itself, shape (S, P)."""
    parameter_norm: Tensor
    """||w|| of each parameter tensor at theta, shape (P,)."""

    def arrays(self) -> dict[str, NDArray]:
        """Every field as a NumPy array, by name; waits for the device."""
        return {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}


def probe_along(
    loss_fn: LossFunction,
    parameters: Iterable[Tensor],
    s: Sequence[float],
    *,
    start: LossAndGradient | None = None,
    direction: Sequence[Tensor] | None = None,
) -> DirectionalProbe:
    """Loss and gradient at theta - s d for every s; the parameters are back at theta, bit for bit, afterwards.

    Costs S + 1 forward-backward passes, or S with `start` given, and no `.grad` is touched. Holds two copies of the
    parameters, theta and g, and a few tensors as large as the largest one: each tensor's gradient at theta(s) is
    compared with g the moment the backward pass has made it, and dropped. A `direction` other than g is the
    caller's third copy.

    Args:
        loss_fn: L on one fixed minibatch, batch normalisation in train mode. Wrap passes through a net in
            `preserve_state.preserve_state`, and a net that draws random numbers in `randomness.with_fixed_rng`.
        parameters: all of them, on one device, float32.
        s: the step sizes, positive, of the same kind as a learning rate (`vgg_steps`, `dln_steps`).
        start: loss and gradient at theta if known, so that several walks from one point share that pass.
        direction: d, shaped like the parameters. The default is g. `vectors.random_direction` gives one of g's
            length; the optimizer's true update is theta_t - theta_{t+1} with s = 1 (mind the sign).

    Raises:
        ValueError: no s, or one that is not positive, or a direction of other shapes.
        RuntimeError: a parameter has no part in the loss.

    Trap: where s ||d|| is below 1e-7 ||theta||, float32 rounding eats the move and the distances mean nothing.
    """
    parameters = list(parameters)
    s = [float(step) for step in s]
    if not s or not all(0 < step < float("inf") for step in s):
        raise ValueError(f"a walk needs step sizes, each positive and finite, not {s}")
    start = loss_and_gradient(loss_fn, parameters) if start is None else start
    direction = start.gradient if direction is None else direction
    if [d.shape for d in direction] != [p.shape for p in parameters]:
        raise ValueError("the direction needs one tensor for each parameter, of its shape")

    views = []
    with restore_parameters(parameters) as theta:
        for step in s:
            with torch.no_grad():
                torch._foreach_copy_(parameters, theta)
                torch._foreach_add_(parameters, list(direction), alpha=-step)
            views.append(_look(loss_fn, parameters, start.gradient))
    losses, distances, lengths, inner = (torch.stack(column) for column in zip(*views, strict=True))

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
    """The paper's range for VGG: [1/2, 4] x eta, log-spaced. The number of points is ours; the paper gives none."""
    return tuple((eta * np.geomspace(1 / 2, 4, points)).tolist())


def dln_steps(eta: float = 1e-6, points: int = 8) -> tuple[float, ...]:
    """The paper's range for the 25-layer deep linear net: [1/100, 30] x eta, log-spaced; eta is 1e-6 or 1e-7."""
    return tuple((eta * np.geomspace(1 / 100, 30, points)).tolist())


def _look(
    loss_fn: LossFunction, parameters: Sequence[Tensor], reference: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss here, and per tensor ||h - g||, ||h||, <h, g> of the gradient h here and the reference g."""
    device = parameters[0].device
    seen = torch.zeros(3, len(parameters), dtype=accumulation_dtype(device), device=device)

    def compare(index: int, gradient: Tensor) -> Tensor:
        g = reference[index]
        seen[:, index] = torch.cat([norms([gradient - g, gradient]), dots([gradient], [g])])
        # autograd.grad keeps what a hook returns: a zero expanded to the shape keeps no memory.
        return gradient.new_zeros(()).expand_as(gradient)

    hooks = [p.register_hook(partial(compare, i)) for i, p in enumerate(parameters)]
    try:
        loss, _ = loss_and_gradient(loss_fn, parameters)
    finally:
        for hook in hooks:
            hook.remove()
    return loss, *seen
