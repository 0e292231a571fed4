"""Batches from images in memory: shuffled, sharded by rank, augmented and normalised on the device."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from cifarbn.data.augmentation import Augmentation, CropFlipParams, PaddedImages
from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.data.randomness import keyed_generator
from cifarbn.errors import UserError

# Images that a GPU augments in one go, several batches together: about 20 kernel launches, independent of their number.
# A CPU prepares one batch at a time, which keeps it in the cache.
GPU_IMAGES = 4096
NO_AUGMENTATION = Augmentation(pad=0, flip="none")


class EpochSampler:
    """The order in which an epoch visits `count` images; a pure function of (seed, epoch).

    Lightning calls `set_epoch` before each epoch. A loop without Lightning must call it too; otherwise every epoch has
    the same order.
    """

    def __init__(self, count: int, *, shuffle: bool, seed: int) -> None:
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, counted from 0."""
        self.epoch = epoch

    def indices(self) -> Tensor:
        """Return the order as int64 (count,), on the CPU."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=keyed_generator("order", self.seed, self.epoch))


class InMemoryLoader:
    """Batches `(x, y)` of images that are already on the device.

    x is float32 (B, 3, 32, 32), channels_last, `(pixels / 255 - mean) / std`, bit-equal to torchvision's ToTensor and
    Normalize; y is int64 (B,). The batches of an epoch are a pure function of (seed, epoch).

    With several ranks, each rank takes its share of every global batch, so the same command runs the same optimisation
    on any number of devices. A shuffled loader gives all ranks the same number of batches of the same size; a loader
    without shuffling yields every image exactly once over all ranks.

    Args:
        images: the images; batches are on the same device.
        batch_size: images in a global batch, over all ranks together.
        mean, std: per channel, of pixels scaled to [0, 1].
        augmentation: crops and flips; none by default.
        shuffle: use a new random order in each epoch, for training.
        drop_last: drop the last batch of an epoch if it is smaller than `batch_size`.
        seed: of order and augmentation.
        rank, world_size: index of this process and number of processes.

    Raises:
        UserError: if a shuffled batch cannot be divided equally among the ranks, or an epoch has no batch.
    """

    # Lightning reads `batch_sampler` of every loader that has a `sampler`.
    batch_sampler = None

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if shuffle and batch_size % world_size:
            raise UserError(
                f"data.batch_size is the batch of all {world_size} processes together and must be a multiple "
                f"of {world_size}, not {batch_size}"
            )
        used = len(images)
        if shuffle:
            used -= used % world_size
        if drop_last:
            used -= used % batch_size
        if not used:
            raise UserError(
                f"{len(images)} images give no batch of {batch_size}; lower data.batch_size or data.val_size"
            )
        self.images = images
        self.augmentation = augmentation or NO_AUGMENTATION
        self.sampler = EpochSampler(len(images), shuffle=shuffle, seed=seed)
        # Every world_size-th image of the epoch's order, starting at number `rank`, so that this rank's k-th batch is
        # a part of the k-th global batch.
        self._share = slice(rank, used, world_size)
        self._share_size = len(range(rank, used, world_size))
        self._batch_size = math.ceil(batch_size / world_size)
        # One value per element of an image instead of one per channel: the innermost loop then runs over 3072
        # contiguous values instead of 3, which is 4 times as fast on a CPU.
        device = images.pixels.device
        self._mean = torch.tensor([float(m) for m in mean], device=device).repeat(IMAGE_SIZE * IMAGE_SIZE)
        self._std = torch.tensor([float(s) for s in std], device=device).repeat(IMAGE_SIZE * IMAGE_SIZE)
        self._position = {"epoch": 0, "batches": 0}
        self._resume_at: dict[str, int] | None = None

    @cached_property
    def _padded(self) -> PaddedImages:
        # Built for the first batch, not in the constructor: Lightning also creates loaders only to read their length.
        return PaddedImages(self.images.pixels, self.augmentation)

    def __len__(self) -> int:
        """Return the number of batches this rank yields in an epoch."""
        return math.ceil(self._share_size / self._batch_size)

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """The size of this rank's batches: of all but the last of an epoch, and of the last."""
        return self._batch_size, self._share_size - (len(self) - 1) * self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Lightning creates the iterator of the first (or resumed) epoch before it calls `set_epoch`. This function is
        # a generator, so the epoch is read only when the first batch is requested.
        epoch = self.sampler.epoch
        order = self._on_device(self.sampler.indices()[self._share])
        draws = self.augmentation.draw(len(self.images), self.sampler.seed, epoch)
        draws = CropFlipParams(*map(self._on_device, draws))
        together = max(1, GPU_IMAGES // self._batch_size) if order.is_cuda else 1
        for first in range(self._first_batch(epoch), len(self), together):
            index = order[first * self._batch_size : (first + together) * self._batch_size]
            images, labels = self._normalise(self._padded.crop(index, draws)), self.images.labels[index]
            batches = zip(images.split(self._batch_size), labels.split(self._batch_size), strict=True)
            for number, batch in enumerate(batches, first + 1):
                self._position = {"epoch": epoch, "batches": number}
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position: the number of `batches` yielded so far in `epoch`, the same on every rank."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after the batches counted in `state`, if it is over the same epoch."""
        self._resume_at = dict(state)
        self._position = dict(state)

    def _first_batch(self, epoch: int) -> int:
        resume_at, self._resume_at = self._resume_at, None
        return resume_at["batches"] if resume_at and resume_at["epoch"] == epoch else 0

    def _on_device(self, drawn: Tensor) -> Tensor:
        device = self.images.labels.device
        # A copy from pinned memory does not block the host.
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)

    def _normalise(self, pixels: Tensor) -> Tensor:
        flat = pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1).float()
        flat = flat.div_(255).sub_(self._mean).div_(self._std)
        return flat.view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2)
