"""Detect dead runs, which must not enter a band: a dead run looks perfectly smooth."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cifarbn.smoothness.randomness import Randomness

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, C), labels (N,)) -> scalar."""

NO_GRADIENT = 1e-10


def dead_since(
    losses: ArrayLike,
    constant_loss: float | None,
    gradient_norms: ArrayLike | None = None,
    *,
    patience: int = 100,
) -> int | None:
    """Return the step since which the run is dead, or None if it is not.

    A run is dead if at each of its last `patience` or more steps the loss is within 1 % of a constant prediction's, or
    the gradient norm is at most 1e-10. A gradient norm of 0 does not count if the loss is also at most 1 % of the
    constant prediction's: such a run has learned everything.

    Args:
        losses: training loss of every step, shape (T,).
        constant_loss: loss of the best constant prediction, see `constant_prediction_loss`. If None, only the gradient
            norm is checked, and a loss above 1e-10 counts as not yet learned.
        gradient_norms: ||G_t|| or ||g_t|| of every step, shape (T,), if recorded.
        patience: number of steps; our choice, no publication gives a number.

    Trap: a VGG without batch norm starts at a loss of ln 10 and may stay there for hundreds of steps before it learns.
    Such a stretch does not count unless it lasts to the end of the run.
    """
    losses = np.asarray(losses, dtype=np.float64)
    negligible = NO_GRADIENT if constant_loss is None else 0.01 * constant_loss  # a loss, or a difference of losses
    lifeless = np.zeros(losses.shape, dtype=bool)
    if constant_loss is not None:
        lifeless |= np.abs(losses - constant_loss) <= negligible
    if gradient_norms is not None:
        lifeless |= (np.asarray(gradient_norms) <= NO_GRADIENT) & (losses > negligible)
    alive = np.flatnonzero(~lifeless)
    since = int(alive[-1]) + 1 if len(alive) else 0
    return since if len(losses) - since >= patience else None


def constant_prediction_loss(loss: Loss, num_classes: int, batch_size: int | None = None) -> float | None:
    """Return the smallest loss of a constant prediction: the same logits for every image, on balanced classes.

    This is ln C for cross entropy, with or without label smoothing, and (1 - 1 / C) / C for the mean squared error
    against the one-hot label. Computed by L-BFGS from logits of 0, in float64, on a copy of the loss; the random
    generators are restored.

    Args:
        loss: any loss of logits and labels. If it is not convex in the logits, the result may be a local minimum.
        num_classes: C.
        batch_size: images per minibatch, which matters if the loss is a sum over images; None means C.

    Returns:
        The loss, or None if there is none: fewer than two classes (a regression), a loss that raises an error for such
        logits and labels, or a result that is not a positive number.
    """
    if num_classes < 2:
        return None
    randomness = Randomness()
    try:
        return _minimum(loss, num_classes, batch_size or num_classes)
    except Exception:
        return None  # a user's loss may raise any error, and training does not need this value
    finally:
        randomness.restore()


def _minimum(loss: Loss, num_classes: int, batch_size: int) -> float | None:
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).cpu().double()
    prediction = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([prediction], max_iter=200, line_search_fn="strong_wolfe")

    def loss_of(repeats: int) -> Tensor:
        labels = torch.arange(num_classes).repeat(repeats)
        return loss(prediction.expand(len(labels), num_classes), labels)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss_of(1)
        value.backward()
        return value.item()

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        once, twice = loss_of(1).item(), loss_of(2).item()
    # `once` equals `twice` for a mean over images and half of it for a sum: linear extrapolation is exact for both.
    level = once + (twice - once) * (batch_size / num_classes - 1)
    return level if math.isfinite(level) and level > 0 else None
