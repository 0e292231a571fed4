"""A convolution whose weight gradient is fast on small maps, too."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = 16  # of the output, at the most
CHANNELS = 64  # in and out, at the least


class Conv2d(nn.Conv2d):
    """torch's convolution; under bf16 autocast on a CPU, the weight gradient of small maps is one matrix product.

    oneDNN's kernel for that gradient is made for large maps. With 512 channels in and out, 3x3, batch 128, it takes
    38.5 ms for 4x4 positions where the matrix product takes 10.3 ms, and 28.6 ms for 2x2 where that takes 1.9 ms (two
    cores with AMX, torch 2.14.1). Above 16 positions, or below 64 channels, it is the faster one.

    The gradient is the same sum of products, in another order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W'), as in torch."""
        if not self._is_slow_in_onednn(x):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.bfloat16()
        return _Convolution.apply(x.bfloat16(), self.weight.bfloat16(), bias, self.stride, self.padding)

    def _is_slow_in_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and min(self.in_channels, self.out_channels) >= CHANNELS
            and (self.groups, self.dilation, self.padding_mode) == (1, (1, 1), "zeros")
            and not isinstance(self.padding, str)
            and self._positions(x) <= POSITIONS
        )

    def _positions(self, x: Tensor) -> int:
        sides = zip(x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        rows, columns = ((side + 2 * int(p) - kernel) // stride + 1 for side, p, kernel, stride in sides)  # type: ignore[call-overload]
        return rows * columns


class _Convolution(torch.autograd.Function):
    """conv2d without dilation and groups; differentiable twice, for its backward is made of differentiable parts."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = nn.grad.conv2d_input(list(x.shape), weight, gradient, ctx.stride, ctx.padding)  # type: ignore[attr-defined]
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(x, gradient, weight.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def weight_gradient(
    x: Tensor, gradient: Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient of a convolution's weight, (outputs, inputs, rows, columns) of that `shape`, as a matrix product.

    Args:
        x: (N, inputs, H, W), what went in; channels_last, or it is copied more slowly.
        gradient: (N, outputs, H', W') of what came out.
        shape: of the weight.
        stride: of the convolution.
        padding: zeros on each side, (above and below, left and right).
    """
    outputs, inputs, rows, columns = shape
    above, left = padding
    padded = functional.pad(x, (left, left, above, above)).permute(0, 2, 3, 1)
    # (N, H', W', rows, columns, inputs): under each position of the output the patch that it was computed from.
    patches = padded.unfold(1, rows, stride[0]).unfold(2, columns, stride[1]).permute(0, 1, 2, 4, 5, 3)
    product = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches.reshape(-1, rows * columns * inputs)
    return product.view(outputs, rows, columns, inputs).permute(0, 3, 1, 2)
