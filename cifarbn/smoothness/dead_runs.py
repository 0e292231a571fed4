"""Runs that learn nothing: dead ones look perfectly smooth, diverged ones end early; neither belongs in a band."""

import math

import numpy as np
from numpy.typing import ArrayLike


def dead_since(
    losses: ArrayLike, gradient_norms: ArrayLike | None = None, *, num_classes: int = 10, patience: int = 100
) -> int | None:
    """The step at which the run died, or None for one that lives.

    Dead is a run whose last `patience` or more steps all have a loss within 1 % of ln(num_classes), the cross
    entropy of a guess, or a gradient norm of about 0 (1e-10) while the loss is not about 0 as well (1 % of the
    same), which is a run that has learnt everything.

    Args:
        losses: training loss of every step, shape (T,).
        gradient_norms: ||G_t|| or ||g_t|| of every step, shape (T,), where recorded.
        num_classes: 10 for CIFAR-10. For a loss other than cross entropy only the gradient norm tells.
        patience: the N of MEASURES.md, which gives no number.

    Trap: a plain VGG starts at ln 10 and may sit there for hundreds of steps before it learns, so only a stretch
    that reaches the last step given counts.
    """
    losses = np.asarray(losses, dtype=np.float64)
    guess = math.log(num_classes)
    lifeless = np.abs(losses - guess) <= 0.01 * guess
    if gradient_norms is not None:
        lifeless |= (np.asarray(gradient_norms) <= 1e-10) & (losses > 0.01 * guess)
    alive = np.flatnonzero(~lifeless)
    since = int(alive[-1]) + 1 if len(alive) else 0
    return since if len(losses) - since >= patience else None


def diverged_at(losses: ArrayLike) -> int | None:
    """The first step whose loss is not finite, or None. Gradients are no sign: AMP overflows and recovers."""
    broken = np.flatnonzero(~np.isfinite(np.asarray(losses, dtype=np.float64)))
    return int(broken[0]) if len(broken) else None
