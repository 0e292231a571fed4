"""Runs that learn nothing: dead ones look perfectly smooth, diverged ones end early; neither belongs in a band."""

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
    """The step at which the run died, or None for one that lives.

    Dead is a run whose last `patience` or more steps all have a loss within 1 % of a constant prediction's, or a
    gradient norm of about 0 (1e-10) while the loss is not about 0 as well (1 % of the same), which is a run that has
    learnt everything.

    Args:
        losses: training loss of every step, shape (T,).
        constant_loss: of the best constant prediction under the run's own loss, see `constant_prediction_loss`. None
            where there is none: then only the gradient tells, and a loss above 1e-10 is not about 0.
        gradient_norms: ||G_t|| or ||g_t|| of every step, shape (T,), where recorded.
        patience: how many steps; no source gives a number.

    Trap: a plain VGG starts at ln 10 and may sit there for hundreds of steps before it learns, so only a stretch
    that reaches the last step given counts.
    """
    losses = np.asarray(losses, dtype=np.float64)
    nothing = NO_GRADIENT if constant_loss is None else 0.01 * constant_loss
    lifeless = np.zeros(losses.shape, dtype=bool)
    if constant_loss is not None:
        lifeless |= np.abs(losses - constant_loss) <= nothing
    if gradient_norms is not None:
        lifeless |= (np.asarray(gradient_norms) <= NO_GRADIENT) & (losses > nothing)
    alive = np.flatnonzero(~lifeless)
    since = int(alive[-1]) + 1 if len(alive) else 0
    return since if len(losses) - since >= patience else None


def constant_prediction_loss(loss: Loss, num_classes: int, batch_size: int | None = None) -> float | None:
    """The least loss of one logit vector given to every image, over images of which each class has as many.

    ln C for cross entropy, with label smoothing or without; (1 - 1 / C) / C for the mean squared error against the
    one-hot label. Found by L-BFGS from logits of 0, in float64 on a copy of the loss; the random generators stay.

    Args:
        loss: any loss of logits and labels; one that is not convex in the logits may have a lower level elsewhere.
        num_classes: C.
        batch_size: of the minibatches, for a loss that sums over images; None takes C. No matter for one that averages.

    Returns:
        None where there is no such level: fewer than two classes (a regression), a loss that cannot take such logits
        and labels, or a level that is not a positive number.
    """
    if num_classes < 2:
        return None
    randomness = Randomness()
    try:
        return _least(loss, num_classes, batch_size or num_classes)
    except Exception:
        return None  # the loss is the user's: it may ask for anything, and training goes without this level
    finally:
        randomness.restore()


def diverged_at(losses: ArrayLike) -> int | None:
    """The first step whose loss is not finite, or None. Gradients are no sign: AMP overflows and recovers."""
    broken = np.flatnonzero(~np.isfinite(np.asarray(losses, dtype=np.float64)))
    return int(broken[0]) if len(broken) else None


def _least(loss: Loss, num_classes: int, batch_size: int) -> float | None:
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).cpu().double()
    prediction = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([prediction], max_iter=200, line_search_fn="strong_wolfe")

    def of(rounds: int) -> Tensor:
        labels = torch.arange(num_classes).repeat(rounds)
        return loss(prediction.expand(len(labels), num_classes), labels)

    def closure() -> float:
        optimizer.zero_grad()
        value = of(1)
        value.backward()
        return value.item()

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        once, twice = of(1).item(), of(2).item()
    # The same for a mean over images, twice as much for a sum; a straight line through both is exact for either.
    level = once + (twice - once) * (batch_size / num_classes - 1)
    return level if math.isfinite(level) and level > 0 else None
