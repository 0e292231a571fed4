"""Treat a list of tensors as one vector: norm, inner product, distance, random directions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor, shape (P,), in `accumulation_dtype`."""
    return torch.stack([torch.linalg.vector_norm(t.detach(), dtype=accumulation_dtype(t.device)) for t in tensors])


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of the whole list, a scalar."""
    return torch.linalg.vector_norm(norms(tensors))


def dots(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the inner product of each pair of tensors, shape (P,)."""
    return torch.stack(
        [
            torch.sum(a.detach() * b.detach(), dtype=accumulation_dtype(a.device))
            for a, b in zip(first, second, strict=True)
        ]
    )


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists, a scalar."""
    return dots(first, second).sum()


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return ||first - second||, a scalar; holds the difference of one pair of tensors at a time."""
    pairs = zip(first, second, strict=True)
    return torch.linalg.vector_norm(torch.cat([norms([a.detach() - b.detach()]) for a, b in pairs]))


def random_direction(like: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw a direction uniformly from the sphere of radius ||like||, with the shapes, dtypes and devices of `like`.

    Drawn on the generator's device and then moved, so a CPU generator gives the same direction on every device.
    """
    gaussian = [torch.randn(t.shape, generator=generator, device=generator.device).to(t.device, t.dtype) for t in like]
    factor = norm(like) / norm(gaussian)
    return tuple(t * factor.to(t.dtype) for t in gaussian)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's MPS, which has no float64.

    A float32 norm of the two million weights of a VGG-A layer has a relative error of 4e-5 on a CPU.
    """
    return torch.float32 if device.type == "mps" else torch.float64
