"""What can be known before the first step is refused before the first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarbn.errors import UserError
from cifarbn.losses import Loss, in_full_precision
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.training.tta import tta_logits


def check_model(net: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], *, num_classes: int | None, tta: str) -> None:
    """Show the net two images of a training batch, in eval mode, and the loss what it says; leaves no trace on the net.

    Args:
        net: where it trains.
        loss: `(logits, labels) -> scalar`.
        batch: on the net's device, in its precision.
        num_classes: of the data; None where the data does not say, 0 for a regression.
        tta: as the test will show them.

    Raises:
        UserError: if the net does not take the inputs, its logits do not fit the labels, or the loss takes neither.
    """
    inputs, labels = (each[:2] for each in batch)
    shape = tuple(inputs.shape[1:])
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), preserve_state(net, train=False):
        with _refusing(f"model: it does not take the inputs of this data, of shape {shape}"):
            logits = net(inputs)
        check_logits(logits, len(inputs))
        if not labels.is_floating_point():
            classes = logits.shape[1]
            if num_classes and classes != num_classes:
                raise UserError(
                    f"model: it gives {classes} logits an image, and the data has {num_classes} classes; "
                    f"set model.num_classes={num_classes}, the default of this package's models, or change the model"
                )
            low, high = batch[1].min().item(), batch[1].max().item()
            if low < 0 or high >= classes:
                raise UserError(
                    f"data: labels must be from 0 to {classes - 1}, one of the model's {classes} classes each, and "
                    f"the first batch has labels from {low} to {high}; set model.num_classes, or change the labels"
                )
        with _refusing("loss: it does not take this model's logits and this data's labels"):
            value = in_full_precision(loss, logits, labels)
        if not isinstance(value, Tensor) or value.dim():
            raise UserError("loss: it must return one number, a tensor without dimensions (reduction='mean')")
        if tta != "none":
            with _refusing(f"tta={tta}: it does not work for this model and data"):
                tta_logits(net, inputs, logits, tta)


def check_logits(logits: Any, images: int) -> None:
    """Refuse what a net returns unless it is a tensor of logits (N, C).

    Raises:
        UserError: naming what it is.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != images:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model: for {images} images it must return logits of shape ({images}, classes), not {found}")


def check_batch_of_one(net: nn.Module, inputs: Tensor) -> None:
    """Refuse a batch of one image where a normalisation of the net has a single value per channel to normalise.

    Args:
        net: where it trains.
        inputs: a training batch, of which the first image is shown in train mode; leaves no trace on the net.

    Raises:
        UserError: naming the remedy.
    """
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), preserve_state(net, train=True):
        try:
            net(inputs[:1])
        except ValueError as error:
            raise UserError(
                f"data.batch_size: an epoch has a batch of one image, which this model cannot normalise ({error}); "
                "use data.drop_last=true if it is only the last batch, or another data.batch_size"
            ) from error


def smallest_batch(loader: Any, batches: int) -> int | None:
    """Return the number of images in the smallest of an epoch's first `batches` batches; None where it is not known."""
    sizes: tuple[int, int] | None = getattr(loader, "batch_sizes", None)
    if isinstance(loader, DataLoader) and loader.batch_size is not None:
        left_over = 0 if loader.drop_last else len(loader.sampler) % loader.batch_size  # type: ignore[arg-type]
        sizes = loader.batch_size, left_over or loader.batch_size
    if sizes is None:
        return None
    return sizes[0] if batches < len(loader) else sizes[1]


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn any error inside into the user's, which begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{what} ({type(error).__name__}: {reason})") from error
