import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional

from cifarbn.data import Augmentation
from cifarbn.data.augmentation import CropFlipParams, PaddedImages
from cifarbn.errors import UserError


@pytest.mark.parametrize("padding_mode", ["constant", "reflect"])
def test_every_crop_and_flip_is_torchvisions(make_images, padding_mode):
    image = make_images(3)[2:].pixels
    top, left, flipped = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2)).T
    # 162 copies of one image, one for each crop and flip.
    padded_images = PaddedImages(image.expand(162, -1, -1, -1), Augmentation(pad=4, padding_mode=padding_mode))
    crops = padded_images.crop(torch.arange(162), CropFlipParams(top, left, flipped.bool()))
    padded = functional.pad(image[0], 4, padding_mode=padding_mode)
    for k in range(162):
        expected = functional.crop(padded, int(top[k]), int(left[k]), 32, 32)
        assert torch.equal(crops[k], functional.hflip(expected) if flipped[k] else expected)


def test_crops_are_of_the_requested_images(make_images):
    images = make_images(5)
    augmentation = Augmentation(pad=0, flip="none")
    index = torch.tensor([3, 0, 3])
    crops = PaddedImages(images.pixels, augmentation).crop(index, augmentation.draw(5, seed=0, epoch=0))
    assert torch.equal(crops, images.pixels[index])
    assert crops.is_contiguous(memory_format=torch.channels_last)


def test_every_offset_and_flip_is_equally_frequent():
    count = 162_000
    top, left, flipped = Augmentation(pad=4).draw(count, seed=0, epoch=0)
    cells = torch.bincount((top * 9 + left) * 2 + flipped, minlength=162)
    expected = count / 162
    # 222.2: the chi-squared distribution's 99.9 % point at 161 degrees of freedom.
    assert ((cells - expected) ** 2 / expected).sum() < 222.2


def test_torchvision_draws_from_the_same_range():
    crop = transforms.RandomCrop(32, padding=4)
    torch.manual_seed(0)
    offsets = {crop.get_params(torch.zeros(3, 40, 40), crop.size)[:2] for _ in range(2000)}
    assert offsets == {(top, left) for top in range(9) for left in range(9)}


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (1, 1)])
def test_draws_differ_between_seeds_and_between_epochs(other):
    augmentation = Augmentation()
    here, there = augmentation.draw(1000, 0, 0), augmentation.draw(1000, *other)
    again = augmentation.draw(1000, 0, 0)
    for a, b, c, agreement in zip(here, there, again, (1 / 9, 1 / 9, 1 / 2), strict=True):
        assert torch.equal(a, c)
        assert (a == b).float().mean() == pytest.approx(agreement, abs=0.06)


def test_flip_and_crop_are_drawn_independently():
    both, flip, crop = Augmentation(4, "random"), Augmentation(0, "random"), Augmentation(4, "none")
    draws = [augmentation.draw(100, 0, 0) for augmentation in (both, flip, crop)]
    assert torch.equal(draws[0].flipped, draws[1].flipped) and not draws[1].top.any()
    assert torch.equal(draws[0].top, draws[2].top) and not draws[2].flipped.any()


def test_alternating_shows_both_orientations_in_two_successive_epochs():
    augmentation = Augmentation(flip="alternating")
    flips = [augmentation.draw(1000, seed=0, epoch=epoch).flipped for epoch in range(4)]
    assert torch.equal(flips[1], ~flips[0])
    assert torch.equal(flips[2], flips[0]) and torch.equal(flips[3], flips[1])
    assert flips[0].float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "key, value",
    [
        ("pad", -1),
        ("pad", 32),
        ("pad", 1.5),
        ("pad", True),
        ("flip", "sometimes"),
        ("flip", None),
        ("padding_mode", "edge"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_its_key(key, value):
    with pytest.raises(UserError, match=f"augment.{key} must be .*, not {value!r}"):
        Augmentation(**{key: value})
