"""The C kernels as PyTorch operators, `torch.ops.cifarbn`, with checked arguments, schemas and fake implementations.

They run on a CPU only, do not modify their arguments, and do not compute gradients: the layers of `cifarbn.fast` call
them inside `torch.autograd.Function`s, where grad mode is off. With grad mode on, an operator raises RuntimeError if a
tensor requires a gradient. `torch.library.custom_op` with `register_autograd` is not used because of its overhead: 53
instead of 18 µs per forward call of a layer (torch 2.14.1, one core).
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from cifarbn.fast.kernels import library

BLOCK = 128  # rows per block of sums, as in batch_norm.c
NOTHING, RELU, RESIDUAL_RELU = range(3)  # the operations that follow the normalisation, as in batch_norm.c

OPERATORS = torch.library.Library("cifarbn", "FRAGMENT")


def _operator(schema: str, shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that registers a function as an operator's CPU implementation.

    Args:
        schema: the operator's schema, in PyTorch's notation.
        shapes: the implementation for fake tensors: returns results of the right shape, dtype and layout.
    """
    name = schema.partition("(")[0]

    def define(function: Callable[..., Any]) -> Any:
        OPERATORS.define(schema, tags=torch.Tag.pt2_compliant_tag)
        OPERATORS.impl(name, function, "CPU")
        torch.library.register_fake(f"cifarbn::{name}", shapes, lib=OPERATORS)
        operator = getattr(torch.ops.cifarbn, name).default
        OPERATORS.impl(name, _without_gradient(operator), "Autograd", with_keyset=True)
        return operator

    return define


def _without_gradient(operator: Any) -> Callable[..., Any]:
    """Return the operator's autograd implementation, which raises RuntimeError if a gradient would be lost."""

    def compute(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments):
            raise RuntimeError(
                f"{operator} does not compute gradients; use the layers of cifarbn.fast, or call it in torch.no_grad()"
            )
        return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    return compute


def _batch_norm_shapes(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    statistics = x.new_empty(4, x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), statistics, x.new_empty(x.shape[1], dtype=torch.float64)


@_operator(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool relu, float eps)"
    " -> (Tensor y, Tensor statistics, Tensor inverse)",
    _batch_norm_shapes,
)
def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the batch's statistics, then optionally add a residual and apply a ReLU.

    Args:
        x: (N, C, H, W), bf16 or float32, channels_last.
        weight: (C,), float32.
        bias: (C,), float32.
        residual: like x, or None; requires `relu`.
        relu: whether to apply a ReLU.
        eps: added to the variance.

    Returns:
        y, like x; statistics (4, C), float32: the batch's mean, biased variance, scale and shift, such that
        y = x * scale + shift before the residual and ReLU; 1 / sqrt(variance + eps), (C,), float64.

    Raises:
        ValueError: If an argument has the wrong shape, dtype or layout.
    """
    _check_maps(x, x=x, residual=residual)
    channels = x.shape[1]
    _check_values((channels,), torch.float32, weight=weight, bias=bias)
    if residual is not None and not relu:
        raise ValueError("batch_norm adds a residual only before a ReLU")
    rows = x.numel() // channels
    sums, pivot = _sums(rows, channels), torch.zeros(channels) if x.dtype == torch.bfloat16 else x[0, :, 0, 0]
    library.call("moments", x.dtype, rows, channels, x, pivot, sums)
    statistics = torch.empty(4, channels, dtype=torch.float32, device="cpu")
    inverse = torch.empty(channels, dtype=torch.float64, device="cpu")
    total = sums.sum(0, dtype=torch.float64)
    library.call("batch_statistics", x.dtype, rows, channels, total, pivot, weight, bias, eps, statistics, inverse)
    y = torch.empty_like(x)
    library.call("normalize", x.dtype, _following(residual, relu), rows, channels, x, residual, statistics, y)
    return y, statistics, inverse


def _batch_norm_backward_shapes(grad_output: Tensor, x: Tensor, y: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    grad_weight, grad_bias = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), grad_weight, grad_bias, x.new_empty(0) if y is None else torch.empty_like(x)


@_operator(
    "batch_norm_backward(Tensor grad_output, Tensor x, Tensor? y, Tensor statistics, Tensor inverse, bool relu)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _batch_norm_backward_shapes,
)
def batch_norm_backward(
    grad_output: Tensor, x: Tensor, y: Tensor | None, statistics: Tensor, inverse: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `batch_norm`'s x, weight, bias and residual (empty if y is None).

    Args:
        grad_output: gradient of y, like y.
        x: the input.
        y: the output if a residual was added, else None; gives the mask of the ReLU.
        statistics: the statistics that `batch_norm` returned.
        inverse: 1 / sqrt(variance + eps), as returned by `batch_norm`.
        relu: whether a ReLU was applied.

    Raises:
        ValueError: If an argument has the wrong shape, dtype or layout.
    """
    _check_maps(x, grad_output=grad_output, x=x, y=y)
    channels = x.shape[1]
    _check_values((4, channels), torch.float32, statistics=statistics)
    _check_values((channels,), torch.float64, inverse=inverse)
    if y is not None and not relu:
        raise ValueError("batch_norm_backward takes y only with a ReLU")
    following, rows = _following(y, relu), x.numel() // channels
    sums = _sums(rows, channels)
    grad_residual = x.new_empty(0) if y is None else torch.empty_like(x)
    maps = grad_output, x, y, statistics, grad_residual
    library.call("gradient_sums", x.dtype, following, rows, channels, *maps, sums)
    grad_weight, grad_bias, x_scale, offset = (torch.empty_like(inverse, dtype=torch.float32) for _ in range(4))
    coefficients = grad_weight, grad_bias, x_scale, offset
    total = sums.sum(0, dtype=torch.float64)
    library.call("gradient_coefficients", x.dtype, rows, channels, total, statistics, inverse, *coefficients)
    grad_x = torch.empty_like(x)
    reaching = grad_output if y is None else grad_residual
    library.call("gradient", x.dtype, following, rows, channels, reaching, x, statistics, x_scale, offset, grad_x)
    return grad_x, grad_weight, grad_bias, grad_residual


def _max_pool_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    y = x.new_empty(images, channels, height // 2, width // 2).contiguous(memory_format=torch.channels_last)
    return y, torch.empty_like(y, dtype=torch.int16)


@_operator("max_pool(Tensor x) -> (Tensor y, Tensor which)", _max_pool_shapes)
def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value of each 2x2 window, and its index in the window (0 to 3).

    Args:
        x: (N, C, H, W), bf16 or float32, channels_last, H and W at least 2. If H or W is odd, its last row or column is
            dropped.

    Raises:
        ValueError: If x has the wrong shape, dtype or layout.
    """
    _check_maps(x, x=x)
    images, channels, height, width = x.shape
    if min(height, width) < 2:
        raise ValueError(f"max_pool takes images of at least 2x2, not {height}x{width}")
    shape = images, channels, height // 2, width // 2
    y = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
    which = torch.empty_like(y, dtype=torch.int16)
    library.call("max_pool", x.dtype, images, height, width, channels, x, y, which)
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
        grad_output: (N, C, height // 2, width // 2), bf16 or float32, channels_last.
        which: the indices that `max_pool` returned.
        height: height of the input.
        width: width of the input.

    Raises:
        ValueError: If an argument has the wrong shape, dtype or layout.
    """
    _check_maps(grad_output, grad_output=grad_output)
    _check_maps(grad_output, (torch.int16,), which=which)
    images, channels, *sides = grad_output.shape
    if sides != [height // 2, width // 2]:
        raise ValueError(
            f"max_pool_backward: a gradient of {sides} windows does not match an input of {height}x{width}"
        )
    shape = images, channels, height, width
    grad_x = torch.empty(shape, dtype=grad_output.dtype, device="cpu", memory_format=torch.channels_last)
    if height % 2 or width % 2:
        grad_x.zero_()  # the last row or column belongs to no window
    library.call("max_pool_gradient", grad_output.dtype, images, height, width, channels, grad_output, which, grad_x)
    return grad_x


def _patches_shapes(x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], *_positions(x, size, stride, padding), *size, x.shape[1])


@_operator("patches(Tensor x, SymInt[2] size, SymInt[2] stride, SymInt[2] padding) -> Tensor", _patches_shapes)
def patches(x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Return the input patches of all output positions of a convolution: (N, H', W', rows, columns, C).

    Args:
        x: (N, C, H, W), bf16 or float32, channels_last.
        size: rows and columns of the weight.
        stride: stride of the convolution.
        padding: (vertical, horizontal) zero padding; negative values crop.

    Raises:
        ValueError: If x has the wrong shape, dtype or layout, or the output would be empty.
    """
    _check_maps(x, x=x)
    out = _positions(x, size, stride, padding) if min(*size, *stride) > 0 else [0]
    if min(out) < 1:
        raise ValueError(f"no patches of {list(size)}, stride {list(stride)}, in {list(x.shape)} padded by {padding}")
    result = torch.empty(x.shape[0], *out, *size, x.shape[1], dtype=x.dtype, device="cpu")
    library.call("patches", x.dtype, x.shape[0], *x.shape[2:], x.shape[1], *out, *size, *stride, *padding, x, result)
    return result


def _positions(x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [(side + 2 * p - k) // s + 1 for side, p, k, s in zip(x.shape[2:], padding, size, stride, strict=True)]


def _following(residual: Tensor | None, relu: bool) -> int:
    return RESIDUAL_RELU if residual is not None else RELU if relu else NOTHING


def _sums(rows: int, channels: int) -> Tensor:
    return torch.empty(-(-rows // BLOCK), 2, channels, dtype=torch.float32, device="cpu")


def _check_maps(like: Tensor, dtypes: Collection[torch.dtype] = library.TYPES, **maps: Tensor | None) -> None:
    """Raise ValueError unless all maps are (N, C, H, W) with C > 0, channels_last, of equal shape and of one dtype."""
    dtype = like.dtype if like.dtype in dtypes else None
    for name, x in maps.items():
        if x is None:
            continue
        if x.dtype not in dtypes or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            kind = f"{x.dtype}, shape {list(x.shape)}, strides {list(x.stride())}"
            expected = " or ".join(map(str, dtypes))
            raise ValueError(f"{name} must be (N, C, H, W) in {expected} and channels_last, not {kind}")
        if dtype not in (None, x.dtype):
            raise ValueError(f"{name} is in {x.dtype}, not {dtype}")
        if x.shape[1] == 0:
            raise ValueError(f"{name} must have at least one channel, not the shape {list(x.shape)}")
        if x.shape != like.shape:
            raise ValueError(f"{name} has the shape {list(x.shape)}, not {list(like.shape)}")


def _check_values(shape: tuple[int, ...], dtype: torch.dtype, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have this shape and dtype, and are contiguous."""
    for name, x in tensors.items():
        if x.shape != shape or x.dtype != dtype or not x.is_contiguous():
            kind = f"{x.dtype}, shape {list(x.shape)}, strides {list(x.stride())}"
            raise ValueError(f"{name} must be {shape} in {dtype} and contiguous, not {kind}")
