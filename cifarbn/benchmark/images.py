"""The images that the benchmarks use: CIFAR-10, or synthetic images if it is missing."""

from pathlib import Path

import torch

from cifarbn.data import Images, draw_shapes, read_cifar10
from cifarbn.data.cifar10 import TRAIN_SIZE, find_cifar10
from cifarbn.data.shapes import TEST_SEED, TRAIN_SEED
from cifarbn.errors import UserError

TEST_SHARE = 5  # training images for each test image, as in CIFAR-10


def read_images(root: str, count: int, drawn: int | None = None) -> tuple[str, Images, Images]:
    """Return the first images of CIFAR-10 or, if it is not in `root`, synthetic ones. Downloads nothing.

    Args:
        root: the folder that contains cifar-10-batches-py.
        count: number of training images; there are a fifth as many test images, at least one.
        drawn: largest number of different synthetic training images (0.2 ms each), which are repeated; None for no
            limit.

    Returns:
        The name of the data, the training images and the test images, on the CPU.
    """
    test_count = max(1, count // TEST_SHARE)
    if folder := _cifar10(root):
        train, test = read_cifar10(folder, download=False)
        return "cifar10", train[:count], test[:test_count]
    train, test = _draw(count, TRAIN_SEED, drawn), _draw(test_count, TEST_SEED, drawn)
    return f"shapes (no CIFAR-10 in {root})", train, test


def data_overrides(root: str) -> list[str]:
    """Return the overrides for CIFAR-10 in `root` or, if it is not there, for as many synthetic images."""
    if _cifar10(root):
        return [f"data.root={root}", "data.download=false"]
    return ["data=shapes", f"data.train_size={TRAIN_SIZE}", f"data.test_size={TRAIN_SIZE // TEST_SHARE}"]


def has_cifar10(root: str) -> bool:
    """Return whether CIFAR-10 is in `root`."""
    return _cifar10(root) is not None


def _cifar10(root: str) -> Path | None:
    try:
        return find_cifar10(root, download=False)
    except UserError:
        return None


def _draw(count: int, seed: int, at_most: int | None) -> Images:
    images = draw_shapes(min(count, at_most or count), seed)
    return images if len(images) == count else images[torch.arange(count) % len(images)]
