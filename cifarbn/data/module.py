"""The Lightning data modules: training, validation and test images, held in memory on the training device."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cifarbn.data import cifar10, shapes
from cifarbn.data.augmentation import Augmentation
from cifarbn.data.images import Images
from cifarbn.data.loader import NO_AUGMENTATION, InMemoryLoader
from cifarbn.data.randomness import keyed_generator
from cifarbn.errors import UserError


class DataModule(pl.LightningDataModule):
    """A data set, split into training and validation and held on the training device; subclasses implement `read`.

    Args:
        name: as on the command line, `data=name`.
        classes: the name of each label.
        train_size: number of images that `read` returns for training, including validation.
        val_size: number of these held out for validation; 0 for none.
        mean, std: per channel, of the training pixels scaled to [0, 1].
        batch_size: images in a training batch, over all devices together.
        eval_batch_size: the same for validation and test.
        split_seed: selects the validation images. Separate from `seed`, so that all runs of a sweep validate on the
            same images.
        seed: of the order and the augmentation of the training images.
        augmentation: of the training images; none by default.
        drop_last: drop the last training batch of an epoch if it is smaller than the others.
        test_curve: also evaluate the test set at every validation, as the last loader of `val_dataloader`, for a test
            curve per epoch as in the course report. Do not select models by it.

    Raises:
        UserError: if a value has the wrong type or is out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        classes: Sequence[str],
        train_size: int,
        val_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        split_seed: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        test_curve: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.classes = tuple(classes)
        self.batch_size = _whole("batch_size", batch_size, at_least=1)
        self.eval_batch_size = _whole("eval_batch_size", eval_batch_size, at_least=1)
        self.val_size = _whole("val_size", val_size, at_least=0)
        if self.val_size >= train_size:
            raise UserError(f"data.val_size must be below the number of training images, {train_size}, not {val_size}")
        self.split_seed = _whole("split_seed", split_seed)
        self.seed = _whole("seed", seed)
        self.mean, self.std = _three("mean", mean), _three("std", std)
        if min(self.std) <= 0:
            raise UserError(f"data.std must be above 0 in every channel, not {list(self.std)}")
        self.augmentation = augmentation or NO_AUGMENTATION
        self.drop_last = _truth("drop_last", drop_last)
        self.test_curve = _truth("test_curve", test_curve)
        self._images: dict[str, Images] = {}
        self._fingerprint = ""

    def read(self) -> tuple[Images, Images]:
        """Return the training images (including validation) and the test images, on the CPU; called once."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def train_images(self) -> Images:
        """The training images without the validation images; after `setup`."""
        return self._images["train"]

    @property
    def val_images(self) -> Images:
        """The `val_size` validation images; after `setup`."""
        return self._images["val"]

    @property
    def test_images(self) -> Images:
        """The test images; after `setup`."""
        return self._images["test"]

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images on the first call; move them to the trainer's device (CPU without a trainer)."""
        if not self._images:
            train, test = self.read()
            self._fingerprint = f"{train.fingerprint}-{test.fingerprint}"
            train, val = _split(train, self.val_size, self.split_seed)
            self._images = {"train": train, "val": val, "test": test}
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self._images = {part: images.to(device) for part, images in self._images.items()}

    def train_dataloader(self) -> InMemoryLoader:
        """Return the shuffled, augmented training batches."""
        return self._loader(
            self.train_images,
            self.batch_size,
            augmentation=self.augmentation,
            shuffle=True,
            drop_last=self.drop_last,
            seed=self.seed,
        )

    @property
    def val_names(self) -> tuple[str, ...]:
        """The name of each loader of `val_dataloader`: "val" if `val_size` > 0, then "test_curve" if enabled."""
        return ("val",) * bool(self.val_size) + ("test_curve",) * self.test_curve

    def val_dataloader(self) -> list[InMemoryLoader]:
        """Return one loader for each of `val_names`; an empty list if there are none."""
        if not self.val_names:
            # Lightning treats an empty list as one loader without batches.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        images = {"val": self.val_images, "test_curve": self.test_images}
        return [self._loader(images[name], self.eval_batch_size) for name in self.val_names]

    def test_dataloader(self) -> InMemoryLoader:
        """Return the test batches."""
        return self._loader(self.test_images, self.eval_batch_size)

    def describe(self) -> dict[str, Any]:
        """Return the `data` block of result.json; before `setup` without sizes and fingerprint.

        The fingerprint covers the training and the test images as read, before the split.
        """
        return {
            "name": self.name,
            "classes": list(self.classes),
            "fingerprint": self._fingerprint,
            **{f"{part}_size": len(images) for part, images in self._images.items()},
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": asdict(self.augmentation),
        }

    def _loader(self, images: Images, batch_size: int, **options: Any) -> InMemoryLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return InMemoryLoader(
            images, batch_size, mean=self.mean, std=self.std, rank=rank, world_size=world_size, **options
        )


class CIFAR10(DataModule):
    """CIFAR-10, read from `root`; other options as for `DataModule`."""

    def __init__(
        self,
        root: str | Path,
        download: bool = True,
        *,
        val_size: int = 5000,
        mean: Sequence[float] = cifar10.MEAN,
        std: Sequence[float] = cifar10.STD,
        **options: Any,
    ) -> None:
        super().__init__(
            name="cifar10",
            classes=cifar10.CLASSES,
            train_size=cifar10.TRAIN_SIZE,
            val_size=val_size,
            mean=mean,
            std=std,
            **options,
        )
        if not isinstance(root, (str, Path)) or not str(root):
            raise UserError(f"data.root must be a folder, not {root!r}; without it, CIFARBN_DATA or ./data is used")
        self.root = root
        self.download = _truth("download", download)

    def prepare_data(self) -> None:
        """Download the data set if it is missing; Lightning calls this in one process per machine."""
        cifar10.find_cifar10(self.root, self.download)

    def read(self) -> tuple[Images, Images]:
        """Read and verify the files."""
        return cifar10.read_cifar10(self.root, self.download)


class Shapes(DataModule):
    """The embedded data set, always the same images; other options as for `DataModule`."""

    def __init__(
        self,
        train_size: int = 10_000,
        test_size: int = 2000,
        *,
        val_size: int = 1000,
        mean: Sequence[float] = shapes.MEAN,
        std: Sequence[float] = shapes.STD,
        **options: Any,
    ) -> None:
        self.train_size = _whole("train_size", train_size, at_least=1)
        self.test_size = _whole("test_size", test_size, at_least=1)
        super().__init__(
            name="shapes",
            classes=shapes.CLASSES,
            train_size=train_size,
            val_size=val_size,
            mean=mean,
            std=std,
            **options,
        )

    def read(self) -> tuple[Images, Images]:
        """Draw the images."""
        return (
            shapes.draw_shapes(self.train_size, shapes.TRAIN_SEED),
            shapes.draw_shapes(self.test_size, shapes.TEST_SEED),
        )


def _split(images: Images, val_size: int, seed: int) -> tuple[Images, Images]:
    """Return the training images and `val_size` validation images, each in their original order."""
    if not val_size:
        return images, images[:0]
    held_out = torch.zeros(len(images), dtype=torch.bool)
    held_out[torch.randperm(len(images), generator=keyed_generator("split", seed))[:val_size]] = True
    return images[~held_out], images[held_out]


def _whole(key: str, value: Any, at_least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"data.{key} must be a whole number, not {value!r}")
    if at_least is not None and value < at_least:
        raise UserError(f"data.{key} must be at least {at_least}, not {value}")
    return value


def _truth(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"data.{key} must be true or false, not {value!r}")
    return value


def _three(key: str, values: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"data.{key} must be three numbers, one per colour channel, not {values!r}") from None
    return red, green, blue
