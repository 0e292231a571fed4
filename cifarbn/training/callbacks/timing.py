"""Where the seconds of a run go, and its throughput in pictures a second."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Timing(pl.Callback):
    """Adds up a run's seconds by kind, over all its starts.

    `first_step` holds compilation and warming up: the first step of a start, and that of every batch size, for which a
    compiled net is compiled again. `train` holds all other steps, `evaluate` validation and test, `checkpoint` the
    writing of last.ckpt. The device is waited for only where the kind changes, never per step.
    """

    def __init__(self) -> None:
        self.seconds = {"first_step": 0.0, "train": 0.0, "evaluate": 0.0, "checkpoint": 0.0}
        self.pictures = 0  # in the steps that `train` counts
        self._device = torch.device("cpu")
        self._last_mark: float | None = None  # before training or test begins
        self._sizes: set[int] = set()  # of the batches of this start so far

    @property
    def images_per_second(self) -> float | None:
        """Training throughput; None before the second step."""
        return self.pictures / self.seconds["train"] if self.pictures and self.seconds["train"] > 0 else None

    def mark(self, kind: str | None) -> None:
        """The time since the last mark was spent on `kind` (None: on nothing that counts)."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if kind is not None and self._last_mark is not None:
            self.seconds[kind] += now - self._last_mark
        self._last_mark = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next step is this start's first."""
        self._device, self._sizes = pl_module.device, set()
        self.mark(None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Up to a step of a new batch size it was training."""
        if self._sizes and len(batch[1]) not in self._sizes:
            self.mark("train")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count pictures, and close a first step."""
        size = len(batch[1])
        if size in self._sizes:
            self.pictures += size * trainer.world_size
        else:
            self._sizes.add(size)
            self.mark("first_step")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Up to here it was training."""
        self.mark("train")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Up to here it was evaluation."""
        self.mark("evaluate")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Up to here it was training."""
        self.mark("train")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Up to here it was training, or an evaluation that nobody will see."""
        self.mark("train")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The time between training and test does not count."""
        self._device = pl_module.device
        self.mark(None)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Up to here it was evaluation."""
        self.mark("evaluate")

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for the checkpoint."""
        return {"seconds": dict(self.seconds), "pictures": self.pictures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add to what earlier starts of this run took."""
        self.seconds, self.pictures = dict(state_dict["seconds"]), state_dict["pictures"]
