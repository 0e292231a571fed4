"""`data`: a pass over the augmented training images, with `InMemoryLoader` and with torchvision's transforms."""

import argparse
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifarbn.benchmark.harness import Results, in_turn, wait_for
from cifarbn.benchmark.images import read_images
from cifarbn.data import Augmentation, Images, InMemoryLoader
from cifarbn.data.cifar10 import MEAN, STD

DRAWN = 2_000  # different synthetic images, which are repeated: drawing takes 0.2 ms each
USUAL = "torchvision, 2 workers"


def measure_passes(args: argparse.Namespace) -> Results:
    """Measure passes over randomly cropped and flipped, normalised, batched images, with two loaders.

    The usual loader applies torchvision's transforms to one image at a time, in a DataLoader with 2 worker processes
    that persist over all rounds. `InMemoryLoader` pads all images when it is created, which is not measured.
    """
    name, images, _ = read_images(args.root, args.images, drawn=DRAWN)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usual, ours = usual_loader(images, args.batch_size), our_loader(images.to(device), args.batch_size)
    return {
        "title": f"one pass over {len(images):,} images of {name}, augment=flip_crop, batch {args.batch_size}",
        "unit": "images/s",
        "amount": len(images),
        "seconds": in_turn(args.rounds, {USUAL: lambda: _pass(usual, device), "cifarbn": lambda: _pass(ours, device)}),
    }


def usual_loader(images: Images, batch_size: int) -> DataLoader[Any]:
    """Return a DataLoader with 2 workers that apply torchvision's transforms to one image at a time."""
    return DataLoader(TransformedImages(images), batch_size, shuffle=True, num_workers=2, persistent_workers=True)


def our_loader(images: Images, batch_size: int) -> InMemoryLoader:
    """Return an `InMemoryLoader` with the same augmentation and batch size."""
    return InMemoryLoader(images, batch_size, mean=MEAN, std=STD, augmentation=Augmentation(), shuffle=True)


class TransformedImages(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory with the usual torchvision transforms, like `torchvision.datasets.CIFAR10`."""

    def __init__(self, images: Images) -> None:
        self._pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = images.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return the augmented and normalised image and its label."""
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def _pass(loader: DataLoader[Any] | InMemoryLoader, device: torch.device) -> None:
    for pixels, labels in loader:
        pixels.to(device), labels.to(device)
    wait_for(device)
