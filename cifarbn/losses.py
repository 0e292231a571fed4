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
