"""Extra passes through a model that leave it unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cifarbn.smoothness.randomness import Randomness


@contextmanager
def preserve_state(module: nn.Module, train: bool | None = None) -> Iterator[None]:
    """Restore the state of a module, bit for bit, after a block of forward and backward passes.

    Restores every buffer (such as the running statistics of batch norm), each submodule's mode, each parameter's
    `.grad` (the same tensor with the same values; None inside the block), and the global random generators. Does not
    restore the weights, see `evaluation.restore_parameters`, nor generators that a layer owns.

    Args:
        module: the model.
        train: True or False sets train or eval mode of the whole module inside the block; None keeps each
            submodule's mode.
    """
    randomness = Randomness.of(module)
    flags = [(m, m.training) for m in module.modules()]
    gradients = [(p, p.grad) for p in module.parameters()]
    buffers = [(m, dict(m._buffers)) for m in module.modules()]
    values = [(b, b.detach().clone()) for _, named in buffers for b in named.values() if b is not None]
    try:
        for p, _ in gradients:
            p.grad = None  # the tensor is kept in `gradients`; a backward pass in the block would add to it in place
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
            m._buffers.clear()  # a block may have assigned another tensor to a buffer
            m._buffers.update(named)
        randomness.restore()
