"""VGG (Simonyan and Zisserman 2014, arXiv 1409.1556) for small images, such as 32x32."""

import torch.fx
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.models.init import initialize
from cifarbn.models.types import Activation, Norm, check_at_least_one, check_choice, check_dropout

# Variant -> number of 3x3 convolutions in each of the five stages (table 1 of Simonyan and Zisserman 2014).
# A max pool follows each stage. Variant C, which also has 1x1 convolutions, is left out.
CONVOLUTIONS = {
    "A": (1, 1, 2, 2, 2),
    "B": (2, 2, 2, 2, 2),
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """VGG with a classifier of three small linear layers, as in the course report.

    Weights of torchvision's vgg11/13/16/19 (for A/B/D/E), or of its `_bn` variants if there is a norm, load into
    `features`: modules and names are the same. Convolutions always have a bias.

    Args:
        variant: "A", "B", "D" or "E" (11, 13, 16 or 19 layers with weights; table 1 of Simonyan and Zisserman 2014).
        norm: channels -> normalisation layer after every convolution; `nn.Identity` for none.
        classifier_norm: whether both hidden linear layers are followed by `nn.BatchNorm1d`.
        activation: () -> layer after every convolution and hidden linear layer.
        dropout: probability of dropping a feature before each hidden linear layer.
        width: channels of the first stage. The other stages have 2, 4, 8 and 8 times as many; hidden layers 8 times.
        init: see `initialize`.
        num_classes: C.

    Raises:
        ValueError: If variant or init is unknown, width < 1, or dropout is not in [0, 1).
    """

    def __init__(
        self,
        variant: str,
        *,
        norm: Norm = nn.Identity,
        classifier_norm: bool = False,
        activation: Activation = nn.ReLU,
        dropout: float = 0.0,
        width: int = 64,
        init: str = "xavier",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        check_choice("variant", variant, CONVOLUTIONS)
        check_at_least_one("width", width)
        check_dropout(dropout)
        hidden = 8 * width
        self.features = nn.Sequential(*_features(CONVOLUTIONS[variant], width, norm, activation))
        self.classifier = nn.Sequential()
        for _ in range(2):
            self.classifier.append(nn.Dropout(dropout))
            self.classifier.append(nn.Linear(hidden, hidden))
            if classifier_norm:
                self.classifier.append(nn.BatchNorm1d(hidden))
            self.classifier.append(activation())
        self.head = nn.Linear(hidden, num_classes)
        initialize(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, C) of float images (N, 3, H, W).

        The five max pools reduce 32x32 to one position. Larger images have several, over which features are averaged;
        smaller images are padded to 32x32 with zeros.
        """
        return self.head(self.classifier(self.features(pad_to_32(images)).mean((2, 3))))


@torch.fx.wrap  # torch.fx cannot trace through its conditions
def pad_to_32(images: Tensor) -> Tensor:
    """Pad images (N, C, H, W) with zeros on all sides, up to a height and width of at least 32."""
    rows, columns = (max(0, 32 - side) for side in images.shape[2:])
    if rows == columns == 0:
        return images
    return functional.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _features(convolutions: tuple[int, ...], width: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for count, multiple in zip(convolutions, (1, 2, 4, 8, 8), strict=True):
        outputs = multiple * width
        for _ in range(count):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            normalization = norm(outputs)
            # An nn.Identity here would shift the indices of later layers, which are those of torchvision's vgg11.
            if not isinstance(normalization, nn.Identity):
                layers.append(normalization)
            layers.append(activation())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return layers
