"""ResNet (He et al. 2016, arXiv 1512.03385) for small images, such as 32x32, with the course report's variants."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from cifarbn.models.init import initialize
from cifarbn.models.types import Activation, Norm, check_at_least_one, check_choice, check_dropout


class ResidualModule(nn.Module):
    """Base class of the model and its blocks: combines a norm, a shortcut and an activation."""

    def _normalize_and_activate(
        self, norm: nn.Module, activation: nn.Module, x: Tensor, shortcut: Tensor | None = None
    ) -> Tensor:
        """Return `activation(norm(x) + shortcut)`. `cifarbn.fast.blocks` overrides this with a fused kernel."""
        x = norm(x)
        return activation(x if shortcut is None else x + shortcut)


class ResNet(ResidualModule):
    """ResNet-18, 34, 50, 101 or 152.

    Modules have torchvision's names, so its `state_dict` loads after renaming `fc` to `head`.

    Args:
        depth: number of layers with weights (table 1 of He et al. 2016).
        stem: "cifar": a 3x3 convolution of stride 1. "imagenet": a 7x7 convolution and a 3x3 max pool, both of
            stride 2, so that for a 32x32 image the first stage has 8x8 positions and the last one 1x1.
        pool_blocks: whether `head` gets the position-averaged outputs of all residual blocks, concatenated, instead of
            only the last block's (the course report's pooling structure).
        norm: channels -> normalisation layer after every convolution; `nn.Identity` for none, in which case
            convolutions have a bias.
        activation: () -> layer after every norm; at the end of a block it follows the residual add.
        dropout: probability of dropping a feature before `head`.
        width: channels of the stem and of the first stage's 3x3 convolutions; each later stage has twice as many.
        init: see `initialize`.
        num_classes: C.

    Raises:
        ValueError: If depth, stem or init is unknown, width < 1, or dropout is not in [0, 1).
    """

    def __init__(
        self,
        depth: int,
        *,
        stem: str = "cifar",
        pool_blocks: bool = False,
        norm: Norm = nn.BatchNorm2d,
        activation: Activation = nn.ReLU,
        dropout: float = 0.0,
        width: int = 64,
        init: str = "kaiming",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, FAMILY)
        check_choice("stem", stem, ("cifar", "imagenet"))
        check_at_least_one("width", width)
        check_dropout(dropout)
        block, counts = FAMILY[depth]
        # A norm subtracts the mean and adds its own shift, so a bias before it has no effect.
        layers = _Layers(norm, activation, bias=isinstance(norm(width), nn.Identity))
        outputs = [block.expansion * width * 2**stage for stage in range(4)]

        self.conv1 = layers.conv(3, width, 7, stride=2) if stem == "imagenet" else layers.conv(3, width, 3)
        self.bn1 = norm(width)
        self.act1 = activation()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.layer1 = _stage(block, counts[0], width, width, 1, layers)
        self.layer2 = _stage(block, counts[1], outputs[0], 2 * width, 2, layers)
        self.layer3 = _stage(block, counts[2], outputs[1], 4 * width, 2, layers)
        self.layer4 = _stage(block, counts[3], outputs[2], 8 * width, 2, layers)
        self.pool_blocks = pool_blocks
        self.dropout = nn.Dropout(dropout)
        pooled = sum(count * channels for count, channels in zip(counts, outputs, strict=True))
        self.head = nn.Linear(pooled if pool_blocks else outputs[-1], num_classes)
        initialize(self, init)

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks, from input to output."""
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, C) of float images (N, 3, H, W)."""
        x = self.maxpool(self._normalize_and_activate(self.bn1, self.act1, self.conv1(images)))
        pooled: list[Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x, pooled) if self.pool_blocks else stage(x)
            if self.pool_blocks:
                pooled.append(x.mean((2, 3)))
        features = torch.cat(pooled, 1) if self.pool_blocks else x.mean((2, 3))
        return self.head(self.dropout(features))


class Stage(nn.Sequential):
    """A sequence of residual blocks."""

    def forward(self, x: Tensor, pooled: list[Tensor] | None = None) -> Tensor:
        """Return the last block's output.

        Args:
            x: (N, inputs, H, W).
            pooled: the position-averaged outputs, (N, outputs), of all blocks but the last are appended to this list.
                The caller averages the last one, because tools that trace a model expect a module to return the
                result of its last operation.
        """
        for position, block in enumerate(self):
            if pooled is not None and position > 0:
                pooled.append(x.mean((2, 3)))
            x = block(x)
        return x


class _Layers(NamedTuple):
    """Constructors of the layers of one model."""

    norm: Norm
    activation: Activation
    bias: bool

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        kind = StridedPointwise if kernel == 1 and stride > 1 and inputs < 16 else nn.Conv2d
        return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=self.bias)

    def downsample(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Return the shortcut: a projection if the shape changes (option B of He et al. 2016), else the identity."""
        if stride == 1 and inputs == outputs:
            return nn.Identity()
        return nn.Sequential(self.conv(inputs, outputs, 1, stride), self.norm(outputs))


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride, computed by slicing its input first.

    Equals `nn.Conv2d`; used for inputs with few channels. It avoids a bug of oneDNN on CPUs with AVX2, which writes
    past its buffers, and usually crashes, if a channels_last input has fewer than 8 channels (uxlfoundation/oneDNN
    issue 6035; torch 2.15). With many channels it is slower than `nn.Conv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


class BasicBlock(ResidualModule):
    """Two 3x3 convolutions and a shortcut: (N, inputs, H, W) -> (N, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: _Layers) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, width, 3, stride)
        self.bn1 = layers.norm(width)
        self.act1 = layers.activation()
        self.conv2 = layers.conv(width, width, 3)
        self.bn2 = layers.norm(width)
        self.downsample = layers.downsample(inputs, width, stride)
        self.act2 = layers.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(bn2(residual) + shortcut)."""
        residual = self.conv2(self._normalize_and_activate(self.bn1, self.act1, self.conv1(x)))
        shortcut = self.downsample(x)  # before bn2: the order matters for norms that draw random numbers
        return self._normalize_and_activate(self.bn2, self.act2, residual, shortcut)


class Bottleneck(ResidualModule):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (N, inputs, H, W) -> (N, 4 width, H / stride, W / stride).

    The 3x3 convolution has the stride, as in torchvision; in He et al. 2016 the first 1x1 convolution has it.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, layers: _Layers) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = layers.conv(inputs, width, 1)
        self.bn1 = layers.norm(width)
        self.act1 = layers.activation()
        self.conv2 = layers.conv(width, width, 3, stride)
        self.bn2 = layers.norm(width)
        self.act2 = layers.activation()
        self.conv3 = layers.conv(width, outputs, 1)
        self.bn3 = layers.norm(outputs)
        self.downsample = layers.downsample(inputs, outputs, stride)
        self.act3 = layers.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(bn3(residual) + shortcut)."""
        residual = self._normalize_and_activate(self.bn1, self.act1, self.conv1(x))
        residual = self.conv3(self._normalize_and_activate(self.bn2, self.act2, self.conv2(residual)))
        shortcut = self.downsample(x)  # before bn3: the order matters for norms that draw random numbers
        return self._normalize_and_activate(self.bn3, self.act3, residual, shortcut)


Block: TypeAlias = type[BasicBlock] | type[Bottleneck]

# Depth -> block class and number of blocks in each of the four stages (table 1 of He et al. 2016).
FAMILY: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def _stage(block: Block, count: int, inputs: int, width: int, stride: int, layers: _Layers) -> Stage:
    first = block(inputs, width, stride, layers)
    others = (block(block.expansion * width, width, 1, layers) for _ in range(count - 1))
    return Stage(first, *others)
