"""Random crops and flips of whole batches on the device, with torchvision's law."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cifarbn.data.images import IMAGE_SIZE
from cifarbn.data.randomness import keyed_generator
from cifarbn.errors import UserError

FLIPS = ("none", "random", "alternating")
PADDING_MODES = ("constant", "reflect")


class CropFlipParams(NamedTuple):
    """What chance decided for each of N pictures: the crop's corner in the padded picture, and the flip."""

    top: Tensor
    """int64 (N,), in [0, 2 * pad]."""
    left: Tensor
    """int64 (N,), in [0, 2 * pad]."""
    flipped: Tensor
    """bool (N,)."""


@dataclass(frozen=True)
class Augmentation:
    """Pad, crop at random back to 32x32, flip left and right.

    The same law as torchvision's `RandomCrop(32, padding=pad, padding_mode=padding_mode)` followed by
    `RandomHorizontalFlip(0.5)`: every one of the (2 pad + 1)^2 corners and two flips is equally frequent.

    Attributes:
        pad: pixels added on each side; 0 crops nothing.
        flip: "none"; "random": every picture in every epoch with probability 1/2; or "alternating": by chance
            in epoch 0, then the other way round in every next epoch, so that two successive epochs show both
            sides of every picture (Jordan 2024, arXiv 2404.00498).
        padding_mode: "constant" (black, that is 0 before normalisation) or "reflect" (without the edge pixel).

    Raises:
        UserError: where a value is none of these.
    """

    pad: int = 4
    flip: str = "random"
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or not 0 <= self.pad < IMAGE_SIZE:
            raise UserError(f"augment.pad must be a whole number from 0 to {IMAGE_SIZE - 1}, not {self.pad!r}")
        if self.flip not in FLIPS:
            raise UserError(f"augment.flip must be one of {', '.join(FLIPS)}, not {self.flip!r}")
        if self.padding_mode not in PADDING_MODES:
            raise UserError(
                f"augment.padding_mode must be one of {', '.join(PADDING_MODES)}, not {self.padding_mode!r}"
            )

    def draw(self, count: int, seed: int, epoch: int) -> CropFlipParams:
        """Decide the crop and flip of each of `count` pictures in `epoch`; a pure function of its arguments.

        Returned on the CPU, where it was drawn, so that it is the same whatever the device, the batch size and
        the number of processes, and after a resume in the middle of an epoch.
        """
        crops = torch.randint(2 * self.pad + 1, (2, count), generator=keyed_generator("crop", seed, epoch))
        return CropFlipParams(crops[0], crops[1], self._draw_flips(count, seed, epoch))

    def _draw_flips(self, count: int, seed: int, epoch: int) -> Tensor:
        if self.flip == "none":
            return torch.zeros(count, dtype=torch.bool)
        drawn_in = 0 if self.flip == "alternating" else epoch
        flipped = torch.rand(count, generator=keyed_generator("flip", seed, drawn_in)) < 0.5
        return ~flipped if self.flip == "alternating" and epoch % 2 else flipped


class PaddedImages:
    """A whole set of pictures, padded once, from which a batch of crops is one gather.

    Args:
        pixels: uint8 (N, 3, 32, 32).
        augmentation: gives `pad` and `padding_mode`.
    """

    def __init__(self, pixels: Tensor, augmentation: Augmentation) -> None:
        pad = augmentation.pad
        self.side = IMAGE_SIZE + 2 * pad
        padded = pixels.permute(0, 2, 3, 1).contiguous()
        if pad and augmentation.padding_mode == "reflect":
            mirror = (
                IMAGE_SIZE
                - 1
                - (IMAGE_SIZE - 1 - torch.arange(-pad, IMAGE_SIZE + pad, device=pixels.device).abs()).abs()
            )
            padded = padded[:, mirror][:, :, mirror]
        elif pad:
            padded = torch.nn.functional.pad(padded, (0, 0, pad, pad, pad, pad))
        self.padded = padded
        # Row p of this overlapping view is the run of 32 pixels that begins at pixel p of the whole set, so a
        # crop is 32 rows of it. Measured on 2 CPU cores, batch 128, 1.4 times as fast as indexing a view of
        # (N, top, left) windows and 3 times as fast as gathering pixel by pixel.
        self._runs = padded.as_strided((padded.numel() // 3 - IMAGE_SIZE + 1, 3 * IMAGE_SIZE), (3, 1))

    def crop(self, index: Tensor, draws: CropFlipParams) -> Tensor:
        """Return the pictures at `index` (int64 (B,)), cropped and flipped as `draws` of the whole set says.

        Returns:
            uint8 (B, 3, 32, 32), channels_last.
        """
        corner = (index * self.side + draws.top[index]) * self.side + draws.left[index]
        rows = torch.arange(0, IMAGE_SIZE * self.side, self.side, device=index.device)
        runs = (corner[:, None] + rows).view(-1)
        crops = self._runs.index_select(0, runs).view(-1, IMAGE_SIZE, IMAGE_SIZE, 3)
        flipped = draws.flipped[index].view(-1, 1, 1, 1)
        return torch.where(flipped, crops.flip(2), crops).permute(0, 3, 1, 2)
