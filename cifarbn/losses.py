"""Losses that torch lacks, each `(logits, labels) -> scalar`."""

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        """The loss, a scalar, of outputs and targets of one shape (N, features)."""
        return torch.sum((outputs - targets) ** 2)
