import hashlib

import pytest
import torch

from cifarbn.data import Images


def test_the_fingerprint_is_the_sha256_of_pixels_then_labels(make_images):
    images = make_images(3)
    content = bytes(images.pixels.flatten().tolist()) + b"".join(k.to_bytes(8, "little") for k in (0, 1, 2))
    assert images.fingerprint == hashlib.sha256(content).hexdigest()[:16]


def test_the_fingerprint_does_not_depend_on_the_memory_format(make_images):
    images = make_images(3)
    channels_last = Images(images.pixels.contiguous(memory_format=torch.channels_last), images.labels)
    assert channels_last.pixels.stride() != images.pixels.stride()
    assert channels_last.fingerprint == images.fingerprint


@pytest.mark.parametrize("part", ["pixels", "labels"])
def test_the_fingerprint_notices_one_bit(make_images, part):
    images, other = make_images(3), make_images(3)
    getattr(other, part).view(-1)[1] ^= 1
    assert images.fingerprint != other.fingerprint


def test_indexing_selects_images_with_their_labels(make_images):
    images = make_images(5)
    selected = images[torch.tensor([4, 0])]
    assert selected.labels.tolist() == [4, 0]
    assert torch.equal(selected.pixels[0], images.pixels[4])
    assert len(images[:0]) == 0


def test_images_already_on_the_device_are_not_copied(make_images):
    images = make_images(2)
    assert images.to("cpu") is images


@pytest.mark.parametrize(
    "pixels, labels",
    [
        (torch.zeros(2, 3, 32, 32), torch.zeros(2).long()),
        (torch.zeros(2, 32, 32, 3).byte(), torch.zeros(2).long()),
        (torch.zeros(2, 3, 32, 32).byte(), torch.zeros(3).long()),
        (torch.zeros(2, 3, 32, 32).byte(), torch.zeros(2)),
    ],
)
def test_other_shapes_and_dtypes_are_an_error(pixels, labels):
    with pytest.raises(ValueError, match="must be"):
        Images(pixels, labels)
