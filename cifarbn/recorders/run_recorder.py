"""Record a training loop of your own, in plain PyTorch or with your own LightningModule."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.run_files import RunFiles
from cifarbn.recorders.training import LightningTraining, LoopTraining
from cifarbn.runs.schema import EPOCH_COLUMNS, Status
from cifarbn.smoothness.minibatch_loss import Batch


class RunRecorder:
    """Records a plain PyTorch training loop into a run folder, which `python -m cifarbn.report FOLDER` reads.

    The recorders are those of `cifarbn.train`, and they do not change the training:

        with RunRecorder("runs/mine", model, loss, optimizer, [LastLayerGradients(), GradientProbe()]) as recorder:
            for epoch in range(epochs):
                for inputs, targets in loader:
                    recorder.before_step((inputs, targets))
                    optimizer.zero_grad()
                    value = loss(model(inputs), targets)
                    value.backward()
                    recorder.after_backward()  # before clipping
                    optimizer.step()
                    recorder.after_step(value)
                recorder.after_epoch({"val/acc": evaluate(model)})
            recorder.log({"test/acc": evaluate(model)})

    A run that is interrupted cannot be continued in the same folder.

    Args:
        folder: the run folder; it must not contain a run.
        model: the model being trained, on its device. Call `model.train()` before each epoch, as usual.
        loss: (outputs, targets) -> scalar.
        optimizer: only its learning rate is read, and only the first parameter group's.
        recorders: what to record.
        config: what identifies the run in the report, such as `{"seed": 0, "model": {"norm": "BatchNorm2d"}}`. The
            classes of model, loss and optimizer and the learning rate are added.
        last_layer: name of the last linear layer; the default is `head`, or else the last `nn.Linear`.
        held_out: batches (inputs, labels) for `HeldOutAccuracy`, on the model's device.
        total_steps: number of steps of the whole run, for `LastLayerGradients(raw=True)`.

    Raises:
        UserError: if the folder contains a run, the config is not plain data, or calls are in a wrong order.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        optimizer: Optimizer,
        recorders: Sequence[Recorder],
        *,
        config: Mapping[str, Any] | None = None,
        last_layer: str | None = None,
        held_out: Sequence[tuple[Tensor, Tensor]] = (),
        total_steps: int | None = None,
    ) -> None:
        self._training = LoopTraining(model, loss, last_layer, held_out, total_steps)
        self._optimizer = optimizer
        self._files = RunFiles(folder, recorders, complete_config(config, model, loss, optimizer))
        self._batch: Batch = (None, None)

    def before_step(self, batch: Batch) -> None:
        """Call before the forward pass of each step, with its batch (inputs, targets) on the model's device."""
        self._batch = batch
        self._files.before_step(self._training, batch, float(self._optimizer.param_groups[0]["lr"]))

    def after_backward(self) -> None:
        """Call after the backward pass, before the gradient is clipped and the optimizer takes its step."""
        self._files.after_backward(self._training)

    def after_step(self, loss: Tensor | float, acc: Tensor | float | None = None) -> None:
        """Call after the optimizer's step, with the step's loss, and its accuracy if there is one."""
        self._files.after_step(self._training, self._batch, loss, acc)

    def after_epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        """Call at the end of each epoch, with its metrics: "val/loss", "val/acc". Writes the files."""
        self._files.after_epoch(self._training, metrics or {})

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add final metrics such as "test/acc" to the result."""
        self._files.log(metrics)

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._files.close(self._training, status_after(error), error)


class RunRecorderCallback(pl.Callback):
    """Records the training of your own LightningModule into a run folder, which `python -m cifarbn.report` reads.

        trainer = pl.Trainer(callbacks=[RunRecorderCallback("runs/mine", [LastLayerGradients(), GradientProbe()])])

    Requirements: one optimizer, one process, no gradient accumulation, batches of the form (inputs, targets), and the
    attributes of the LightningModule that `LightningTraining` names: the model (`net`, `model` or the module itself)
    and its loss (`loss`, `loss_fn` or `criterion`). Probes need gradients in evaluation: `inference_mode=False`.
    Metrics that the validation logs as "val/loss" and "val/acc", and the test as "test/...", are written to metrics.csv
    and the result. An accuracy that `training_step` returns as {"loss": ..., "acc": ...} is written for every step.

    Args:
        folder: the run folder; it must not contain a run.
        recorders: what to record.
        config: see `RunRecorder`.
    """

    def __init__(
        self, folder: str | Path, recorders: Sequence[Recorder], config: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.recorders, self.config = Path(folder), recorders, config
        self._files: RunFiles | None = None
        self._validated = False  # whether validation has run in this epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the requirements and prepare the folder."""
        if len(trainer.optimizers) != 1 or trainer.world_size > 1 or trainer.accumulate_grad_batches != 1:
            raise UserError("RunRecorderCallback needs one optimizer, one process and accumulate_grad_batches=1")
        if trainer.global_step:
            raise UserError("RunRecorderCallback cannot continue a run; train from the start into a new folder")
        training = LightningTraining(trainer, pl_module, 0)
        config = complete_config(self.config, training.model, training.loss_function, trainer.optimizers[0])
        self._files = RunFiles(self.folder, self.recorders, config)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Call the recorders before the step."""
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._started.before_step(LightningTraining(trainer, pl_module, 0), batch, lr)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Call the recorders after the backward pass."""
        self._started.after_backward(LightningTraining(trainer, pl_module, 0))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call the recorders after the step."""
        loss, acc = (outputs["loss"], outputs.get("acc")) if isinstance(outputs, Mapping) else (outputs, None)
        self._started.after_step(LightningTraining(trainer, pl_module, 0), batch, loss, acc)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the metrics of a validation are those of this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files. Lightning keeps the metrics of a validation, also in epochs without one."""
        metrics = {str(name): float(v) for name, v in trainer.callback_metrics.items() if name in EPOCH_COLUMNS}
        if not self._validated:
            metrics = {name: value for name, value in metrics.items() if name.startswith("train/")}
        self._validated = False
        self._started.after_epoch(LightningTraining(trainer, pl_module, 0), metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final status."""
        self._started.close(LightningTraining(trainer, pl_module, 0), Status.DONE)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the metrics of the test to the result."""
        if self._files is not None:
            names = [name for name in trainer.callback_metrics if name.startswith("test/")]
            self._files.log({name: float(trainer.callback_metrics[name]) for name in names})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write what there is of a run that failed or was interrupted."""
        if self._files is not None:
            with suppress(OSError):  # the disk may be full; Lightning raises the exception itself
                self._files.close(LightningTraining(trainer, pl_module, 0), status_after(exception), exception)

    @property
    def _started(self) -> RunFiles:
        assert self._files is not None
        return self._files


def complete_config(
    config: Mapping[str, Any] | None, model: nn.Module, loss: Any, optimizer: Optimizer
) -> dict[str, Any]:
    """Return the config with the classes of model, loss and optimizer, and the learning rate, where it has none."""
    defaults: dict[str, dict[str, Any]] = {
        "model": {"_target_": _path(type(model))},
        "loss": {"_target_": _path(type(loss) if isinstance(loss, nn.Module) else loss)},
        "optim": {"_target_": _path(type(optimizer)), "lr": float(optimizer.param_groups[0]["lr"])},
    }
    completed = dict(config or {})
    if not isinstance(completed.get("data", {}), Mapping):
        raise UserError(f"config: data must be a dict, such as {{'name': 'my data'}}, not {completed['data']!r}")
    for key, values in defaults.items():
        given = completed.get(key, {})
        if not isinstance(given, Mapping):
            raise UserError(
                f"config: {key} must be a dict, such as {{'_target_': {values['_target_']!r}}}, not {given!r}"
            )
        completed[key] = values | dict(given)
    return completed


def status_after(error: BaseException | None) -> Status:
    """Return the status of a run that ended with this error."""
    if error is None:
        return Status.DONE
    return Status.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Status.FAILED


def _path(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}".lstrip(".")
