"""Terminal output of a run: a progress bar, and one permanent line per epoch."""

import math
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.fast.training_step import TrainingStep
from cifarbn.formatting import duration
from cifarbn.training.callbacks.host_copy import HostCopy
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.callbacks.timing import Timing

# Least number of columns of the terminal -> format of the bar.
FORMATS = {
    72: "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
    0: "{desc}: {n_fmt}/{total_fmt} [{remaining}{postfix}]",
}
ROOM_FOR_ALL_VALUES = 56  # columns; with fewer, only the first value is shown


class Bar(Tqdm):
    """A bar that fits into narrow terminals, and whose times do not depend on the system clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()

    @property
    def format_dict(self) -> dict[str, Any]:
        """Tqdm's dict, with the format for the current width."""
        values = super().format_dict
        columns = values["ncols"] or 80  # None if the output is not a terminal
        values["prefix"] = values["prefix"].removesuffix(": ")  # tqdm adds it to some descriptions
        values["bar_format"] = next(bar for least, bar in FORMATS.items() if columns >= least)
        if columns < ROOM_FOR_ALL_VALUES:
            values["prefix"] = values["prefix"].replace(" DataLoader", "")
            values["postfix"] = values["postfix"] and values["postfix"].split(", ")[0]
        return values


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the loss of the latest step and `img/s`, redrawn about once per second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._last_drawn = 0.0
        self._images = 0
        self._loss: HostCopy | None = None
        self._values: dict[str, Any] = {}

    def init_train_tqdm(self) -> Bar:
        """Create the bar of an epoch's steps; it does not stay, see `EpochLine`."""
        return self._bar(self.train_description)

    def init_validation_tqdm(self) -> Bar:
        """Create the bar of the validation, below that of the epoch."""
        return self._bar(self.validation_description, position=1)

    def init_test_tqdm(self) -> Bar:
        """Create the bar of the test."""
        return self._bar(self.test_description)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Create a new bar for the epoch."""
        self._values = {}
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")
        self._last_drawn, self._images, self._loss = time.monotonic(), 0, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bars before the last message is printed."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw after a second, and at the end of the epoch; wait until the loss has been copied."""
        self._images += len(batch[1]) * trainer.world_size
        elapsed = time.monotonic() - self._last_drawn
        if elapsed < 1 and batch_idx + 1 < trainer.num_training_batches:
            return
        if self._loss is None:
            self._loss = HostCopy(outputs["loss"])
        if not self._loss.ready:
            return
        bar = self.train_progress_bar
        # Set the total, too: a run resumed within an epoch does not get `on_train_epoch_start`.
        bar.n, bar.total = batch_idx + 1, trainer.num_training_batches
        self._values = {"loss": f"{float(self._loss.numpy()):.4f}", "img/s": f"{self._images / elapsed:,.0f}"}
        bar.set_postfix(self._values)
        self._last_drawn, self._images, self._loss = time.monotonic(), 0, None

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the values of the bar; the metrics of the epoch are in its line."""
        return self._values

    def _bar(self, description: str, position: int = 0) -> Bar:
        return Bar(
            desc=description,
            position=2 * self.process_position + position,
            disable=self.is_disabled,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
        )


class EpochLine(pl.Callback):
    """Prints a line at the end of each epoch: losses, accuracies, images per second, the remaining time of the run.

    Args:
        metrics_logger: has the metrics of the epoch; must come earlier in the list of callbacks.
        timing: has the seconds of the training steps; must come earlier in the list of callbacks.
    """

    def __init__(self, metrics_logger: MetricsLogger, timing: Timing) -> None:
        self.metrics_logger, self.timing = metrics_logger, timing
        self._began, self._step, self._seconds, self._images = 0.0, 0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the beginning of this start's first epoch, or of the rest of it."""
        if isinstance(step := getattr(pl_module, "step", None), TrainingStep):
            step.announce = rank_zero_only(_write)
        self._begin(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        self.timing.mark("train")
        seconds, images = self.timing.seconds["train"] - self._seconds, self.timing.images - self._images
        parts = [
            *_metrics(self.metrics_logger.epoch_metrics),
            *([f"{images / seconds:,.0f} images/s"] if images else []),
        ]
        if (left := self._seconds_left(trainer)) is not None:
            parts.append(f"{duration(left)} left")
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        rank_zero_only(_write)(f"epoch {trainer.current_epoch + 1}{of}: {'; '.join(parts)}")
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        self._began, self._step = time.monotonic(), trainer.global_step
        self._seconds, self._images = self.timing.seconds["train"], self.timing.images

    def _seconds_left(self, trainer: pl.Trainer) -> float | None:
        """Extrapolate from this epoch, including its validation; None at the end, or if the run has no end."""
        steps = trainer.global_step - self._step
        remaining = trainer.estimated_stepping_batches - trainer.global_step
        if trainer.should_stop or steps < 1 or remaining < 1:
            return None
        limits = [timer.time_remaining() for timer in trainer.callbacks if isinstance(timer, Timer)]  # type: ignore[attr-defined]
        left = min(
            [(time.monotonic() - self._began) / steps * remaining, *(each for each in limits if each is not None)]
        )
        return left if math.isfinite(left) else None


def _write(line: str) -> None:
    Bar.write(line, file=sys.stdout)
    sys.stdout.flush()


def _metrics(values: dict[str, float]) -> list[str]:
    """Return texts such as `train loss 1.2345, acc 0.5678`, one per part (train, val, ...)."""
    parts = sorted({name.split("/")[0] for name in values}, key=lambda part: (part != "train", part != "val", part))
    return [
        f"{part} "
        + ", ".join(f"{name.split('/')[1]} {values[name]:.4f}" for name in values if name.startswith(f"{part}/"))
        for part in parts
    ]
