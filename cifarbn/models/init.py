"""Weight initialisation."""

from torch import nn

from cifarbn.models.types import check_choice

INITS = ("kaiming", "xavier", "torch")


def initialize(model: nn.Module, init: str) -> None:
    """Initialise the convolutions and linear layers of `model` in place, using torch's global random generator.

    Args:
        model: the model. Its normalisation layers are not changed (scale 1, shift 0).
        init: one of

            - "kaiming": convolutions from a normal distribution with variance 2 / fan_out, zero bias; linear layers
              keep torch's default. As torchvision's ResNet (He et al. 2015, arXiv 1502.01852, equation 14).
            - "xavier": convolutions and linear layers from a normal distribution with variance
              2 / (fan_in + fan_out), zero bias (Glorot and Bengio 2010, equation 12, as a normal distribution). Used
              in the course report.
            - "torch": torch's defaults.

    Raises:
        ValueError: If init is not one of these.
    """
    check_choice("init", init, INITS)
    for layer in model.modules():
        if init == "kaiming" and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif init == "xavier" and isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
