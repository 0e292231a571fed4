"""One- and two-dimensional slices of the loss in filter-normalised directions (Li et al. 2018, arXiv 1712.09913)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cifarbn.smoothness.evaluation import LossFunction, restore_parameters


def filter_normalised_direction(parameters: Iterable[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return a Gaussian direction scaled per output filter: d_ij <- d_ij / ||d_ij|| * ||w_ij|| (Li et al., section 4).

    A filter is one entry along the first axis of a weight (in a linear layer, a row). Biases and the parameters of
    normalisations, all one-dimensional, get 0. Drawn on the generator's device, then moved to the parameters'.
    """
    direction = []
    for w in parameters:
        if w.dim() < 2:
            direction.append(torch.zeros_like(w, requires_grad=False))
            continue
        d = torch.randn(w.shape, generator=generator, device=generator.device).to(w.device, w.dtype)
        target, length = (t.detach().flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)) for t in (w, d))
        direction.append(d * (target / length))
    return tuple(direction)


def line(
    loss_fn: LossFunction, parameters: Iterable[Tensor], direction: Sequence[Tensor], a: Sequence[float]
) -> Tensor:
    """Compute f(a) = L(theta + a d), shape (A,); see `surface`."""
    parameters = list(parameters)
    with restore_parameters(parameters) as theta:
        return torch.stack([_loss_at(loss_fn, parameters, theta, (x, direction)) for x in a])


def surface(
    loss_fn: LossFunction,
    parameters: Iterable[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    a: Sequence[float],
    b: Sequence[float],
) -> Tensor:
    """Compute f(a, b) = L(theta + a d1 + b d2) on a grid, shape (A, B): rows by a, columns by b.

    Costs A * B forward passes without gradients and holds one copy of the parameters, which are restored bit for bit.

    Trap: in train mode every pass changes the running statistics of batch norm (`preserve_state` restores them). Train
    and eval mode have different landscapes: store the mode with the result.
    """
    parameters = list(parameters)
    with restore_parameters(parameters) as theta:
        losses = [_loss_at(loss_fn, parameters, theta, (x, first), (y, second)) for x in a for y in b]
    return torch.stack(losses).view(len(a), len(b))


@torch.no_grad()
def _loss_at(
    loss_fn: LossFunction,
    parameters: list[Tensor],
    theta: Sequence[Tensor],
    *moves: tuple[float, Sequence[Tensor]],
) -> Tensor:
    torch._foreach_copy_(parameters, list(theta))
    for size, direction in moves:
        torch._foreach_add_(parameters, list(direction), alpha=size)
    return loss_fn()
