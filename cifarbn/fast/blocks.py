"""Containers that fuse each batch norm with the residual add and ReLU that follow it.

Their results are bit-identical to those of the classes they replace; attributes and `state_dict` are the same.
"""

from functools import cache
from typing import Any

from torch import Tensor, nn

from cifarbn.fast.batch_norm import FusedBatchNorm2d, normalize_and_activate


class FusedSequential(nn.Sequential):
    """An `nn.Sequential` that fuses each batch norm with a ReLU that follows it."""

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
    """First base class of a fused block. The second one is the original class, which defines `forward`."""

    def _normalize_and_activate(
        self, norm: nn.Module, activation: nn.Module, x: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        return normalize_and_activate(norm, activation, x, residual)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is created at run time, so pickle cannot import it by name.
        return _new, (type(self).__bases__[1],), self.__dict__


# Names instead of classes: importing the module here would add it to the code hash of runs that use other models.
PLAIN_BLOCKS = tuple(f"cifarbn.models.resnet.{name}" for name in ("ResNet", "BasicBlock", "Bottleneck"))


def fused_block(plain: type[nn.Module]) -> type[nn.Module] | None:
    """Return the fused subclass of a block class, or None if there is none."""
    if f"{plain.__module__}.{plain.__qualname__}" not in PLAIN_BLOCKS:
        return None
    return _subclass(plain)  # type: ignore[arg-type]  # mypy believes that module classes are unhashable


def plain_block(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the original class of a fused block, or None for other classes."""
    return kind.__bases__[1] if issubclass(kind, _Fused) else None


@cache
def _subclass(plain: Any) -> Any:
    return type(f"Fused{plain.__name__}", (_Fused, plain), {"__module__": __name__, "__doc__": plain.__doc__})


def _new(plain: type[nn.Module]) -> nn.Module:
    kind = fused_block(plain)
    assert kind is not None
    return kind.__new__(kind)
