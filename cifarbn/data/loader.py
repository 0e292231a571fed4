"""Batches straight from memory: shuffled, sharded by rank, augmented and normalised on the device."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from cifarbn.data.augmentation import Augmentation, CropFlipParams, PaddedImages
from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.data.randomness import keyed_generator
from cifarbn.errors import UserError

# Images that a GPU augments at once, for several batches together: about 20 kernels whatever their number. A CPU makes
# batches one by one, which leaves them in its cache.
GPU_IMAGES = 4096
NO_AUGMENTATION = Augmentation(pad=0, flip="none")


class EpochSampler:
    """The order in which an epoch visits `count` pictures; a pure function of (seed, epoch).

    Lightning calls `set_epoch` before every epoch. Whoever iterates without Lightning calls it too, or sees the
    same epoch again.
    """

    def __init__(self, count: int, *, shuffle: bool, seed: int) -> None:
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Turn to `epoch`, counted from 0."""
        self.epoch = epoch

    def indices(self) -> Tensor:
        """Return the order as int64 (count,), on the CPU."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=keyed_generator("order", self.seed, self.epoch))


class InMemoryLoader:
    """Batches `(x, y)` of pictures that are already on the device.

    x is float32 (B, 3, 32, 32), channels_last, `(pixels / 255 - mean) / std` bit for bit as torchvision's
    ToTensor and Normalize compute it; y is int64 (B,). What an epoch yields is a pure function of (seed, epoch).

    Under several ranks every rank takes its share of each global batch, so the same command means the same
    optimisation on any number of devices. A shuffled loader gives every rank equally many batches of equal
    size; one that is not shuffled shows every picture exactly once over all ranks.

    Args:
        images: the pictures; batches come on their device.
        batch_size: pictures in a global batch, over all ranks together.
        mean, std: per channel, in units of 255.
        augmentation: crops and flips; none by default.
        shuffle: another order in every epoch, as training wants it.
        drop_last: leave out the last batch of an epoch where it is smaller than `batch_size`.
        seed: of order and augmentation.
        rank, world_size: which share of how many.

    Raises:
        UserError: where a shuffled batch does not divide among the ranks, or an epoch has no batch.
    """

    # Lightning asks every loader that has a `sampler` for its `batch_sampler` as well.
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
                f"{len(images)} pictures give no batch of {batch_size}: lower data.batch_size or data.val_size"
            )
        self.images = images
        self.augmentation = augmentation or NO_AUGMENTATION
        self.sampler = EpochSampler(len(images), shuffle=shuffle, seed=seed)
        # Every world_size-th picture of the epoch's order, from number `rank` on: its k-th batch then lies wholly
        # in the k-th global batch.
        self._share = slice(rank, used, world_size)
        self._share_size = len(range(rank, used, world_size))
        self._batch_size = math.ceil(batch_size / world_size)
        # One value per number of a picture rather than per channel: the innermost loop then runs over 3072
        # contiguous numbers instead of 3, which makes this step 4 times as fast on a CPU.
        device = images.pixels.device
        self._mean = torch.tensor([float(m) for m in mean], device=device).repeat(IMAGE_SIZE * IMAGE_SIZE)
        self._std = torch.tensor([float(s) for s in std], device=device).repeat(IMAGE_SIZE * IMAGE_SIZE)
        self._position = {"epoch": 0, "batches": 0}
        self._resume_at: dict[str, int] | None = None

    @cached_property
    def _canvas(self) -> PaddedImages:
        # Padded when the first batch is asked for: Lightning builds a loader also to ask for its length.
        return PaddedImages(self.images.pixels, self.augmentation)

    def __len__(self) -> int:
        """Return the number of batches this rank yields in an epoch."""
        return math.ceil(self._share_size / self._batch_size)

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Pictures in each of this rank's batches but an epoch's last, and in the last."""
        return self._batch_size, self._share_size - (len(self) - 1) * self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Lightning makes the iterator of the first (or resumed) epoch before it calls `set_epoch`. This is a
        # generator, so nothing here runs before the first batch is asked for.
        epoch = self.sampler.epoch
        order = self._on_device(self.sampler.indices()[self._share])
        draws = self.augmentation.draw(len(self.images), self.sampler.seed, epoch)
        draws = CropFlipParams(*map(self._on_device, draws))
        together = max(1, GPU_IMAGES // self._batch_size) if order.is_cuda else 1
        for first in range(self._first_batch(epoch), len(self), together):
            index = order[first * self._batch_size : (first + together) * self._batch_size]
            images, labels = self._normalise(self._canvas.crop(index, draws)), self.images.labels[index]
            batches = zip(images.split(self._batch_size), labels.split(self._batch_size), strict=True)
            for number, batch in enumerate(batches, first + 1):
                self._position = {"epoch": epoch, "batches": number}
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands: `batches` yielded so far in `epoch`, the same on every rank."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration, if it is over the same epoch, begin after the batches `state` counts."""
        self._resume_at = dict(state)
        self._position = dict(state)

    def _first_batch(self, epoch: int) -> int:
        resume_at, self._resume_at = self._resume_at, None
        return resume_at["batches"] if resume_at and resume_at["epoch"] == epoch else 0

    def _on_device(self, drawn: Tensor) -> Tensor:
        device = self.images.labels.device
        # From pinned memory the copy does not make the host wait.
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)

    def _normalise(self, pixels: Tensor) -> Tensor:
        flat = pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1).float()
        flat = flat.div_(255).sub_(self._mean).div_(self._std)
        return flat.view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2)
