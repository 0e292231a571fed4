"""The Hessian of a loss without ever forming it: products, extreme eigenvalues, trace, spectral density."""

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
    """The Hessian at the parameters as they stand: `hessian @ v` = grad <grad L, v>, for v of shape (n,).

    One forward pass, whose graph it keeps: every product belongs to the same minibatch, dropout mask and
    batch statistics. Do not move the parameters while it lives.

    Trap: with batch normalisation the loss of train mode and that of eval mode have different Hessians. The loss
    function decides; store which with the result.
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
        """H v, shape (n,), parameters in their order, each flattened."""
        pieces = v.split([p.numel() for p in self._parameters])
        # Where the loss is linear in a parameter its gradient is a constant, with no graph behind it.
        curved = [(g, piece.view_as(g)) for g, piece in zip(self._gradient, pieces, strict=True) if g.requires_grad]
        if not curved:
            return torch.zeros_like(v)
        gradients, weights = zip(*curved, strict=True)
        product = torch.autograd.grad(
            gradients, self._parameters, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([h.flatten() for h in product])


class ExtremeEigenvalues(NamedTuple):
    """The two ends of the spectrum, signed; each lies within its residual of a true eigenvalue."""

    smallest: float
    largest: float
    smallest_residual: float
    largest_residual: float


def extreme_eigenvalues(hessian: Hessian, generator: torch.Generator, steps: int = 40) -> ExtremeEigenvalues:
    """lambda_min and lambda_max by Lanczos from a Gaussian vector, at `steps` Hessian products.

    Trap: power iteration finds the eigenvalue of largest magnitude, which early in training may be negative. The
    residual bounds the distance to *an* eigenvalue; only more steps show that it is the outermost.
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
    """Hutchinson: tr H = E v' H v over Rademacher v, at `probes` Hessian products; exact for a diagonal H."""
    samples = []
    for _ in range(probes):
        v = _rademacher(hessian, generator)
        samples.append(float(dot([v], [hessian @ v])))
    error = np.std(samples, ddof=1) / probes**0.5 if probes > 1 else np.nan
    return TraceEstimate(float(np.mean(samples)), float(error))


@dataclass(frozen=True)
class SpectralDensity:
    """The share of eigenvalues near each node: sum of weight * delta(x - node), all shares summing to 1."""

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]

    def smeared(self, x: ArrayLike, width: float) -> NDArray[np.float64]:
        """The density at x, any shape, with each node a Gaussian of standard deviation `width`, in units of lambda."""
        z = (np.asarray(x, dtype=np.float64)[..., None] - self.nodes) / width
        return np.exp(-(z**2) / 2) @ self.weights / (width * np.sqrt(2 * np.pi))


def spectral_density(hessian: Hessian, generator: torch.Generator, probes: int = 5, steps: int = 40) -> SpectralDensity:
    """Stochastic Lanczos quadrature from Rademacher vectors, at probes * steps Hessian products.

    Each probe's nodes are the eigenvalues of its tridiagonal matrix and its weights the squared first components
    of the eigenvectors; probes are averaged. n times the mean of the density estimates the trace.
    """
    nodes, weights = [], []
    for _ in range(probes):
        values, vectors = lanczos(hessian.__matmul__, _rademacher(hessian, generator), steps).eigen()
        nodes.append(values)
        weights.append(vectors[0] ** 2 / probes)
    return SpectralDensity(np.concatenate(nodes), np.concatenate(weights))


def _gaussian(hessian: Hessian, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(hessian.size, generator=generator, device=generator.device)
    return drawn.to(hessian.device, hessian.dtype)


def _rademacher(hessian: Hessian, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, (hessian.size,), generator=generator, device=generator.device)
    return (2 * drawn - 1).to(hessian.device, hessian.dtype)
