"""SpeedNet: a small model for very short training runs, after Jordan 2024 (arXiv 2404.00498)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarbn.models.types import Activation, Norm, check_at_least_one


class SpeedNet(nn.Module):
    """A whitening layer, three groups of two 3x3 convolutions and a linear layer without bias.

    Each group halves height and width; a 3x3 max pool and a maximum over the remaining positions precede the head.

    A training loop calls `initialize_from` once and `start_epoch` at every epoch, as `Classifier` does. Without the
    first call the whitening layer passes pixels through; without the second its bias is trained in every epoch.

    Args:
        widths: channels of the three groups.
        norm: channels -> normalisation layer after every convolution; `nn.Identity` for none, in which case
            convolutions have a bias.
        norm_scale: whether the scales of the norms are trained. Jordan 2024 leaves them at 1.
        activation: () -> layer after the whitening layer and after every norm.
        dirac_init: whether the first filters of each convolution start as identity (Dirac) filters, one per input
            channel, so that at initialisation the image reaches the head. The others keep torch's default.
        whitening_bias_epochs: number of epochs in which the bias of the whitening layer is trained; None for all.
            Afterwards no layer below the first group needs a gradient, which saves about 5 % of a step. DDP requires
            0 or None, because it expects a gradient for every parameter that had one at the start.
        num_classes: C.

    Raises:
        ValueError: If widths is not three integers >= 1.
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
        options: dict[str, Any] = {
            "norm": norm,
            "norm_scale": norm_scale,
            "activation": activation,
            "dirac_init": dirac_init,
        }
        self.groups = nn.Sequential(*(Group(i, o, **options) for i, o in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        # Initial logits are of order 1 / sqrt(features); with torch's default they would be of order 1.
        nn.init.normal_(self.head.weight, std=1 / widths[-1])
        self.start_epoch(0)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, C) of float images (N, 3, H, W), with H and W at least 25."""
        x = self.groups(self.act(self.whitening(images)))
        return self.head(functional.max_pool2d(x, 3).amax((2, 3)))

    def initialize_from(self, images: Tensor) -> None:
        """Fit the whitening layer to training images (N, 3, H, W), normalised as in training."""
        self.whitening.fit(images)

    def start_epoch(self, epoch: int) -> None:
        """Freeze the bias of the whitening layer if `epoch` (from 0) is `whitening_bias_epochs` or later."""
        last = self.whitening_bias_epochs
        self.whitening.bias.requires_grad_(last is None or epoch < last)


class Whitening(nn.Module):
    """A convolution whose outputs are uncorrelated, with equal variance, over patches of the training images.

    (N, channels, H, W) -> (N, 2 * channels * side^2, H - side + 1, W - side + 1). The filters are
    v_i / sqrt(lambda_i + eps) and their negatives, where v_i and lambda_i are the eigenvectors and eigenvalues of the
    second moment of side x side patches. Both signs are there because an activation may clip one. The filters are
    fixed; only the bias is trained. Before `fit` is called, the filters return the patch's pixels and their negatives.

    Args:
        channels: number of input channels.
        side: height and width of a patch.
        eps: limits the gain of directions in which patches hardly vary, which contain mostly noise.
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
    def fit(self, images: Tensor) -> None:
        """Compute the filters from images (N, channels, H, W).

        Uses float64, because the smallest eigenvalues would be lost to rounding in TF32 or bf16. The eigenvectors of
        the small matrix (12x12 in SpeedNet) are computed on the CPU, because loading the GPU's solver takes long.
        """
        side = self.weight.shape[-1]
        patches = functional.unfold(images.double(), side)  # (N, channels * side^2, positions)
        second_moment = (patches @ patches.mT).mean(0) / patches.shape[2]
        eigenvalues, eigenvectors = torch.linalg.eigh(second_moment.cpu())
        filters = (eigenvectors / (eigenvalues + self.eps).sqrt()).T.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the whitened patches."""
        return functional.conv2d(images, self.weight, self.bias)


class Group(nn.Module):
    """Convolution, 2x2 max pool, norm, activation, convolution, norm, activation.

    (N, inputs, H, W) -> (N, outputs, H // 2, W // 2). If H or W is odd, the pool would drop the last row or column of
    the first convolution's output, so it is not computed. For 32x32 images, where the groups get 31x31, 15x15 and 7x7,
    this saves a tenth of all multiplications.
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
        """Return the output (N, outputs, H // 2, W // 2)."""
        x = functional.pad(x, (1, 1 - x.shape[3] % 2, 1, 1 - x.shape[2] % 2))
        x = self.act1(self.norm1(self.pool(self.conv1(x))))
        return self.act2(self.norm2(self.conv2(x)))
