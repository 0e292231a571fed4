"""The C functions as PyTorch operators, `torch.ops.cifarbn`: checked arguments, a schema, and shapes for torch.compile.

They run on a CPU only, change none of their arguments, and have no gradient of their own: the layers of
`cifarbn.fast` call them inside `torch.autograd.Function`s. With `torch.library.custom_op` and `register_autograd` a
layer's forward call took 53 µs instead of 18, before anything was computed (torch 2.14.1, one core).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cifarbn.fast.kernels import library

BLOCK = 128  # rows whose sums are made together, as in batch_norm.c
NOTHING, RELU, SHORTCUT_RELU = range(3)  # what follows the normalisation, as in batch_norm.c

OPERATORS = torch.library.Library("cifarbn", "FRAGMENT")


def _operator(schema: str, shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes an operator of what it does on a CPU.

    Args:
        schema: name, arguments and results, in the notation of PyTorch's operators.
        shapes: the operator for fake tensors: returns results of the right shape, dtype and layout.
    """
    name = schema.partition("(")[0]

    def define(function: Callable[..., Any]) -> Any:
        OPERATORS.define(schema, tags=torch.Tag.pt2_compliant_tag)
        OPERATORS.impl(name, function, "CPU")
        torch.library.register_fake(f"cifarbn::{name}", shapes, lib=OPERATORS)
        return getattr(torch.ops.cifarbn, name).default

    return define


def _batch_norm_shapes(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    mean, variance, scale, shift = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(4))
    return torch.empty_like(x), mean, variance, torch.empty_like(mean, dtype=torch.float64), scale, shift


@_operator(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool relu, float eps)"
    " -> (Tensor y, Tensor mean, Tensor variance, Tensor inverse, Tensor scale, Tensor shift)",
    _batch_norm_shapes,
)
def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, eps: float
) -> tuple[Tensor, ...]:
    """Normalise by the batch's statistics, then add the residual and apply the ReLU, where these are wanted.

    Args:
        x: (N, C, H, W), as all maps here in bf16 and channels_last.
        weight: (C,).
        bias: (C,).
        residual: of x's shape; only together with `relu`.
        relu: whether a ReLU follows.
        eps: added to the variance.

    Returns:
        y like x; the batch's mean and biased variance, float32; 1 / sqrt(variance + eps), float64; scale and shift,
        float32, with which y = x * scale + shift before residual and ReLU. All but y are (C,).

    Raises:
        ValueError: if an argument has another shape, dtype or layout.
    """
    _check_maps(x, x=x, residual=residual)
    _check_per_channel(x, None, weight=weight, bias=bias)
    if residual is not None and not relu:
        raise ValueError("batch_norm adds a residual only before a ReLU")
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    sums = _sums(rows, channels)
    library.call("moments", rows, channels, x, sums)
    mean, square = sums.sum(0, dtype=torch.float64) / rows
    variance = (square - mean.square()).clamp_(min=0)
    inverse = (variance + eps).rsqrt()
    scale = (weight * inverse).float()
    shift = (bias - mean * weight * inverse).float()
    y = torch.empty_like(x)
    library.call("normalize", _following(residual, relu), rows, channels, x, residual, scale, shift, y)
    return y, mean.float(), variance.float(), inverse, scale, shift


def _batch_norm_backward_shapes(grad_output: Tensor, x: Tensor, y: Tensor | None, mean: Tensor, *_: Any) -> Any:
    grad_residual = x.new_empty(0) if y is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean), grad_residual


@_operator(
    "batch_norm_backward(Tensor grad_output, Tensor x, Tensor? y, Tensor mean, Tensor inverse, Tensor scale,"
    " Tensor shift, bool relu) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _batch_norm_backward_shapes,
)
def batch_norm_backward(
    grad_output: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of `batch_norm`'s tensors; that of the residual is empty where y is None.

    Args:
        grad_output: of y, in its layout.
        x: the input.
        y: the output, if a residual was added: it says what the ReLU let through.
        mean: as `batch_norm` has returned it.
        inverse: likewise.
        scale: likewise.
        shift: likewise.
        relu: as given to `batch_norm`.

    Raises:
        ValueError: if an argument has another shape, dtype or layout.
    """
    _check_maps(x, grad_output=grad_output, x=x, y=y)
    _check_per_channel(x, torch.float32, mean=mean, scale=scale, shift=shift)
    _check_per_channel(x, torch.float64, inverse=inverse)
    following = _following(y, relu)
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    sums = _sums(rows, channels)
    grad_residual = x.new_empty(0) if y is None else torch.empty_like(x)
    library.call("gradient_sums", following, rows, channels, grad_output, x, y, mean, scale, shift, grad_residual, sums)
    grad_bias, product = sums.sum(0, dtype=torch.float64)
    grad_weight = product * inverse
    # weight * inverse * (gradient - mean of gradient - (x - mean) * inverse^2 * mean of product), in terms of x
    slope = -scale * inverse * grad_weight / rows
    offset = -scale * grad_bias / rows - slope * mean
    grad_x = torch.empty_like(x)
    reaching = grad_output if y is None else grad_residual
    library.call(
        "gradient", following, rows, channels, reaching, x, scale, shift, slope.float(), offset.float(), grad_x
    )
    return grad_x, grad_weight.float(), grad_bias.float(), grad_residual


def _max_pool_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    y = x.new_empty(images, channels, height // 2, width // 2).contiguous(memory_format=torch.channels_last)
    return y, torch.empty_like(y, dtype=torch.int16)


@_operator("max_pool(Tensor x) -> (Tensor y, Tensor which)", _max_pool_shapes)
def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value of each 2x2 window, and its place in the window, 0 to 3.

    Args:
        x: (N, C, H, W) in bf16 and channels_last, H and W at least 2. An odd side's last row or column is in no window.

    Raises:
        ValueError: if x has another shape, dtype or layout.
    """
    _check_maps(x, x=x)
    images, channels, height, width = x.shape
    if min(height, width) < 2:
        raise ValueError(f"max_pool takes images of at least 2x2, not {height}x{width}")
    shape = images, channels, height // 2, width // 2
    y = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
    which = torch.empty_like(y, dtype=torch.int16)
    library.call("max_pool", images, height, width, channels, x, y, which)
    return y, which


def _max_pool_backward_shapes(grad_output: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    grad_x = grad_output.new_empty(*grad_output.shape[:2], height, width)
    return grad_x.contiguous(memory_format=torch.channels_last)


@_operator(
    "max_pool_backward(Tensor grad_output, Tensor which, SymInt height, SymInt width) -> Tensor",
    _max_pool_backward_shapes,
)
def max_pool_backward(grad_output: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient of `max_pool`'s input (N, C, height, width).

    Args:
        grad_output: (N, C, height // 2, width // 2) in bf16 and channels_last.
        which: as `max_pool` has returned it.
        height: of the input.
        width: of the input.

    Raises:
        ValueError: if an argument has another shape, dtype or layout.
    """
    _check_maps(grad_output, grad_output=grad_output)
    _check_maps(grad_output, torch.int16, which=which)
    images, channels, *sides = grad_output.shape
    if sides != [height // 2, width // 2]:
        raise ValueError(f"max_pool_backward: the gradient of {sides} windows is not that of {height}x{width} values")
    shape = images, channels, height, width
    grad_x = torch.empty(shape, dtype=grad_output.dtype, device="cpu", memory_format=torch.channels_last)
    if height % 2 or width % 2:
        grad_x.zero_()  # the last row or column is in no window
    library.call("max_pool_gradient", images, height, width, channels, grad_output, which, grad_x)
    return grad_x


def _patches_shapes(x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], *_positions(x, size, stride, padding), *size, x.shape[1])


@_operator("patches(Tensor x, SymInt[2] size, SymInt[2] stride, SymInt[2] padding) -> Tensor", _patches_shapes)
def patches(x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Return what each position of a convolution's output is computed from: (N, H', W', rows, columns, C).

    Args:
        x: (N, C, H, W) in bf16 and channels_last.
        size: rows and columns of the weight.
        stride: of the convolution.
        padding: zeros above and below, left and right; a negative number cuts off.

    Raises:
        ValueError: if x has another shape, dtype or layout, or there is no such position.
    """
    _check_maps(x, x=x)
    out = _positions(x, size, stride, padding) if min(*size, *stride) > 0 else [0]
    if min(out) < 1:
        raise ValueError(f"patches of {list(size)}, stride {list(stride)}: none in {list(x.shape)} padded by {padding}")
    found = torch.empty(x.shape[0], *out, *size, x.shape[1], dtype=x.dtype, device="cpu")
    library.call("patches", x.shape[0], *x.shape[2:], x.shape[1], *out, *size, *stride, *padding, x, found)
    return found


def _positions(x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [(side + 2 * p - k) // s + 1 for side, p, k, s in zip(x.shape[2:], padding, size, stride, strict=True)]


def _following(residual: Tensor | None, relu: bool) -> int:
    return SHORTCUT_RELU if residual is not None else RELU if relu else NOTHING


def _sums(rows: int, channels: int) -> Tensor:
    return torch.empty(-(-rows // BLOCK), 2, channels, dtype=torch.float32, device="cpu")


def _check_maps(like: Tensor, dtype: torch.dtype = torch.bfloat16, **maps: Tensor | None) -> None:
    """Raise ValueError unless all maps are (N, C, H, W), of one shape, in this dtype and channels_last."""
    for name, x in maps.items():
        if x is None:
            continue
        if x.dtype != dtype or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            kind = f"{x.dtype}, shape {list(x.shape)}, strides {list(x.stride())}"
            raise ValueError(f"{name} must be (N, C, H, W) in {dtype} and channels_last, not {kind}")
        if x.shape != like.shape:
            raise ValueError(f"{name} has the shape {list(x.shape)}, not {list(like.shape)}")


def _check_per_channel(x: Tensor, dtype: torch.dtype | None, **vectors: Tensor) -> None:
    """Raise ValueError unless all vectors have a value for each channel of x, contiguous if a dtype is given."""
    for name, vector in vectors.items():
        if vector.shape != x.shape[1:2]:
            raise ValueError(f"{name} must have a value for each of {x.shape[1]} channels, not {list(vector.shape)}")
        if dtype and (vector.dtype != dtype or not vector.is_contiguous()):
            raise ValueError(f"{name} must be contiguous and in {dtype}, not {vector.dtype}")
