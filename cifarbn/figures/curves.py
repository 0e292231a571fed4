"""Loss and accuracy against epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarbn.figures.style import MUTED, PALETTE, logarithmic, styled, wrapped

# Validation and test curves lie on each other more often than not, hence the dashes.
PARTS = {
    "train": ("training", MUTED, "-"),
    "val": ("validation", PALETTE[0], "-"),
    "test_curve": ("test", PALETTE[1], (0, (3, 1.5))),
}
WIDTH = 3.9  # inches: on a phone's screen as well, and three beside each other on a desk's
OTHERS = "#c3c9d1"
ORDERS_OF_MAGNITUDE = 50  # from which ratio of greatest to least a loss is drawn on a logarithmic axis
QUANTITIES = {"loss": "loss", "acc": "accuracy"}


@styled
def training_curves(curves: Mapping[str, np.ndarray], title: str) -> Figure:
    """The training procedure of one group of runs: loss and accuracy of each part of the data against epoch.

    A line is the mean over the runs and the band about it reaches from the least to the greatest.

    Args:
        curves: `part/quantity` -> (runs, epochs), NaN where not measured; part is train, val or test_curve, quantity
            loss or acc (a fraction). What is missing is not drawn.
        title: of the figure.
    """
    measured = [q for q in QUANTITIES if any(np.isfinite(v).any() for name, v in curves.items() if name.endswith(q))]
    figure = _figure(1.7 * len(measured) + 0.4, title)
    panels = figure.subplots(len(measured), 1, sharex=True, squeeze=False)[:, 0]
    for axes, quantity in zip(panels, measured, strict=True):
        for part, (label, colour, dashes) in PARTS.items():
            values = curves.get(f"{part}/{quantity}", np.empty((0, 0)))
            _line_and_band(axes, values, colour, label, linestyle=dashes)
        _finish(axes, quantity, QUANTITIES[quantity])
        axes.label_outer()
    figure.align_ylabels()
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend(figure, list(shown.values()), list(shown), ncols=3)
    return figure


@styled
def comparison(curves: Mapping[str, np.ndarray], quantity: str, what: str, title: str) -> Figure:
    """One quantity of several groups against epoch, each the mean over its runs and a band from least to greatest.

    The first groups are drawn in colour, in the order given; where there are more than colours, the others are grey.

    Args:
        curves: label -> (runs, epochs), NaN where not measured.
        quantity: "loss" or "acc" (a fraction).
        what: the label of the vertical axis, such as "validation accuracy".
        title: of the figure.
    """
    coloured = dict(zip(curves, PALETTE, strict=False))
    grey = len(curves) - len(coloured)
    names = {label: wrapped(label, WIDTH - 0.6, 9) for label in coloured}
    lines = sum(name.count("\n") + 1 for name in names.values()) + bool(grey)
    figure = _figure(2.3 + 0.19 * lines, title)
    axes = figure.subplots()
    for label in reversed(list(curves)):  # the first on top
        _line_and_band(axes, curves[label], coloured.get(label, OTHERS), label, band=label in coloured)
    _finish(axes, quantity, what)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = {names[label]: handle for label in coloured if (handle := handles.get(label))}
    if grey:
        shown[f"{grey} other{'s' if grey > 1 else ''}"] = handles[list(curves)[-1]]
    _legend(figure, list(shown.values()), list(shown))
    return figure


def _figure(height: float, title: str) -> Figure:
    """A figure with room for its title, and so many inches besides."""
    title = wrapped(title, WIDTH - 0.2)
    height += 0.17 * (title.count("\n") + 1)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def _line_and_band(
    axes: Axes, values: np.ndarray, colour: str, label: str, *, linestyle: Any = "-", band: bool = True
) -> None:
    measured = np.isfinite(values).any(0) if values.size else np.zeros(0, bool)
    if not measured.any():
        return
    values = values[:, measured]
    epochs = np.flatnonzero(measured) + 1
    marker = "o" if len(epochs) == 1 else None  # one point has no line
    axes.plot(epochs, np.nanmean(values, 0), color=colour, label=label, linestyle=linestyle, marker=marker)
    if band and len(values) > 1:
        axes.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.18, lw=0)


def _finish(axes: Axes, quantity: str, label: str) -> None:
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if quantity == "acc":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif axes.dataLim.ymin > 0 and axes.dataLim.ymax > ORDERS_OF_MAGNITUDE * axes.dataLim.ymin:
        logarithmic(axes, "y")


def _legend(figure: Figure, handles: list[Any], labels: list[str], ncols: int = 1) -> None:
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=ncols)
