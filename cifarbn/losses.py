"""Losses that torch lacks, each `(logits, labels) -> scalar`, the precision of any loss, and the accuracy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

HALF = (torch.bfloat16, torch.float16)

Loss = Callable[[Tensor, Tensor], Tensor]


def in_full_precision(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """Compute `loss(logits, labels)` in float32 or, for float64 logits, in float64, whatever the run's precision.

    Autocast does the same for torch's own losses, but not for one written as a formula: in bfloat16 a mean squared
    error has 8 bits.

    Args:
        loss: `(logits, labels) -> scalar`.
        logits: (N, C) of any floating dtype.
        labels: (N,) class indices, or regression targets of any floating dtype.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return loss(at_least_float32(logits), at_least_float32(labels))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half-precision numbers as float32, and anything else as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of images whose largest logit is the label's, a scalar; NaN if the labels are not classes.

    Args:
        logits: (N, C) float.
        labels: (N,) int64 class indices, or regression targets.
    """
    if not are_classes(labels):
        return logits.new_full((), torch.nan)
    return (logits.argmax(1) == labels).float().mean()


def are_classes(labels: Tensor) -> bool:
    """Return whether labels are class indices, and not the targets of a regression (the deep linear net's)."""
    return not labels.is_floating_point()


class OneHotMSELoss(nn.Module):
    """Mean squared error between the logits and the one-hot label, over batch and classes (the report's MSE row)."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss.

        Args:
            logits: (N, C) float.
            labels: (N,) int64 class indices.

        Returns:
            Scalar of the logits' dtype: the sum of squared differences over N * C.
        """
        one_hot = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return torch.mean((logits - one_hot) ** 2)


class SumOfSquares(nn.Module):
    """The sum of squared differences between output and target: the deep linear net's ||W_1 ... W_k x - A x||^2.

    Summed over features and samples, not averaged: the paper's learning rate of 1e-6 belongs to the sum.
    """

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of outputs and targets of one shape (N, features).

        Raises:
            ValueError: if the shapes differ (the subtraction would broadcast them).
        """
        if outputs.shape != targets.shape:
            raise ValueError(
                f"the sum of squares needs a target for every output; outputs have the shape {tuple(outputs.shape)}, "
                f"targets {tuple(targets.shape)}"
            )
        return torch.sum((outputs - targets) ** 2)
