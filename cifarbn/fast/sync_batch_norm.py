"""Batch normalisation over the global batch of several CPU processes, where `torch.nn.SyncBatchNorm` needs GPUs."""

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH_NORMS: tuple[type[_BatchNorm], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNormCPU(_BatchNorm):
    """`nn.BatchNorm1d`, `2d` or `3d` whose training statistics are those of the batches of all processes together.

    Parameters, buffers and their names are those of the layer it replaces, and so are its results in evaluation and in
    a single process. Each forward pass in training waits for two reductions over the processes, of (channels,) each.
    The statistics are computed in float32 at least.

    Trap: every process must compute the layer equally often, in the same order.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...) over all processes' N and the positions."""
        uses_batch = self.training or self.running_mean is None
        if not uses_batch or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1, *(1 for _ in dims[1:])]
        ones = x.new_full((1,), x.numel() / x.shape[1])
        sums = sum_over_processes(torch.cat([x.sum(dims), ones]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(dims)) / count
        if self.training and self.track_running_stats:
            self._update_running_statistics(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, as the layer it replaces has checked them before."""


class SyncOnCPU(LayerSync):
    """Lightning's plugin that turns every batch norm of a model into `SyncBatchNormCPU`, in place, and back."""

    def __init__(self) -> None:
        self._classes: dict[nn.Module, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Change the class of every batch norm; the modules stay the same objects."""
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                self._classes[module] = type(module)
                module.__class__ = SyncBatchNormCPU
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Give every batch norm its own class again."""
        for module, own in self._classes.items():
            module.__class__ = own
        self._classes.clear()
        return model


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; differentiable, and its gradient is summed likewise."""
    return _Sum.apply(values)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient.contiguous())
