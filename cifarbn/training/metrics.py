"""Means over all images of an evaluation."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanOverImages(Metric):
    """The mean of a value over images, whatever the batches they come in and the processes that see them.

    torchmetrics' `MeanMetric` ignores its weights where `nan_strategy="disable"`, and any other strategy makes the host
    wait for the device at every batch.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch_mean: Tensor, images: int) -> None:
        """Add a batch of so many images, of which `batch_mean` is the mean value; the host does not wait for it."""
        # A net in half precision (trainer.precision=bf16-true) has taken these sums along.
        self.total = self.total.double() + batch_mean.detach().double() * images
        self.images = self.images.double() + images

    def compute(self) -> Tensor:
        """Return the mean as float32."""
        return (self.total / self.images).float()
