"""Numbers on their way from the device to the host, without the host waiting."""

import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopy:
    """A copy of a tensor on the host, started now and read later; on the CPU it is there at once.

    Reading a CUDA tensor makes the host wait for every kernel launched before, and the device then idles until the
    host has launched more.

    Args:
        values: of any shape; may be overwritten as soon as this returns.
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
        """Whether the values have arrived."""
        return self._event is None or self._event.query()

    def numpy(self) -> NDArray:
        """Return the values; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
