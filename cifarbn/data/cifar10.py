"""CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision

from cifarbn.data.cifar import cifar_files, decode_cifar
from cifarbn.data.downloads import PublishedArchive
from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.data.published import PublishedData

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The name of each label, as in `batches.meta`."""

TRAIN_SIZE, TEST_SIZE = 50_000, 10_000

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Per channel, of all training pixels scaled to [0, 1]."""


class CIFAR10(PublishedData):
    """CIFAR-10, read from `root`; other options as for `DataModule`."""

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
        super().__init__(root, download, name="cifar10", classes=CLASSES, mean=mean, std=std, **sizes, **options)

    @property
    def files(self) -> PublishedArchive:
        """The files in torchvision's `cifar-10-batches-py`."""
        return cifar10_files()

    def decode(self, files: dict[str, bytes]) -> tuple[Images, Images]:
        """Return the 50,000 training and the 10,000 test images."""
        return decode_cifar(files, torchvision.datasets.CIFAR10, "labels")


def cifar10_files() -> PublishedArchive:
    """Return the files of CIFAR-10."""
    return cifar_files("CIFAR-10", torchvision.datasets.CIFAR10)


def read_cifar10(root: str | Path, download: bool = True) -> tuple[Images, Images]:
    """Read CIFAR-10 without a data module.

    The MD5 of every file is compared with torchvision's before the file is unpickled.

    Args:
        root: the folder that contains torchvision's `cifar-10-batches-py`, or that folder itself.
        download: download the data set into `root` if neither the folder nor its archive is there.

    Returns:
        The 50,000 training and the 10,000 test images, in the order of the files, channels_last, on the CPU.

    Raises:
        UserError: if the data set is missing and cannot be downloaded, or a file is missing, truncated or altered.
    """
    return decode_cifar(cifar10_files().read(root, download), torchvision.datasets.CIFAR10, "labels")


def find_cifar10(root: str | Path, download: bool = True) -> Path:
    """Return the folder `cifar-10-batches-py` of `root`, after unpacking or downloading it if it is missing.

    Raises:
        UserError: if the folder is missing and cannot be downloaded.
    """
    return cifar10_files().find(root, download)
