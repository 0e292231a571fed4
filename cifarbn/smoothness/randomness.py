"""The random numbers a forward pass may draw: kept, put back, drawn again."""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarbn.smoothness.evaluation import LossFunction


class Randomness:
    """The state, at construction, of the global generators of Python, NumPy, PyTorch's CPU and the given devices.

    Generators a module owns (a `torch.Generator` in a layer) are not global and not in it.
    """

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._put_back: list[tuple[Callable[[Any], Any], Any]] = [
            (random.setstate, random.getstate()),
            (np.random.set_state, np.random.get_state()),
            (torch.set_rng_state, torch.get_rng_state()),
        ]
        for device in set(devices):
            if device.type == "mps":
                self._put_back.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
            elif device.type != "cpu":
                of_device = torch.get_device_module(device)
                state = of_device.get_rng_state(device)
                self._put_back.append((partial(of_device.set_rng_state, device=device), state))

    @classmethod
    def of(cls, module: nn.Module) -> "Randomness":
        """That of every device on which the module has a parameter or a buffer."""
        return cls(t.device for t in (*module.parameters(), *module.buffers()))

    def restore(self) -> None:
        """Sets every generator back."""
        for put, state in self._put_back:
            put(state)


def with_fixed_rng(loss_fn: LossFunction, module: nn.Module) -> LossFunction:
    """The loss function with the same random numbers at every call: those that come next as this is called.

    Trap: dropout and noisy normalisation draw anew at every pass, so a net with them has another L_t at every
    point of a walk, and the distance of two gradients measures the noise.
    """
    randomness = Randomness.of(module)

    def replay() -> Tensor:
        randomness.restore()
        return loss_fn()

    return replay
