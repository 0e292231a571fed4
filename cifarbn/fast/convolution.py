"""A convolution that is fast on small feature maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.fast.kernels import library, ops

MIN_CHANNELS = 64  # smallest number of input and output channels
MAX_POSITIONS = 16  # largest number of output positions
MANY_OUTPUTS, MAX_POSITIONS_MANY = 256, 64  # in bf16, with at least 256 output channels, up to 64 output positions
MIN_WEIGHTS = 2**20  # in bf16 they fill a core's L2 cache; from this size on, all three matrix products are faster
# In fp32 on a CPU with AVX512, oneDNN's convolution is faster: with matrix products, a step took 1.1 times as long.
FASTER_IN_FP32 = torch.backends.cpu.get_cpu_capability() == "AVX2"


class GemmConv2d(nn.Conv2d):
    """Convolution that uses matrix products for small feature maps in bf16, or fp32 with AVX2, on a CPU; else torch's.

    oneDNN's kernels are optimised for large feature maps. Milliseconds with oneDNN and, in brackets, with a matrix
    product of patches including the time to copy them (3x3 weights, batch 128, torch 2.14.1), in bf16 on two cores
    with AMX, and in fp32 on one core with AVX2::

        channels    positions   output        input's gradient   weights' gradient   weights' gradient, fp32
        512, 512    2x2          9.6 (2.5)     9.9 (3.0)         28.5 (1.7)          312 (51)
        512, 512    4x4         11.6 (4.5)    12.8 (5.3)         35.0 (8.2)          468 (207)
        256, 512    4x4          4.4 (2.3)     4.8 (2.9)         15.4 (4.4)          170 (78)
        256, 256    4x4          1.3 (1.2)     1.3 (1.4)          6.8 (2.4)           70 (38)
        256, 256    8x8          3.4 (4.9)     3.4 (5.3)         10.7 (7.5)          241 (221)
        128, 128    8x8          0.8 (1.5)     0.9 (1.6)          3.2 (3.2)           49 (76)

    The gradient of the weights is therefore a matrix product for up to 16 positions, or in bf16 up to 64 if there are
    at least 256 outputs. In bf16, the output and the gradient of the input are matrix products for up to 16 positions
    if there are at least 2^20 weights; in fp32 they gain little. The sums are the same, in a different order. A 1x1
    convolution gains less: between nothing and half of the time of the weights' gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W'), as in torch."""
        dtype = self._dtype_of_products(x)
        positions = self._positions(x) if dtype else 0
        bf16 = dtype == torch.bfloat16
        many = bf16 and self.out_channels >= MANY_OUTPUTS
        if not 0 < positions <= (MAX_POSITIONS_MANY if many else MAX_POSITIONS):
            return super().forward(x)
        everything = bf16 and self.weight.numel() >= MIN_WEIGHTS and positions <= MAX_POSITIONS
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Convolution.apply(x.to(dtype), self.weight.to(dtype), bias, self.stride, self.padding, everything)

    def _dtype_of_products(self, x: Tensor) -> torch.dtype | None:
        """Return the dtype in which to compute if matrix products may be used, else None."""
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        suitable = (
            x.device.type == "cpu"
            and x.dim() == 4
            and (
                dtype == torch.bfloat16 if autocast else FASTER_IN_FP32 and dtype == self.weight.dtype == torch.float32
            )
            and torch.float64 not in (x.dtype, self.weight.dtype)  # autocast does not convert float64
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and min(self.in_channels, self.out_channels) >= MIN_CHANNELS
            and (self.groups, self.dilation, self.padding_mode) == (1, (1, 1), "zeros")
            and not isinstance(self.padding, str)
            and not library.transforming()
        )
        return dtype if suitable else None

    def _positions(self, x: Tensor) -> int:
        sides = zip(x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        rows, columns = ((side + 2 * int(p) - kernel) // stride + 1 for side, p, kernel, stride in sides)  # type: ignore[call-overload]
        return max(rows, 0) * max(columns, 0)


class _Convolution(torch.autograd.Function):
    """conv2d without dilation and groups, twice differentiable.

    The gradient of the weight is a matrix product; if `everything`, so are the output and the input's gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        everything: bool,
    ) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        patches = patches_of(x, weight.shape[2:], stride, padding, True) if everything else None
        ctx.save_for_backward(x, weight, patches)
        if patches is None:
            return functional.conv2d(x, weight, bias, stride, padding)
        return convolve(patches, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight, patches = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        again = torch.is_grad_enabled()  # this gradient will be differentiated, so it must be computed from x
        if ctx.needs_input_grad[0]:
            if patches is not None and ctx.stride == (1, 1) and not again:
                grad_input = input_gradient(weight, gradient, ctx.padding, True)
            else:
                grad_input = nn.grad.conv2d_input(list(x.shape), weight, gradient, ctx.stride, ctx.padding)  # type: ignore[attr-defined]
        if ctx.needs_input_grad[1]:
            if patches is None or again:
                patches = patches_of(x, weight.shape[2:], ctx.stride, ctx.padding, not again)
            grad_weight = weight_gradient(patches, gradient, weight.shape)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum((0, 2, 3))
        return grad_input, grad_weight, grad_bias, None, None, None


def patches_of(
    x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], kernels: bool = False
) -> Tensor:
    """Return the input patches of all output positions of a convolution: (N, H', W', rows, columns, inputs).

    Args:
        x: (N, inputs, H, W); the copy is faster if it is channels_last.
        size: rows and columns of the weight.
        stride: stride of the convolution.
        padding: (vertical, horizontal) zero padding; negative values crop.
        kernels: whether to use the C kernel if it supports x. It does not propagate gradients.
    """
    if kernels and library.takes(x):
        return ops.patches(x, size, stride, padding)
    above, left = padding
    padded = functional.pad(x, (left, left, above, above)).permute(0, 2, 3, 1)
    patches = padded.unfold(1, size[0], stride[0]).unfold(2, size[1], stride[1])
    return patches.permute(0, 1, 2, 4, 5, 3).contiguous()


def convolve(patches: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute a convolution's output (N, outputs, H', W') from its patches and weight (outputs, inputs, ...)."""
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(patches.flatten(3), matrix, bias).permute(0, 3, 1, 2)


def input_gradient(weight: Tensor, gradient: Tensor, padding: Sequence[int], kernels: bool = False) -> Tensor:
    """Compute the gradient of a stride-1 convolution's input from that of its output, (N, outputs, H', W').

    This is a convolution of the gradient with the weight rotated by 180 degrees, outputs and inputs exchanged.
    """
    rows, columns = weight.shape[2:]
    around = (rows - 1 - padding[0], columns - 1 - padding[1])
    patches = patches_of(gradient, (rows, columns), (1, 1), around, kernels)
    # (rows * columns * outputs, inputs): for a channels_last weight, this copies contiguous lines of inputs.
    matrix = weight.permute(2, 3, 0, 1).flip(0, 1).flatten(0, 2)
    return (patches.flatten(3) @ matrix).permute(0, 3, 1, 2)


def weight_gradient(patches: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Compute the gradient of a convolution's weight.

    Args:
        patches: the patches of the input, see `patches_of`.
        gradient: gradient of the output, (N, outputs, H', W').
        shape: shape of the weight, (outputs, inputs, rows, columns).
    """
    outputs, inputs, rows, columns = shape
    product = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches.flatten(3).flatten(0, 2)
    return product.view(outputs, rows, columns, inputs).permute(0, 3, 1, 2)
