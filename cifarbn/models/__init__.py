"""The nets: pictures in, logits out; an ablation is a constructor switch, and the last linear layer is `head`."""

from cifarbn.models.deep_linear import DeepLinear
from cifarbn.models.resnet import ResNet
from cifarbn.models.speednet import SpeedNet
from cifarbn.models.vgg import VGG

__all__ = ["VGG", "DeepLinear", "ResNet", "SpeedNet"]
