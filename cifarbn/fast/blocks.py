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
    """The first base class of a fused block: the second is the plain one, whose `forward` stays."""

    def _normalize_and_activate(
        self, norm: nn.Module, activation: nn.Module, x: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        return normalize_and_activate(norm, activation, x, residual)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made as the program runs, so that pickle would not find it by its name.
        return _restored, (type(self).__bases__[1],), self.__dict__


# By name, because a run that uses other models does not depend on these classes' code: an import here would make it a
# part of every run's code hash.
PLAIN_BLOCKS = tuple(f"cifarbn.models.resnet.{name}" for name in ("ResNet", "BasicBlock", "Bottleneck"))


def fused_block(plain: type[nn.Module]) -> type[nn.Module] | None:
    """Return the fused subclass of a class of blocks; None if there is none."""
    if f"{plain.__module__}.{plain.__qualname__}" not in PLAIN_BLOCKS:
        return None
    return _subclass(plain)  # type: ignore[arg-type]  # mypy takes a class of modules for unhashable


def plain_block(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that a fused block was made from; None for other classes."""
    return kind.__bases__[1] if issubclass(kind, _Fused) else None


@cache
def _subclass(plain: Any) -> Any:
    return type(f"Fused{plain.__name__}", (_Fused, plain), {"__module__": __name__, "__doc__": plain.__doc__})


def _restored(plain: type[nn.Module]) -> nn.Module:
    kind = fused_block(plain)
    assert kind is not None
    return kind.__new__(kind)
