"""Test-time augmentation (TTA): average a model's logits over mirrored and shifted copies of each image."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cifarbn.errors import UserError

# Pixels down and to the right -> weight. Each shift is evaluated with and without mirroring.
SHIFTS = {"flip": {0: 1.0}, "flip_shift": {0: 0.5, -1: 0.25, 1: 0.25}}
POLICIES = ("none", *SHIFTS)


def check_tta(policy: str) -> None:
    """Raise an error unless the policy is one of `POLICIES`.

    Raises:
        UserError: naming the policies and the value.
    """
    if policy not in POLICIES:
        raise UserError(f"tta must be one of {', '.join(POLICIES)}, not {policy!r}")


def tta_logits(model: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, policy: str) -> Tensor:
    """Return the model's logits averaged over augmented copies of the images (Jordan 2024, arXiv 2404.00498).

    Args:
        model: (N, 3, H, W) -> (N, C).
        images: (N, 3, H, W).
        logits: (N, C), the model's logits of the unchanged images, which count as one of the copies.
        policy: "flip": each image and its mirror image. "flip_shift": both of these with half of the total weight, and
            both shifted by one pixel to the upper left and to the lower right with the other half. Shifting fills
            the border by reflection.

    Returns:
        (N, C), in the dtype of `logits`.
    """
    height, width = images.shape[2:]
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    mean = torch.zeros_like(logits)
    for shift, weight in SHIFTS[policy].items():
        shifted = padded[:, :, 1 - shift : 1 - shift + height, 1 - shift : 1 - shift + width]
        mean += weight / 2 * (model(shifted) if shift else logits)
        mean += weight / 2 * model(shifted.flip(3))
    return mean
