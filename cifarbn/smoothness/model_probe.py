"""Probe a model's loss along a direction: how far the loss and its gradient change (Santurkar et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifarbn.smoothness import probe_curves
from cifarbn.smoothness.directional_probe import probe_along, vgg_steps
from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.layers import layers_of, norm_per_layer
from cifarbn.smoothness.minibatch_loss import Batch, Loss, minibatch_loss
from cifarbn.smoothness.update import trained_parameters
from cifarbn.smoothness.vectors import norms, random_direction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = vgg_steps()


@dataclass(frozen=True, kw_only=True)
class LayerProbe:
    """How far the gradient changes at the S points of a probe, for one layer or for the whole model.

    Attributes:
        distance_moved: s ||d||, how far each point is from the parameters theta, shape (S,).
        gradient_distance: ||grad L(theta - s d) - grad L(theta)|| at each point, shape (S,).
        gradient_norm: ||grad L(theta)||.
        parameter_norm: ||theta||.
    """

    distance_moved: NDArray[np.float64]
    gradient_distance: NDArray[np.float64]
    gradient_norm: float
    parameter_norm: float

    @property
    def effective_beta(self) -> float:
        """The largest gradient distance per distance moved: max_s ||grad L(theta - s d) - g|| / (s ||d||).

        Trap: not invariant to the scale of the weights. Multiplying a convolution before batch normalisation by c does
        not change the loss but divides its curvature by c^2.
        """
        return float(probe_curves.effective_beta(self.gradient_distance, self.distance_moved))

    @property
    def predictiveness_band(self) -> tuple[float, float]:
        """The smallest and the largest gradient distance."""
        low, high = probe_curves.predictiveness_band(self.gradient_distance)
        return float(low), float(high)

    @property
    def predictiveness(self) -> float:
        """The largest gradient distance: the smaller, the better the gradient predicts those nearby."""
        return self.predictiveness_band[1]

    @property
    def relative_distance(self) -> NDArray[np.float64]:
        """The gradient distance divided by the gradient's norm, shape (S,); NaN if the gradient is 0."""
        return probe_curves.relative_distance(self.gradient_distance, self.gradient_norm)


@dataclass(frozen=True, kw_only=True)
class ProbeResult(LayerProbe):
    """The result of `probe`, for the whole model.

    Attributes:
        step_sizes: s, shape (S,).
        loss_at_start: L(theta).
        loss: L(theta - s d) at each point, shape (S,).
        cosine: cos(grad L(theta - s d), grad L(theta)) at each point, shape (S,).
        layers: the same for each layer by itself, by its name; empty without `per_layer=True`. All layers move
            together, so a layer's gradient also changes with the moves of the others.
    """

    step_sizes: NDArray[np.float64]
    loss_at_start: float
    loss: NDArray[np.float64]
    cosine: NDArray[np.float64]
    layers: Mapping[str, LayerProbe] = field(default_factory=dict)

    @property
    def loss_band(self) -> tuple[float, float]:
        """The smallest and the largest loss at the points."""
        low, high = probe_curves.loss_band(self.loss)
        return float(low), float(high)

    def plot(self) -> Figure:
        """Draw the loss and the gradient distance against the distance moved."""
        from cifarbn.smoothness import plots

        return plots.probe(self)


def probe(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    *,
    steps: Sequence[float] = STEPS,
    direction: str | Sequence[Tensor] = "gradient",
    train: bool | None = True,
    per_layer: bool = False,
    seed: int = 0,
) -> ProbeResult:
    """Compute the loss and its gradient at theta - s d for each step size s, on one batch.

    With the default direction, the gradient g itself, this is the probe of Santurkar et al. 2018 (arXiv 1805.11604,
    section 3.2), from which they read the variation of the loss, gradient predictiveness and effective beta.

    The model is restored bit for bit: parameters, buffers, `.grad`, modes, and the global random generators; also if an
    exception is raised. Costs S + 1 forward and backward passes and holds two copies of the parameters.

    >>> import torch
    >>> model, batch = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
    >>> result = probe(model, lambda outputs, targets: (outputs - targets).square().sum() / 2, batch, steps=[0.1, 0.5])
    >>> round(result.effective_beta, 5)  # L = ||w||^2 / 2 has curvature 1 in every direction
    1.0

    Args:
        model: called as `model(inputs)`.
        loss: (outputs, targets) -> scalar.
        batch: the pair (inputs, targets), on the model's device.
        steps: the step sizes s, positive. The default is the range of Santurkar et al. for VGG, [1/2, 4] x 0.1;
            `vgg_steps(lr)` is the same range for another learning rate.
        direction: "gradient"; "random", of the gradient's length; or one tensor for each trained parameter.
        train: whether the model is in train mode (True) or eval mode (False) in the passes; None keeps each module's
            mode. With batch normalisation the two are different functions.
        per_layer: also return the values of each layer, see `layers_of`.
        seed: of the random direction.

    Raises:
        ValueError: for step sizes that are not positive, an unknown direction, a batch that is not a pair, a loss that
            is not a scalar, or a model without trained parameters.
    """
    if isinstance(direction, str) and direction not in ("gradient", "random"):
        raise ValueError(f'direction must be "gradient", "random" or a sequence of tensors, not {direction!r}')
    parameters = list(trained_parameters(model).values())
    with minibatch_loss(model, loss, batch, train) as loss_fn:
        start = loss_and_gradient(loss_fn, parameters)
        if direction == "random":
            direction = random_direction(start.gradient, torch.Generator().manual_seed(seed))
        along = None if isinstance(direction, str) else direction
        values = probe_along(loss_fn, parameters, steps, start=start, direction=along)

    def by_layer(of_parameters: Tensor) -> dict[str, NDArray[np.float64]]:
        return {name: _array(v) for name, v in norm_per_layer(of_parameters, parameters, layers).items()}

    layers = layers_of(model) if per_layer else {}
    moved, distance = by_layer(values.parameter_moved), by_layer(values.parameter_distance)
    gradient_norm, parameter_norm = by_layer(norms(start.gradient)), by_layer(values.parameter_norm)
    return ProbeResult(
        step_sizes=_array(values.s),
        distance_moved=_array(values.distance_moved),
        loss_at_start=float(values.loss_at_start),
        loss=_array(values.loss),
        gradient_norm=float(values.gradient_norm),
        gradient_distance=_array(values.gradient_distance),
        cosine=_array(values.cosine),
        parameter_norm=float(torch.linalg.vector_norm(values.parameter_norm)),
        layers={
            name: LayerProbe(
                distance_moved=moved[name],
                gradient_distance=distance[name],
                gradient_norm=float(gradient_norm[name]),
                parameter_norm=float(parameter_norm[name]),
            )
            for name in layers
        },
    )


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.cpu().numpy().astype(np.float64)
