"""Quantities of single layers against the step: curves and histograms."""

from collections.abc import Collection, Mapping
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from cifarbn.figures.smoothness import COLOURS, WIDTH, band_of_seeds, finish, legend_below, tall
from cifarbn.figures.style import PALETTE, line, styled, wrapped
from cifarbn.smoothness.bands import SeedBand

ROW = 1.35  # height of a row of panels, in inches


class Distribution(NamedTuple):
    """The distribution of one layer's output at each measured step."""

    steps: np.ndarray
    """(T,)."""
    edges: np.ndarray
    """Bin edges, (B + 1,)."""
    fractions: np.ndarray
    """(T, B); each row sums to 1."""


@styled
def layers(
    curves: Mapping[str, Mapping[str, Mapping[str, SeedBand]]], title: str, *, log: Collection[str] = ()
) -> Figure:
    """Draw a grid of panels, one row per layer and one column per quantity, with one line per family of runs.

    With several seeds the line is their median, and a pale band spans all of them.

    Args:
        curves: layer -> quantity -> family -> its curve over seeds (a band whose two edges are equal).
        title: of the figure.
        log: quantities whose axis is logarithmic.
    """
    figure = tall(ROW * len(curves) + 0.8, title)
    quantities = list(next(iter(curves.values())))
    panels = figure.subplots(len(curves), len(quantities), sharex=True, squeeze=False)
    for row, (layer, by_quantity) in zip(panels, curves.items(), strict=True):
        for axes, (quantity, by_family) in zip(row, by_quantity.items(), strict=True):
            for (family, curve), colour in zip(by_family.items(), cycle(COLOURS), strict=False):
                band_of_seeds(axes, curve, colour)
                marker = "o" if len(curve.steps) == 1 else None  # one point has no line
                axes.plot(curve.steps, curve.low, color=colour, label=family, lw=line(1.4), marker=marker)
            if quantity not in log:
                _show_no_rounding(axes)
            finish(axes, quantity, quantity in log)
            axes.set_ylabel(quantity)  # every panel has its own scale
            axes.tick_params(labelleft=True)
        row[0].set_title(layer)
    figure.align_ylabels()
    legend_below(figure, list(panels.ravel()))
    return figure


@styled
def distributions(histograms: Mapping[str, Mapping[str, Distribution]], title: str) -> Figure:
    """Draw histograms against the step in a grid of panels, one row per layer and one column per family of runs.

    The darker a bin, the larger its fraction of the outputs.

    Args:
        histograms: layer -> family -> the histograms of one run.
        title: of the figure.
    """
    families = list(next(iter(histograms.values())))
    names = [wrapped(name, (WIDTH - 0.8) / len(families)) for name in families]
    figure = tall(ROW * len(histograms) + 0.4 + 0.17 * max(name.count("\n") for name in names), title)
    panels = figure.subplots(len(histograms), len(families), sharex=True, sharey=True, squeeze=False)
    for row, (layer, by_family) in zip(panels, histograms.items(), strict=True):
        for axes, histogram in zip(row, by_family.values(), strict=True):
            _histograms(axes, histogram)
            finish(axes, f"{layer}:\noutput", False)
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name)
    figure.align_ylabels()
    return figure


def _show_no_rounding(axes: Axes) -> None:
    """Let the vertical axis span at least 2 % of its values, so that rounding errors do not fill the panel.

    After batch normalisation a standard deviation is 1 up to rounding.
    """
    low, high = axes.get_ylim()
    middle, least = (low + high) / 2, 0.01 * max(abs(low), abs(high))
    if high - low < 2 * least:
        axes.set_ylim(middle - least, middle + least)


def _histograms(axes: Axes, histogram: Distribution) -> None:
    """Draw each measurement as a column that ends half-way to its neighbours."""
    steps = np.asarray(histogram.steps, dtype=np.float64)
    between = (steps[1:] + steps[:-1]) / 2
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    places = np.concatenate([[steps[0] - half], between, [steps[-1] + half]])
    colours = LinearSegmentedColormap.from_list("output", ["white", PALETTE[0], "#00253d"])
    # The square root keeps small fractions visible next to a bin that holds nearly everything.
    norm = PowerNorm(0.5, 0, 1)
    axes.pcolormesh(places, histogram.edges, histogram.fractions.T, cmap=colours, norm=norm, rasterized=True)
    axes.grid(False)
