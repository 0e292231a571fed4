"""Models that map images to logits.

Ablations are constructor arguments (`norm=`, `stem=`, `dropout=`). The last linear layer of each model is `head`.
"""

from cifarbn.models.deep_linear import DeepLinear
from cifarbn.models.resnet import ResNet
from cifarbn.models.speednet import SpeedNet
from cifarbn.models.vgg import VGG

__all__ = ["VGG", "DeepLinear", "ResNet", "SpeedNet"]
