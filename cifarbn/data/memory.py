"""Whether images fit into memory, checked before they are read."""

from pathlib import Path

import torch

from cifarbn.errors import UserError
from cifarbn.fast.cgroup import memory_left

_MEMINFO = Path("/proc/meminfo")

COPIES = 2
"""The images themselves, and one copy of them: while they are split, and padded for augmentation."""


def check_memory(count: int, image_size: tuple[int, int], device: torch.device | None = None) -> None:
    """Check that `count` uint8 RGB images fit into the memory of a device, by default the CPU's.

    Raises:
        UserError: with the required memory, the free memory and the remedy.
    """
    device = device or torch.device("cpu")
    height, width = image_size
    needed, free = COPIES * count * 3 * height * width, free_memory(device)
    if free is not None and needed > free:
        where = "GPU memory" if device.type == "cuda" else "memory"
        raise UserError(
            f"data: {count:,} images of {height}x{width} pixels need {_gigabytes(needed)} of {where}, and only "
            f"{_gigabytes(free)} are free; use smaller images (data.size=...) or fewer of them"
        )


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    left = memory_left()
    return available if left is None else min(available, left)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
