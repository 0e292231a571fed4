"""A convolution that is fast on small maps, too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = 16  # of the output, at the most
CHANNELS = 64  # in and out, at the least
WEIGHTS = 2**20  # from here on all three products, not the weights' gradient only


class Conv2d(nn.Conv2d):
    """torch's convolution; under bf16 autocast on a CPU, small maps are convolved by matrix products.

    oneDNN's kernels are made for large maps. For 3x3 weights, batch 128, two cores with AMX and torch 2.14.1, in
    milliseconds by oneDNN and by a matrix product::

        channels    positions   output          input's gradient   weights' gradient
        512, 512    4x4         10.1    4.8     10.3    5.5        31.9    6.7
        512, 512    2x2          8.4    2.4      8.5    2.6        25.6    1.3
        256, 512    4x4          4.0    2.5      4.3    3.0        14.5    3.4
        256, 256    4x4          1.2    1.4      1.3    1.9         6.6    2.4
        256, 256    8x8          3.2    6.2      3.2    6.6        10.7   10.2

    So the weights' gradient is a product up to 16 positions, and the other two are where the weights do not fit into a
    core's second cache as well. The same sums of products, in another order.
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
    """conv2d without dilation and groups; differentiable twice."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        if weight.numel() < WEIGHTS:
            ctx.save_for_backward(x, weight, None)
            return functional.conv2d(x, weight, bias, stride, padding)
        patches = patches_of(x, weight.shape[2:], stride, padding)
        ctx.save_for_backward(x, weight, patches)
        return convolve(patches, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight, patches = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        again = torch.is_grad_enabled()  # this gradient is to be differentiated, so that it must come from x itself
        if ctx.needs_input_grad[0]:
            by_product = patches is not None and ctx.stride == (1, 1) and not again
            if by_product:
                of_x = input_gradient(weight, gradient, ctx.padding)
            else:
                of_x = nn.grad.conv2d_input(list(x.shape), weight, gradient, ctx.stride, ctx.padding)  # type: ignore[attr-defined]
        if ctx.needs_input_grad[1]:
            if patches is None or again:
                patches = patches_of(x, weight.shape[2:], ctx.stride, ctx.padding)
            of_weight = weight_gradient(patches, gradient, weight.shape)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def patches_of(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """What each position of a convolution's output is computed from: (N, H', W', rows, columns, inputs).

    Args:
        x: (N, inputs, H, W); channels_last, or it is copied more slowly.
        kernel: rows and columns of the weights.
        stride: of the convolution.
        padding: zeros on each side, above and below, left and right; a negative number cuts off.
    """
    above, left = padding
    padded = functional.pad(x, (left, left, above, above)).permute(0, 2, 3, 1)
    patches = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return patches.permute(0, 1, 2, 4, 5, 3).contiguous()


def convolve(patches: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution's output (N, outputs, H', W'), as a product of its patches and weight (outputs, inputs, ...)."""
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(patches.flatten(3), matrix, bias).permute(0, 3, 1, 2)


def input_gradient(weight: Tensor, gradient: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of a convolution's input, given its output's (N, outputs, H', W'); for stride 1.

    It is the gradient's own convolution with the weights turned by half a turn, outputs and inputs exchanged.
    """
    rows, columns = weight.shape[2:]
    patches = patches_of(gradient, (rows, columns), (1, 1), (rows - 1 - padding[0], columns - 1 - padding[1]))
    # (rows, columns, outputs) by inputs: of a channels_last weight this moves whole lines of inputs.
    matrix = weight.permute(2, 3, 0, 1).flip(0, 1).flatten(0, 2)
    return (patches.flatten(3) @ matrix).permute(0, 3, 1, 2)


def weight_gradient(patches: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a convolution's weight, (outputs, inputs, rows, columns) of that `shape`.

    Args:
        patches: of the input.
        gradient: (N, outputs, H', W') of the output.
        shape: of the weight.
    """
    outputs, inputs, rows, columns = shape
    product = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches.flatten(3).flatten(0, 2)
    return product.view(outputs, rows, columns, inputs).permute(0, 3, 1, 2)
