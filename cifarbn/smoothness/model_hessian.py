"""The curvature of a model's loss: extreme eigenvalues and the trace of its Hessian."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cifarbn.smoothness.curvature import Hessian, extreme_eigenvalues, trace
from cifarbn.smoothness.layers import layers_of
from cifarbn.smoothness.minibatch_loss import Batch, Loss, minibatch_loss
from cifarbn.smoothness.update import trained_parameters


@dataclass(frozen=True, kw_only=True)
class LayerHessian:
    """The Hessian of one layer (a diagonal block) or of the whole model.

    Attributes:
        largest: the largest eigenvalue.
        smallest: the smallest one; negative where the loss is not convex.
        largest_residual: an eigenvalue lies within this distance of `largest`.
        smallest_residual: an eigenvalue lies within this distance of `smallest`.
        trace: an estimate of the sum of all eigenvalues; NaN for `trace_probes=0`.
        trace_error: the standard error of the estimate; NaN for fewer than two probes.
        size: the number of parameters, and so of eigenvalues.
    """

    largest: float
    smallest: float
    largest_residual: float
    smallest_residual: float
    trace: float
    trace_error: float
    size: int


@dataclass(frozen=True, kw_only=True)
class HessianResult(LayerHessian):
    """The result of `hessian`, for the whole model.

    Attributes:
        layers: the same for the diagonal block of each layer, by its name; empty without `per_layer=True`.
    """

    layers: Mapping[str, LayerHessian] = field(default_factory=dict)


def hessian(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    *,
    lanczos_steps: int = 30,
    trace_probes: int = 10,
    train: bool | None = True,
    per_layer: bool = False,
    seed: int = 0,
) -> HessianResult:
    """Compute the extreme eigenvalues (Lanczos) and the trace (Hutchinson) of the Hessian of the loss on one batch.

    The model is restored bit for bit: parameters, buffers, `.grad`, modes, and the global random generators; also if an
    exception is raised. Costs `lanczos_steps` + `trace_probes` Hessian-vector products, each about two
    backward passes, and holds `lanczos_steps` + 2 vectors as long as all parameters together.

    >>> import torch
    >>> model, batch = torch.nn.Linear(2, 1, bias=False), (torch.diag(torch.tensor([1.0, 3.0])), torch.zeros(2, 1))
    >>> result = hessian(model, lambda outputs, targets: (outputs - targets).square().sum() / 2, batch)
    >>> round(result.largest, 4), round(result.smallest, 4), round(result.trace, 4)  # L = (w_1^2 + 9 w_2^2) / 2
    (9.0, 1.0, 10.0)

    Args:
        model: called as `model(inputs)`.
        loss: (outputs, targets) -> scalar, differentiable twice.
        batch: the pair (inputs, targets), on the model's device.
        lanczos_steps: more steps give smaller residuals.
        trace_probes: random vectors for the trace; 0 leaves it out.
        train: see `probe`.
        per_layer: also return the values of each layer's diagonal block, at the same number of products each.
        seed: of the random vectors.

    Raises:
        ValueError: for fewer than one Lanczos step or a negative number of probes, a batch that is not a pair, a loss
            that is not a scalar, or a model without trained parameters.
    """
    if lanczos_steps < 1 or trace_probes < 0:
        raise ValueError("lanczos_steps must be at least 1 and trace_probes at least 0")
    parameters = list(trained_parameters(model).values())
    with minibatch_loss(model, loss, batch, train) as loss_fn:

        def values_of(block: Sequence[Tensor]) -> LayerHessian:
            matrix, generator = Hessian(loss_fn, block), torch.Generator().manual_seed(seed)
            ends = extreme_eigenvalues(matrix, generator, lanczos_steps)
            total, error = trace(matrix, generator, trace_probes) if trace_probes else (float("nan"), float("nan"))
            return LayerHessian(**ends._asdict(), trace=total, trace_error=error, size=matrix.size)

        layers = layers_of(model) if per_layer else {}
        return HessianResult(
            **vars(values_of(parameters)), layers={name: values_of(block) for name, block in layers.items()}
        )
