"""The loss of a model on one minibatch, for measurements that leave no trace on the model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifarbn.smoothness.evaluation import LossFunction
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.smoothness.randomness import with_fixed_rng

Loss = Callable[[Any, Any], Tensor]
"""(outputs of the model, targets) -> scalar."""
Batch = tuple[Any, Any]
"""(inputs, targets), on the device of the model."""

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def minibatch_loss(model: nn.Module, loss: Loss, batch: Batch, train: bool | None = True) -> Iterator[LossFunction]:
    """Yield the function `() -> loss(model(inputs), targets)`, for any number of forward and backward passes.

    Everything but the weights is restored at the end of the block, see `preserve_state`. Every pass draws the random
    numbers that the next training step would draw. Passes compute in float32 or better, without TF32, and with the same
    convolution algorithm, since rounding errors would dominate differences of gradients; `torch.compile` is bypassed.

    Args:
        model: called as `model(inputs)`.
        loss: (outputs, targets) -> scalar.
        batch: the pair (inputs, targets).
        train: True or False sets train or eval mode of the whole model inside the block; None keeps each module's mode.

    Raises:
        ValueError: if `batch` is not a pair, or when the function is called, if the loss is not a scalar.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (inputs, targets), not {type(batch).__name__}")
    inputs, targets = batch
    if isinstance(inputs, Tensor) and inputs.dtype in HALF:
        inputs = inputs.float()

    def loss_fn() -> Tensor:
        value = loss(model(inputs), targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar tensor, not {shape}; average over the batch, for example")
        return value.reshape(())

    with ExitStack() as stack:
        stack.enter_context(preserve_state(model, train=train))
        if isinstance(loss, nn.Module):
            stack.enter_context(preserve_state(loss))
        stack.enter_context(_full_precision(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield with_fixed_rng(loss_fn, model)


@contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    """Compute in float32 or better, without TF32 and autocast, with one algorithm for each convolution."""
    devices = {p.device.type for p in model.parameters()} | {"cpu"}
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            )
            stack.enter_context(_float32_weights(model))
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def _float32_weights(model: nn.Module) -> Iterator[None]:
    """Hold half-precision weights in float32 inside the block; `preserve_state`, around it, restores the buffers."""
    half = [(p, p.data) for p in model.parameters() if p.dtype in HALF]
    if half:
        model.float()
    try:
        yield
    finally:
        for parameter, data in half:
            parameter.data = data
