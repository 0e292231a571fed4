"""Types and checks of the constructor arguments that the models share."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import nn

Norm: TypeAlias = Callable[[int], nn.Module]
"""Channels -> normalisation layer for (N, channels, H, W). Returning an `nn.Identity` means no normalisation."""

Activation: TypeAlias = Callable[[], nn.Module]
"""() -> elementwise layer; called once for each layer of the model, so that instances are not shared."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError, with the argument's name, choices and value, unless the value is one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def check_at_least_one(name: str, value: int) -> None:
    """Raise ValueError, with the argument's name and value, unless the value is an integer >= 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_dropout(dropout: float) -> None:
    """Raise ValueError unless 0 <= dropout < 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout!r}")
