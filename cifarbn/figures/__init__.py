"""Arrays in, matplotlib figure out; nothing here reads a file, knows a run or keeps a figure open."""

from cifarbn.figures.confusion import confusion_matrix
from cifarbn.figures.curves import comparison, training_curves
from cifarbn.figures.images import FeatureMaps, feature_maps, first_layer_filters, misclassified
from cifarbn.figures.layers import Distribution, distributions, layers
from cifarbn.figures.smoothness import bands, distance_curves, factors, lines, walks
from cifarbn.figures.structure import Layer, structure
from cifarbn.figures.style import save

__all__ = [
    "Distribution",
    "FeatureMaps",
    "Layer",
    "bands",
    "comparison",
    "confusion_matrix",
    "distance_curves",
    "distributions",
    "factors",
    "feature_maps",
    "first_layer_filters",
    "layers",
    "lines",
    "misclassified",
    "save",
    "structure",
    "training_curves",
    "walks",
]
