"""Arrays in, matplotlib figure out; nothing here reads a file, knows a run or keeps a figure open."""

from cifarbn.figures.confusion import confusion_matrix
from cifarbn.figures.curves import comparison, training_curves
from cifarbn.figures.pictures import FeatureMaps, feature_maps, first_layer_filters, misclassified
from cifarbn.figures.structure import Layer, structure

__all__ = [
    "FeatureMaps",
    "Layer",
    "comparison",
    "confusion_matrix",
    "feature_maps",
    "first_layer_filters",
    "misclassified",
    "structure",
    "training_curves",
]
