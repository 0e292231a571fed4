"""The plane in which a training run moved most: principal components of its path (Li et al. 2018, section 7.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TrajectoryPlane(NamedTuple):
    """Two directions, and the path seen in them."""

    directions: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    """Orthonormal, each shaped like the parameters; ready for `landscape.surface` around the last point."""
    coordinates: Tensor
    """The points relative to the last, shape (T, 2)."""
    explained: Tensor
    """Each direction's share of the path's variance, shape (2,)."""


def trajectory_plane(points: Sequence[Sequence[Tensor]]) -> TrajectoryPlane:
    """PCA of the points theta_1 ... theta_T, T >= 3, each a list of tensors; origin at the last one.

    Centred at the mean, as PCA is. The sign of a direction is free: taken so that the path begins on its positive
    side. Trap: a random walk in high dimension already shows 61 % of its variance in the first component
    (Antognini and Sohl-Dickstein 2018), so a large share proves nothing.

    Raises:
        ValueError: fewer than three points, which span no plane.
    """
    if len(points) < 3:
        raise ValueError(f"a plane needs three points or more, not {len(points)}")
    matrix = torch.stack([torch.cat([t.detach().flatten() for t in point]) for point in points])
    from_last = matrix - matrix[-1]
    _, sizes, axes = torch.linalg.svd(from_last - from_last.mean(dim=0), full_matrices=False)
    axes = axes[:2] * torch.where(axes[:2] @ from_last[0] < 0, -1.0, 1.0)[:, None]
    shapes = [t.shape for t in points[0]]
    first, second = (
        tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))
        for pieces in (axis.split([shape.numel() for shape in shapes]) for axis in axes)
    )
    return TrajectoryPlane((first, second), from_last @ axes.T, sizes[:2] ** 2 / (sizes**2).sum())
