"""Metrics averaged over all images of an evaluation."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanOverImages(Metric):
    """The mean of a value over images, independent of batch sizes and of the number of processes.

    torchmetrics' `MeanMetric` ignores its weights if `nan_strategy="disable"`, and with any other strategy the host
    waits for the device at every batch.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch_mean: Tensor, images: int) -> None:
        """Add a batch of `images` images with mean value `batch_mean`; the host does not wait for the device."""
        # With trainer.precision=bf16-true, these sums were converted to half precision with the model.
        self.total = self.total.double() + batch_mean.detach().double() * images
        self.images = self.images.double() + images

    def compute(self) -> Tensor:
        """Return the mean as float32."""
        return (self.total / self.images).float()
