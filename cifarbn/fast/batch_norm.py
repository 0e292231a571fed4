"""Batch normalisation that goes over memory as seldom as it can, with the shortcut and the ReLU that follow it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.fast.kernels import library

BLOCK = 128  # rows whose sums are made together
NOTHING, RELU, SHORTCUT_RELU = range(3)  # what follows the normalisation; these and BLOCK as in the C


class BatchNorm2d(nn.BatchNorm2d):
    """torch's batch normalisation; in training under bf16 on a CPU, by a kernel of our own.

    Where the kernel cannot be compiled, and for everything else (evaluation, fp32, GPUs, contiguous maps, compiled
    nets), this is torch's. The same statistics, summed in another order.

    Attributes:
        kernels: whether the kernel may be used; `Hardware.prepare` says so for a whole net.
    """

    kernels = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), as in torch."""
        return self._fused(x, None, NOTHING) if self._takes(x) else super().forward(x)

    def _takes(self, x: Tensor) -> bool:
        return (
            self.kernels
            and self.training
            and self.track_running_stats
            and not any(each is None for each in (self.weight, self.bias, self.running_mean, self.running_var))
            and self.weight.dtype == torch.float32
            and library.takes(x)
            and x.numel() > x.shape[1] == self.num_features  # torch says what is wrong with anything else
        )

    def _fused(self, x: Tensor, shortcut: Tensor | None, following: int) -> Tensor:
        y, mean, variance = _Normalization.apply(x, self.weight, self.bias, shortcut, following, self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            values = x.numel() // self.num_features
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * (values / (values - 1)), weight)
        return y


def normalize_and_activate(norm: nn.Module, activation: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """`activation(norm(x) + shortcut)`; where both are plain batch norm and ReLU, without a pass for each of them.

    The output and every gradient are the same to the bit, whether the parts are computed together or, because one of
    them has a hook that wants to see what is between, one by one.
    """
    if (
        type(norm) is BatchNorm2d
        and type(activation) is nn.ReLU
        and norm._takes(x)
        and (shortcut is None or shortcut.shape == x.shape and library.takes(shortcut))
        and not (_has_hooks(norm) or _has_hooks(activation))
    ):
        return norm._fused(x, shortcut, RELU if shortcut is None else SHORTCUT_RELU)
    x = norm(x)
    return activation(x if shortcut is None else x + shortcut)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class _Normalization(torch.autograd.Function):
    """x (N, C, H, W) in bf16 and channels_last -> what follows its normalisation, and the batch's mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, following: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, channels = _rows_and_channels(x)
        sums = _sums(rows, channels)
        library.call("moments", rows, channels, x, sums)
        mean, square = sums.sum(0, dtype=torch.float64) / rows
        variance = (square - mean.square()).clamp_(min=0)
        inverse = (variance + eps).rsqrt()
        scale = (weight * inverse).float()
        shift = (bias - mean * weight * inverse).float()
        y = torch.empty_like(x)
        library.call("normalize", following, rows, channels, x, shortcut, scale, shift, y)
        mean, variance = mean.float(), variance.float()
        kept = y if following == SHORTCUT_RELU else None  # of a ReLU alone, x says what passed
        ctx.save_for_backward(x, kept, weight, bias, mean, inverse, scale, shift)
        ctx.following, ctx.eps = following, eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, y, weight, bias, mean, inverse, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, x, y, weight, bias, gradients[0])
        of_y = gradients[0].contiguous(memory_format=torch.channels_last)
        rows, channels = _rows_and_channels(x)
        sums = _sums(rows, channels)
        of_shortcut = torch.empty_like(x) if ctx.following == SHORTCUT_RELU else None
        library.call("gradient_sums", ctx.following, rows, channels, of_y, x, y, mean, scale, shift, of_shortcut, sums)
        of_bias, product = sums.sum(0, dtype=torch.float64)
        of_weight = product * inverse
        # weight * inverse * (gradient - mean of gradient - (x - mean) * inverse^2 * mean of product), in terms of x
        slope = -scale * inverse * of_weight / rows
        level = -scale * of_bias / rows - slope * mean
        of_x = torch.empty_like(x)
        reaching = of_y if of_shortcut is None else of_shortcut
        library.call(
            "gradient", ctx.following, rows, channels, reaching, x, scale, shift, slope.float(), level.float(), of_x
        )
        return of_x, of_weight.float(), of_bias.float(), of_shortcut, None, None


def _differentiable_backward(
    ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, of_y: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradients by operations that torch can differentiate again (`create_graph=True`)."""
    normalized = functional.batch_norm(x, None, None, weight, bias, training=True, eps=ctx.eps)
    if ctx.following != NOTHING:
        of_y = of_y.masked_fill((normalized if y is None else y) <= 0, 0)
    of_shortcut = of_y if ctx.following == SHORTCUT_RELU else None
    asked = [i for i in range(3) if ctx.needs_input_grad[i]]
    found: list[Tensor | None] = [None, None, None]
    if asked:
        inputs = [(x, weight, bias)[i] for i in asked]
        for i, each in zip(asked, torch.autograd.grad(normalized, inputs, of_y, create_graph=True), strict=True):
            found[i] = each
    return *found, of_shortcut, None, None


def _rows_and_channels(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _sums(rows: int, channels: int) -> Tensor:
    return torch.empty(-(-rows // BLOCK), 2, channels, dtype=torch.float32, device="cpu")
