"""From an image of any size to the input of a trained model."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from cifarbn.data.image_files import fit_image


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

        The image is rotated, scaled and cropped like the images of data=folder; see `fit_image`.

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
        return fit_image(image, self.image_size)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert uint8 images (..., 3, H, W) to float32, normalised by mean and std per channel."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std
