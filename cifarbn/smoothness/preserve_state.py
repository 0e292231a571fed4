"""Extra passes through a net that leave no trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cifarbn.smoothness.randomness import Randomness


@contextmanager
def preserve_state(module: nn.Module, train: bool | None = None) -> Iterator[None]:
    """Lets a block run any forward and backward passes and leaves the module, bit for bit, as it was.

    Put back: every buffer (running statistics and batch counts of batch normalisation), each submodule's training
    flag, each parameter's `.grad` (the same tensor, the same values; None inside the block), and the global random
    generators. Not put back: the weights (`evaluation.restore_parameters` does that), and generators that a layer owns.

    Args:
        module: the net.
        train: True or False puts the whole module into that mode for the block: batch normalisation then uses the
            batch, or its running statistics. None leaves the modes as they are.
    """
    randomness = Randomness.of(module)
    flags = [(m, m.training) for m in module.modules()]
    gradients = [(p, p.grad) for p in module.parameters()]
    buffers = [(m, dict(m._buffers)) for m in module.modules()]
    values = [(b, b.detach().clone()) for _, named in buffers for b in named.values() if b is not None]
    try:
        for p, _ in gradients:
            p.grad = None  # set aside, not copied: a backward pass in the block would add to it in place
        if train is not None:
            module.train(train)
        yield
    finally:
        for m, training in flags:
            m.training = training
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for m, named in buffers:
            m._buffers.clear()  # a block may have put another tensor under a buffer's name
            m._buffers.update(named)
        randomness.restore()
