"""Containers of layers, with every batch norm computed together with the residual add and ReLU that follow it.

Each computes, to the bit, what its plain class does, and has the same attributes and `state_dict`.
"""

from functools import cache
from typing import Any

from torch import Tensor, nn

from cifarbn.fast.batch_norm import FusedBatchNorm2d, normalize_and_activate


class FusedSequential(nn.Sequential):
    """Layers one after another; a batch norm and the ReLU behind it are one pass over memory."""

    def forward(self, x: Any) -> Any:
        """Return the last layer's output."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and type(layer) is FusedBatchNorm2d and type(layers[0]) is nn.ReLU:
                x = normalize_and_activate(layer, layers.pop(0), x)
            else:
                x = layer(x)
        return x


class _Fused:
    """The first base class of a fused block: the second is the plain one."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made as the program runs, so that pickle would not find it by its name.
        return _restored, (type(self).__bases__[1],), self.__dict__


class _FusedStem(_Fused):
    def stem(self: Any, images: Tensor) -> Tensor:
        return self.maxpool(normalize_and_activate(self.bn1, self.act1, self.conv1(images)))


class _FusedBasicBlock(_Fused):
    def forward(self: Any, x: Tensor) -> Tensor:
        residual = normalize_and_activate(self.bn1, self.act1, self.conv1(x))
        return normalize_and_activate(self.bn2, self.act2, self.conv2(residual), self.downsample(x))


class _FusedBottleneck(_Fused):
    def forward(self: Any, x: Tensor) -> Tensor:
        residual = normalize_and_activate(self.bn1, self.act1, self.conv1(x))
        residual = normalize_and_activate(self.bn2, self.act2, self.conv2(residual))
        return normalize_and_activate(self.bn3, self.act3, self.conv3(residual), self.downsample(x))


# By name, because a run that uses other models does not depend on these classes' code: an import here would make it a
# part of every run's code hash.
FUSED = {
    "cifarbn.models.resnet.ResNet": _FusedStem,
    "cifarbn.models.resnet.BasicBlock": _FusedBasicBlock,
    "cifarbn.models.resnet.Bottleneck": _FusedBottleneck,
}


def fused_block(plain: type[nn.Module]) -> type[nn.Module] | None:
    """Return the fused subclass of a class of blocks; None if there is none."""
    fused = FUSED.get(f"{plain.__module__}.{plain.__qualname__}")
    return fused and _subclass(fused, plain)  # type: ignore[arg-type]  # mypy takes a class of modules for unhashable


def plain_block(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that a fused block was made from; None for other classes."""
    return kind.__bases__[1] if issubclass(kind, _Fused) else None


@cache
def _subclass(fused: Any, plain: Any) -> Any:
    return type(f"Fused{plain.__name__}", (fused, plain), {"__module__": __name__, "__doc__": plain.__doc__})


def _restored(plain: type[nn.Module]) -> nn.Module:
    kind = fused_block(plain)
    assert kind is not None
    return kind.__new__(kind)
