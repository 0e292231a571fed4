"""The confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifarbn.figures.style import INK, bare, sized, styled, wrapped

READABLE = 30  # classes
LONGEST = 24  # characters of a class's name


@styled
def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Draw how often each true class (row) was predicted as each class (column).

    Args:
        counts: (C, C) integers; rows are true classes.
        classes: C class names.
        title: of the figure; the accuracy is appended.

    With more than 30 classes, names and numbers are omitted for lack of room.
    """
    counts = np.asarray(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    readable = len(classes) <= READABLE
    size = 1.25 + 0.385 * min(len(classes), READABLE)
    figure = Figure(figsize=(sized(size), sized(size)), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    # The square root keeps error rates of a few per cent distinguishable from zero.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    if readable:
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    accuracy = f"accuracy {np.trace(counts) / max(counts.sum(), 1):.1%}"
    figure.suptitle(wrapped(f"{title}: {accuracy}" if title else accuracy, size - 0.2), x=0.02, ha="left")
    for (row, column), count in np.ndenumerate(counts) if readable else ():
        dark = share[row, column] > 0.36
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=sized(8), color="white" if dark else INK)
    return figure
