"""Image files of any format and size as uint8 tensors of one size."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def read_image(file: Path, size: tuple[int, int]) -> Tensor:
    """Return the image in a file, as `fit_image` does.

    Raises:
        Exception: of any type, raised by Pillow and its codecs if the file is damaged.
    """
    with Image.open(file) as image:
        return fit_image(image, size)


def fit_image(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Return an image as uint8 (3, H, W), for `size` = (H, W).

    It is rotated as its EXIF data asks for, placed on white if it is transparent, scaled (bicubic) until it covers the
    size, and cropped at the centre.

    Raises:
        ValueError: if its pixels have 32 bits per channel.
    """
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits per channel, not 8 or 16")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip all values above 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    height, width = size
    return pil_to_tensor(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC))
