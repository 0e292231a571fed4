import pickle

import numpy as np
import pytest
import torch
import torchvision

from cifarbn.data import CIFAR10, cifar10, read_cifar10
from cifarbn.errors import UserError

BASE = "cifar-10-batches-py"


# The real data set


@pytest.mark.cifar10
def test_the_real_images_are_torchvisions(cifar10_root):
    for train, images in zip((True, False), read_cifar10(cifar10_root), strict=True):
        reference = torchvision.datasets.CIFAR10(cifar10_root, train=train)
        assert len(images) == (50_000 if train else 10_000)
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), reference.data)
        assert images.labels.tolist() == reference.targets
        assert torch.bincount(images.labels).tolist() == 10 * [len(images) // 10]
        assert tuple(reference.classes) == cifar10.CLASSES


@pytest.mark.cifar10
def test_mean_and_std_are_those_of_the_real_training_pixels(cifar10_root):
    pixels = read_cifar10(cifar10_root)[0].pixels.permute(1, 0, 2, 3).reshape(3, -1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double()
    values, total = torch.arange(256).double() / 255, counts.sum(1)
    mean = counts @ values / total
    std = (counts @ values**2 / total - mean**2).sqrt()
    assert mean.numpy().round(4) == pytest.approx(cifar10.MEAN, abs=1e-9)
    assert std.numpy().round(4) == pytest.approx(cifar10.STD, abs=1e-9)


# Reading a tiny data set


def test_images_are_in_the_order_of_the_files(tiny_cifar10):
    train, test = read_cifar10(tiny_cifar10)
    batch = pickle.loads((tiny_cifar10 / BASE / "data_batch_3").read_bytes())
    assert (len(train), len(test)) == (50, 10)
    assert train.labels[20:30].tolist() == batch["labels"]
    # A row holds the red, the green and the blue plane, each row by row.
    assert train.pixels[23, 1, 2, 5] == batch["data"][3, 1024 + 2 * 32 + 5]


def test_the_root_may_be_the_folder_of_the_files(tiny_cifar10):
    assert read_cifar10(tiny_cifar10 / BASE)[0].fingerprint == read_cifar10(tiny_cifar10)[0].fingerprint


def test_a_relative_root_is_relative_to_the_working_directory(tiny_cifar10, monkeypatch):
    monkeypatch.chdir(tiny_cifar10.parent)
    assert cifar10.find_cifar10("data") == tiny_cifar10 / BASE


@pytest.mark.parametrize("root", ["", None, 5])
def test_an_invalid_root_is_an_error(root):
    with pytest.raises(UserError, match="data.root must be a folder"):
        CIFAR10(root)
    if root == "":
        with pytest.raises(UserError, match="data.root is empty"):
            cifar10.find_cifar10(root)
