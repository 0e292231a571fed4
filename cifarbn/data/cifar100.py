"""CIFAR-100 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images), with its 100 fine labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision

from cifarbn.data.cifar import cifar_files, decode_cifar
from cifarbn.data.downloads import PublishedArchive
from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.data.published import PublishedData

CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)
"""The name of each fine label, as in `meta`."""

TRAIN_SIZE, TEST_SIZE = 50_000, 10_000

MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)
"""The commonly used values: per channel, of all training pixels scaled to [0, 1]."""


class CIFAR100(PublishedData):
    """CIFAR-100 with fine labels, read from `root`; other options as for `DataModule`."""

    def __init__(
        self,
        root: str | Path,
        download: bool = True,
        *,
        val_size: int = 5000,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        **options: Any,
    ) -> None:
        sizes = {"train_size": TRAIN_SIZE, "val_size": val_size, "image_size": (IMAGE_SIZE, IMAGE_SIZE)}
        super().__init__(root, download, name="cifar100", classes=CLASSES, mean=mean, std=std, **sizes, **options)

    @property
    def files(self) -> PublishedArchive:
        """The files in torchvision's `cifar-100-python`."""
        return cifar_files("CIFAR-100", torchvision.datasets.CIFAR100)

    def decode(self, files: dict[str, bytes]) -> tuple[Images, Images]:
        """Return the 50,000 training and the 10,000 test images."""
        return decode_cifar(files, torchvision.datasets.CIFAR100, "fine_labels")
