"""The transform of a trained run: PIL images and tensors of any size become the model's inputs."""

import pytest
import torch
from PIL import Image

from cifarbn.runs.transform import Transform

TRANSFORM = Transform((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


def test_a_pil_image_and_its_tensor_give_the_same_input():
    image = Image.new("RGB", (32, 32), (255, 0, 51))
    expected = torch.tensor([(1 - 0.5) / 0.25, (0 - 0.4) / 0.2, (0.2 - 0.3) / 0.1])[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(TRANSFORM(image), expected)
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    assert torch.equal(TRANSFORM(pixels), TRANSFORM(image))


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (28, 28)])
def test_images_of_another_size_are_scaled_and_cropped(size):
    transform = Transform((0.5,) * 3, (0.25,) * 3, size)
    pixels = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    assert transform(pixels).shape == (3, *size) and transform(pixels).dtype == torch.float32
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.equal(transform(image), transform(pixels))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 4, 4).byte()]
)
def test_a_tensor_that_is_no_rgb_image_is_an_error(wrong):
    with pytest.raises(ValueError, match="must be uint8 of shape"):
        TRANSFORM(wrong)
