"""The seconds of a run by kind, and its throughput in images per second."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from cifarbn.runs.old_names import TIMED_IMAGES


class Timing(pl.Callback):
    """Adds up a run's seconds by kind, over all its starts.

    `first_step` includes compilation and warm-up: the first step of a start, and the first one of each batch size,
    since the model may be compiled again. `train` includes all other steps, `evaluate` validation and test,
    `checkpoint` writing last.ckpt. The host waits for the device only when the kind changes, not at every step.
    """

    def __init__(self) -> None:
        self.seconds = {"first_step": 0.0, "train": 0.0, "evaluate": 0.0, "checkpoint": 0.0}
        self.images = 0  # in the steps of `train`
        self._device = torch.device("cpu")
        self._last_mark: float | None = None  # None before training or test begins
        self._sizes: set[int] = set()  # batch sizes of this start so far

    @property
    def images_per_second(self) -> float | None:
        """Training throughput; None before the second step."""
        return self.images / self.seconds["train"] if self.images and self.seconds["train"] > 0 else None

    def mark(self, kind: str | None) -> None:
        """Add the time since the last mark to `kind`; None drops it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if kind is not None and self._last_mark is not None:
            self.seconds[kind] += now - self._last_mark
        self._last_mark = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Expect the first step of this start."""
        self._device, self._sizes = pl_module.device, set()
        self.mark(None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add the time before a step of a new batch size to `train`."""
        if self._sizes and len(batch[1]) not in self._sizes:
            self.mark("train")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; add a first step to `first_step`."""
        size = len(batch[1])
        if size in self._sizes:
            self.images += size * trainer.world_size
        else:
            self._sizes.add(size)
            self.mark("first_step")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time up to here to `train`."""
        self.mark("train")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time up to here to `evaluate`."""
        self.mark("evaluate")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time up to here to `train`."""
        self.mark("train")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Add the time up to here to `train`, even if it was an unfinished evaluation."""
        self.mark("train")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the time between training and test."""
        self._device = pl_module.device
        self.mark(None)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time up to here to `evaluate`."""
        self.mark("evaluate")

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for the checkpoint."""
        return {"seconds": dict(self.seconds), TIMED_IMAGES: self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sums of earlier starts of this run."""
        self.seconds, self.images = dict(state_dict["seconds"]), state_dict[TIMED_IMAGES]
