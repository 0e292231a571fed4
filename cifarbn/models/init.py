"""How a net's weights start."""

from torch import nn

from cifarbn.models.types import check_choice

INITS = ("kaiming", "xavier", "torch")


def initialize(net: nn.Module, init: str) -> None:
    """Draw the weights of every convolution and linear layer of `net` anew, in place, from torch's global RNG.

    Args:
        net: normalisation layers keep their own start, scale 1 and shift 0.
        init: "kaiming": convolutions normal with variance 2 / fan_out and zero bias, linear layers left at torch's
            defaults, as torchvision's ResNet (He et al. 2015, arXiv 1502.01852, equation 14); "xavier": both
            normal with variance 2 / (fan_in + fan_out) and zero bias (Glorot and Bengio 2010, equation 12, in its
            normal form), the report's choice; "torch": everything left at torch's defaults.

    Raises:
        ValueError: where init is none of these.
    """
    check_choice("init", init, INITS)
    for layer in net.modules():
        if init == "kaiming" and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif init == "xavier" and isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
