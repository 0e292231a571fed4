"""The LightningModule of every run: a model, a loss, an optimizer factory and a schedule factory."""

from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.classification import MulticlassConfusionMatrix

from cifarbn.data.interface import Batch, first_batch, inputs_and_labels, val_names
from cifarbn.errors import UserError
from cifarbn.fast.training_step import TrainingStep, one_time_shape
from cifarbn.losses import Loss, accuracy, are_classes, in_full_precision
from cifarbn.recorders.training import last_linear_layer
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
    """Trains a model to classify images, evaluates it on the validation set and, at the end, on the test set.

    Logs `val/loss`, `val/acc`, `test/loss` and `test/acc`, each the mean over images, independent of the batch size.
    Accuracies are fractions. The training curve is in `metrics.csv`, see `MetricsLogger`. Accuracies with test-time
    augmentation (TTA) are logged in addition, named after the policy, such as `test/acc_flip_shift`.

    Before the first step, the model is tried on a training batch, and an error is raised if the model, the data and the
    loss do not fit each other, see `cifarbn.training.preflight`.

    Args:
        net: maps (N, 3, H, W) float images to (N, C) logits. An optional method `initialize_from(images)` is called
            with a training batch before the first step, except when a run is resumed. An optional method
            `start_epoch(epoch)` is called at the beginning of each epoch, counted from 0.
        loss: `(logits, labels) -> scalar`; computed in at least float32, see `in_full_precision`.
        optimizer: `parameters -> Optimizer`. Also called once by the constructor, so that a bad argument raises its
            error before any data is read.
        schedule: `optimizer -> LRScheduler`. One with a `total_steps` argument (OneCycleLR) receives it and steps after
            every batch, any other steps after every epoch. ReduceLROnPlateau monitors val/loss or, with mode="max",
            val/acc. None keeps the learning rate constant.
        num_classes: number of classes of the data; 0 for a regression, None if unknown.
        tta: test-time augmentation policy, see `tta_logits`; "none" for none.
        pretrained: the model has trained weights: do not call its `initialize_from`.
        compile, cuda_graphs: see `cifarbn.fast.training_step.TrainingStep`.
        head: name of the last linear layer, see `last_layer`.

    Attributes:
        net: the model; the name is part of the `state_dict` and must not change.
        confusion: (C, C) int64 counts of the last test; rows are true classes, columns predictions.
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
        head: str | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        check_tta(tta)
        self.net = net
        self.loss = loss
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.num_classes = num_classes
        self.tta = tta
        self.head = head
        self.pretrained = pretrained
        others = [loss] if isinstance(loss, nn.Module) else []
        self.step = TrainingStep(net, self.loss_of, accuracy, compile, cuda_graphs, others)
        make_optimizer(optimizer, net.parameters())
        if head is not None:
            _ = self.last_layer  # raises an error if there is no such layer, even if nothing is recorded
        names = ("val", "test_curve", "test", *SHIFTS)
        self.losses = nn.ModuleDict({name: MeanOverImages() for name in names})
        self.accuracies = nn.ModuleDict({name: MeanOverImages() for name in names})
        self.confusion_metric: MulticlassConfusionMatrix | None = None  # created by the first test batch
        self.confusion: Tensor | None = None
        self._rng: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Raise an error if the run has several processes and a layer computes statistics per process.

        Raises:
            UserError: if a layer computes statistics that cannot be synchronised; the message names the layer.
        """
        if self.trainer.world_size == 1:
            return
        per_process = {type(m).__name__ for m in self.net.modules() if getattr(m, "requires_single_process", False)}
        if per_process:
            raise UserError(
                f"{', '.join(sorted(per_process))} computes statistics per process, so results would depend on the "
                "number of processes. Use trainer=auto, or norm=batch"
            )

    @cached_property
    def last_layer(self) -> str:
        """Name of the last linear layer: the argument `head`, or a layer called `head`, or the last `nn.Linear`.

        Raises:
            UserError: if there is no such layer, or its weight is not a trained parameter.
        """
        try:
            name = last_linear_layer(self.net, self.head)
        except UserError as error:
            if self.head is not None:
                raise UserError(
                    f"model_head={self.head}: {error}. Use another layer, or leave out model_head"
                ) from error
            raise UserError(
                f"record: {error}; remove last_layer_gradients and step_change from record, or use record=none"
            ) from error
        if name not in ("head", self.head):
            rank_zero_only(print)(f"last layer: {name}, the model's last nn.Linear; set model_head to use another one")
        return name

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; without the checks of `nn.Module` for the one that Lightning sets 44 times per step."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (N, C) of normalised images (N, 3, H, W)."""
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the loss, and the accuracy of the same forward pass for the callbacks; both stay on the device."""
        loss, acc = self.step(*batch)
        return {"loss": loss, "acc": acc}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, unless the training step has computed them together with the loss."""
        self.step.backward(loss)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss in full precision from logits of any precision.

        Raises:
            UserError: if the model returned anything but a tensor of logits, such as auxiliary logits in train mode.
        """
        check_logits(logits, len(labels))
        return in_full_precision(self.loss, logits, labels)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compute loss and accuracy on `val` and, with `data.test_curve`, on `test_curve`."""
        self._evaluate(val_names(self._data)[dataloader_idx], batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compute loss, accuracy and confusion counts on the test set."""
        logits = self._evaluate("test", batch)
        images, labels = batch
        if are_classes(labels):
            if self.confusion_metric is None:
                self.confusion_metric = MulticlassConfusionMatrix(logits.shape[1], validate_args=False).to(self.device)
            self.confusion_metric.update(logits, labels)
        if self.tta != "none":
            with one_time_shape():
                logits = tta_logits(self.net, images, logits, self.tta)
            self._log_accuracy(self.tta, f"test/acc_{self.tta}", logits, labels)

    def on_test_epoch_end(self) -> None:
        """Store the confusion counts in `confusion`."""
        if self.confusion_metric is not None:
            self.confusion = self.confusion_metric.compute().cpu()
            self.confusion_metric = None

    def _evaluate(self, name: str, batch: Batch) -> Tensor:
        images, labels = batch
        with one_time_shape():
            logits = self.net(images)
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
        """The data module; None if the trainer got data loaders instead."""
        return getattr(self.trainer, "datamodule", None)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, its schedule, in the form that Lightning expects.

        Raises:
            UserError: if they do not fit each other or the data.
        """
        trainer, factory = self.trainer, self.schedule_factory
        total_steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or 1
        # Reading `estimated_stepping_batches` has built the training loader. Reset it: Lightning restores a loader's
        # state only while building it.
        trainer.fit_loop._combined_loader = None
        if total_steps < 1:
            raise UserError("data: the training loader has no length; define its __len__, the batches per epoch")
        rehearse(self.optimizer_factory, factory, self.net.parameters(), total_steps, epochs)
        optimizer = make_optimizer(self.optimizer_factory, self.net.parameters())
        if trainer.precision == "16-mixed" and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise UserError(
                "trainer.precision=16-mixed needs optim.fused=false: a fused optimizer unscales the gradients after "
                "clipping and recorders have used them"
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
                    "schedule: ReduceLROnPlateau needs a validation set, and there is none; set data.val_size above 0, "
                    "or use another schedule"
                )
            if scheduler.mode == "max" and self.num_classes == 0:
                raise UserError("schedule: a regression has no accuracy to monitor; set schedule.mode=min")
            config |= {"monitor": _monitored(scheduler), "frequency": trainer.check_val_every_n_epoch}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step a schedule, except ReduceLROnPlateau: Lightning would step that after writing the epoch's checkpoint."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_end(self) -> None:
        """Step ReduceLROnPlateau, with the metrics of this validation."""
        scheduler = self.lr_schedulers()
        if self.trainer.state.fn == "fit" and isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics[_monitored(scheduler)])

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of the whole gradient, or its values; Lightning raises an error for a fused optimizer."""
        if gradient_clip_val:
            by_value = gradient_clip_algorithm == "value"
            clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip(self.net.parameters(), gradient_clip_val)

    # Lightning's checkpoints lack the random generators. Dropout and noisy batch norm use them, so without their states
    # a resumed run would differ from an uninterrupted one.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the states of torch's random generators to the checkpoint."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the generators' states until training starts, since Lightning draws random numbers before that."""
        self._rng = checkpoint["rng"]

    def on_train_start(self) -> None:
        """Try the model on a training batch before the first step; if resumed, restore the random generators instead.

        Raises:
            UserError: if the model, the data and the loss do not fit each other.
        """
        self.on_train_epoch_start()  # Lightning does not call it if a run is resumed within an epoch
        trainer = self.trainer
        steps = int(trainer.estimated_stepping_batches) - trainer.global_step
        self.step.begin(steps, alone=trainer.world_size == 1)
        if self._rng is None:
            batch = first_batch(self.trainer.train_dataloader)
            self._check(batch)
            initialize_from = getattr(self.net, "initialize_from", None)
            if initialize_from and not self.pretrained:
                initialize_from(batch[0].to(self.device))
            return
        torch.set_rng_state(self._rng["cpu"].cpu())
        if len(self._rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._rng["cuda"]])
        self._rng = None

    def _check(self, batch: Any) -> None:
        """Raise an error if the model, the data and the loss do not fit each other, judged by a training batch."""
        trainer = self.trainer
        # Lightning treats an empty list of loaders as one loader without batches.
        names, loaders = val_names(self._data), [batches for batches in trainer.num_val_batches if batches]
        if len(loaders) > len(names):
            raise UserError(
                f"data: there are {len(loaders)} validation loaders, but {len(names)} names in val_names; return one "
                "loader from val_dataloader, or set val_names = ('val', 'test_curve')"
            )
        if not hasattr(trainer.train_dataloader, "state_dict"):
            rank_zero_only(print)(
                "the training loader has no state_dict: a run that is interrupted within an epoch will continue it "
                "with different batches"
            )
        pair = inputs_and_labels(trainer.precision_plugin.convert_input(batch))
        inputs, labels = (each.to(self.device) for each in pair)
        with one_time_shape(), trainer.precision_plugin.forward_context():
            options: dict[str, Any] = {"num_classes": self.num_classes, "tta": self.tta}
            check_model(self.net, self.loss, (inputs, labels), **options)
            batches = int(trainer.num_training_batches)
            if trainer.max_steps != -1:
                batches = min(batches, trainer.max_steps)
            if smallest_batch(trainer.train_dataloader, batches) == 1 and trainer.world_size == 1:
                check_batch_of_one(self.net, inputs)

    def on_train_epoch_start(self) -> None:
        """Call the model's `start_epoch`, if it has one."""
        if start_epoch := getattr(self.net, "start_epoch", None):
            start_epoch(self.current_epoch)
        self.step.look_at_model()

    def on_train_end(self) -> None:
        """Free the memory of a captured training step."""
        self.step.end()


def _monitored(scheduler: ReduceLROnPlateau) -> str:
    return "val/loss" if scheduler.mode == "min" else "val/acc"
