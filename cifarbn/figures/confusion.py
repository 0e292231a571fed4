"""Which classes are taken for which."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifarbn.figures.style import INK, bare, styled, wrapped

READABLE = 30  # classes
LONGEST = 24  # characters of a class's name


@styled
def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """How often each true class (row) was called each class (column).

    Args:
        counts: (C, C) whole numbers, rows = true class.
        classes: C names.
        title: of the figure; the accuracy is added.

    With more than 30 classes there is no room for names and numbers.
    """
    counts = np.asarray(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    readable = len(classes) <= READABLE
    size = 1.25 + 0.385 * min(len(classes), READABLE)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    # Square root: errors of a few per cent would otherwise be as white as none at all.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    if readable:
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.set(xlabel="called", ylabel="true class")
    accuracy = f"accuracy {np.trace(counts) / max(counts.sum(), 1):.1%}"
    figure.suptitle(wrapped(f"{title}: {accuracy}" if title else accuracy, size - 0.2), x=0.02, ha="left")
    for (row, column), count in np.ndenumerate(counts) if readable else ():
        dark = share[row, column] > 0.36
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    return figure
