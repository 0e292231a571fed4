"""Losses, gradients and moments of the global batch, from the share of it that each process holds."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cifarbn.smoothness.evaluation import LossFunction


def processes() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def over_global_batch(loss_fn: LossFunction, parameters: Iterable[Tensor]) -> Iterator[LossFunction]:
    """Yield a loss function whose loss and gradients are those of the global batch, the same on every process.

    Every process must evaluate it equally often. Its gradients are right for `torch.autograd.grad` and `backward`
    with respect to these parameters; second derivatives are not supported.

    Args:
        loss_fn: the mean loss over this process's share of the batch; shares have the same size.
        parameters: all that a gradient may be asked for.
    """
    if processes() == 1:
        yield loss_fn
        return
    hooks = [p.register_hook(mean_over_processes) for p in parameters if p.requires_grad]
    try:
        yield lambda: _MeanLoss.apply(loss_fn())
    finally:
        for hook in hooks:
            hook.remove()


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; the tensor itself in a single one."""
    if processes() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation of the values of all processes, which have equally many."""
    if processes() == 1:
        return values.mean(), values.std()
    mean = mean_over_processes(values.mean())
    variance = mean_over_processes((values - mean).square().mean())
    count = len(values) * processes()
    return mean, (variance * count / (count - 1)).sqrt()


class _MeanLoss(torch.autograd.Function):
    """The mean of the loss over processes; its gradient is this process's until a parameter's hook averages it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return mean_over_processes(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
