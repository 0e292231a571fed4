"""The LightningModule: a net, a loss, an optimizer factory and a schedule factory, and nothing else."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from cifarbn.errors import UserError
from cifarbn.views import SHIFTS, check_views, mean_over_views

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """Trains a net to classify; watches validation and, once at the end, the test set.

    Args:
        net: maps (N, 3, H, W) float pictures to (N, C) logits; its last linear layer is `net.head`. If it has
            `initialize_from(pictures)`, that is called with a training batch before the first step, but not on a
            resume; if it has `start_epoch(epoch)`, with every epoch, counted from 0.
        loss: `(logits, labels) -> scalar`.
        optimizer: `parameters -> Optimizer`. Called once here too, so that a bad argument fails before any data is
            read.
        schedule: `optimizer -> LRScheduler`. One that has a `total_steps` argument (OneCycleLR) gets it and moves
            every step, any other moves once an epoch. None keeps the learning rate.
        num_classes: C.
        test_views: "plain", or what to average test logits over besides, see `mean_over_views`.

    Logs `val/loss`, `val/acc`, `test/loss`, `test/acc`; the training curve is the step-history recorder's. Accuracies
    are fractions. They are of the plain pictures; that over other views has their name, such as `test/acc_flip_shift`.
    `confusion`, (C, C) int64 with rows = true class, holds the last test's counts.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
        num_classes: int = 10,
        test_views: str = "plain",
    ) -> None:
        super().__init__()
        check_views(test_views)
        self.net = net
        self.loss = loss
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.test_views = test_views
        optimizer(net.parameters())
        names = ("val", "test_curve", "test", *SHIFTS)
        # nan_strategy and validate_args: torchmetrics' checks would make the host wait for the device at every batch.
        self.losses = nn.ModuleDict({n: MeanMetric(nan_strategy="disable") for n in names})
        self.accuracies = nn.ModuleDict(
            {n: MulticlassAccuracy(num_classes, average="micro", validate_args=False) for n in names}
        )
        self.confusion_metric = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.confusion: Tensor | None = None
        self._rng: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Refuse several processes where a layer would mean something else in them.

        Raises:
            UserError: naming the layer.
        """
        alone = {type(module).__name__ for module in self.net.modules() if getattr(module, "one_process", False)}
        if alone and self.trainer.world_size > 1:
            raise UserError(
                f"{', '.join(sorted(alone))} means another net on each number of processes: trainer=auto, or norm=batch"
            )

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, C) of normalised pictures (N, 3, H, W)."""
        return self.net(pictures)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and the accuracy of the same forward pass for whoever records it; both stay on the device."""
        pictures, labels = batch
        logits = self.net(pictures)
        return {"loss": self.loss(logits, labels), "acc": accuracy(logits.detach(), labels)}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy on `val` and, where the run asks for the test curve, on `test_curve`."""
        names = getattr(self.trainer.datamodule, "val_names", ("val",))  # type: ignore[attr-defined]
        self._evaluate(names[dataloader_idx], batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, accuracy and confusion counts on the test set."""
        logits = self._evaluate("test", batch)
        pictures, labels = batch
        if are_classes(labels):
            self.confusion_metric.update(logits, labels)
        if self.test_views != "plain":
            logits = mean_over_views(self.net, pictures, logits, self.test_views)
            self._log_accuracy(self.test_views, f"test/acc_{self.test_views}", logits, labels)

    def on_test_epoch_end(self) -> None:
        """Keep the confusion counts for whoever draws them."""
        if self.confusion_metric.update_called:
            self.confusion = self.confusion_metric.compute().cpu()
            self.confusion_metric.reset()

    def _evaluate(self, name: str, batch: Batch) -> Tensor:
        pictures, labels = batch
        logits = self.net(pictures)
        loss: Metric = self.losses[name]  # type: ignore[assignment]
        loss.update(self.loss(logits, labels), weight=len(labels))
        self.log(f"{name}/loss", loss, on_step=False, on_epoch=True, add_dataloader_idx=False)
        if are_classes(labels):
            self._log_accuracy(name, f"{name}/acc", logits, labels)
        return logits

    def _log_accuracy(self, name: str, column: str, logits: Tensor, labels: Tensor) -> None:
        right: Metric = self.accuracies[name]  # type: ignore[assignment]
        right.update(logits, labels)
        self.log(column, right, on_step=False, on_epoch=True, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        """The optimizer and, where there is one, its schedule in the form Lightning asks for."""
        optimizer = self.optimizer_factory(self.net.parameters())
        if self.trainer.precision == "16-mixed" and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise UserError(
                "trainer.precision=16-mixed needs optim.fused=false: a fused optimizer unscales the gradients itself, "
                "after clipping and recorders have seen them scaled"
            )
        if self.schedule_factory is None:
            return optimizer
        if "total_steps" in inspect.signature(self.schedule_factory).parameters:
            total_steps = int(self.trainer.estimated_stepping_batches)
            scheduler, interval = self.schedule_factory(optimizer, total_steps=total_steps), "step"
        else:
            scheduler, interval = self.schedule_factory(optimizer), "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of the whole gradient; Lightning refuses to do it for a fused optimizer, scaled or not."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    # Lightning's checkpoints leave out the generators; dropout and noisy batch norm draw from them, so a resumed run
    # could not repeat the one that was never cut off.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add torch's generators to the checkpoint."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the generators' states until training starts: what Lightning draws before that must not count."""
        self._rng = checkpoint["rng"]

    def on_train_start(self) -> None:
        """Show the net a batch before its first step; on a resume put the generators where the checkpoint had them."""
        self.on_train_epoch_start()  # which a resume in the middle of an epoch would go without
        if self._rng is None:
            if initialize_from := getattr(self.net, "initialize_from", None):
                pictures, _ = next(iter(self.trainer.train_dataloader))  # type: ignore[arg-type]
                initialize_from(pictures.to(self.device))
            return
        torch.set_rng_state(self._rng["cpu"].cpu())
        if len(self._rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._rng["cuda"]])
        self._rng = None

    def on_train_epoch_start(self) -> None:
        """Tell the net which epoch begins."""
        if start_epoch := getattr(self.net, "start_epoch", None):
            start_epoch(self.current_epoch)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The fraction of the N logits (N, C) whose largest is the label's (N,); NaN where the labels are no classes."""
    if not are_classes(labels):
        return logits.new_full((), torch.nan)
    return (logits.argmax(1) == labels).float().mean()


def are_classes(labels: Tensor) -> bool:
    """Whether labels are class indices, and not the targets of a regression (the deep linear net's)."""
    return not labels.is_floating_point()
