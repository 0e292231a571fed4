"""Compute the loss and its gradient at any point of parameter space, and restore the parameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

LossFunction = Callable[[], Tensor]
"""() -> the scalar loss of a fixed minibatch at the parameters' current values."""


class LossAndGradient(NamedTuple):
    """A scalar loss and its gradient, one tensor for each parameter; detached."""

    loss: Tensor
    gradient: tuple[Tensor, ...]


def loss_and_gradient(loss_fn: LossFunction, parameters: Iterable[Tensor]) -> LossAndGradient:
    """Compute the loss and its gradient at the parameters' current values; no `.grad` is read or written.

    Costs one forward and one backward pass. A parameter that the loss does not depend on has gradient 0.

    Raises:
        RuntimeError: if the loss depends on no parameter at all.
    """
    with torch.enable_grad():
        loss = loss_fn()
    gradient = torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True)
    return LossAndGradient(loss.detach(), gradient)


@contextmanager
def restore_parameters(parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Restore the parameters bit for bit at the end of the block; yield the saved copies.

    Holds one copy of the parameters. (Subtracting the move again would not restore them: in floating point
    theta + v - v differs from theta.)

    Trap: changing parameters in place invalidates a graph whose backward pass has not run yet.
    """
    saved = tuple(p.detach().clone() for p in parameters)
    try:
        yield saved
    finally:
        place(parameters, saved)


@contextmanager
def parameters_at(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Set the parameters to `values` inside the block, and restore them; yield the saved copies."""
    with restore_parameters(parameters) as saved:
        place(parameters, values)
        yield saved


def place(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy the values into the parameters.

    Raises:
        ValueError: if the shapes differ (a plain copy would broadcast silently).
    """
    expected, shapes = [tuple(p.shape) for p in parameters], [tuple(v.shape) for v in values]
    if shapes != expected:
        raise ValueError(f"values have the shapes {shapes}, but the parameters have {expected}")
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
