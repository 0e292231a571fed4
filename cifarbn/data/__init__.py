"""Data sets, batched augmentation and the in-memory loader; `module` combines them into a Lightning data module."""

from cifarbn.data.augmentation import Augmentation
from cifarbn.data.cifar10 import read_cifar10
from cifarbn.data.gaussian import Gaussian
from cifarbn.data.images import Images
from cifarbn.data.loader import InMemoryLoader
from cifarbn.data.module import CIFAR10, DataModule, Shapes
from cifarbn.data.shapes import draw_shapes

__all__ = [
    "CIFAR10",
    "Augmentation",
    "DataModule",
    "Gaussian",
    "Images",
    "InMemoryLoader",
    "Shapes",
    "draw_shapes",
    "read_cifar10",
]
