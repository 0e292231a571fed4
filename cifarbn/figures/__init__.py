"""Draw arrays as matplotlib figures; nothing here reads a file, depends on a run or keeps a figure open."""

from cifarbn.figures.against_key import against_key
from cifarbn.figures.confusion import confusion_matrix
from cifarbn.figures.curves import comparison, training_curves
from cifarbn.figures.images import FeatureMaps, feature_maps, first_layer_filters, misclassified
from cifarbn.figures.layers import Distribution, distributions, layers
from cifarbn.figures.smoothness import along_gradient, bands, distance_curves, factors, lines
from cifarbn.figures.structure import Layer, structure
from cifarbn.figures.style import STYLES, save, using

__all__ = [
    "STYLES",
    "Distribution",
    "FeatureMaps",
    "Layer",
    "against_key",
    "along_gradient",
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
    "using",
]
