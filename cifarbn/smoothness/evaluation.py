"""The loss and its gradient at any point of parameter space, with the parameters back in place afterwards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

LossFunction = Callable[[], Tensor]


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
    """Lets the block move the parameters and puts them back bit for bit; yields the saved copies.

    Copies back, for in floating point theta - v + v is not theta. Holds one copy of the parameters.
    Trap: moving parameters in place invalidates a graph that still waits for its backward pass.
    """
    saved = tuple(p.detach().clone() for p in parameters)
    try:
        yield saved
    finally:
        place(parameters, saved)


@contextmanager
def parameters_at(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """`restore_parameters`, with the parameters at `values` inside the block."""
    with restore_parameters(parameters) as saved:
        place(parameters, values)
        yield saved


def place(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies the values into the parameters.

    Raises:
        ValueError: the shapes differ (a copy would broadcast without a word).
    """
    shapes, given = [p.shape for p in parameters], [v.shape for v in values]
    if shapes != given:
        raise ValueError(f"parameters of shapes {shapes} cannot take values of shapes {given}")
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
