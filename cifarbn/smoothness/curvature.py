"""The Hessian of a loss, as a linear operator: products, extreme eigenvalues, trace, spectral density."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cifarbn.smoothness.evaluation import LossFunction
from cifarbn.smoothness.lanczos import lanczos
from cifarbn.smoothness.vectors import dot


class Hessian:
    """The Hessian at the parameters' current values: `hessian @ v` = grad <grad L, v>, for v of shape (n,).

    Costs one forward and one backward pass and keeps their graph, so all products belong to the same minibatch, dropout
    mask and batch statistics. Do not change the parameters while this object is in use.

    Trap: with batch normalisation, the loss in train mode and in eval mode have different Hessians. The loss function
    determines the mode; store it with the result.
    """

    def __init__(self, loss_fn: LossFunction, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        with torch.enable_grad():
            self._gradient = torch.autograd.grad(
                loss_fn(), self._parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
        self.size = sum(p.numel() for p in self._parameters)
        self.dtype, self.device = self._parameters[0].dtype, self._parameters[0].device

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return H v, shape (n,): the parameters in order, each flattened."""
        pieces = v.split([p.numel() for p in self._parameters])
        # If the loss is linear in a parameter, its gradient is constant and has no graph.
        curved = [(g, piece.view_as(g)) for g, piece in zip(self._gradient, pieces, strict=True) if g.requires_grad]
        if not curved:
            return torch.zeros_like(v)
        gradients, weights = zip(*curved, strict=True)
        product = torch.autograd.grad(
            gradients, self._parameters, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([h.flatten() for h in product])


class ExtremeEigenvalues(NamedTuple):
    """The two ends of the spectrum, signed; a true eigenvalue lies within the residual of each."""

    smallest: float
    largest: float
    smallest_residual: float
    largest_residual: float


def extreme_eigenvalues(hessian: Hessian, generator: torch.Generator, steps: int = 40) -> ExtremeEigenvalues:
    """Compute lambda_min and lambda_max by Lanczos from a Gaussian vector, with `steps` Hessian products.

    Trap: the residual bounds the distance to *an* eigenvalue. Only more steps can show that it is the outermost one.
    (Power iteration would find the eigenvalue of largest magnitude, which may be negative early in training.)
    """
    t = lanczos(hessian.__matmul__, _gaussian(hessian, generator), steps)
    values, vectors = t.eigen()
    residuals = t.remainder * np.abs(vectors[-1])
    return ExtremeEigenvalues(float(values[0]), float(values[-1]), float(residuals[0]), float(residuals[-1]))


class TraceEstimate(NamedTuple):
    """An estimate and its standard error (NaN from a single probe)."""

    trace: float
    standard_error: float


def trace(hessian: Hessian, generator: torch.Generator, probes: int = 30) -> TraceEstimate:
    """Estimate tr H = E v' H v over Rademacher v (Hutchinson), by `probes` products; exact if H is diagonal."""
    samples = []
    for _ in range(probes):
        v = _rademacher(hessian, generator)
        samples.append(float(dot([v], [hessian @ v])))
    error = np.std(samples, ddof=1) / probes**0.5 if probes > 1 else np.nan
    return TraceEstimate(float(np.mean(samples)), float(error))


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of the eigenvalues, sum of weight * delta(x - node); the weights sum to 1."""

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]

    def smeared(self, x: ArrayLike, width: float) -> NDArray[np.float64]:
        """Return the density at x, any shape, with a Gaussian of standard deviation `width` around each node."""
        z = (np.asarray(x, dtype=np.float64)[..., None] - self.nodes) / width
        return np.exp(-(z**2) / 2) @ self.weights / (width * np.sqrt(2 * np.pi))


def spectral_density(hessian: Hessian, generator: torch.Generator, probes: int = 5, steps: int = 40) -> SpectralDensity:
    """Estimate the spectral density by stochastic Lanczos quadrature, with probes * steps Hessian products.

    The nodes of each probe are the eigenvalues of its tridiagonal matrix, the weights are the squared first components
    of its eigenvectors; probes are averaged. n times the mean of the density is an estimate of the trace.
    """
    nodes, weights = [], []
    for _ in range(probes):
        values, vectors = lanczos(hessian.__matmul__, _rademacher(hessian, generator), steps).eigen()
        nodes.append(values)
        weights.append(vectors[0] ** 2 / probes)
    return SpectralDensity(np.concatenate(nodes), np.concatenate(weights))


def _gaussian(hessian: Hessian, generator: torch.Generator) -> Tensor:
    vector = torch.randn(hessian.size, generator=generator, device=generator.device)
    return vector.to(hessian.device, hessian.dtype)


def _rademacher(hessian: Hessian, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, (hessian.size,), generator=generator, device=generator.device)
    return (2 * bits - 1).to(hessian.device, hessian.dtype)
