"""The confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarbn.figures.style import INK, PALETTE, bare, sized, styled, wrapped

READABLE = 30  # classes
LONGEST = 24  # characters of a class's name
WIDTH = 5.2  # inches of a matrix of more classes
MISTAKES = 12  # listed for a matrix of more classes


@styled
def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Draw how often each true class (row) was predicted as each class (column).

    With more than 30 classes there is no room for names and numbers: the axes have the indices of the classes, and the
    most frequent mistakes are listed by name below the matrix.

    Args:
        counts: (C, C) integers; rows are true classes.
        classes: C class names.
        title: of the figure; the accuracy is appended.
    """
    counts = np.asarray(counts)
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
    readable = len(names) <= READABLE
    mistakes = [] if readable else _most_frequent_mistakes(counts)
    width = 1.25 + 0.385 * len(names) if readable else WIDTH
    below = 0.22 * len(mistakes) + 0.6 if mistakes else 0
    figure = Figure(figsize=(sized(width), sized(width + below)), layout="constrained")
    accuracy = f"accuracy {np.trace(counts) / max(counts.sum(), 1):.1%}"
    figure.suptitle(wrapped(f"{title}: {accuracy}" if title else accuracy, width - 0.2), x=0.02, ha="left")
    if not mistakes:
        _matrix(figure.subplots(), counts, names, readable)
        return figure
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[width, below]).ravel()
    _matrix(upper.subplots(), counts, names, readable)
    pairs = [f"{names[true]} → {names[predicted]}" for true, predicted in mistakes]
    _bars(lower.subplots(), pairs, [int(counts[pair]) for pair in mistakes])
    return figure


def _matrix(axes: Axes, counts: np.ndarray, names: Sequence[str], readable: bool) -> None:
    bare(axes)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root keeps error rates of a few per cent distinguishable from zero.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    axes.tick_params(length=0)
    if not readable:
        ticks = np.arange(0, len(names), max(len(names) // 10, 1))
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.set(xlabel="index of the predicted class", ylabel="index of the true class")
        return
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    for (row, column), count in np.ndenumerate(counts):
        dark = share[row, column] > 0.36
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=sized(8), color="white" if dark else INK)


def _most_frequent_mistakes(counts: np.ndarray) -> list[tuple[int, int]]:
    """Return (true class, predicted class) of the most frequent mistakes, the most frequent first."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    pairs = [
        (int(true), int(predicted)) for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True)
    ]
    return [pair for pair in pairs if wrong[pair] > 0]


def _bars(axes: Axes, labels: Sequence[str], numbers: Sequence[int]) -> None:
    bars = axes.barh(labels, numbers, color=PALETTE[0], height=0.7)
    axes.bar_label(bars, padding=sized(2), fontsize=sized(8))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0, labelsize=sized(8))
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("Most frequent mistakes (true → predicted class)", loc="right")
