"""Save, restore and replay the random numbers that a forward pass draws."""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarbn.smoothness.evaluation import LossFunction


class Randomness:
    """A snapshot of the global random generators of Python, NumPy, PyTorch's CPU and the given devices.

    Generators that a module owns (a `torch.Generator` attribute) are not included.
    """

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._states: list[tuple[Callable[[Any], Any], Any]] = [
            (random.setstate, random.getstate()),
            (np.random.set_state, np.random.get_state()),
            (torch.set_rng_state, torch.get_rng_state()),
        ]
        for device in set(devices):
            if device.type == "mps":
                self._states.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
            elif device.type != "cpu":
                backend = torch.get_device_module(device)
                state = backend.get_rng_state(device)
                self._states.append((partial(backend.set_rng_state, device=device), state))

    @classmethod
    def of(cls, module: nn.Module) -> "Randomness":
        """Take a snapshot for every device that holds a parameter or buffer of the module."""
        return cls(t.device for t in (*module.parameters(), *module.buffers()))

    def restore(self) -> None:
        """Set every generator back to the snapshot."""
        for set_state, state in self._states:
            set_state(state)


def with_fixed_rng(loss_fn: LossFunction, module: nn.Module) -> LossFunction:
    """Return the loss function with the same random numbers at every call: the next ones at the time of wrapping.

    Without this, dropout and noisy normalisation draw new random numbers in every pass, so the loss would be a
    different function at each point of a probe, and the distance of two gradients would measure that noise.
    """
    randomness = Randomness.of(module)

    def replay() -> Tensor:
        randomness.restore()
        return loss_fn()

    return replay
