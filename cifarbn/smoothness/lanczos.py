"""The Lanczos algorithm: a small tridiagonal matrix whose eigenvalues approximate those of a large symmetric one."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.smoothness.vectors import dot, norm


class Tridiagonal(NamedTuple):
    """The matrix T = V' H V after m Lanczos steps, on the CPU in float64."""

    diagonal: NDArray[np.float64]
    """Shape (m,)."""
    off_diagonal: NDArray[np.float64]
    """Shape (m - 1,)."""
    remainder: float
    """Norm of the part of H V outside the span of V; 0 if V spans an invariant subspace."""

    def eigen(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the eigenvalues, ascending, shape (m,), and the eigenvectors as columns, shape (m, m)."""
        t = np.diag(self.diagonal) + np.diag(self.off_diagonal, 1) + np.diag(self.off_diagonal, -1)
        values, vectors = np.linalg.eigh(t)
        return values, vectors


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tridiagonal:
    """Run Lanczos with full reorthogonalisation, from the vector `start` of shape (n,).

    Holds steps + 2 vectors of length n: 1.2 GB for 30 steps on VGG-A. Stops early at an invariant subspace.

    Trap: without reorthogonalisation, rounding errors produce repeated copies of converged eigenvalues, and wrong
    weights in the spectral density.

    Args:
        product: v -> H v, for a symmetric H.
        start: any vector that is not 0.
        steps: the number of products.
    """
    steps = min(steps, start.numel())
    basis = start.new_zeros(steps, start.numel())
    basis[0] = start / norm([start]).to(start.dtype)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    scale = 0.0
    for j in range(steps):
        v = product(basis[j])
        diagonal.append(float(dot([basis[j]], [v])))
        for _ in range(2):
            v = v - basis[: j + 1].T @ (basis[: j + 1] @ v)
        off_diagonal.append(float(norm([v])))
        scale = max(scale, abs(diagonal[-1]), off_diagonal[-1])
        if off_diagonal[-1] <= 10 * torch.finfo(start.dtype).eps * scale:
            off_diagonal[-1] = 0.0
            break
        if j + 1 < steps:
            basis[j + 1] = v / off_diagonal[-1]
    return Tridiagonal(np.array(diagonal), np.array(off_diagonal[:-1]), off_diagonal[-1])
