"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): grey images of clothes, as three equal channels."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from cifarbn.data.downloads import SeparateFiles
from cifarbn.data.images import Images
from cifarbn.data.published import PublishedData
from cifarbn.errors import UserError

CLASSES = tuple(torchvision.datasets.FashionMNIST.classes)
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000
ORIGINAL_SIZE, PADDED_SIZE = 28, 32

MEAN = (0.2860, 0.2860, 0.2860)
STD = (0.3530, 0.3530, 0.3530)
"""The commonly used values, of all training pixels scaled to [0, 1], at 28x28."""


class FashionMNIST(PublishedData):
    """Fashion-MNIST, read from `root`.

    Args:
        root: the folder that contains torchvision's `FashionMNIST/raw`.
        download: download the files into `root` if they are missing.
        size: 28, the original size, or 32: padded by 2 black pixels on each side.
        val_size: validation images, held out of the 60,000 training images.
        mean, std: of the images without padding.
        **options: as for `DataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        download: bool = True,
        *,
        size: int = PADDED_SIZE,
        val_size: int = 5000,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        **options: Any,
    ) -> None:
        if size not in (ORIGINAL_SIZE, PADDED_SIZE) or isinstance(size, bool):
            raise UserError(f"data.size of Fashion-MNIST must be {ORIGINAL_SIZE} or {PADDED_SIZE}, not {size!r}")
        self.padding = (size - ORIGINAL_SIZE) // 2
        sizes = {"train_size": TRAIN_SIZE, "val_size": val_size, "image_size": (size, size)}
        super().__init__(root, download, name="fashion_mnist", classes=CLASSES, mean=mean, std=std, **sizes, **options)

    @property
    def files(self) -> SeparateFiles:
        """The four gzipped IDX files in torchvision's `FashionMNIST/raw`."""
        dataset = torchvision.datasets.FashionMNIST
        return SeparateFiles("Fashion-MNIST", "FashionMNIST/raw", dict(dataset.resources), dataset.mirrors[0])

    def decode(self, files: dict[str, bytes]) -> tuple[Images, Images]:
        """Return the 60,000 training and the 10,000 test images."""
        arrays = {name: _array(content) for name, content in files.items()}
        train, test = (
            self._coloured(arrays[f"{part}-images-idx3-ubyte.gz"], arrays[f"{part}-labels-idx1-ubyte.gz"])
            for part in ("train", "t10k")
        )
        return train, test

    def _coloured(self, pixels: torch.Tensor, labels: torch.Tensor) -> Images:
        padded = torch.nn.functional.pad(pixels, (self.padding,) * 4)
        coloured = padded[:, None].expand(-1, 3, -1, -1)
        return Images(coloured.contiguous(memory_format=torch.channels_last), labels.long())


def _array(content: bytes) -> torch.Tensor:
    """Return the uint8 array in a gzipped IDX file: magic number 0 0 8 dimensions, big-endian sizes, values."""
    raw = gzip.decompress(content)
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape.astype(int)).copy())
