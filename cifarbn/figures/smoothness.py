"""Smoothness against the step: bands over learning rates, a line for each run, and where definitions disagree."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarbn.figures.style import INK, MUTED, PALETTE, logarithmic, shades, styled, wrapped
from cifarbn.smoothness.bands import SeedBand
from cifarbn.smoothness.factors import Factor

WIDTH = 5.2  # inches
Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values, both (T,)."""
COLOURS = (*PALETTE, "#8c6d31", "#111111", "#a83279")  # the paper has eight nets in one figure
ONE_COLUMN = 4  # panels that stand below each other; more stand in two columns
DENSE = 200  # points from which on a line is drawn thin


@styled
def bands(found: Mapping[str, SeedBand], what: str, title: str, *, log: bool = False) -> Figure:
    """[least, greatest] value at every step, filled between, a colour for each family of runs.

    Of several seeds the median edges are filled between; paler, what any seed's band reaches.

    Args:
        found: family -> its band over seeds.
        what: label of the vertical axis, with its unit.
        title: of the figure.
        log: whether the vertical axis is logarithmic.
    """
    figure = tall(2.9, title)
    axes = figure.subplots()
    for (name, band), colour in zip(found.items(), cycle(COLOURS), strict=False):
        _band(axes, band, colour, name)
    finish(axes, what, log)
    legend_below(figure, [axes])
    return figure


@styled
def lines(found: Mapping[str, Mapping[str, Sequence[Curve]]], what: str, title: str, *, log: bool = False) -> Figure:
    """A panel for each family of runs, in it a line for each run, a colour for each rate; all panels share their axes.

    Args:
        found: family -> learning rate -> the curve of each of its runs.
        what: label of the vertical axis, with its unit; "accuracy" is drawn in percent.
        title: of the figure.
        log: whether the vertical axis is logarithmic.
    """
    figure, panels = _panels(found, title)
    colours = shades(sorted({rate for curves in found.values() for rate in curves}, key=float))
    for axes, curves in zip(panels, found.values(), strict=True):
        for rate, runs in sorted(curves.items(), key=lambda item: float(item[0])):
            thin = len(runs) > 1 or max(len(steps) for steps, _ in runs) > DENSE
            for steps, values in runs:
                axes.plot(steps, values, color=colours[rate], label=f"lr {rate}", lw=0.7 if thin else 1.6)
        finish(axes, what, log)
    _label_above_a_gap(panels)
    legend_below(figure, panels, numbered=True)
    return figure


@styled
def walks(found: Mapping[str, Mapping[str, SeedBand]], title: str, *, lines: Collection[str] = ()) -> Figure:
    """The paper's figure 4: what is measured along the gradient against the step, a panel for each quantity.

    Of several seeds the median edges are drawn; paler, what any seed reaches.

    Args:
        found: quantity -> family -> its band over seeds.
        title: of the figure.
        lines: quantities that are drawn as a line, since the edges of their bands are alike.
    """
    figure = tall(1.8 * len(found), title)
    panels = list(figure.subplots(len(found), 1, sharex=True, squeeze=False).ravel())
    for axes, (quantity, shown) in zip(panels, found.items(), strict=True):
        for (name, one), colour in zip(shown.items(), cycle(COLOURS), strict=False):
            if quantity in lines:
                band_of_seeds(axes, one, colour)
                axes.plot(one.steps, one.low, color=colour, label=name, lw=1.4)
            else:
                _band(axes, one, colour, name)
        finish(axes, quantity, log=True)
    figure.align_ylabels()
    legend_below(figure, panels[-1:])
    return figure


@styled
def distance_curves(found: Mapping[str, Mapping[int, Sequence[Curve]]], title: str) -> Figure:
    """The paper's figure 11: how far the gradient changes against how far one moves along it, at chosen steps.

    Args:
        found: family -> step -> of each run (distance moved (S,), gradient distance (S,)).
        title: of the figure.
    """
    figure, panels = _panels(found, title)
    steps = sorted({step for curves in found.values() for step in curves})
    colours = shades([str(step) for step in steps])
    for axes, curves in zip(panels, found.values(), strict=True):
        for step, runs in sorted(curves.items()):
            for moved, distance in runs:
                axes.plot(moved, distance, color=colours[str(step)], marker="o", ms=3, lw=1.3, label=f"step {step}")
        axes.set(xlabel="distance moved, s‖g‖", ylabel="gradient distance")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        axes.label_outer()
    _label_above_a_gap(panels)
    legend_below(figure, panels, numbered=True)
    return figure


@styled
def factors(
    found: Mapping[str, Mapping[str, Factor]], reference: str, title: str, groups: Sequence[int] = ()
) -> Figure:
    """By which factor a measure differs between two families: a dot for each learning rate, and its interval.

    A dot without an interval is hollow.

    Args:
        found: what was measured -> learning rate -> factor.
        reference: what a factor above 1 means, written along the axis.
        title: of the figure.
        groups: the numbers of rows in each block, for a line between blocks; none draws no line.
    """
    rates = sorted({rate for values in found.values() for rate in values}, key=float)
    colours = shades(rates)
    figure = tall((0.24 + 0.08 * len(rates)) * len(found) + 1.2, title)
    axes = figure.subplots()
    # One below the other, or intervals would hide each other.
    places = dict(zip(rates, (np.arange(len(rates)) - (len(rates) - 1) / 2) * 0.7 / len(rates), strict=True))
    for row, values in enumerate(found.values()):
        for rate, one in values.items():
            if one.interval:
                axes.plot(one.interval, [row + places[rate]] * 2, color=colours[rate], lw=1.2, zorder=1)
            face = colours[rate] if one.interval else "white"
            axes.scatter(one.factor, row + places[rate], facecolor=face, edgecolor=colours[rate], s=20, zorder=2)
    axes.axvline(1, color=INK, lw=1)
    for boundary in np.cumsum(groups)[:-1]:
        axes.axhline(boundary - 0.5, color=MUTED, lw=0.6, ls=(0, (4, 3)))
    axes.set_yticks(range(len(found)), [wrapped(name, 2.1, 9) for name in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    logarithmic(axes, "x")
    axes.set_xlabel(wrapped(reference, WIDTH - 1.9))
    for rate in rates:
        axes.scatter([], [], color=colours[rate], s=20, label=f"lr {rate}")
    legend_below(figure, [axes], numbered=True)
    return figure


def tall(height: float, title: str) -> Figure:
    """Make an empty figure with room for its title and so many inches below it."""
    title = wrapped(title, WIDTH - 0.2)
    figure = Figure(figsize=(WIDTH, height + 0.17 * (title.count("\n") + 1)), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def _panels(names: Mapping[str, Any], title: str) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel for each name; all share their axes."""
    columns = 1 if len(names) <= ONE_COLUMN else 2
    titles = [wrapped(name, (WIDTH - 0.8) / columns) for name in names]
    lines = [max(t.count("\n") for t in titles[i : i + columns]) for i in range(0, len(titles), columns)]
    figure = tall(1.75 * len(lines) + 0.17 * sum(lines) + 0.6, title)
    grid = figure.subplots(len(lines), columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.ravel())
    for axes, text in zip(panels, titles, strict=False):
        axes.set_title(text)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure, panels[: len(names)]


def _band(axes: Axes, band: SeedBand, colour: str, name: str) -> None:
    band_of_seeds(axes, band, colour)
    # No edges: over thousands of steps they would fill the band and hide what lies behind it.
    axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.45, lw=0, label=name)


def band_of_seeds(axes: Axes, band: SeedBand, colour: str) -> None:
    """Shade how far any of several seeds reaches."""
    if band.seeds > 1:
        axes.fill_between(band.steps, band.lowest, band.highest, color=colour, alpha=0.18, lw=0)


def finish(axes: Axes, what: str, log: bool) -> None:
    """Label the axes, once everything is drawn: steps below, `what` on the left."""
    axes.set(xlabel="step", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if log:
        logarithmic(axes, "y")
    if what == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.label_outer()


def _label_above_a_gap(panels: Sequence[Axes]) -> None:
    """Where the last row of two columns is half empty, the panel above the gap is an outer one as well."""
    if len(panels) > ONE_COLUMN and len(panels) % 2:
        panels[-2].tick_params(labelbottom=True)
        panels[-2].set_xlabel(panels[-1].get_xlabel())


def legend_below(figure: Figure, panels: Sequence[Axes], *, numbered: bool = False) -> None:
    """One entry for each label of any panel; numbered ones, such as `lr 0.001`, in the order of their colours.

    The figure grows by what the legend needs beyond one line.
    """
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda label: float(label.split()[-1])) if numbered else list(handles)
    texts = [wrapped(label, WIDTH - 0.8, 9) for label in order]
    in_two = all(wrapped(label, WIDTH / 2 - 0.8, 9) == label for label in order)
    columns = 4 if numbered else 2 if in_two else 1
    lines = -(-sum(text.count("\n") + 1 for text in texts) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * (lines - 1))
    legend = figure.legend([handles[label] for label in order], texts, loc="outside lower left", ncols=columns)
    for line in legend.get_lines():
        line.set_linewidth(2)  # a thin one does not show its colour
