"""Data sets, batched augmentation and the in-memory loader; `module` combines them into a Lightning data module."""

from cifarbn.data.augmentation import Augmentation
from cifarbn.data.cifar10 import CIFAR10, read_cifar10
from cifarbn.data.cifar100 import CIFAR100
from cifarbn.data.dataset import FromDataset
from cifarbn.data.fashion_mnist import FashionMNIST
from cifarbn.data.folder import ImageFolder
from cifarbn.data.gaussian import Gaussian
from cifarbn.data.images import Images
from cifarbn.data.loader import InMemoryLoader
from cifarbn.data.module import DataModule
from cifarbn.data.shapes import Shapes, draw_shapes
from cifarbn.data.svhn import SVHN

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "SVHN",
    "Augmentation",
    "DataModule",
    "FashionMNIST",
    "FromDataset",
    "Gaussian",
    "ImageFolder",
    "Images",
    "InMemoryLoader",
    "Shapes",
    "draw_shapes",
    "read_cifar10",
]
