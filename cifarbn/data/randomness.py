"""Random generators that depend only on a key."""

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator that is a pure function of `key`, e.g. `("order", seed, epoch)`.

    The first part of the key names the purpose and keeps streams independent: the order of an epoch and its crops
    share seed and epoch. Draw on the CPU and move the result to get the same values on every device.

    The trap this avoids: with `manual_seed(seed + epoch)`, the first epoch of seed 1 repeats the second of seed 0.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    # torch's CPU generator (mt19937) reads only the low 32 bits of its seed, so the key is hashed into them.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
