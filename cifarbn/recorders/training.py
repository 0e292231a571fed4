"""What recorders read of a training run: the model, its loss, the current step; for Lightning and for other loops."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from cifarbn.data.interface import inputs_and_labels, val_names
from cifarbn.errors import UserError
from cifarbn.recorders.global_batch import over_global_batch
from cifarbn.smoothness.evaluation import LossFunction
from cifarbn.smoothness.layers import default_head
from cifarbn.smoothness.minibatch_loss import Batch, minibatch_loss

LOSS_NAMES = ("loss_of", "loss", "loss_fn", "criterion")


class Training(ABC):
    """A training run, as recorders see it.

    Attributes:
        model: the model being trained.
        step: number of optimizer steps taken before the current one; also the index of the current step, from 0.
        is_writer: whether this process writes files; under DDP only one does.
        total_steps: number of optimizer steps of the whole run; None if unknown.
    """

    model: nn.Module
    step: int
    is_writer: bool = True
    total_steps: int | None = None

    @property
    @abstractmethod
    def last_layer(self) -> str:
        """The name of the model's last linear layer."""

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last linear layer."""
        return self.model.get_submodule(self.last_layer).weight  # type: ignore[return-value]

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss that the model is trained with, a scalar."""

    @abstractmethod
    def held_out(self, images: int) -> tuple[str, list[tuple[Tensor, Tensor]]]:
        """Return the name of the held-out data, see `HeldOutKeys`, and batches of its first images, on the device.

        Raises:
            UserError: if the run has no held-out data.
        """

    @contextmanager
    def minibatch_loss(self, batch: Batch) -> Iterator[LossFunction]:
        """Yield the loss of a batch as a function, see `smoothness.minibatch_loss`.

        Under DDP `batch` is this process's share of the global batch; loss and gradients are those of the global batch.
        """
        with minibatch_loss(self.model, self.loss, batch, train=None) as own_share:
            with over_global_batch(own_share, self.model.parameters()) as loss_fn:
                yield loss_fn

    def forward_context(self) -> AbstractContextManager:
        """Return the context of the run's forward passes: its precision."""
        return nullcontext()

    def log_scalar(self, name: str, value: float, step: int) -> None:  # noqa: B027  # most loops have no TensorBoard
        """Log a number for TensorBoard, if the run writes its events."""

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


class LightningTraining(Training):
    """The training of a LightningModule.

    The model is the module's attribute `net` or `model`, or else the LightningModule itself. The loss is its attribute
    or method `loss_of`, `loss`, `loss_fn` or `criterion`: (outputs, targets) -> scalar. A batch is (inputs, targets).

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        step: see `Training`.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        self.trainer, self.pl_module, self.step = trainer, pl_module, step
        self.is_writer = trainer.is_global_zero

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """The model being trained."""
        attributes = (getattr(self.pl_module, name, None) for name in ("net", "model"))
        return next((model for model in attributes if isinstance(model, nn.Module)), self.pl_module)

    @property
    def total_steps(self) -> int:  # type: ignore[override]
        """Number of optimizer steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    @property
    def last_layer(self) -> str:
        """The attribute `last_layer` of the LightningModule if it is a name, or else see `last_linear_layer`."""
        name = getattr(self.pl_module, "last_layer", None)  # in a user's module it may be the layer itself
        return last_linear_layer(self.model, name if isinstance(name, str) else None)

    @property
    def loss_function(self) -> Callable[[Any, Any], Tensor]:
        """The loss that the model is trained with: (outputs, targets) -> scalar.

        Raises:
            UserError: if the LightningModule has none under a known name.
        """
        for name in LOSS_NAMES:
            if callable(loss := getattr(self.pl_module, name, None)):
                return loss
        raise UserError(
            f"{type(self.pl_module).__name__} has no loss that recorders can use: give it an attribute `loss`, a "
            "function (outputs, targets) -> scalar"
        )

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss that the model is trained with."""
        return self.loss_function(outputs, targets)

    def held_out(self, images: int) -> tuple[str, list[tuple[Tensor, Tensor]]]:
        """Return batches of the first images of the first validation set (under DDP, this process's share)."""
        data: Any = getattr(self.trainer, "datamodule", None)
        names = val_names(data)
        loaders = data.val_dataloader() if data is not None and names else self.trainer.val_dataloaders
        if not names or loaders is None:
            raise UserError(
                "record.held_out_accuracy needs held-out images: set data.val_size above 0, or data.test_curve=true to "
                "use the test set"
            )
        batches: list[tuple[Tensor, Tensor]] = []
        device = self.pl_module.device
        # Each process's loader yields its share of the set, every world_size-th image.
        images = len(range(self.trainer.global_rank, images, self.trainer.world_size))
        with isolate_rng():  # a DataLoader draws random numbers when its iteration starts
            for batch in loaders[0] if isinstance(loaders, (list, tuple)) else loaders:
                if images <= 0:
                    break
                inputs, labels = self.trainer.precision_plugin.convert_input(inputs_and_labels(batch))
                batches.append((inputs[:images].to(device), labels[:images].to(device)))
                images -= len(labels)
        return names[0], batches

    def forward_context(self) -> AbstractContextManager:
        """Return the context of the run's forward passes: its precision."""
        return self.trainer.precision_plugin.forward_context()

    def log_scalar(self, name: str, value: float, step: int) -> None:
        """Log a number for TensorBoard, if the run writes its events."""
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_scalar(name, value, step)


class LoopTraining(Training):
    """The training of a plain PyTorch loop.

    Args:
        model: the model being trained.
        loss: (outputs, targets) -> scalar.
        last_layer: name of the last linear layer; None finds it, see `last_linear_layer`.
        held_out: batches (inputs, labels) that are not trained on, on the model's device.
        total_steps: number of optimizer steps of the whole run, if known.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        last_layer: str | None = None,
        held_out: Sequence[tuple[Tensor, Tensor]] = (),
        total_steps: int | None = None,
    ) -> None:
        self.model, self.step, self.total_steps = model, 0, total_steps
        self._loss, self._last_layer, self._held_out = loss, last_layer, held_out

    @cached_property
    def last_layer(self) -> str:
        """The name of the model's last linear layer."""
        return last_linear_layer(self.model, self._last_layer)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss that the model is trained with."""
        return self._loss(outputs, targets)

    def held_out(self, images: int) -> tuple[str, list[tuple[Tensor, Tensor]]]:
        """Return the first images of the held-out batches."""
        if not self._held_out:
            raise UserError("HeldOutAccuracy needs held-out images: pass held_out=[(inputs, labels), ...]")
        batches = []
        for inputs, labels in self._held_out:
            if images > 0:
                batches.append((inputs[:images], labels[:images]))
                images -= len(labels)
        return "val", batches


def last_linear_layer(model: nn.Module, name: str | None = None) -> str:
    """Return the name of a model's last linear layer: `head`, or else the last `nn.Linear` that it registers.

    Args:
        model: any model.
        name: the layer's name, if it is known; it is checked.

    Raises:
        UserError: if there is no such layer, or its weight is not a trained parameter.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    name = default_head(model) if name is None else name
    if name is None:
        raise UserError("the model has no linear layer (nn.Linear) whose gradients could be recorded")
    if name not in linear:
        raise UserError(f"the model has no linear layer {name}; its linear layers are {', '.join(linear)}")
    weight = model.get_submodule(name).weight
    if not isinstance(weight, nn.Parameter):
        raise UserError(
            f"the weight of the last linear layer, {name}, is computed from other parameters, as by weight_norm, and "
            "has no gradient to record"
        )
    if not weight.requires_grad:
        raise UserError(f"the last linear layer, {name}, is frozen and has no gradient to record")
    return name
