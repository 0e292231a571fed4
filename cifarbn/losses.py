"""Losses that torch does not provide, each `(logits, labels) -> scalar`, and the accuracy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

HALF = (torch.bfloat16, torch.float16)

Loss = Callable[[Tensor, Tensor], Tensor]


def in_full_precision(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """Compute `loss(logits, labels)` in float32 (float64 for float64 logits), also under autocast.

    Autocast does this only for torch's own losses. A loss written as a formula would run in bfloat16, with 8 bits.

    Args:
        loss: `(logits, labels) -> scalar`.
        logits: (N, C) of any floating dtype.
        labels: (N,) class indices, or regression targets of any floating dtype.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return loss(at_least_float32(logits), at_least_float32(labels))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a half-precision tensor to float32; return any other tensor unchanged."""
    return tensor.float() if tensor.dtype in HALF else tensor


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of images whose largest logit is that of the label; NaN for regression targets.

    Args:
        logits: (N, C) float.
        labels: (N,) int64 class indices, or regression targets.
    """
    if not are_classes(labels):
        return logits.new_full((), torch.nan)
    return (logits.argmax(1) == labels).float().mean()


def are_classes(labels: Tensor) -> bool:
    """Return whether labels are class indices rather than regression targets, as the deep linear network has."""
    return not labels.is_floating_point()


class OneHotMSELoss(nn.Module):
    """Mean squared error between logits and one-hot labels, over batch and classes, as in the course report."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (N, C) float.
            labels: (N,) int64 class indices.

        Returns:
            Scalar of the logits' dtype: the sum of squared differences divided by N * C.
        """
        one_hot = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return torch.mean((logits - one_hot) ** 2)


class SumOfSquares(nn.Module):
    """Sum of squared differences between outputs and targets: ||W_k ... W_1 x - A x||^2 for the deep linear network.

    It is a sum, not a mean, over samples and features: the learning rate of 1e-6 in Santurkar et al. 2018
    (arXiv 1805.11604) belongs to the sum.
    """

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar, of outputs and targets of the same shape (N, features).

        Raises:
            ValueError: If the shapes differ; the subtraction would broadcast them.
        """
        if outputs.shape != targets.shape:
            raise ValueError(
                f"SumOfSquares needs outputs and targets of the same shape, not {tuple(outputs.shape)} and "
                f"{tuple(targets.shape)}"
            )
        return torch.sum((outputs - targets) ** 2)
