"""The Lightning data module: training, validation and test images, held in memory on the training device."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from cifarbn.data.augmentation import Augmentation
from cifarbn.data.images import Images
from cifarbn.data.loader import NO_AUGMENTATION, InMemoryLoader
from cifarbn.data.memory import check_memory
from cifarbn.data.options import check_flag, check_share, check_three, check_whole, number_of
from cifarbn.data.randomness import keyed_generator
from cifarbn.errors import UserError


class DataModule(pl.LightningDataModule):
    """A data set, split into training and validation and held on the training device; subclasses implement `read`.

    Args:
        name: of the data set, in results and figures.
        classes: the name of each label.
        val_size: number of training images held out for validation, or a fraction of them; 0 for none.
        train_size: number of images that `read` returns for training, including validation; None if unknown.
        image_size: height and width of the images; None if unknown.
        mean, std: per channel, of the training pixels scaled to [0, 1]; None to compute them from the training images.
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
        val_size: int | float,
        train_size: int | None = None,
        image_size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
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
        self.image_size = image_size
        self.batch_size = check_whole("batch_size", batch_size, at_least=1)
        self.eval_batch_size = check_whole("eval_batch_size", eval_batch_size, at_least=1)
        self.val_size = check_share("val_size", val_size)
        if train_size is not None:
            number_of("val_size", val_size, train_size)
        self.split_seed = check_whole("split_seed", split_seed)
        self.seed = check_whole("seed", seed)
        self.mean = None if mean is None else check_three("mean", mean)
        self.std = None if std is None else check_three("std", std)
        if self.std and min(self.std) <= 0:
            raise UserError(f"data.std must be above 0 in every channel, not {list(self.std)}")
        self.augmentation = augmentation or NO_AUGMENTATION
        if image_size:
            self.augmentation.check_image_size(image_size)
        self.drop_last = check_flag("drop_last", drop_last)
        self.test_curve = check_flag("test_curve", test_curve)
        self.split_note = ""  # printed by `setup`: how `read` selected the test images, if at random
        self._images: dict[str, Images] = {}
        self._fingerprint = ""

    def read(self) -> tuple[Images, Images] | tuple[Images, Images, Images]:
        """Return the training and the test images, on the CPU; called once.

        Of two parts, (training, test), validation images are split off the first; three are (training, validation,
        test).
        """
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
        """The validation images; after `setup`."""
        return self._images["val"]

    @property
    def test_images(self) -> Images:
        """The test images; after `setup`."""
        return self._images["test"]

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images on the first call; move them to the trainer's device (CPU without a trainer)."""
        if not self._images:
            train, *others, test = self.read()
            self._fingerprint = "-".join(part.fingerprint for part in (train, *others, test))
            if others:
                (val,) = others
            else:
                train, val = split(train, number_of("val_size", self.val_size, len(train)), "split", self.split_seed)
            self._images = {"train": train, "val": val, "test": test}
            self._describe_images()
            if self.split_note:
                rank_zero_only(print)(self.split_note)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda" and self.train_images.pixels.device != device:
            check_memory(sum(map(len, self._images.values())), self.train_images.image_size, device)
        self._images = {part: images.to(device) for part, images in self._images.items()}

    def _describe_images(self) -> None:
        """Set the attributes that only the images determine."""
        self.val_size = len(self.val_images)
        self.image_size = self.train_images.image_size
        if self.mean is None or self.std is None:
            mean, std = channel_statistics(self.train_images)
            self.mean, self.std = self.mean or mean, self.std or std
        if min(self.std) <= 0:
            raise UserError(
                f"data: all training images have the same constant value in a channel (std {list(self.std)}); "
                "check the images, or set data.std"
            )

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
        """Return the `data` block of result.json; before `setup`, only what is known without the images.

        The fingerprint covers the parts that `read` returns, before the split.
        """
        values = {"image_size": self.image_size, "mean": self.mean, "std": self.std}
        return {
            "name": self.name,
            "classes": list(self.classes),
            "fingerprint": self._fingerprint,
            **{f"{part}_size": len(images) for part, images in self._images.items()},
            **{key: list(value) for key, value in values.items() if value is not None},
            "augmentation": asdict(self.augmentation),
        }

    def _loader(self, images: Images, batch_size: int, **options: Any) -> InMemoryLoader:
        assert self.mean and self.std
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return InMemoryLoader(
            images, batch_size, mean=self.mean, std=self.std, rank=rank, world_size=world_size, **options
        )


def split(images: Images, count: int, purpose: str, seed: int) -> tuple[Images, Images]:
    """Return the images without `count` randomly selected ones, and those, each in their original order.

    Args:
        images: all images.
        count: number of selected images.
        purpose: keeps random splits for different purposes independent.
        seed: selects the images.
    """
    if not count:
        return images, images[:0]
    selected = torch.zeros(len(images), dtype=torch.bool)
    selected[torch.randperm(len(images), generator=keyed_generator(purpose, seed))[:count]] = True
    return images[~selected], images[selected]


def channel_statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and the standard deviation of each channel, pixels scaled to [0, 1], to four decimals.

    Computed from counts of the 256 values, so the result is exact and does not depend on the order of the images.
    """
    values = torch.arange(256).double() / 255
    means, stds = [], []
    for channel in range(3):
        counts = torch.zeros(256, dtype=torch.int64)
        for block in images.pixels[:, channel].split(4096):  # bincount converts its input to int64
            counts += torch.bincount(block.flatten(), minlength=256)
        weights = counts.double() / counts.sum()
        mean = weights @ values
        means.append(round(mean.item(), 4))
        stds.append(round((weights @ (values - mean) ** 2).sqrt().item(), 4))
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
