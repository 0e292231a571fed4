"""Asynchronous copies of tensors from the device to the host."""

import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopy:
    """A copy of a tensor on the host, started on construction and read later; on the CPU it is complete at once.

    Reading a CUDA tensor directly would block the host until all previous kernels have finished, and the device would
    then be idle until the host has launched more.

    Args:
        values: a tensor of any shape; it may be overwritten as soon as the constructor returns.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = values.detach().clone()

    @property
    def ready(self) -> bool:
        """Whether the copy is complete."""
        return self._event is None or self._event.query()

    def numpy(self) -> NDArray:
        """Wait for the copy, and return it."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
