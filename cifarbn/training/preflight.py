"""Checks before the first step: whether the model, the data and the loss fit each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarbn.errors import UserError, out_of_memory
from cifarbn.losses import Loss, in_full_precision
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.training.tta import tta_logits


def check_model(
    model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], *, num_classes: int | None, tta: str
) -> None:
    """Compute the loss of two training images in eval mode; the model's state is restored.

    Args:
        model: on the device that it trains on.
        loss: `(logits, labels) -> scalar`.
        batch: a training batch on the model's device, in its precision.
        num_classes: number of classes of the data; None if unknown, 0 for a regression.
        tta: test-time augmentation policy, see `tta_logits`.

    Raises:
        UserError: if the model does not accept the images, or its logits do not fit the labels or the loss.
    """
    inputs, labels = (each[:2] for each in batch)
    shape = tuple(inputs.shape[1:])
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), preserve_state(model, train=False):
        with _errors_named(f"model: it does not accept this data's inputs of shape {shape}"):
            logits = model(inputs)
        check_logits(logits, len(inputs))
        if not labels.is_floating_point():
            classes = logits.shape[1]
            if num_classes and classes != num_classes:
                raise UserError(
                    f"model: it returns {classes} logits per image, but the data has {num_classes} classes; set "
                    f"model.num_classes={num_classes} (the default of this package's models), or change the model"
                )
            low, high = batch[1].min().item(), batch[1].max().item()
            if low < 0 or high >= classes:
                raise UserError(
                    f"data: labels must be between 0 and {classes - 1}, as the model has {classes} classes, but the "
                    f"first batch has labels from {low} to {high}; set model.num_classes, or change the labels"
                )
        with _errors_named("loss: it does not accept this model's logits and this data's labels"):
            value = in_full_precision(loss, logits, labels)
        if not isinstance(value, Tensor) or value.dim():
            raise UserError("loss: it must return a scalar tensor; set loss.reduction=mean, or change the loss")
        if tta != "none":
            with _errors_named(f"tta={tta}: it does not work for this model and data"):
                tta_logits(model, inputs, logits, tta)


def check_logits(logits: Any, images: int) -> None:
    """Raise an error unless a model's output is a tensor of logits (N, C).

    Raises:
        UserError: naming the shape or the type of the output.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != images:
        output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model: for {images} images it must return logits of shape ({images}, classes), not {output}")


def check_batch_of_one(model: nn.Module, inputs: Tensor) -> None:
    """Raise an error if the model cannot train on a batch of one image, as with one value per channel to normalise.

    Args:
        model: on the device that it trains on; its state is restored.
        inputs: a training batch; its first image is used, in train mode.

    Raises:
        UserError: naming the remedy.
    """
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), preserve_state(model, train=True):
        try:
            model(inputs[:1])
        except ValueError as error:
            raise UserError(
                f"data.batch_size: each epoch has a batch of one image, which this model cannot normalise ({error}); "
                "use data.drop_last=true if it is only the last batch, or another data.batch_size"
            ) from error


def smallest_batch(loader: Any, batches: int) -> int | None:
    """Return the number of images in the smallest of an epoch's first `batches` batches; None if unknown."""
    sizes: tuple[int, int] | None = getattr(loader, "batch_sizes", None)
    if isinstance(loader, DataLoader) and loader.batch_size is not None:
        left_over = 0 if loader.drop_last else len(loader.sampler) % loader.batch_size  # type: ignore[arg-type]
        sizes = loader.batch_size, left_over or loader.batch_size
    if sizes is None:
        return None
    return sizes[0] if batches < len(loader) else sizes[1]


@contextmanager
def _errors_named(message: str) -> Iterator[None]:
    """Turn any error inside into a UserError that begins with `message`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if shortage := out_of_memory(error):
            raise UserError(shortage) from error
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{message} ({type(error).__name__}: {reason})") from error
