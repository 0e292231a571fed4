"""2x2 max pooling that goes over memory once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.fast.kernels import library


class MaxPool2d(nn.MaxPool2d):
    """torch's max pooling; 2x2 windows of bf16 maps on a CPU are pooled by a kernel of our own, bit for bit the same.

    It keeps two bytes for each window for the gradient, where torch keeps the input and eight.

    Attributes:
        kernels: whether the kernel may be used; `Hardware.prepare` says so for a whole net.
    """

    kernels = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W'), as in torch."""
        return _MaxPool.apply(x) if self._takes(x) else super().forward(x)

    def _takes(self, x: Tensor) -> bool:
        return (
            self.kernels
            and (self.kernel_size, self.stride, self.padding, self.dilation) == (2, 2, 0, 1)
            and not (self.ceil_mode or self.return_indices)
            and library.takes(x)
            and min(x.shape[2:]) >= 2  # torch says what is wrong with smaller ones
        )


class _MaxPool(torch.autograd.Function):
    """(N, C, H, W) in bf16 and channels_last -> (N, C, H // 2, W // 2); differentiable twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pictures, channels, height, width = x.shape
        shape = (pictures, channels, height // 2, width // 2)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        which = torch.empty_like(y, dtype=torch.int16)
        library.call("max_pool", pictures, height, width, channels, x, y, which)
        ctx.save_for_backward(which)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (of_y,), (which,) = gradients, ctx.saved_tensors
        pictures, channels, height, width = ctx.shape
        if torch.is_grad_enabled():  # this gradient is to be differentiated
            return _spread(of_y, which, height, width)
        of_x = torch.empty(ctx.shape, dtype=of_y.dtype, device=of_y.device, memory_format=torch.channels_last)
        if height % 2 or width % 2:
            of_x.zero_()  # the last row or column is in no window
        of_y = of_y.contiguous(memory_format=torch.channels_last)
        library.call("max_pool_gradient", pictures, height, width, channels, of_y, which, of_x)
        return of_x


def _spread(of_y: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """What the kernel does to the gradient, by operations that torch can differentiate."""
    windows = of_y.unsqueeze(-1).expand(*of_y.shape, 4).masked_fill(functional.one_hot(which.long(), 4) == 0, 0)
    spread = windows.unflatten(-1, (2, 2)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return functional.pad(spread, (0, width - spread.shape[3], 0, height - spread.shape[2]))
