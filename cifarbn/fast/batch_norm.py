"""Batch norm fused with the residual add and ReLU that follow it, to save memory traffic."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.fast.kernels import library, ops


class FusedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with a C kernel for training in bf16 or fp32 on a CPU.

    All other cases (evaluation, fp64, GPUs, contiguous inputs, compiled models, no C compiler) use torch's batch norm.
    The kernel computes the same statistics, summed in a different order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W), as in torch."""
        return self._fused(x) if self._takes(x) else super().forward(x)

    def _takes(self, x: Tensor) -> bool:
        return (
            self.training
            and self.track_running_stats
            and not any(each is None for each in (self.weight, self.bias, self.running_mean, self.running_var))
            and self.weight.dtype == self.bias.dtype == torch.float32
            and self.weight.is_contiguous()
            and self.bias.is_contiguous()
            and self.eps > 0
            and library.takes(x)
            and x.numel() > x.shape[1] == self.num_features  # for other shapes torch raises its own error
        )

    def _fused(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        y, statistics = _Normalization.apply(x, self.weight, self.bias, residual, relu, self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            values = x.numel() // self.num_features
            self.running_mean.lerp_(statistics[0], weight)
            self.running_var.lerp_(statistics[1] * (values / (values - 1)), weight)
        return y


def normalize_and_activate(norm: nn.Module, activation: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return `activation(norm(x) + residual)`, fused if `norm` is a `FusedBatchNorm2d` and `activation` an `nn.ReLU`.

    If one of the two has a hook, which needs to see the values in between, they are computed separately. The output and
    all gradients are bit-identical in both cases.
    """
    if (
        type(norm) is FusedBatchNorm2d
        and type(activation) is nn.ReLU
        and norm._takes(x)
        and (residual is None or (residual.shape, residual.dtype) == (x.shape, x.dtype) and library.takes(residual))
        and not (_is_watched(norm) or _is_watched(activation) or nn.modules.module._has_any_global_hook())
    ):
        return norm._fused(x, residual, relu=True)
    x = norm(x)
    return activation(x if residual is None else x + residual)


def _is_watched(module: nn.Module) -> bool:
    """Return whether the module has hooks or an instance attribute `forward`."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


class _Normalization(torch.autograd.Function):
    """Compute `ops.batch_norm`; returns its output, which is twice differentiable, and the statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, eps: float
    ) -> tuple[Tensor, Tensor]:
        y, statistics, inverse = ops.batch_norm(x, weight, bias, residual, relu, eps)
        kept = None if residual is None else y  # without a residual, the ReLU's mask follows from x
        ctx.save_for_backward(x, kept, weight, bias, statistics, inverse)
        ctx.relu, ctx.eps = relu, eps
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, y, weight, bias, statistics, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, x, y, weight, bias, gradients[0])
        grad_output = gradients[0].contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias, grad_residual = ops.batch_norm_backward(
            grad_output, x, y, statistics, inverse, ctx.relu
        )
        return grad_x, grad_weight, grad_bias, None if y is None else grad_residual, None, None


def _differentiable_backward(
    ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients with operations that torch can differentiate again (`create_graph=True`)."""
    normalized = functional.batch_norm(x, None, None, weight, bias, training=True, eps=ctx.eps)
    if ctx.relu:
        grad_output = grad_output.masked_fill((normalized if y is None else y) <= 0, 0)
    grad_residual = None if y is None else grad_output
    needed = [i for i in range(3) if ctx.needs_input_grad[i]]
    grads: list[Tensor | None] = [None, None, None]
    if needed:
        inputs = [(x, weight, bias)[i] for i in needed]
        for i, grad in zip(
            needed, torch.autograd.grad(normalized, inputs, grad_output, create_graph=True), strict=True
        ):
            grads[i] = grad
    return *grads, grad_residual, None, None
