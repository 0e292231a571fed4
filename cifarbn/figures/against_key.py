"""A metric against the values of a config key."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cifarbn.figures.smoothness import COLOURS, legend_below, tall
from cifarbn.figures.style import line, logarithmic, sized, styled, wrapped

DECADE = 10  # numbers whose largest exceeds the smallest by this ratio get a logarithmic axis


@styled
def against_key(
    values: Mapping[str, Mapping[str, Sequence[float]]], key: str, label: str, title: str, *, percent: bool = False
) -> Figure:
    """Draw a metric against the values of a config key, one line per group: mean, minimum and maximum over runs.

    Args:
        values: group -> value of the key -> the metric of each of its runs. One group "" has no legend.
        key: label of the horizontal axis. Its axis is numeric if all values are numbers, else categorical.
        label: of the vertical axis.
        title: of the figure.
        percent: whether the metric is a fraction to be shown in percent.
    """
    figure = tall(2.9, title)
    axes = figure.subplots()
    names = list(dict.fromkeys(x for by_x in values.values() for x in by_x))
    numeric = all(map(_is_number, names))
    places = {x: float(x) if numeric else i for i, x in enumerate(names)}
    for (group, by_x), colour in zip(values.items(), cycle(COLOURS), strict=False):
        points = sorted((places[x], runs) for x, runs in by_x.items())
        means = np.array([np.mean(runs) for _, runs in points])
        spread = np.abs([[np.min(runs), np.max(runs)] for _, runs in points] - means[:, None]).T
        style: Any = {"color": colour, "lw": line(1.6), "marker": "o", "ms": sized(4), "capsize": sized(3)}
        axes.errorbar([place for place, _ in points], means, spread, label=group, ls="-" if numeric else "", **style)
    axes.set(xlabel=key, ylabel=label)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if not numeric:
        axes.set_xticks(range(len(names)), [wrapped(name, 4.2 / len(names), 9) for name in names])
        axes.margins(x=0.5 / len(names))
    elif min(places.values()) > 0 and max(places.values()) >= DECADE * min(places.values()):
        logarithmic(axes, "x")
    if any(values):
        legend_below(figure, [axes])
    return figure


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
