"""Pictures and what a net makes of them: feature maps, filters, mistakes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarbn.figures.style import MUTED, bare, styled, wrapped

CHANNELS = 6


class FeatureMaps(NamedTuple):
    """What one stage of a net makes of one picture.

    Attributes:
        name: of the stage.
        maps: (C, H, W) float, its output.
    """

    name: str
    maps: np.ndarray


@styled
def feature_maps(picture: np.ndarray, title: str, subtitle: str, stages: Sequence[FeatureMaps]) -> Figure:
    """A picture, and below it a row for each stage: the mean over all channels, then the first channels one by one.

    Each map is scaled by itself from its least to its greatest value, so brightness compares within a map only.

    Args:
        picture: (H, W, 3), uint8.
        title: whose feature maps these are.
        subtitle: what the picture shows.
        stages: from the picture to the logits.
    """
    cell, left, top = 0.6, 1.05, 1.3
    sheet = _Sheet(left + (1 + CHANNELS) * cell + 0.1, top + len(stages) * cell + 0.1)
    sheet.show(0.1, 0.1, 0.87, picture)
    down = sheet.title(left, 0.1, title)
    sheet.write(left, down + 0.05, subtitle, va="top", fontsize=9)
    sheet.write(left + 0.47 * cell, top - 0.06, "mean", ha="center", fontsize=8, color=MUTED)
    sheet.write(left + cell, top - 0.06, f"channels 1 to {CHANNELS}", fontsize=8, color=MUTED)
    for row, (name, maps) in enumerate(stages):
        down = top + row * cell
        channels, height, width = maps.shape
        label = f"{name}\n{channels} × {height}×{width}"
        sheet.write(left - 0.08, down + 0.47 * cell, label, ha="right", va="center", fontsize=8)
        sheet.show(left, down, 0.94 * cell, maps.mean(0), cmap="magma")
        for column, one in enumerate(maps[:CHANNELS], 1):
            sheet.show(left + column * cell, down, 0.94 * cell, one, cmap="gray")
    return sheet.figure


@styled
def first_layer_filters(weight: np.ndarray, title: str) -> Figure:
    """The filters of a net's first convolution as little colour pictures; grey is zero.

    All are scaled by the largest magnitude among them, so they compare with each other.

    Args:
        weight: (filters, 3, height, width).
        title: of the figure.
    """
    pictures = 0.5 + 0.5 * weight.transpose(0, 2, 3, 1) / (np.abs(weight).max() or 1)
    return _grid(pictures, title, across=8, cell=0.42).figure


@styled
def misclassified(
    pictures: np.ndarray, true: Sequence[str], called: Sequence[str], sure: Sequence[float], title: str
) -> Figure:
    """Pictures that the net took for something else, each with its true class, what it was called, and how sure.

    Args:
        pictures: (N, H, W, 3), uint8.
        true: N names of classes.
        called: N names of classes.
        sure: N probabilities of what each was called.
        title: of the figure.
    """
    sheet = _grid(pictures, title, across=5, cell=0.98, below=0.5)
    for axes, is_, taken_for, p in zip(sheet.figure.axes, true, called, sure, strict=True):
        axes.set_xlabel(f"{is_}\n→ {taken_for}\n{p:.0%}", fontsize=8, labelpad=2)
    return sheet.figure


class _Sheet:
    """A figure on which things are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height))
        self.width, self.height = width, height

    def write(self, right: float, down: float, text: str, **style: Any) -> None:
        self.figure.text(right / self.width, 1 - down / self.height, text, **style)

    def title(self, right: float, down: float, text: str) -> float:
        """Write in bold as wide as there is room; returns where it ends."""
        text = wrapped(text, self.width - right - 0.1)
        self.write(right, down, text, va="top", fontweight="bold")
        return down + 0.19 * (text.count("\n") + 1)

    def show(self, right: float, down: float, side: float, picture: np.ndarray, **style: Any) -> Axes:
        bottom = 1 - (down + side) / self.height
        axes = self.figure.add_axes((right / self.width, bottom, side / self.width, side / self.height))
        bare(axes)
        axes.imshow(picture, interpolation="nearest", **style)
        return axes


def _grid(pictures: np.ndarray, title: str, across: int, cell: float, below: float = 0.06) -> _Sheet:
    """Pictures in rows under a title, with room below each."""
    edge, gap = 0.1, 0.06
    width = 2 * edge + across * (cell + gap) - gap
    top = 0.22 + 0.19 * (wrapped(title, width - 2 * edge).count("\n") + 1)
    rows = math.ceil(len(pictures) / across)
    sheet = _Sheet(width, top + rows * (cell + below))
    sheet.title(edge, edge, title)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, across)
        sheet.show(edge + column * (cell + gap), top + row * (cell + below), cell, picture)
    return sheet
