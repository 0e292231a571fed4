"""The progress bar: pictures a second and the loss, read from the device only when the bar is redrawn."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with `img/s` and the loss of the latest step; redrawn about once a second, whatever the speed."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._last_drawn = 0.0
        self._pictures = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """A new bar for the epoch."""
        super().on_train_epoch_start(trainer)
        self._last_drawn, self._pictures = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw if the last time is a second ago, or the epoch is over."""
        self._pictures += len(batch[1]) * trainer.world_size
        elapsed = time.monotonic() - self._last_drawn
        if elapsed < 1 and batch_idx + 1 < trainer.num_training_batches:
            return
        bar = self.train_progress_bar
        # The total as well: a run resumed in the middle of an epoch has no epoch's start, which would set it.
        bar.n, bar.total = batch_idx + 1, trainer.num_training_batches
        # Reading the loss waits for the device, so it comes before the time is taken.
        loss = float(outputs["loss"])
        elapsed = time.monotonic() - self._last_drawn
        bar.set_postfix({"img/s": f"{self._pictures / elapsed:,.0f}", "loss": f"{loss:.4f}"})
        self._last_drawn, self._pictures = time.monotonic(), 0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The epoch's own metrics, as fractions of one; no version number."""
        return {k: f"{float(v):.4f}" for k, v in trainer.callback_metrics.items() if not k.startswith("test")}
