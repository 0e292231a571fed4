"""From an image of any size to the input of a trained model."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image


@dataclass(frozen=True)
class Transform:
    """Scale, crop and normalise images as a model's test images were.

    Attributes:
        mean, std: per channel, of pixels scaled to [0, 1].
        image_size: (height, width) of the model's inputs.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] = (32, 32)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Return the normalised float32 input (3, H, W) of a PIL image or a uint8 RGB tensor (3, any, any)."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """Return an image as uint8 (3, H, W).

        The image is rotated as its EXIF orientation demands, put on a white background if it is transparent, scaled
        until it just covers `image_size`, and cropped to its centre.

        Raises:
            ValueError: if a tensor is not uint8 with three channels, or an image has 32 bits per channel.
        """
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
                raise ValueError(
                    f"a tensor must be uint8 of shape (3, H, W), not {image.dtype} of shape {tuple(image.shape)}"
                )
            if tuple(image.shape[1:]) == tuple(self.image_size):
                return image
            image = to_pil_image(image)
        assert isinstance(image, Image.Image)
        if image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits per channel: save it with 8 or 16")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip the values at 255
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        height, width = self.image_size
        return pil_to_tensor(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert uint8 images (..., 3, H, W) to float32, normalised by mean and std per channel."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std
