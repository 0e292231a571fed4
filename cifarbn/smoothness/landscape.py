"""Slices through the loss landscape in directions that respect each filter's scale (Li et al. 2018)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cifarbn.smoothness.evaluation import LossFunction, restore_parameters


def filter_normalised_direction(parameters: Iterable[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """A Gaussian direction with, per output filter, d_ij <- d_ij / ||d_ij|| * ||w_ij|| (Li et al. 2018, section 4).

    A filter is one entry of a weight's first axis (a row, in a linear layer). Biases and BN parameters, all 1-D,
    get 0. Drawn on the generator's device, then moved.
    """
    direction = []
    for w in parameters:
        if w.dim() < 2:
            direction.append(torch.zeros_like(w, requires_grad=False))
            continue
        d = torch.randn(w.shape, generator=generator, device=generator.device).to(w.device, w.dtype)
        wanted, has = (t.detach().flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)) for t in (w, d))
        direction.append(d * (wanted / has))
    return tuple(direction)


def line(
    loss_fn: LossFunction, parameters: Iterable[Tensor], direction: Sequence[Tensor], a: Sequence[float]
) -> Tensor:
    """f(a) = L(theta + a d), shape (A,); see `surface`."""
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
    """f(a, b) = L(theta + a d1 + b d2) on a grid, shape (A, B): row by a, column by b.

    A * B forward passes without gradients; the parameters are back at theta, bit for bit, afterwards. Holds one
    copy of the parameters beside the two directions.

    Trap: in train mode every pass moves BN's running statistics (`preserve_state.preserve_state`), and train and eval
    mode have different landscapes: store which with the result.
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
