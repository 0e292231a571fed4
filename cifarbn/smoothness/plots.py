"""Figures of the results of `probe` and `covariate_shift`; imported when one is drawn, since matplotlib is slow."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from cifarbn.smoothness.model_covariate_shift import CovariateShiftResult
    from cifarbn.smoothness.model_probe import ProbeResult


class NotebookFigure(Figure):
    """A figure that Jupyter shows without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def probe(result: ProbeResult) -> Figure:
    """Draw the loss and the gradient distance of a probe against the distance moved."""
    figure = NotebookFigure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    moved = np.append(0, result.distance_moved)
    left.plot(moved, np.append(result.loss_at_start, result.loss), marker="o")
    left.set(xlabel="distance moved", ylabel="loss")
    right.plot(moved, np.append(0, result.gradient_distance), marker="o", label="measured")
    right.plot(moved, result.effective_beta * moved, linestyle=":", label=f"effective β = {result.effective_beta:.3g}")
    right.set(xlabel="distance moved", ylabel="gradient distance")
    right.legend()
    return figure


def covariate_shift(result: CovariateShiftResult) -> Figure:
    """Draw the internal covariate shift of every layer: distance and cosine."""
    position = np.arange(len(result.layers))
    figure = NotebookFigure(figsize=(8, 1.4 + 0.28 * len(position)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(position, result.distance)
    left.set(xlabel="‖G − G′‖", yticks=position, yticklabels=result.layers)
    left.invert_yaxis()
    right.plot(result.cosine, position, "o")
    right.set(xlabel="cos(G, G′)", xlim=(min(0, np.nanmin(result.cosine, initial=0)) - 0.05, 1.05))
    return figure
