"""The regression problem of the deep linear network of Santurkar et al. 2018: targets A x for Gaussian x and A."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from cifarbn.data.randomness import keyed_generator
from cifarbn.errors import UserError


class Gaussian(pl.LightningDataModule):
    """Full batches of x, (samples, features), and A x, where the entries of x and of the fixed A are iid N(0, 1).

    Santurkar et al. 2018 (arXiv 1805.11604), appendix: 1000 samples of 10 features. An epoch is `steps_per_epoch`
    steps, each on the same full batch. Validation and test use other samples and the same A.

    Args:
        samples: number of samples in the full batch.
        features: dimension of x and of A x.
        steps_per_epoch: steps between two validations; a full batch has no natural epoch.
        seed: of A and of all samples.

    Raises:
        UserError: if a number is below 1.
    """

    name = "gaussian"
    classes: tuple[str, ...] = ()
    num_classes = 0
    val_names = ("val",)

    def __init__(self, samples: int = 1000, features: int = 10, steps_per_epoch: int = 1000, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("samples", samples), ("features", features), ("steps_per_epoch", steps_per_epoch)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"data.{name} must be a whole number of at least 1, not {value!r}")
        self.samples, self.features, self.steps_per_epoch, self.seed = samples, features, steps_per_epoch, seed
        self.val_size = samples

    def draw(self, part: str) -> tuple[Tensor, Tensor]:
        """Return x and A x, each float32 (samples, features), on the trainer's device; `part` is train, val or test."""
        truth = torch.randn(self.features, self.features, generator=keyed_generator("gaussian truth", self.seed))
        x = torch.randn(self.samples, self.features, generator=keyed_generator(f"gaussian {part}", self.seed))
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return x.to(device), (x @ truth.T).to(device)

    def train_dataloader(self) -> RepeatedBatch:
        """Return the full batch, `steps_per_epoch` times."""
        return RepeatedBatch(self.draw("train"), self.steps_per_epoch)

    def val_dataloader(self) -> list[RepeatedBatch]:
        """Return one batch of new samples."""
        return [RepeatedBatch(self.draw("val"), 1)]

    def test_dataloader(self) -> RepeatedBatch:
        """Return one batch of new samples."""
        return RepeatedBatch(self.draw("test"), 1)

    def describe(self) -> dict[str, Any]:
        """Return the `data` block of result.json."""
        return {"name": self.name, "samples": self.samples, "features": self.features, "seed": self.seed, "classes": []}


class RepeatedBatch:
    """A loader that yields one batch `times` times and, like `InMemoryLoader`, can resume in the middle."""

    sampler = batch_sampler = None

    def __init__(self, batch: tuple[Tensor, Tensor], times: int) -> None:
        self.batch, self.times = batch, times
        self._yielded = self._first = 0

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first, self._first = self._first, 0
        for number in range(first, self.times):
            self._yielded = number + 1
            yield self.batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches yielded in this epoch."""
        return {"batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after the batches counted in `state`; after a finished epoch, at the first batch."""
        self._first = state["batches"] % self.times
