"""What a net says of a picture on average over mirrored and shifted views of it, at test time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cifarbn.errors import UserError

# Pixels down and to the right -> weight. Each is seen both ways round.
SHIFTS = {"flip": {0: 1.0}, "flip_shift": {0: 0.5, -1: 0.25, 1: 0.25}}
NAMES = ("plain", *SHIFTS)


def check_views(views: str) -> None:
    """Refuse a name that is not among `NAMES`.

    Raises:
        UserError: naming the choices and the value.
    """
    if views not in NAMES:
        raise UserError(f"test_views must be one of {', '.join(NAMES)}, not {views!r}")


def mean_over_views(net: Callable[[Tensor], Tensor], pictures: Tensor, plain: Tensor, views: str) -> Tensor:
    """The net's logits, averaged over views of the pictures (Jordan 2024, arXiv 2404.00498).

    Args:
        net: (N, 3, H, W) -> (N, C).
        pictures: (N, 3, H, W).
        plain: (N, C), the net's logits of the pictures as they are, which is one of the views.
        views: "flip": the picture and its mirror image; "flip_shift": these with half of the weight, and with the other
            half both of them moved by a pixel to the upper left and to the lower right, the border mirrored.

    Returns:
        (N, C) of the logits' dtype.
    """
    height, width = pictures.shape[2:]
    framed = functional.pad(pictures, (1, 1, 1, 1), mode="reflect")
    mean = torch.zeros_like(plain)
    for shift, weight in SHIFTS[views].items():
        view = framed[:, :, 1 - shift : 1 - shift + height, 1 - shift : 1 - shift + width]
        mean += weight / 2 * (net(view) if shift else plain)
        mean += weight / 2 * net(view.flip(3))
    return mean
