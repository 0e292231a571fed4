"""The C functions as PyTorch operators, `torch.ops.cifarbn`: checked arguments, a schema, and shapes for torch.compile.

They run on a CPU only, change none of their arguments, and have no gradient of their own: the layers of
`cifarbn.fast` call them inside `torch.autograd.Function`s, where grad mode is off. Elsewhere an operator raises
RuntimeError for a tensor that requires a gradient. With `torch.library.custom_op` and `register_autograd` a
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
        operator = getattr(torch.ops.cifarbn, name).default
        OPERATORS.impl(name, _without_gradient(operator), "Autograd", with_keyset=True)
        return operator

    return define


def _without_gradient(operator: Any) -> Callable[..., Any]:
    """Return the operator for autograd: it raises where a gradient would be lost, and computes otherwise."""

    def compute(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments):
            raise RuntimeError(
                f"{operator} has no gradient: use the layers of cifarbn.fast, or call it under torch.no_grad()"
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
    """Normalise by the batch's statistics, then add the residual and apply the ReLU, where these are wanted.

    Args:
        x: (N, C, H, W), as all maps here in bf16 and channels_last.
        weight: (C,), float32.
        bias: (C,), float32.
        residual: of x's shape; only together with `relu`.
        relu: whether a ReLU follows.
        eps: added to the variance.

    Returns:
        y, like x; statistics (4, C), float32: the batch's mean and biased variance, scale and shift, such that before
        residual and ReLU y = x * scale + shift; 1 / sqrt(variance + eps), (C,), float64.

    Raises:
        ValueError: if an argument has another shape, dtype or layout.
    """
    _check_maps(x, x=x, residual=residual)
    channels = x.shape[1]
    _check_values((channels,), torch.float32, weight=weight, bias=bias)
    if residual is not None and not relu:
        raise ValueError("batch_norm adds a residual only before a ReLU")
    rows = x.numel() // channels
    sums = _sums(rows, channels)
    library.call("moments", rows, channels, x, sums)
    statistics = torch.empty(4, channels, dtype=torch.float32, device="cpu")
    inverse = torch.empty(channels, dtype=torch.float64, device="cpu")
    total = sums.sum(0, dtype=torch.float64)
    library.call("batch_statistics", rows, channels, total, weight, bias, eps, statistics, inverse)
    y = torch.empty_like(x)
    library.call("normalize", _following(residual, relu), rows, channels, x, residual, statistics, y)
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
    """Return the gradients of `batch_norm`'s tensors; that of the residual is empty where y is None.

    Args:
        grad_output: of y, in its layout.
        x: the input.
        y: the output, if a residual was added: it says what the ReLU let through.
        statistics: as `batch_norm` has returned them.
        inverse: as `batch_norm` has returned it.
        relu: as given to `batch_norm`.

    Raises:
        ValueError: if an argument has another shape, dtype or layout.
    """
    _check_maps(x, grad_output=grad_output, x=x, y=y)
    channels = x.shape[1]
    _check_values((4, channels), torch.float32, statistics=statistics)
    _check_values((channels,), torch.float64, inverse=inverse)
    if y is not None and not relu:
        raise ValueError("batch_norm_backward takes y, the output of a residual's sum, only with a ReLU")
    following, rows = _following(y, relu), x.numel() // channels
    sums = _sums(rows, channels)
    grad_residual = x.new_empty(0) if y is None else torch.empty_like(x)
    library.call("gradient_sums", following, rows, channels, grad_output, x, y, statistics, grad_residual, sums)
    grad_weight, grad_bias, x_scale, offset = (torch.empty_like(inverse, dtype=torch.float32) for _ in range(4))
    coefficients = grad_weight, grad_bias, x_scale, offset
    total = sums.sum(0, dtype=torch.float64)
    library.call("gradient_coefficients", rows, channels, total, statistics, inverse, *coefficients)
    grad_x = torch.empty_like(x)
    reaching = grad_output if y is None else grad_residual
    library.call("gradient", following, rows, channels, reaching, x, statistics, x_scale, offset, grad_x)
    return grad_x, grad_weight, grad_bias, grad_residual


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
    """Raise ValueError unless all maps are (N, C, H, W), C > 0, of one shape, in this dtype and channels_last."""
    for name, x in maps.items():
        if x is None:
            continue
        if x.dtype != dtype or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            kind = f"{x.dtype}, shape {list(x.shape)}, strides {list(x.stride())}"
            raise ValueError(f"{name} must be (N, C, H, W) in {dtype} and channels_last, not {kind}")
        if x.shape[1] == 0:
            raise ValueError(f"{name} must have at least one channel, not the shape {list(x.shape)}")
        if x.shape != like.shape:
            raise ValueError(f"{name} has the shape {list(x.shape)}, not {list(like.shape)}")


def _check_values(shape: tuple[int, ...], dtype: torch.dtype, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have this shape and dtype and are contiguous."""
    for name, x in tensors.items():
        if x.shape != shape or x.dtype != dtype or not x.is_contiguous():
            kind = f"{x.dtype}, shape {list(x.shape)}, strides {list(x.stride())}"
            raise ValueError(f"{name} must be {shape} in {dtype} and contiguous, not {kind}")
