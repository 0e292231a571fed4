"""The constructor switches that the nets share: their types, and the refusal of a value that is none."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import nn

Norm: TypeAlias = Callable[[int], nn.Module]
"""Channels -> the layer that normalises (N, channels, H, W); one that makes an `nn.Identity` means none."""

Activation: TypeAlias = Callable[[], nn.Module]
"""Makes an elementwise layer; called once per place, so that no two places share an instance."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: naming the switch, its choices and the value.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def check_at_least_one(name: str, value: int) -> None:
    """Refuse a count that is not a whole number from 1 on.

    Raises:
        ValueError: naming the switch and the value.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_dropout(dropout: float) -> None:
    """Refuse what is no probability of dropping a value, or drops them all.

    Raises:
        ValueError: naming the value.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout!r}")
