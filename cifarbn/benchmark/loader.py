"""`data`: a pass over the augmented training pictures, ours and the usual one."""

import argparse
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifarbn.benchmark.harness import Report, in_turn, wait_for
from cifarbn.benchmark.images import read_images
from cifarbn.data import Augmentation, Images, InMemoryLoader
from cifarbn.data.cifar10 import MEAN, STD

DRAWN = 2_000  # images, repeated: drawing takes 0.2 ms each, and what they show does not matter here
USUAL = "torchvision, 2 workers"


def measure_passes(chosen: argparse.Namespace) -> Report:
    """Pass over the pictures, cropped at random, flipped, normalised and batched, in two ways.

    The usual way: torchvision's transforms picture by picture in a DataLoader with 2 worker processes, which live
    through all rounds. Ours: `InMemoryLoader`, which pads the whole set when it is made (not counted either).
    """
    name, images, _ = read_images(chosen.root, chosen.pictures, drawn=DRAWN)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usual, ours = usual_loader(images, chosen.batch_size), our_loader(images.to(device), chosen.batch_size)
    return {
        "what": f"one pass over {len(images):,} pictures of {name}, augment=flip_crop, batch {chosen.batch_size}",
        "unit": "images/s",
        "amount": len(images),
        "seconds": in_turn(
            chosen.rounds, {USUAL: lambda: _pass(usual, device), "cifarbn": lambda: _pass(ours, device)}
        ),
    }


def usual_loader(images: Images, batch_size: int) -> DataLoader[Any]:
    """Torchvision's transforms, picture by picture, in a DataLoader with 2 workers."""
    return DataLoader(PictureByPicture(images), batch_size, shuffle=True, num_workers=2, persistent_workers=True)


def our_loader(images: Images, batch_size: int) -> InMemoryLoader:
    """The same pictures, batches and augmentation from memory."""
    return InMemoryLoader(images, batch_size, mean=MEAN, std=STD, augmentation=Augmentation(), shuffle=True)


class PictureByPicture(Dataset[tuple[torch.Tensor, int]]):
    """What `torchvision.datasets.CIFAR10` does with the usual transforms, for any pictures in memory."""

    def __init__(self, images: Images) -> None:
        self._pictures = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
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
        """The picture, augmented and normalised, and its label."""
        return self._transform(Image.fromarray(self._pictures[index])), self._labels[index]


def _pass(loader: DataLoader[Any] | InMemoryLoader, device: torch.device) -> None:
    for pixels, labels in loader:
        pixels.to(device), labels.to(device)
    wait_for(device)
