"""Any map-style torch Dataset of (image, label), read into memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from tqdm import tqdm

from cifarbn.data.image_files import fit_image
from cifarbn.data.images import Images
from cifarbn.data.memory import check_memory
from cifarbn.data.module import DataModule, split
from cifarbn.data.options import VAL_SHARE, check_size, check_whole, number_of_test_images
from cifarbn.errors import UserError


class FromDataset(DataModule):
    """The images and labels of a map-style torch Dataset.

    An image may be a PIL image, a uint8 tensor (C, H, W), a uint8 array (H, W, C), or either as floats in [0, 1], with
    3 channels or 1; a label is a whole number from 0.

    The trap: items are read before the training, so random transforms in the dataset are not applied again in each
    epoch. Use `augment` instead.

    Args:
        dataset: the training images.
        test_dataset: the test images. None: `test_size` images of `dataset` are selected at random by `split_seed`.
        num_classes: number of classes. None: from `dataset.classes` or, without it, the largest label.
        size: height and width to which all images are scaled and cropped; None if they all have the same size.
        val_size: validation images, a number or a fraction of the training images; 0 for none.
        test_size: test images without `test_dataset`: a number or a fraction of `dataset`, by default 0.2.
        **options: as for `DataModule`.

    Raises:
        UserError: if it is not a dataset of images and labels.
    """

    def __init__(
        self,
        dataset: Any,
        test_dataset: Any = None,
        *,
        num_classes: int | None = None,
        size: int | tuple[int, int] | None = None,
        val_size: int | float = VAL_SHARE,
        test_size: int | float | None = None,
        **options: Any,
    ) -> None:
        count = _length("data.dataset", dataset)
        if test_dataset is not None:
            _length("data.test_dataset", test_dataset)
            if test_size is not None:
                raise UserError("data.test_size cannot be set with data.test_dataset; remove one of them")
        self.test_count = 0
        if test_dataset is None:
            self.test_count = number_of_test_images(test_size, count)
        self.dataset, self.test_dataset = dataset, test_dataset
        self.size = None if size is None else check_size("size", size)
        self._parts: list[Images] = []
        super().__init__(
            name=type(dataset).__name__,
            classes=self._checked_class_names(num_classes),
            train_size=count - self.test_count,
            val_size=val_size,
            image_size=self.size,
            **options,
        )

    def read(self) -> tuple[Images, Images]:
        """Read all items of both datasets."""
        parts, self._parts = self._parts or self._read_all(), []
        for key, part in zip(("data.dataset", "data.test_dataset"), parts, strict=False):
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= self.num_classes:
                remedy = f"set data.num_classes={high + 1}, or " if low >= 0 else ""
                raise UserError(
                    f"{key}: labels must be from 0 to {self.num_classes - 1}, and are from {low} to {high}; "
                    f"{remedy}change the labels"
                )
        if len(parts) == 2:
            return parts[0], parts[1]
        train, test = split(parts[0], self.test_count, "test split", self.split_seed)
        self.split_note = (
            f"test set: {len(test)} of {len(parts[0])} images, selected at random "
            f"(data.split_seed={self.split_seed}), since there is no data.test_dataset"
        )
        return train, test

    def _read_all(self) -> list[Images]:
        parts = [read_dataset(self.dataset, "data.dataset", self.size)]
        if self.test_dataset is not None:
            parts.append(read_dataset(self.test_dataset, "data.test_dataset", self.size or parts[0].image_size))
        return parts

    def _checked_class_names(self, num_classes: int | None) -> tuple[str, ...]:
        names = self._class_names(num_classes)
        if len(names) < 2:
            raise UserError(
                "data.dataset must have at least two classes, labels 0 and 1; change the labels, or set "
                "data.num_classes if only these images lack the others"
            )
        return names

    def _class_names(self, num_classes: int | None) -> tuple[str, ...]:
        names = tuple(map(str, getattr(self.dataset, "classes", None) or ()))
        if num_classes is not None:
            count = check_whole("num_classes", num_classes, at_least=2)
            if names and len(names) != count:
                raise UserError(f"data.num_classes={count}, but data.dataset has {len(names)} names in classes")
            return names or tuple(map(str, range(count)))
        if names:
            return names
        self._parts = self._read_all()
        return tuple(map(str, range(max(int(part.labels.max()) for part in self._parts) + 1)))


def read_dataset(dataset: Any, key: str, size: tuple[int, int] | None = None) -> Images:
    """Return all items of a dataset, channels_last, on the CPU; torch's and numpy's generators are left unchanged.

    Args:
        dataset: see `FromDataset`.
        key: names the dataset in messages.
        size: height and width to which images are scaled and cropped; None if they all have the same size.

    Raises:
        UserError: naming the first item that is not an image and a label, or has another size than the first.
    """
    count = _length(key, dataset)
    labels = torch.empty(count, dtype=torch.int64)
    pixels = torch.empty(0)
    with isolate_rng():
        for index, (image, label) in enumerate(tqdm(_items(dataset, key, count), f"reading {key}", count)):
            image = _pixels(image, size, f"{key}: the image of item {index}")
            if index == 0:
                height, width = image.shape[1:]
                check_memory(count, (height, width))
                pixels = torch.empty(count, height, width, 3, dtype=torch.uint8)
            if image.shape[1:] != pixels.shape[1:3]:
                raise UserError(
                    f"{key}: item {index} has {_times(image.shape[1:])} pixels, and item 0 has "
                    f"{_times(pixels.shape[1:3])}; set data.size to scale all images to one size"
                )
            pixels[index] = image.permute(1, 2, 0)
            labels[index] = _label(label, f"{key}: the label of item {index}")
    return Images(pixels.permute(0, 3, 1, 2), labels)


def _items(dataset: Any, key: str, count: int) -> Iterator[tuple[Any, Any]]:
    for index in range(count):
        try:
            item = dataset[index]
        except Exception as error:  # raised by the user's code
            raise UserError(f"{key}: item {index} cannot be read ({type(error).__name__}: {error})") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"{key}: item {index} must be a pair (image, label), not {type(item).__name__}")
        yield item[0], item[1]


def _length(key: str, dataset: Any) -> int:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{key} must be a map-style Dataset, with __len__ and __getitem__, not {type(dataset).__name__}; "
            f"set {key}._target_"
        )
    if not (count := len(dataset)):
        raise UserError(f"{key}: {type(dataset).__name__} is empty")
    return count


def _pixels(image: Any, size: tuple[int, int] | None, place: str) -> Tensor:
    """Return an image of any of the accepted types as uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        try:
            return fit_image(image, size or (image.height, image.width))
        except ValueError as error:
            raise UserError(f"{place} has an unsupported mode, {image.mode}: {error}") from error
    if not isinstance(image, (Tensor, np.ndarray)):
        raise UserError(f"{place} must be a PIL image, a tensor or a numpy array, not {type(image).__name__}")
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "bcfiu":
            raise UserError(f"{place} must be uint8, or floats in [0, 1], not {image.dtype}")
        image = np.ascontiguousarray(image)  # torch has no negative strides, which flipped arrays have
    pixels = _channels_first(torch.as_tensor(image), isinstance(image, Tensor), place)
    if pixels.is_floating_point():
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(f"{place} must have floats in [0, 1]; remove Normalize from its transforms, or use uint8")
        pixels = (pixels * 255).round().byte()
    if pixels.dtype != torch.uint8:
        raise UserError(f"{place} must be uint8, or floats in [0, 1], not {pixels.dtype}")
    pixels = pixels.expand(3, -1, -1)
    if size and tuple(pixels.shape[1:]) != size:
        return fit_image(Image.fromarray(pixels.permute(1, 2, 0).numpy()), size)
    return pixels


def _channels_first(pixels: Tensor, tensor: bool, place: str) -> Tensor:
    """Return (1 or 3, H, W). Where both ends could be channels, tensors have them first and arrays last."""
    if pixels.dim() == 2:
        return pixels[None]
    if pixels.dim() == 3:
        first, last = pixels.shape[0] in (1, 3), pixels.shape[2] in (1, 3)
        if first and (tensor or not last):
            return pixels
        if last:
            return pixels.permute(2, 0, 1)
    raise UserError(
        f"{place} must have the shape (H, W), (C, H, W) or (H, W, C) with C = 1 or 3, not {tuple(pixels.shape)}"
    )


def _label(label: Any, place: str) -> int:
    if isinstance(label, (Tensor, np.ndarray)) and len(label.reshape(-1)) == 1:
        label = label.reshape(-1)[0].item()
    if isinstance(label, (bool, np.bool_)) or not isinstance(label, (int, np.integer)):
        raise UserError(f"{place} must be a whole number, not {label!r}")
    return int(label)


def _times(size: Any) -> str:
    return "x".join(map(str, size))
