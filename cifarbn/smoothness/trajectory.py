"""The plane of largest variance of a training trajectory, by PCA (Li et al. 2018, arXiv 1712.09913, section 7.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TrajectoryPlane(NamedTuple):
    """Two directions, and the trajectory projected onto them."""

    directions: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    """Orthonormal, each shaped like the parameters; ready for `landscape.surface` around the last point."""
    coordinates: Tensor
    """The points relative to the last, shape (T, 2)."""
    explained: Tensor
    """Fraction of the trajectory's variance along each direction, shape (2,)."""


def trajectory_plane(points: Sequence[Sequence[Tensor]]) -> TrajectoryPlane:
    """Compute the PCA of the points theta_1 ... theta_T, T >= 3, each a list of tensors; the origin is the last point.

    Variances are about the mean. Signs are chosen so that the first point has positive coordinates.

    Trap: a random walk in high dimension has 61 % of its variance in the first component (Antognini and Sohl-Dickstein
    2018), so a large fraction is no evidence of structure.

    Raises:
        ValueError: if there are fewer than three points.
    """
    if len(points) < 3:
        raise ValueError(f"at least three points are needed to span a plane, not {len(points)}")
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
