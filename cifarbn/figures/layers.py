"""Single layers against the step: curves of families of runs, and histograms."""

from collections.abc import Collection, Mapping
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from cifarbn.figures.smoothness import COLOURS, WIDTH, band_of_seeds, finish, legend_below, tall
from cifarbn.figures.style import PALETTE, styled, wrapped
from cifarbn.smoothness.bands import SeedBand

ROW = 1.35  # inches of a row of panels


class Distribution(NamedTuple):
    """How the output of one layer is distributed at each measured step."""

    steps: np.ndarray
    """(T,)."""
    edges: np.ndarray
    """Of the bins, (B + 1,)."""
    fractions: np.ndarray
    """(T, B), each row adds up to 1."""


@styled
def layers(
    found: Mapping[str, Mapping[str, Mapping[str, SeedBand]]], title: str, *, log: Collection[str] = ()
) -> Figure:
    """A row of panels for each layer, a column for each quantity, in it a line for each family of runs.

    Of several seeds the median is drawn; paler, what any seed reaches.

    Args:
        found: layer -> quantity -> family -> its curves over seeds, whose edges are alike.
        title: of the figure.
        log: quantities whose axis is logarithmic.
    """
    figure = tall(ROW * len(found) + 0.8, title)
    quantities = list(next(iter(found.values())))
    panels = figure.subplots(len(found), len(quantities), sharex=True, squeeze=False)
    for row, (layer, by_quantity) in zip(panels, found.items(), strict=True):
        for axes, (quantity, shown) in zip(row, by_quantity.items(), strict=True):
            for (name, one), colour in zip(shown.items(), cycle(COLOURS), strict=False):
                band_of_seeds(axes, one, colour)
                marker = "o" if len(one.steps) == 1 else None  # one point has no line
                axes.plot(one.steps, one.low, color=colour, label=name, lw=1.4, marker=marker)
            if quantity not in log:
                _show_no_rounding(axes)
            finish(axes, quantity, quantity in log)
            axes.set_ylabel(quantity)  # each panel has a scale of its own
            axes.tick_params(labelleft=True)
        row[0].set_title(layer)
    figure.align_ylabels()
    legend_below(figure, list(panels.ravel()))
    return figure


@styled
def distributions(found: Mapping[str, Mapping[str, Distribution]], title: str) -> Figure:
    """A row of panels for each layer, a column for each family of runs: the darker, the more of the outputs.

    Args:
        found: layer -> family -> the histograms of one run.
        title: of the figure.
    """
    families = list(next(iter(found.values())))
    names = [wrapped(name, (WIDTH - 0.8) / len(families)) for name in families]
    figure = tall(ROW * len(found) + 0.4 + 0.17 * max(name.count("\n") for name in names), title)
    panels = figure.subplots(len(found), len(families), sharex=True, sharey=True, squeeze=False)
    for row, (layer, by_family) in zip(panels, found.items(), strict=True):
        for axes, shown in zip(row, by_family.values(), strict=True):
            _histograms(axes, shown)
            finish(axes, f"{layer}:\noutput", False)
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name)
    figure.align_ylabels()
    return figure


def _show_no_rounding(axes: Axes) -> None:
    """Let the vertical axis span at least 2 % of its values: after batch normalisation a deviation is 1 to 5 digits."""
    low, high = axes.get_ylim()
    middle, least = (low + high) / 2, 0.01 * max(abs(low), abs(high))
    if high - low < 2 * least:
        axes.set_ylim(middle - least, middle + least)


def _histograms(axes: Axes, shown: Distribution) -> None:
    """Each measurement is drawn half way to its neighbours."""
    steps = np.asarray(shown.steps, dtype=np.float64)
    between = (steps[1:] + steps[:-1]) / 2
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    places = np.concatenate([[steps[0] - half], between, [steps[-1] + half]])
    colours = LinearSegmentedColormap.from_list("output", ["white", PALETTE[0], "#00253d"])
    # The root, or one bin that holds nearly all would leave the others white.
    norm = PowerNorm(0.5, 0, 1)
    axes.pcolormesh(places, shown.edges, shown.fractions.T, cmap=colours, norm=norm, rasterized=True)
    axes.grid(False)
