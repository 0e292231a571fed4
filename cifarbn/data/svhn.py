"""SVHN, Street View House Numbers (Netzer et al. 2011, Reading Digits in Natural Images), cropped digits."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.io
import torch
import torchvision

from cifarbn.data.downloads import SeparateFiles
from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.data.published import PublishedData

CLASSES = tuple("0123456789")
TRAIN_SIZE, TEST_SIZE = 73_257, 26_032

MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)
"""The commonly used values: per channel, of all training pixels scaled to [0, 1]."""


class SVHN(PublishedData):
    """SVHN, read from `root`, without its 531,131 extra images; other options as for `DataModule`."""

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
        super().__init__(root, download, name="svhn", classes=CLASSES, mean=mean, std=std, **sizes, **options)

    @property
    def files(self) -> SeparateFiles:
        """The files `train_32x32.mat` and `test_32x32.mat`, which torchvision puts directly into the root."""
        splits = [torchvision.datasets.SVHN.split_list[part] for part in ("train", "test")]
        base_url = splits[0][0].removesuffix(splits[0][1])
        return SeparateFiles("SVHN", ".", {name: md5 for _, name, md5 in splits}, base_url)

    def decode(self, files: dict[str, bytes]) -> tuple[Images, Images]:
        """Return the 73,257 training and the 26,032 test images."""
        train, test = (_images(content) for content in files.values())
        return train, test


def _images(content: bytes) -> Images:
    arrays = scipy.io.loadmat(io.BytesIO(content))
    pixels = torch.from_numpy(arrays["X"]).permute(3, 2, 0, 1)  # from (H, W, 3, N)
    labels = torch.from_numpy(arrays["y"]).long().flatten() % 10  # the digit 0 has the label 10
    return Images(pixels.contiguous(memory_format=torch.channels_last), labels)
