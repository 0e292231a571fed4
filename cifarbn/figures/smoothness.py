"""Smoothness measures against the step: bands over learning rates, one line per run, and ratios between families."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarbn.figures.style import INK, MUTED, PALETTE, line, logarithmic, shades, sized, styled, wrapped
from cifarbn.smoothness.bands import SeedBand
from cifarbn.smoothness.factors import Factor

WIDTH = 5.2  # inches
Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values, both (T,)."""
COLOURS = (*PALETTE, "#8c6d31", "#111111", "#a83279")  # Santurkar et al. 2018 compare eight models in one figure
ONE_COLUMN = 4  # panels in one column at most; more are arranged in two
DENSE = 200  # a line with more points is drawn thin


@styled
def bands(by_family: Mapping[str, SeedBand], label: str, title: str, *, log: bool = False) -> Figure:
    """Draw a band from the minimum to the maximum at every step, one colour per family of runs.

    With several seeds the band spans their median edges, and a pale band spans all of them.

    Args:
        by_family: family -> its band over seeds.
        label: of the vertical axis, with its unit.
        title: of the figure.
        log: whether the vertical axis is logarithmic.
    """
    figure = tall(2.9, title)
    axes = figure.subplots()
    for (family, band), colour in zip(by_family.items(), cycle(COLOURS), strict=False):
        _band(axes, band, colour, family)
    finish(axes, label, log)
    legend_below(figure, [axes])
    return figure


@styled
def lines(curves: Mapping[str, Mapping[str, Sequence[Curve]]], label: str, title: str, *, log: bool = False) -> Figure:
    """Draw one panel per family of runs, with one line per run, coloured by learning rate; panels share their axes.

    Args:
        curves: family -> learning rate -> the curve of each of its runs.
        label: of the vertical axis, with its unit; "accuracy" is drawn in percent.
        title: of the figure.
        log: whether the vertical axis is logarithmic.
    """
    figure, panels = _panels(curves, title)
    colours = shades(sorted({rate for by_rate in curves.values() for rate in by_rate}, key=float))
    for axes, by_rate in zip(panels, curves.values(), strict=True):
        for rate, runs in sorted(by_rate.items(), key=lambda item: float(item[0])):
            thin = len(runs) > 1 or max(len(steps) for steps, _ in runs) > DENSE
            for steps, values in runs:
                axes.plot(steps, values, color=colours[rate], label=f"lr {rate}", lw=line(0.7 if thin else 1.6))
        finish(axes, label, log)
    _label_above_a_gap(panels)
    legend_below(figure, panels, numbered=True)
    return figure


@styled
def along_gradient(
    by_quantity: Mapping[str, Mapping[str, SeedBand]], title: str, *, lines: Collection[str] = ()
) -> Figure:
    """Draw quantities measured along the gradient against the step, one panel each (Santurkar et al. 2018, figure 4).

    With several seeds each band spans their median edges, and a pale band spans all of them.

    Args:
        by_quantity: quantity -> family -> its band over seeds.
        title: of the figure.
        lines: quantities to draw as a line, because the two edges of their bands are equal.
    """
    figure = tall(1.8 * len(by_quantity), title)
    panels = list(figure.subplots(len(by_quantity), 1, sharex=True, squeeze=False).ravel())
    for axes, (quantity, by_family) in zip(panels, by_quantity.items(), strict=True):
        for (family, band), colour in zip(by_family.items(), cycle(COLOURS), strict=False):
            if quantity in lines:
                band_of_seeds(axes, band, colour)
                axes.plot(band.steps, band.low, color=colour, label=family, lw=line(1.4))
            else:
                _band(axes, band, colour, family)
        finish(axes, quantity, log=True)
    figure.align_ylabels()
    legend_below(figure, panels[-1:])
    return figure


@styled
def distance_curves(curves: Mapping[str, Mapping[int, Sequence[Curve]]], title: str) -> Figure:
    """Draw the change of the gradient against the distance moved along it (Santurkar et al. 2018, figure 11).

    Args:
        curves: family -> step -> (distance moved (S,), gradient distance (S,)) of each run.
        title: of the figure.
    """
    figure, panels = _panels(curves, title)
    steps = sorted({step for by_step in curves.values() for step in by_step})
    colours = shades([str(step) for step in steps])
    for axes, by_step in zip(panels, curves.values(), strict=True):
        for step, runs in sorted(by_step.items()):
            for moved, distance in runs:
                axes.plot(
                    moved,
                    distance,
                    color=colours[str(step)],
                    marker="o",
                    ms=sized(3),
                    lw=line(1.3),
                    label=f"step {step}",
                )
        axes.set(xlabel="distance moved, s‖g‖", ylabel="gradient distance")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        axes.label_outer()
    _label_above_a_gap(panels)
    legend_below(figure, panels, numbered=True)
    return figure


@styled
def factors(
    ratios: Mapping[str, Mapping[str, Factor]], axis_label: str, title: str, blocks: Sequence[int] = ()
) -> Figure:
    """Draw the ratio of each measure between two families: one dot per learning rate, with its interval.

    A dot without an interval is hollow.

    Args:
        ratios: measure -> learning rate -> ratio.
        axis_label: explains a ratio above 1.
        title: of the figure.
        blocks: the number of rows in each block; a line is drawn between blocks.
    """
    rates = sorted({rate for by_rate in ratios.values() for rate in by_rate}, key=float)
    colours = shades(rates)
    figure = tall((0.24 + 0.08 * len(rates)) * len(ratios) + 1.2, title)
    axes = figure.subplots()
    # Offset the rates vertically: intervals would overlap otherwise.
    places = dict(zip(rates, (np.arange(len(rates)) - (len(rates) - 1) / 2) * 0.7 / len(rates), strict=True))
    for row, by_rate in enumerate(ratios.values()):
        for rate, ratio in by_rate.items():
            if ratio.interval:
                axes.plot(ratio.interval, [row + places[rate]] * 2, color=colours[rate], lw=line(1.2), zorder=1)
            face = colours[rate] if ratio.interval else "white"
            axes.scatter(
                ratio.factor,
                row + places[rate],
                facecolor=face,
                edgecolor=colours[rate],
                s=sized(20**0.5) ** 2,
                zorder=2,
            )
    axes.axvline(1, color=INK, lw=sized(1))
    for boundary in np.cumsum(blocks)[:-1]:
        axes.axhline(boundary - 0.5, color=MUTED, lw=sized(0.6), ls=(0, (4, 3)))
    axes.set_yticks(range(len(ratios)), [wrapped(name, 2.1, 9) for name in ratios])
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    logarithmic(axes, "x")
    axes.set_xlabel(wrapped(axis_label, WIDTH - 1.9))
    for rate in rates:
        axes.scatter([], [], color=colours[rate], s=sized(20**0.5) ** 2, label=f"lr {rate}")
    legend_below(figure, [axes], numbered=True)
    return figure


def tall(height: float, title: str) -> Figure:
    """Return an empty figure, `height` inches high plus the height of its title."""
    title = wrapped(title, WIDTH - 0.2)
    figure = Figure(figsize=(sized(WIDTH), sized(height + 0.17 * (title.count("\n") + 1))), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def _panels(names: Mapping[str, Any], title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with one titled panel per name; all panels share their axes."""
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
    # No edge lines: over thousands of steps they would fill the band and hide the bands behind it.
    axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.45, lw=0, label=name)


def band_of_seeds(axes: Axes, band: SeedBand, colour: str) -> None:
    """Shade the range over all seeds."""
    if band.seeds > 1:
        axes.fill_between(band.steps, band.lowest, band.highest, color=colour, alpha=0.18, lw=0)


def finish(axes: Axes, label: str, log: bool) -> None:
    """Label the axes once everything is drawn: the step horizontally, `label` vertically."""
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if log:
        logarithmic(axes, "y")
    if label == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.label_outer()


def _label_above_a_gap(panels: Sequence[Axes]) -> None:
    """Label the horizontal axis of the panel above an empty place in the last row."""
    if len(panels) > ONE_COLUMN and len(panels) % 2:
        panels[-2].tick_params(labelbottom=True)
        panels[-2].set_xlabel(panels[-1].get_xlabel())


def legend_below(figure: Figure, panels: Sequence[Axes], *, numbered: bool = False) -> None:
    """Add one legend below all panels, and make the figure higher if the legend takes more than one line.

    Args:
        figure: that holds the panels.
        panels: whose labels are listed, each once.
        numbered: sort labels such as `lr 0.001` by their number, which is the order of their colours.
    """
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda label: float(label.split()[-1])) if numbered else list(handles)
    texts = [wrapped(label, WIDTH - 0.8, 9) for label in order]
    in_two = all(wrapped(label, WIDTH / 2 - 0.8, 9) == label for label in order)
    columns = 4 if numbered else 2 if in_two else 1
    lines = -(-sum(text.count("\n") + 1 for text in texts) // columns)
    figure.set_figheight(figure.get_figheight() + sized(0.19 * (lines - 1)))
    legend = figure.legend([handles[label] for label in order], texts, loc="outside lower left", ncols=columns)
    for handle in legend.get_lines():
        handle.set_linewidth(line(2))  # the colour of a thin line is hard to see
