"""A small net made for short training, with a whitened first layer (Jordan 2024, arXiv 2404.00498)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.models.types import Activation, Norm, check_at_least_one


class SpeedNet(nn.Module):
    """Whitening, three groups of two 3x3 convolutions and a head without bias.

    A group halves the side between its two convolutions; a 3x3 max pool leaves one position of a 32x32 picture to the
    head. Whoever trains it calls `initialize_from` once and `start_epoch` at every epoch, as `Classifier` does; without
    the first the whitening layer passes colours through, without the second its bias trains to the end.

    Args:
        widths: channels of the three groups.
        norm: channels -> layer after every convolution; one that makes an `nn.Identity` means none, and only then do
            convolutions have a bias.
        norm_scale: whether the norms' scales are trained; the paper leaves them at 1.
        activation: makes the layer after the whitening and after every norm.
        dirac_init: initialise each convolution's first filters as identity (Dirac) filters, one per input channel, so
            that at the start the image reaches the head; the others start at torch's default.
        whitening_bias_epochs: epochs for which the whitening layer's bias is trained; None: all. Afterwards nothing
            below the first group needs a gradient, which saves about 5 % of a step. DDP, which wants a gradient of
            every parameter it started with, takes only 0 or None.
        num_classes: C.

    Raises:
        ValueError: where there are not three widths of at least 1.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        *,
        norm: Norm = nn.BatchNorm2d,
        norm_scale: bool = False,
        activation: Activation = nn.GELU,
        dirac_init: bool = True,
        whitening_bias_epochs: int | None = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise ValueError(f"widths must be three numbers, one per group, not {list(widths)}")
        for width in widths:
            check_at_least_one("width", width)
        self.whitening_bias_epochs = whitening_bias_epochs
        self.whitening = Whitening(3, 2)
        self.act = activation()
        inputs = [self.whitening.outputs, *widths[:2]]
        switches: dict[str, Any] = {
            "norm": norm,
            "norm_scale": norm_scale,
            "activation": activation,
            "dirac_init": dirac_init,
        }
        self.groups = nn.Sequential(*(Group(i, o, **switches) for i, o in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        # Logits of the order of 1 / sqrt(features) at the start, where torch's default gives the order of 1.
        nn.init.normal_(self.head.weight, std=1 / widths[-1])
        self.start_epoch(0)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, C) of float pictures (N, 3, H, W), H and W at least 25."""
        x = self.groups(self.act(self.whitening(pictures)))
        return self.head(functional.max_pool2d(x, 3).amax((2, 3)))

    def initialize_from(self, pictures: Tensor) -> None:
        """Whiten as these pictures (N, 3, H, W), normalised as for training, ask for."""
        self.whitening.fit(pictures)

    def start_epoch(self, epoch: int) -> None:
        """Train the whitening layer's bias or not, as `whitening_bias_epochs` says of `epoch`, counted from 0."""
        last = self.whitening_bias_epochs
        self.whitening.bias.requires_grad_(last is None or epoch < last)


class Whitening(nn.Module):
    """Every patch of `side` x `side` pixels in the basis in which patches of the training pictures are white.

    (N, channels, H, W) -> (N, 2 * channels * side^2, H - side + 1, W - side + 1). The filters are
    v_i / sqrt(lambda_i + eps) over the eigenvectors v_i of the patches' second moment, and each once more negated, so
    that an activation that clips one sign loses nothing. They are never trained; the bias is.

    Until `fit` is called they are the patch's pixels and their negatives.

    Args:
        channels: of the input.
        side: of a patch.
        eps: keeps the directions in which patches hardly vary, and hold little but noise, from being blown up.
    """

    weight: Tensor

    def __init__(self, channels: int, side: int, eps: float = 5e-4) -> None:
        super().__init__()
        self.eps = eps
        size = channels * side**2
        self.outputs = 2 * size
        filters = torch.eye(size).view(size, channels, side, side)
        self.register_buffer("weight", torch.cat([filters, -filters]))
        self.bias = nn.Parameter(torch.zeros(self.outputs))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Compute the filters from these pictures (N, channels, H, W).

        In float64, since the smallest eigenvalues would be lost in the rounding of TF32 or bf16. The eigenvectors of
        so small a matrix (12x12 in SpeedNet) are computed on the CPU: a GPU's solver takes long to load.
        """
        side = self.weight.shape[-1]
        patches = functional.unfold(pictures.double(), side)  # (N, channels * side^2, positions)
        second_moment = (patches @ patches.mT).mean(0) / patches.shape[2]
        eigenvalues, eigenvectors = torch.linalg.eigh(second_moment.cpu())
        filters = (eigenvectors / (eigenvalues + self.eps).sqrt()).T.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, pictures: Tensor) -> Tensor:
        """The whitened patches."""
        return functional.conv2d(pictures, self.weight, self.bias)


class Group(nn.Module):
    """Convolution, 2x2 max pool, norm, activation, convolution, norm, activation.

    (N, inputs, H, W) -> (N, outputs, H // 2, W // 2). Where H or W is odd the pool would drop the last row or column of
    the first convolution, which is therefore not computed: a tenth of all multiplications on 32x32 pictures, whose
    sides are 31, 15 and 7 here.
    """

    def __init__(
        self, inputs: int, outputs: int, *, norm: Norm, norm_scale: bool, activation: Activation, dirac_init: bool
    ) -> None:
        super().__init__()
        bias = isinstance(norm(outputs), nn.Identity)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, bias=bias)  # padded in `forward`
        self.pool = nn.MaxPool2d(2)
        self.norm1 = norm(outputs)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = norm(outputs)
        self.act2 = activation()
        if dirac_init:
            for conv in (self.conv1, self.conv2):
                nn.init.dirac_(conv.weight[: conv.in_channels].detach())
        for layer in (self.norm1, self.norm2):
            if isinstance(getattr(layer, "weight", None), nn.Parameter):
                layer.weight.requires_grad_(norm_scale)

    def forward(self, x: Tensor) -> Tensor:
        """The group's output."""
        x = functional.pad(x, (1, 1 - x.shape[3] % 2, 1, 1 - x.shape[2] % 2))
        x = self.act1(self.norm1(self.pool(self.conv1(x))))
        return self.act2(self.norm2(self.conv2(x)))
