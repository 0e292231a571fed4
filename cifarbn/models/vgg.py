"""VGG (Simonyan and Zisserman 2014, arXiv 1409.1556) for 32x32 pictures."""

from torch import Tensor, nn

from cifarbn.models.init import initialize
from cifarbn.models.types import Activation, Norm, check_at_least_one, check_choice, check_dropout

# 3x3 convolutions in each of the five stages, a max pool after each stage (table 1 of the paper; C has 1x1 ones).
CONVOLUTIONS = {
    "A": (1, 1, 2, 2, 2),
    "B": (2, 2, 2, 2, 2),
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """VGG with a classifier of three small linear layers, as the report has it.

    `features` has the modules and indices of torchvision's vgg11/13/16/19 for A/B/D/E, or of the `_bn` variants
    where there is a norm, so that their convolutional weights load. Convolutions have a bias either way.

    Args:
        variant: "A", "B", "D" or "E", the column of the paper's table 1: 11, 13, 16 or 19 layers with weights.
        norm: channels -> layer after every convolution; one that makes an `nn.Identity` means none.
        classifier_norm: BatchNorm1d after both hidden linear layers as well.
        activation: makes the layer after every convolution and hidden linear layer.
        dropout: probability, before each hidden linear layer.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many, as have the hidden layers.
        init: see `initialize`.
        num_classes: C.

    Raises:
        ValueError: where variant or init is unknown, width less than 1, or dropout outside [0, 1).
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

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, C) of float pictures (N, 3, H, W), H and W at least 32.

        At 32x32 the five pools leave one position; from larger pictures the classifier gets the mean over positions.
        """
        return self.head(self.classifier(self.features(pictures).mean((2, 3))))


def _features(convolutions: tuple[int, ...], width: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for count, multiple in zip(convolutions, (1, 2, 4, 8, 8), strict=True):
        outputs = multiple * width
        for _ in range(count):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            normalization = norm(outputs)
            # An Identity would shift the indices behind it, and the plain net's weights would no longer fit.
            if not isinstance(normalization, nn.Identity):
                layers.append(normalization)
            layers.append(activation())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return layers
