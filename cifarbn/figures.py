"""Arrays in, matplotlib figure out; nothing here reads a file or knows a run."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """How often each true class (row) was called each class (column).

    Args:
        counts: (C, C) whole numbers, rows = true class.
        classes: C names.
    """
    counts = np.asarray(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 2.4 + 0.48 * len(classes)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="called", ylabel="is", title=f"accuracy {np.trace(counts) / max(counts.sum(), 1):.1%}")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
    return figure
