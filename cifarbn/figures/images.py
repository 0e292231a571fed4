"""Images, and what a model computes from them: feature maps, filters, misclassified images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarbn.figures.style import MUTED, bare, sized, styled, wrapped

CHANNELS = 6


class FeatureMaps(NamedTuple):
    """The output of one stage of a model for one image.

    Attributes:
        name: of the stage.
        maps: (C, H, W) float.
    """

    name: str
    maps: np.ndarray


@styled
def feature_maps(image: np.ndarray, title: str, subtitle: str, stages: Sequence[FeatureMaps]) -> Figure:
    """Draw an image and, below it, one row per stage: the mean over all channels, then the first channels.

    Each map is scaled separately from its minimum to its maximum, so brightness is comparable within a map only.

    Args:
        image: (H, W, 3), uint8.
        title: names the model.
        subtitle: describes the image.
        stages: in the order of the forward pass.
    """
    cell, left, top = 0.6, 1.05, 1.3
    sheet = _Sheet(left + (1 + CHANNELS) * cell + 0.1, top + len(stages) * cell + 0.1)
    sheet.show(0.1, 0.1, 0.87, image)
    down = sheet.title(left, 0.1, title)
    sheet.write(left, down + 0.05, subtitle, va="top", fontsize=sized(9))
    sheet.write(left + 0.47 * cell, top - 0.06, "mean", ha="center", fontsize=sized(8), color=MUTED)
    sheet.write(left + cell, top - 0.06, f"channels 1 to {CHANNELS}", fontsize=sized(8), color=MUTED)
    for row, (name, maps) in enumerate(stages):
        down = top + row * cell
        channels, height, width = maps.shape
        label = f"{name}\n{channels} × {height}×{width}"
        sheet.write(left - 0.08, down + 0.47 * cell, label, ha="right", va="center", fontsize=sized(8))
        sheet.show(left, down, 0.94 * cell, maps.mean(0), cmap="magma")
        for column, one in enumerate(maps[:CHANNELS], 1):
            sheet.show(left + column * cell, down, 0.94 * cell, one, cmap="gray")
    return sheet.figure


@styled
def first_layer_filters(weight: np.ndarray, title: str) -> Figure:
    """Draw the filters of a model's first convolution as small colour images; grey is zero.

    All filters share one scale, set by their largest magnitude.

    Args:
        weight: (filters, 3, height, width).
        title: of the figure.
    """
    images = 0.5 + 0.5 * weight.transpose(0, 2, 3, 1) / (np.abs(weight).max() or 1)
    return _grid(images, title, across=8, cell=0.42).figure


@styled
def misclassified(
    images: np.ndarray,
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    title: str,
) -> Figure:
    """Draw misclassified images, each with its true class, its predicted class and the softmax of that.

    Args:
        images: (N, H, W, 3), uint8.
        true: N class names.
        predicted: N class names.
        confidence: N values of the softmax for the predicted classes.
        title: of the figure.
    """
    sheet = _grid(images, title, across=5, cell=0.98, below=0.55)
    for axes, true_class, predicted_class, p in zip(sheet.figure.axes, true, predicted, confidence, strict=True):
        axes.set_xlabel(f"{true_class}\n→ {predicted_class}\n{p:.0%}", fontsize=sized(8), labelpad=sized(2))
    return sheet.figure


class _Sheet:
    """A figure whose contents are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(sized(width), sized(height)))
        self.width, self.height = width, height

    def write(self, right: float, down: float, text: str, **style: Any) -> None:
        self.figure.text(right / self.width, 1 - down / self.height, text, **style)

    def title(self, right: float, down: float, text: str) -> float:
        """Write a bold title, wrapped at the right edge; return where it ends, in inches from the top."""
        text = wrapped(text, self.width - right - 0.1)
        self.write(right, down, text, va="top", fontweight="bold")
        return down + 0.19 * (text.count("\n") + 1)

    def show(self, right: float, down: float, side: float, image: np.ndarray, **style: Any) -> Axes:
        bottom = 1 - (down + side) / self.height
        axes = self.figure.add_axes((right / self.width, bottom, side / self.width, side / self.height))
        bare(axes)
        axes.imshow(image, interpolation="nearest", **style)
        return axes


def _grid(images: np.ndarray, title: str, across: int, cell: float, below: float = 0.06) -> _Sheet:
    """Draw images in rows under a title, with `below` inches of room under each."""
    edge, gap = 0.1, 0.06
    width = 2 * edge + across * (cell + gap) - gap
    top = 0.22 + 0.19 * (wrapped(title, width - 2 * edge).count("\n") + 1)
    rows = math.ceil(len(images) / across)
    sheet = _Sheet(width, top + rows * (cell + below))
    sheet.title(edge, edge, title)
    for i, image in enumerate(images):
        row, column = divmod(i, across)
        sheet.show(edge + column * (cell + gap), top + row * (cell + below), cell, image)
    return sheet
