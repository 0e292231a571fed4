"""Internal covariate shift of a model's layers, over one training step (Santurkar et al. 2018, definition 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.internal_covariate_shift import internal_covariate_shift
from cifarbn.smoothness.layers import layers_of
from cifarbn.smoothness.minibatch_loss import Batch, Loss, minibatch_loss
from cifarbn.smoothness.update import Update, parameters_after, trained_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class CovariateShiftResult:
    """The internal covariate shift of L layers; G is a layer's gradient, G' the same with earlier layers updated.

    Attributes:
        layers: the layers' names, in the order of the forward pass.
        distance: ||G - G'||, shape (L,); exactly 0 for the first layer.
        cosine: cos(G, G'), shape (L,); NaN if a gradient is 0.
        gradient_norm: ||G||, shape (L,).
    """

    layers: tuple[str, ...]
    distance: NDArray[np.float64]
    cosine: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]

    def plot(self) -> Figure:
        """Draw the distance and the cosine of each layer."""
        from cifarbn.smoothness import plots

        return plots.covariate_shift(self)


def covariate_shift(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    update: Update,
    *,
    layers: Sequence[str] | None = None,
    train: bool | None = True,
) -> CovariateShiftResult:
    """Compute how much the update of the layers before it changes each layer's gradient, on one batch.

    This is internal covariate shift as Santurkar et al. 2018 (arXiv 1805.11604) define it. The model and the optimizer
    are restored bit for bit, as in `step_change`. Costs one forward and backward pass for each layer and one more.

    Args:
        model: called as `model(inputs)`.
        loss: (outputs, targets) -> scalar.
        batch: the pair (inputs, targets), on the model's device.
        update: the step that moves the parameters, see `step_change`.
        layers: names of layers, in the order of the forward pass. The default is all of `layers_of(model)`, in the
            order in which the model registers them; state the order where the two differ.
        train: see `probe`.

    Raises:
        ValueError: for an unknown layer, and as `step_change` does.
        TypeError: if `update` is of a wrong type.
    """
    trained = list(trained_parameters(model).values())
    known = layers_of(model)
    if isinstance(layers, str):
        layers = (layers,)
    names = tuple(known) if layers is None else tuple(layers)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"the model has no layers {unknown}; its layers are {list(known)}")
    if not names:
        raise ValueError("layers is empty; name at least one layer")
    with minibatch_loss(model, loss, batch, train) as loss_fn:
        gradient = loss_and_gradient(loss_fn, trained).gradient
    after = dict(zip(trained, parameters_after(model, update, gradient, train), strict=True))
    with minibatch_loss(model, loss, batch, train) as loss_fn:
        shifts = internal_covariate_shift(
            loss_fn, [known[name] for name in names], [[after[p] for p in known[name]] for name in names]
        )
    values = {name: value.cpu().numpy().astype(np.float64) for name, value in shifts._asdict().items()}
    return CovariateShiftResult(layers=names, **values)
