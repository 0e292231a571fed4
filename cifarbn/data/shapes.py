"""The embedded data set: ten classes of drawn 32x32 images, for use without CIFAR-10."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.data.memory import check_memory
from cifarbn.data.module import DataModule
from cifarbn.data.options import check_whole
from cifarbn.data.randomness import keyed_generator

TRAIN_SEED, TEST_SEED = 0, 1
"""Fixed: the embedded data set does not depend on the seed of a run."""

MEAN = (0.5, 0.5, 0.5)
STD = (0.295, 0.295, 0.295)
"""Per channel, of the training pixels scaled to [0, 1]; equal in all channels to two decimals."""

_BLOCK = 1000  # images drawn together


class Shapes(DataModule):
    """The embedded data set, always the same images; other options as for `DataModule`."""

    def __init__(
        self,
        train_size: int = 10_000,
        test_size: int = 2000,
        *,
        val_size: int = 1000,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        **options: Any,
    ) -> None:
        self.train_size = check_whole("train_size", train_size, at_least=1)
        self.test_size = check_whole("test_size", test_size, at_least=1)
        super().__init__(
            name="shapes",
            classes=CLASSES,
            train_size=train_size,
            val_size=val_size,
            image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mean=mean,
            std=std,
            **options,
        )

    def read(self) -> tuple[Images, Images]:
        """Draw the images."""
        check_memory(self.train_size + self.test_size, (IMAGE_SIZE, IMAGE_SIZE))
        return draw_shapes(self.train_size, TRAIN_SEED), draw_shapes(self.test_size, TEST_SEED)


def draw_shapes(n: int, seed: int) -> Images:
    """Draw `n` images, each of one rotated shape of random colour, size and position on a shaded, noisy background.

    Shape and background differ in every colour channel, with either sign, so a linear classifier on pixels stays
    below 30 % accuracy, while a small convolutional network exceeds 90 % within a few hundred steps. Each full
    thousand holds 100 images of each class. Label k is `CLASSES[k]`.

    Image i depends only on `seed` and i, not on `n`. 10,000 images take about a second.

    Returns:
        The images, channels_last, on the CPU.
    """
    counts = [min(_BLOCK, n - start) for start in range(0, n, _BLOCK)] or [0]
    pixels, labels = zip(*(_draw_block(seed, block, count) for block, count in enumerate(counts)), strict=True)
    return Images(torch.cat(pixels).permute(0, 3, 1, 2), torch.cat(labels))


def _draw_block(seed: int, block: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw the first `count` images of one block: pixels uint8 (count, 32, 32, 3), labels int64 (count,)."""
    generator = keyed_generator("shapes", seed, block)

    def uniform(low: float, high: float, *shape: int, images: int = _BLOCK) -> Tensor:
        return low + (high - low) * torch.rand(images, *shape, generator=generator, dtype=torch.float64)[:count]

    labels = (torch.randperm(_BLOCK, generator=generator) % len(CLASSES))[:count]
    angle, radius = uniform(-math.pi / 6, math.pi / 6, 1, 1), uniform(8, 13, 1, 1)
    x, y = (uniform(-1, 1, 1, 1) * (IMAGE_SIZE / 2 - 1 - radius) for _ in range(2))
    background = uniform(0, 1, 1, 1, 3)
    # A third to two thirds of the way around each channel's circle of values: never close to the background.
    colour = (background + uniform(1 / 3, 2 / 3, 1, 1, 3)) % 1
    shade = uniform(-0.25, 0.25, 2, 1, 1, 1)
    noise = uniform(-0.08, 0.08, IMAGE_SIZE, IMAGE_SIZE, 3, images=count)  # the last numbers, image by image

    coordinates = torch.arange(IMAGE_SIZE, dtype=torch.float64) - (IMAGE_SIZE - 1) / 2
    down, right = torch.meshgrid(coordinates, coordinates, indexing="ij")
    u = ((right - x) * angle.cos() + (down - y) * angle.sin()) / radius
    v = ((down - y) * angle.cos() - (right - x) * angle.sin()) / radius
    distance = torch.empty_like(u)
    for label, outline in enumerate(_OUTLINES.values()):
        selected = labels == label
        distance[selected] = outline(u[selected], v[selected])
    cover = (0.5 - distance * radius).clamp(0, 1)[..., None]  # the edge covers one pixel, for smooth outlines

    gradient = (shade[:, 0] * right[..., None] + shade[:, 1] * down[..., None]) / (IMAGE_SIZE / 2)
    image = torch.lerp(background + gradient, colour.expand(-1, IMAGE_SIZE, IMAGE_SIZE, -1), cover) + noise
    return (image.clamp(0, 1) * 255).round().byte(), labels


# Outlines: the signed distance (negative inside) of points from a shape of about the size of the unit circle. u points
# right and v down in the coordinates of the shape; both are (n, 32, 32), in units of its radius. The maximum of two
# distances is the intersection of two shapes, the minimum their union.


def _disc(u: Tensor, v: Tensor, radius: float) -> Tensor:
    return torch.hypot(u, v) - radius


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _half_planes(u: Tensor, v: Tensor, count: int, offset: float) -> Tensor:
    """Return the signed distances from `count` lines around the centre, stacked in dim 0; the first line is below."""
    turns = [2 * math.pi * k / count for k in range(count)]
    return torch.stack([v * math.cos(turn) + u * math.sin(turn) for turn in turns]) - offset


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return _disc(u, v, 0.9)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return _disc(u, v, 0.75).abs() - 0.2


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.75, 0.75)


def _frame(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.62, 0.62).abs() - 0.17


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return _half_planes(u, v, 3, 0.5).amax(0)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.95, 0.26), _box(u, v, 0.26, 0.95))


def _star(u: Tensor, v: Tensor) -> Tensor:
    # A pentagram is inside at least four of the five lines that contain its edges.
    return _half_planes(u, v, 5, 0.38).topk(2, dim=0).values[1]


def _heart(u: Tensor, v: Tensor) -> Tensor:
    # A square standing on a corner, with a half disc on each of its two upper edges.
    half = 0.5
    shift, v = half / math.sqrt(2), v - 0.15
    tilted = _box((u + v) / math.sqrt(2), (u - v) / math.sqrt(2), half, half)
    return torch.minimum(tilted, _disc(u.abs() - shift, v + shift, half))


def _moon(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_disc(u, v, 0.95), -_disc(u - 0.45, v, 0.75))


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    head = _half_planes(u, v + 0.3, 3, 0.35).amax(0)
    return torch.minimum(head, _box(u, v - 0.4, 0.2, 0.55))


_OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
}

CLASSES = tuple(_OUTLINES)
"""The name of each label."""
