"""Randomness that depends on nothing but its key."""

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator that is a pure function of `key`, e.g. `("order", seed, epoch)`.

    The purpose in the key keeps streams apart: the order of an epoch and its crops share seed and epoch and
    are still independent. Drawing on the CPU and moving the result makes it the same on every device.

    The trap it avoids: `manual_seed(seed + epoch)` gives seed 0's second epoch to seed 1 as its first.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    # torch's CPU generator (mt19937) reads only the low 32 bits of its seed, hence the hash.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
