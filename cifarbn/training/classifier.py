"""The LightningModule: a net, a loss, an optimizer factory and a schedule factory, and nothing else."""

from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.classification import MulticlassConfusionMatrix

from cifarbn.data.interface import Batch, first_batch, inputs_and_labels, val_names
from cifarbn.errors import UserError
from cifarbn.fast.training_step import TrainingStep, one_time_shape
from cifarbn.losses import Loss, accuracy, are_classes, in_full_precision
from cifarbn.training.metrics import MeanOverImages
from cifarbn.training.optimization import (
    OptimizerFactory,
    ScheduleFactory,
    make_optimizer,
    make_schedule,
    moves_every_step,
    rehearse,
)
from cifarbn.training.preflight import check_batch_of_one, check_logits, check_model, smallest_batch
from cifarbn.training.tta import SHIFTS, check_tta, tta_logits


class Classifier(pl.LightningModule):
    """Trains a net to classify; watches validation and, once at the end, the test set.

    Args:
        net: maps (N, 3, H, W) float pictures to (N, C) logits. If it has `initialize_from(pictures)`, that is called
            with a training batch before the first step, but not on a resume; if it has `start_epoch(epoch)`, with
            every epoch, counted from 0.
        loss: `(logits, labels) -> scalar`; computed in float32 at least, see `in_full_precision`.
        optimizer: `parameters -> Optimizer`. Called once here too, so that a bad argument fails before any data is
            read.
        schedule: `optimizer -> LRScheduler`. One that has a `total_steps` argument (OneCycleLR) gets it and moves
            every step, any other moves once an epoch. ReduceLROnPlateau watches val/loss or, with mode="max", val/acc.
            None keeps the learning rate.
        num_classes: of the data; 0 for a regression, None where the data does not say.
        tta: "none", or what to average test logits over besides, see `tta_logits`.
        compile, cuda_graphs: see `cifarbn.fast.training_step.TrainingStep`.

    Logs `val/loss`, `val/acc`, `test/loss`, `test/acc`, each the mean over images whatever the batch size; the training
    curve is in `metrics.csv`, see `MetricsLogger`. Accuracies are fractions, without test-time
    augmentation; one with it has the policy's name, such as `test/acc_flip_shift`. `confusion`, (C, C) int64 with
    rows = true class, holds the last test's counts.

    Before the first step of a run it shows the net a batch of the training data and refuses what cannot work, see
    `cifarbn.training.preflight`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        num_classes: int | None = None,
        tta: str = "none",
        compile: str = "",
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        check_tta(tta)
        self.net = net
        self.loss = loss
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.num_classes = num_classes
        self.tta = tta
        others = [loss] if isinstance(loss, nn.Module) else []
        self.step = TrainingStep(net, self.loss_of, accuracy, compile, cuda_graphs, others)
        make_optimizer(optimizer, net.parameters())
        names = ("val", "test_curve", "test", *SHIFTS)
        self.losses = nn.ModuleDict({name: MeanOverImages() for name in names})
        self.accuracies = nn.ModuleDict({name: MeanOverImages() for name in names})
        self.confusion_metric: MulticlassConfusionMatrix | None = None  # until a test shows how many classes there are
        self.confusion: Tensor | None = None
        self._rng: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Refuse several processes where a layer would mean something else in them.

        Raises:
            UserError: naming the layer.
        """
        if self.trainer.world_size == 1:
            return
        # On GPUs Lightning has put torch's SyncBatchNorm in the place of every batch norm; on CPUs there is none.
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        alone = {
            type(module).__name__
            for module in self.net.modules()
            if getattr(module, "requires_single_process", False) or (on_cpu and isinstance(module, _BatchNorm))
        }
        if alone:
            raise UserError(
                f"{', '.join(sorted(alone))} would compute its statistics in each process for itself, so that results "
                f"depend on the number of processes. Use trainer=auto, or norm={'group' if on_cpu else 'batch'}"
            )

    @cached_property
    def last_layer(self) -> str:
        """The name of the last linear layer: `head`, or else the last `nn.Linear` in the order of the net's modules.

        Raises:
            UserError: if there is none that is trained.
        """
        linear = [name for name, module in self.net.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(
                "record: the model has no linear layer (nn.Linear) whose gradients could be recorded; leave out "
                "last_layer_gradients and step_change, or set record=none"
            )
        name = "head" if "head" in linear else linear[-1]
        if not self.net.get_submodule(name).weight.requires_grad:
            raise UserError(
                f"record: the weight of the model's last linear layer, {name}, is not trained and has no gradient; "
                "leave out last_layer_gradients and step_change, or set record=none"
            )
        if name != "head":
            rank_zero_only(print)(f"recorded as the last layer: {name} (the model has no layer called head)")
        return name

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, C) of normalised pictures (N, 3, H, W)."""
        return self.net(pictures)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and the accuracy of the same forward pass for whoever records it; both stay on the device."""
        loss, acc = self.step(*batch)
        return {"loss": loss, "acc": acc}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, or take those that the step has computed together with the loss."""
        self.step.backward(loss)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits in whatever precision, in full precision.

        Raises:
            UserError: if the net has returned more, as some do in train mode: auxiliary logits.
        """
        check_logits(logits, len(labels))
        return in_full_precision(self.loss, logits, labels)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy on `val` and, where the run asks for the test curve, on `test_curve`."""
        self._evaluate(val_names(self._data)[dataloader_idx], batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, accuracy and confusion counts on the test set."""
        logits = self._evaluate("test", batch)
        pictures, labels = batch
        if are_classes(labels):
            if self.confusion_metric is None:
                self.confusion_metric = MulticlassConfusionMatrix(logits.shape[1], validate_args=False).to(self.device)
            self.confusion_metric.update(logits, labels)
        if self.tta != "none":
            logits = tta_logits(self.net, pictures, logits, self.tta)
            self._log_accuracy(self.tta, f"test/acc_{self.tta}", logits, labels)

    def on_test_epoch_end(self) -> None:
        """Keep the confusion counts for whoever draws them."""
        if self.confusion_metric is not None:
            self.confusion = self.confusion_metric.compute().cpu()
            self.confusion_metric = None

    def _evaluate(self, name: str, batch: Batch) -> Tensor:
        pictures, labels = batch
        with one_time_shape():
            logits = self.net(pictures)
        self._log_mean(f"{name}/loss", self.losses[name], self.loss_of(logits, labels), len(labels))
        if are_classes(labels):
            self._log_accuracy(name, f"{name}/acc", logits, labels)
        return logits

    def _log_accuracy(self, name: str, column: str, logits: Tensor, labels: Tensor) -> None:
        self._log_mean(column, self.accuracies[name], accuracy(logits, labels), len(labels))

    def _log_mean(self, column: str, mean: nn.Module, batch_mean: Tensor, images: int) -> None:
        assert isinstance(mean, MeanOverImages)
        mean.update(batch_mean, images)
        self.log(column, mean, on_step=False, on_epoch=True, add_dataloader_idx=False)

    @property
    def _data(self) -> Any:
        """The data module; None where the trainer was given loaders."""
        return getattr(self.trainer, "datamodule", None)

    def configure_optimizers(self) -> Any:
        """The optimizer and, where there is one, its schedule in the form Lightning asks for.

        Raises:
            UserError: if they cannot work together, or not on this data.
        """
        trainer, factory = self.trainer, self.schedule_factory
        total_steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or 1
        # Asking for the steps has built the training loader, into which a resume loads its state only as it is built.
        trainer.fit_loop._combined_loader = None
        if total_steps < 1:
            raise UserError("data: the training loader must have a length, the number of batches in an epoch")
        rehearse(self.optimizer_factory, factory, self.net.parameters(), total_steps, epochs)
        optimizer = make_optimizer(self.optimizer_factory, self.net.parameters())
        if trainer.precision == "16-mixed" and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise UserError(
                "trainer.precision=16-mixed needs optim.fused=false: a fused optimizer unscales the gradients itself, "
                "after clipping and recorders have seen them scaled"
            )
        if factory is None:
            return optimizer
        scheduler = make_schedule(factory, optimizer, total_steps)
        config: dict[str, Any] = {
            "scheduler": scheduler,
            "interval": "step" if moves_every_step(factory) else "epoch",
        }
        if isinstance(scheduler, ReduceLROnPlateau):
            if "val" not in val_names(self._data) or not trainer.limit_val_batches:
                raise UserError(
                    "schedule: ReduceLROnPlateau watches the validation set, and there is none; raise data.val_size "
                    "above 0, or use another schedule"
                )
            if scheduler.mode == "max" and self.num_classes == 0:
                raise UserError("schedule: a regression has no accuracy to watch; set mode=min in ReduceLROnPlateau")
            config |= {"monitor": _watched(scheduler), "frequency": trainer.check_val_every_n_epoch}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Move a schedule; not ReduceLROnPlateau, which Lightning moves after the epoch's checkpoint is written."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_end(self) -> None:
        """Move ReduceLROnPlateau, by this validation's metrics."""
        scheduler = self.lr_schedulers()
        if self.trainer.state.fn == "fit" and isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics[_watched(scheduler)])

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the whole gradient's norm, or its values; Lightning refuses to do it for a fused optimizer."""
        if gradient_clip_val:
            by_value = gradient_clip_algorithm == "value"
            clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip(self.net.parameters(), gradient_clip_val)

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
        """Look at a batch before the first step, and show it to the net; on a resume restore the generators instead.

        Raises:
            UserError: if the model, the data and the loss do not fit each other.
        """
        self.on_train_epoch_start()  # which a resume in the middle of an epoch would go without
        trainer = self.trainer
        steps = int(trainer.estimated_stepping_batches) - trainer.global_step
        self.step.begin(steps, alone=trainer.world_size == 1)
        if self._rng is None:
            batch = first_batch(self.trainer.train_dataloader)
            self._check(batch)
            if initialize_from := getattr(self.net, "initialize_from", None):
                initialize_from(batch[0].to(self.device))
            return
        torch.set_rng_state(self._rng["cpu"].cpu())
        if len(self._rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._rng["cuda"]])
        self._rng = None

    def _check(self, batch: Any) -> None:
        """Refuse what cannot work, by this batch of the training data."""
        trainer = self.trainer
        # Lightning takes an empty list of loaders for one of no batches.
        names, loaders = val_names(self._data), [batches for batches in trainer.num_val_batches if batches]
        if len(loaders) > len(names):
            raise UserError(
                f"data: there are {len(loaders)} validation loaders, and val_names names {len(names)}; return one from "
                "val_dataloader, or set val_names = ('val', 'test_curve')"
            )
        if not hasattr(trainer.train_dataloader, "state_dict"):
            rank_zero_only(print)(
                "the training loader has no state_dict: a run that is cut off within an epoch continues it with other "
                "batches than it would have had"
            )
        pair = inputs_and_labels(trainer.precision_plugin.convert_input(batch))
        inputs, labels = (each.to(self.device) for each in pair)
        with trainer.precision_plugin.forward_context():
            options: dict[str, Any] = {"num_classes": self.num_classes, "tta": self.tta}
            check_model(self.net, self.loss, (inputs, labels), **options)
            batches = int(trainer.num_training_batches)
            if trainer.max_steps != -1:
                batches = min(batches, trainer.max_steps)
            if smallest_batch(trainer.train_dataloader, batches) == 1 and trainer.world_size == 1:
                check_batch_of_one(self.net, inputs)

    def on_train_epoch_start(self) -> None:
        """Tell the net which epoch begins."""
        if start_epoch := getattr(self.net, "start_epoch", None):
            start_epoch(self.current_epoch)
        self.step.look_at_model()

    def on_train_end(self) -> None:
        """Free the memory of a captured step."""
        self.step.end()


def _watched(scheduler: ReduceLROnPlateau) -> str:
    return "val/loss" if scheduler.mode == "min" else "val/acc"
