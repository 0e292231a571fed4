"""2x2 max pooling in a single pass over memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.fast.kernels import library, ops


class FastMaxPool2d(nn.MaxPool2d):
    """Max pooling with 2x2 windows and a C kernel for bf16 or fp32 on a CPU; bit-identical to torch's.

    For the gradient, it saves two bytes per window, where torch saves the input and eight bytes. Other inputs use
    torch's max pooling.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H', W'), as in torch."""
        return _MaxPool.apply(x) if self._takes(x) else super().forward(x)

    @staticmethod
    def suits(pool: nn.MaxPool2d) -> bool:
        """Return whether a pool has non-overlapping 2x2 windows, which the kernel supports."""
        return (
            pool.kernel_size in (2, (2, 2))
            and pool.stride in (2, (2, 2))
            and pool.padding in (0, (0, 0))
            and pool.dilation in (1, (1, 1))
            and not (pool.ceil_mode or pool.return_indices)
        )

    def _takes(self, x: Tensor) -> bool:
        # For images smaller than 2x2 torch raises its own error.
        return self.suits(self) and library.takes(x) and min(x.shape[2:]) >= 2


class _MaxPool(torch.autograd.Function):
    """Map (N, C, H, W) in channels_last to (N, C, H // 2, W // 2); twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, which = ops.max_pool(x)
        ctx.save_for_backward(which)
        ctx.sides = x.shape[2:]
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (grad_output,), (which,) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient will be differentiated
            return _spread(grad_output, which, *ctx.sides)
        return ops.max_pool_backward(grad_output.contiguous(memory_format=torch.channels_last), which, *ctx.sides)


def _spread(grad_output: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """Compute the gradient of the input as the kernel does, with operations that torch can differentiate."""
    is_max = functional.one_hot(which.long(), 4)
    windows = grad_output.unsqueeze(-1).expand(*grad_output.shape, 4).masked_fill(is_max == 0, 0)
    spread = windows.unflatten(-1, (2, 2)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return functional.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2]))
