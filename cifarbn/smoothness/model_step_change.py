"""How much a training step changes a model's gradient: on one minibatch, and from one minibatch to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from cifarbn.smoothness.evaluation import loss_and_gradient, parameters_at
from cifarbn.smoothness.gradient_change import drift_noise_split, gradient_change
from cifarbn.smoothness.layers import layers_of
from cifarbn.smoothness.minibatch_loss import Batch, Loss, minibatch_loss
from cifarbn.smoothness.update import Update, parameters_after, trained_parameters
from cifarbn.smoothness.vectors import norm


@dataclass(frozen=True, kw_only=True)
class DriftNoise:
    """The difference of two consecutive gradients in two parts: total^2 = drift^2 + noise^2 + 2 inner.

    Attributes:
        total: ||grad L_{t+1}(theta_{t+1}) - grad L_t(theta_t)||; for the last layer, the course report's Lipschitz_t.
        drift: ||grad L_{t+1}(theta_{t+1}) - grad L_{t+1}(theta_t)||, the effect of the step.
        noise: ||grad L_{t+1}(theta_t) - grad L_t(theta_t)||, the effect of the other minibatch.
        inner: the inner product of the two differences.
    """

    total: float
    drift: float
    noise: float
    inner: float


@dataclass(frozen=True, kw_only=True)
class LayerStepChange:
    """How much one step changes the gradient of one layer or of the whole model.

    Attributes:
        change: ||grad L_t(theta_{t+1}) - grad L_t(theta_t)||, on the same minibatch.
        moved: ||theta_{t+1} - theta_t||.
        ratio: change / moved, in units of curvature; NaN if nothing moved.
        gradient_norm: ||grad L_t(theta_t)||.
        next_batch: how the change to the next minibatch splits into drift and noise; None without `next_batch`.
    """

    change: float
    moved: float
    ratio: float
    gradient_norm: float
    next_batch: DriftNoise | None = None


@dataclass(frozen=True, kw_only=True)
class StepChangeResult(LayerStepChange):
    """The result of `step_change`, for the whole model.

    Attributes:
        loss_before: L_t(theta_t).
        loss_after: L_t(theta_{t+1}).
        layers: the same for each layer by itself, by its name; empty without `per_layer=True`.
    """

    loss_before: float
    loss_after: float
    layers: Mapping[str, LayerStepChange] = field(default_factory=dict)


def step_change(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    update: Update,
    *,
    next_batch: Batch | None = None,
    train: bool | None = True,
    per_layer: bool = False,
) -> StepChangeResult:
    """Compute how much an update of the parameters changes the gradient of one batch.

    Unlike the difference of two consecutive training gradients, this contains no minibatch noise. The model and the
    optimizer are restored bit for bit: parameters, buffers, `.grad`, modes, the optimizer's state and the global random
    generators; also if an exception is raised. Costs two forward and backward passes, or four with `next_batch`.

    >>> import torch
    >>> model, batch = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> result = step_change(model, lambda outputs, targets: (outputs - targets).square().sum() / 2, batch, optimizer)
    >>> round(result.ratio, 5)  # L = ||w||^2 / 2 has curvature 1 in every direction
    1.0

    Args:
        model: called as `model(inputs)`.
        loss: (outputs, targets) -> scalar.
        batch: the pair (inputs, targets) of step t, on the model's device.
        update: the step from theta_t, the model's current parameters, to theta_{t+1}. One of

            * an optimizer, which takes its next step on the gradient of `batch`;
            * a callable without arguments, such as one that clips the gradients and takes a step. It finds the gradient
              of `batch` in `.grad`. Its effects on other objects than the model remain;
            * the parameters after the step, as a mapping from names to tensors.
        next_batch: the batch of step t + 1; adds the split into drift and noise.
        train: see `probe`.
        per_layer: also return the values of each layer, see `layers_of`.

    Raises:
        ValueError: if the update has other parameters than the model, see `parameters_after`; for a batch that is not a
            pair, a loss that is not a scalar, or a model without trained parameters.
        TypeError: if `update` is none of the three.
    """
    parameters = list(trained_parameters(model).values())
    with minibatch_loss(model, loss, batch, train) as loss_fn:
        before = loss_and_gradient(loss_fn, parameters)
    theta = [p.detach().clone() for p in parameters]
    theta_next = parameters_after(model, update, before.gradient, train)
    with minibatch_loss(model, loss, batch, train) as loss_fn, parameters_at(parameters, theta_next):
        after = loss_and_gradient(loss_fn, parameters)
    gradients: tuple[Sequence[Tensor], ...] = ()
    if next_batch is not None:
        with minibatch_loss(model, loss, next_batch, train) as loss_fn:
            crossed = loss_and_gradient(loss_fn, parameters).gradient
            with parameters_at(parameters, theta_next):
                gradients = (before.gradient, crossed, loss_and_gradient(loss_fn, parameters).gradient)

    def change_of(indices: Sequence[int]) -> LayerStepChange:
        def take(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [tensors[i] for i in indices]

        change = gradient_change(*map(take, (before.gradient, after.gradient, theta, theta_next)))
        split = drift_noise_split(*map(take, gradients)) if gradients else None
        return LayerStepChange(
            **{name: float(value) for name, value in change._asdict().items()},
            gradient_norm=float(norm(take(before.gradient))),
            next_batch=split and DriftNoise(**{name: float(value) for name, value in split._asdict().items()}),
        )

    position = {parameter: i for i, parameter in enumerate(parameters)}
    layers = layers_of(model) if per_layer else {}
    return StepChangeResult(
        **vars(change_of(range(len(parameters)))),
        loss_before=float(before.loss),
        loss_after=float(after.loss),
        layers={name: change_of([position[p] for p in layer]) for name, layer in layers.items()},
    )
