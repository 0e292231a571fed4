"""CUDA graphs: run forward, loss and backward of a training step with one launch."""

import random
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarbn.errors import UserError
from cifarbn.smoothness.preserve_state import preserve_state

LossAndAccuracy = tuple[Tensor, Tensor]
Forward = Callable[[Tensor, Tensor], LossAndAccuracy]

WARM_UP = 3  # passes before the capture: libraries allocate workspaces and choose algorithms in the first ones
TIMED = 5  # replays


class CannotCaptureError(Exception):
    """Raised if a CUDA graph cannot replay the training step; the message gives the reason."""


class CapturedStep:
    """Forward, loss and backward for batches of one shape, captured once and replayed for every batch.

    A step of ResNet-18 launches about 400 kernels, which takes the host 9 to 10 ms for any batch size; a replay takes
    0.3 ms (H200, torch 2.11). Random layers draw new numbers at every replay, and buffers such as batch norm's running
    statistics are updated. Capturing does not change the model: buffers, gradients and random generators are restored.

    Traps: the next replay overwrites gradients and outputs, so clone those you keep. Python code, such as a layer's
    hooks, runs only during the capture.

    Args:
        forward: `(inputs, labels) -> (loss, accuracy)`, scalars, through the model.
        model: all modules that `forward` calls, in training mode, on a GPU.
        inputs: the inputs of a batch of the shape to capture.
        labels: the labels of that batch.

    Raises:
        CannotCaptureError: If the step waits for the device, as `.item()` does; if its Python code draws random
            numbers or changes attributes of the model; or if capturing fails for another reason.
    """

    def __init__(self, forward: Forward, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self._model = model
        self._inputs, self._labels = torch.empty_like(inputs).copy_(inputs), labels.clone()
        parameters = [p for p in model.parameters() if p.requires_grad]
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        try:
            with preserve_state(model), _uncached_autocast():
                try:
                    with torch.cuda.stream(side):
                        for _ in range(WARM_UP - 1):
                            self._pass(forward, parameters)
                        self._watched_pass(forward, parameters)
                finally:  # otherwise buffers would be restored before the last pass has changed them
                    current.wait_stream(side)
                self._graph = torch.cuda.CUDAGraph()
                _forget_gradients(parameters)
                try:
                    # thread_local: other threads, such as a data loader's, may use the device during the capture.
                    with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                        loss, accuracy = forward(self._inputs, self._labels)
                        _backward(loss)
                        self._outputs = torch.stack([loss.detach().float(), accuracy.float()])
                finally:
                    torch.cuda.set_stream(current)  # a failed capture leaves its own stream current
                self._gradients = [(p, p.grad) for p in parameters]
        except (CannotCaptureError, UserError):
            raise
        except Exception as error:
            raise CannotCaptureError(str(error).strip().split("\n")[0]) from error

    def __call__(self, inputs: Tensor, labels: Tensor) -> LossAndAccuracy:
        """Return the loss and accuracy of a batch, and compute the gradients for `attach_gradients`."""
        self._inputs.copy_(inputs, non_blocking=True)
        self._labels.copy_(labels, non_blocking=True)
        self._graph.replay()
        loss, accuracy = self._outputs.clone()
        return loss, accuracy

    def attach_gradients(self) -> None:
        """Set every parameter's `.grad` to its gradient for the latest batch."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def seconds(self) -> float:
        """Measure the device time of a replay, in seconds."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with preserve_state(self._model):
            self._graph.replay()
            start.record()
            for _ in range(TIMED):
                self._graph.replay()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000 / TIMED

    def _pass(self, forward: Forward, parameters: list[nn.Parameter]) -> None:
        """Run the step once, as it will be captured."""
        _forget_gradients(parameters)
        loss, _ = forward(self._inputs, self._labels)
        _backward(loss)

    def _watched_pass(self, forward: Forward, parameters: list[nn.Parameter]) -> None:
        """Run the step once and raise CannotCaptureError if it does something that a graph cannot replay.

        Synchronisation is detected before the capture, because a failed capture can leave the process's CUDA state
        unusable.
        """
        before, mode = _host_state(self._model), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            self._pass(forward, parameters)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        if before != _host_state(self._model):
            raise CannotCaptureError("its Python code draws random numbers or changes attributes of the model")


def _backward(loss: Tensor) -> None:
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()


def _uncached_autocast() -> AbstractContextManager[object]:
    """Return the current autocast without its cache, which would hold half-precision copies of the current weights.

    Without autocast nothing is cached, and its state is not changed, since compiled code would be compiled again.
    """
    if not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False)


def _forget_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def plain_attributes(model: nn.Module) -> list[dict[str, Any]]:
    """Return every layer's attributes of plain types, on which its Python code may depend."""
    plain = (bool, int, float, str, tuple, type(None))
    return [{k: v for k, v in vars(layer).items() if isinstance(v, plain)} for layer in model.modules()]


def _host_state(model: nn.Module) -> list[Any]:
    """Return the state that Python code of a forward pass may change but a replay would not."""
    _, keys, *rest = np.random.get_state(legacy=True)
    generators = [random.getstate(), np.asarray(keys).tobytes(), rest, torch.get_rng_state().tolist()]
    return [generators, plain_attributes(model)]
