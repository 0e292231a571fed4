"""Loss and accuracy against epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifarbn.figures.style import MUTED, PALETTE, logarithmic, sized, styled, wrapped

# Validation and test curves often coincide, so the test curve is dashed.
PARTS = {
    "train": ("training", MUTED, "-"),
    "val": ("validation", PALETTE[0], "-"),
    "test_curve": ("test", PALETTE[1], (0, (3, 1.5))),
}
WIDTH = 3.9  # inches: fits a phone, and three figures fit side by side on a desktop screen
OTHERS = "#c3c9d1"
LOG_RATIO = 50  # a loss whose largest value exceeds its smallest by more than this ratio gets a logarithmic axis
QUANTITIES = {"loss": "loss", "acc": "accuracy"}


@styled
def training_curves(curves: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw loss and accuracy of each data split against epoch, for one group of runs.

    A line is the mean over the runs; the band around it spans their minimum and maximum.

    Args:
        curves: `split/quantity` -> (runs, epochs), NaN where not measured; split is train, val or test_curve, quantity
            is loss or acc (a fraction). Missing curves are omitted.
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
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    _legend(figure, list(handles.values()), list(handles), ncols=3)
    return figure


@styled
def comparison(curves: Mapping[str, np.ndarray], quantity: str, label: str, title: str) -> Figure:
    """Draw one quantity of several groups against epoch: the mean over runs, with a band from minimum to maximum.

    The first groups get a colour each, in the given order; groups beyond the palette are grey.

    Args:
        curves: label -> (runs, epochs), NaN where not measured.
        quantity: "loss" or "acc" (a fraction).
        label: of the vertical axis, such as "validation accuracy".
        title: of the figure.
    """
    coloured = dict(zip(curves, PALETTE, strict=False))
    grey = len(curves) - len(coloured)
    names = {group: wrapped(group, WIDTH - 0.6, 9) for group in coloured}
    lines = sum(name.count("\n") + 1 for name in names.values()) + bool(grey)
    figure = _figure(2.3 + 0.19 * lines, title)
    axes = figure.subplots()
    for group in reversed(list(curves)):  # the first on top
        _line_and_band(axes, curves[group], coloured.get(group, OTHERS), group, band=group in coloured)
    _finish(axes, quantity, label)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    entries = {names[group]: handle for group in coloured if (handle := handles.get(group))}
    if grey:
        entries[f"{grey} other{'s' if grey > 1 else ''}"] = handles[list(curves)[-1]]
    _legend(figure, list(entries.values()), list(entries))
    return figure


def _figure(height: float, title: str) -> Figure:
    """Return an empty figure, `height` inches high plus the height of its title."""
    title = wrapped(title, WIDTH - 0.2)
    height += 0.17 * (title.count("\n") + 1)
    figure = Figure(figsize=(sized(WIDTH), sized(height)), layout="constrained")
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
    elif axes.dataLim.ymin > 0 and axes.dataLim.ymax > LOG_RATIO * axes.dataLim.ymin:
        logarithmic(axes, "y")


def _legend(figure: Figure, handles: list[Any], labels: list[str], ncols: int = 1) -> None:
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=ncols)
