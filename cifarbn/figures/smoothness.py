"""Smoothness against the step: bands over learning rates, a line for each rate, and where definitions disagree."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from cifarbn.figures.style import INK, MUTED, PALETTE, styled, wrapped
from cifarbn.smoothness.bands import Band

WIDTH = 5.2  # inches
Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values, both (T,)."""
COLOURS = (*PALETTE, "#8c6d31", "#111111", "#e377c2")  # the paper has eight nets in one figure
# Rates from low to high go from light to dark; light enough to tell, dark enough to see on white.
SHADES = ("#9ecae1", "#4292c6", "#2171b5", "#08306b", "#74a9cf", "#3690c0", "#0570b0", "#034e7b")


@styled
def bands(found: Mapping[str, Band], what: str, title: str, *, log: bool = False) -> Figure:
    """[least, greatest] value at every step, filled between, a colour for each family of runs.

    Args:
        found: family -> its band.
        what: label of the vertical axis, with its unit.
        title: of the figure.
        log: whether the vertical axis is logarithmic.
    """
    figure = _figure(2.9, title)
    axes = figure.subplots()
    for (name, band), colour in zip(found.items(), cycle(COLOURS), strict=False):
        _band(axes, band.steps, band.low, band.high, colour, name)
    _finish(axes, what, log)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@styled
def lines(found: Mapping[str, Mapping[str, Curve]], what: str, title: str, *, log: bool = False) -> Figure:
    """A panel for each family of runs, in it a line for each learning rate; all panels share their axes.

    Args:
        found: family -> learning rate -> its curve.
        what: label of the vertical axis, with its unit; "accuracy" is drawn in percent.
        title: of the figure.
        log: whether the vertical axis is logarithmic.
    """
    figure = _figure(1.75 * len(found) + 0.6, title)
    panels = figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    shades = _shades(sorted({rate for curves in found.values() for rate in curves}, key=float))
    for axes, (name, curves) in zip(panels, found.items(), strict=True):
        dense = max((len(steps) for steps, _ in curves.values()), default=0) > 200
        for rate, (steps, values) in sorted(curves.items(), key=lambda item: float(item[0])):
            axes.plot(steps, values, color=shades[rate], label=f"lr {rate}", lw=0.7 if dense else 1.6)
        axes.set_title(name)
        _finish(axes, what, log)
        axes.label_outer()
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    legend = figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4)
    for line in legend.get_lines():
        line.set_linewidth(2)
    return figure


@styled
def walks(found: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """The paper's figure 4: loss, gradient predictiveness and effective beta along the gradient, against the step.

    Args:
        found: family -> `step` (T,), `loss_low`, `loss_high`, `distance_low`, `distance_high` and `beta`, all (T,).
        title: of the figure.
    """
    figure = _figure(5.4, title)
    panels = figure.subplots(3, 1, sharex=True)
    for (name, seen), colour in zip(found.items(), cycle(COLOURS), strict=False):
        _band(panels[0], seen["step"], seen["loss_low"], seen["loss_high"], colour, name)
        _band(panels[1], seen["step"], seen["distance_low"], seen["distance_high"], colour, name)
        panels[2].plot(seen["step"], seen["beta"], color=colour, label=name, lw=1.4)
    for axes, what in zip(panels, ("loss", "gradient distance", "effective β"), strict=True):
        _finish(axes, what, log=True)
        axes.label_outer()
    figure.align_ylabels()
    handles, labels = panels[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)
    return figure


@styled
def distance_curves(found: Mapping[str, Mapping[int, Curve]], title: str) -> Figure:
    """The paper's figure 11: how far the gradient changes against how far one moves along it, at chosen steps.

    Args:
        found: family -> step -> (distance moved (S,), gradient distance (S,)).
        title: of the figure.
    """
    figure = _figure(1.9 * len(found) + 0.6, title)
    panels = figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    steps = sorted({step for curves in found.values() for step in curves})
    shades = _shades([str(step) for step in steps])
    for axes, (name, curves) in zip(panels, found.items(), strict=True):
        for step, (moved, distance) in sorted(curves.items()):
            axes.plot(moved, distance, color=shades[str(step)], marker="o", ms=3, lw=1.3, label=f"step {step}")
        axes.set_title(name)
        axes.set(xlabel="distance moved, s‖g‖", ylabel="gradient distance", xscale="log", yscale="log")
        axes.label_outer()
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4)
    return figure


@styled
def factors(found: Mapping[str, Mapping[str, float]], reference: str, title: str, groups: Sequence[int] = ()) -> Figure:
    """By which factor each definition of smoothness differs between two families: a dot for each learning rate.

    Args:
        found: definition -> learning rate -> factor (of the reference over the other), positive.
        reference: what a factor above 1 means, written along the axis.
        title: of the figure.
        groups: the numbers of definitions in each block, for a line between blocks; none draws no line.
    """
    rates = sorted({rate for values in found.values() for rate in values}, key=float)
    shades = _shades(rates)
    figure = _figure(0.34 * len(found) + 1.2, title)
    axes = figure.subplots()
    for row, values in enumerate(found.values()):
        ordered = sorted(values.values())
        axes.plot([ordered[0], ordered[-1]], [row, row], color=MUTED, lw=1, zorder=1)
        for rate, factor in values.items():
            axes.scatter(factor, row, color=shades[rate], s=34, zorder=2, label=f"lr {rate}")
    axes.axvline(1, color=INK, lw=1)
    for boundary in np.cumsum(groups)[:-1]:
        axes.axhline(boundary - 0.5, color=MUTED, lw=0.6, ls=(0, (4, 3)))
    axes.set_yticks(range(len(found)), [wrapped(name, 2.1, 9) for name in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(wrapped(reference, WIDTH - 1.9))
    axes.tick_params(axis="x", labelrotation=0)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [f"lr {rate}" for rate in rates]
    figure.legend([handles[name] for name in names], names, loc="outside lower left", ncols=4)
    return figure


def _figure(height: float, title: str) -> Figure:
    title = wrapped(title, WIDTH - 0.2)
    figure = Figure(figsize=(WIDTH, height + 0.17 * (title.count("\n") + 1)), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def _band(axes: Axes, steps: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str) -> None:
    axes.fill_between(steps, low, high, color=colour, alpha=0.45, lw=0, label=name)
    for edge in (low, high):
        axes.plot(steps, edge, color=colour, lw=0.7)


def _finish(axes: Axes, what: str, log: bool) -> None:
    axes.set(xlabel="step", ylabel=what)
    if log:
        axes.set_yscale("log")
    if what == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _shades(names: Sequence[str]) -> dict[str, str]:
    return {name: SHADES[i % len(SHADES)] for i, name in enumerate(names)}
