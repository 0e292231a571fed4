"""A training step that is compiled, captured in a CUDA graph, or neither, whichever is fastest."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from cifarbn.errors import UserError
from cifarbn.fast.graphs import CannotCaptureError, CapturedStep, Forward, LossAndAccuracy, plain_attributes
from cifarbn.losses import Loss
from cifarbn.smoothness.preserve_state import preserve_state

# One H200 machine, torch 2.11, ResNet-18 in bf16: compiling took 14 and 20 s for 59 layers, and a captured step then
# took 0.75 (batch 512) and 0.83 (batch 128) of the uncompiled one's time.
COMPILE_SECONDS = 0.3  # per layer
COMPILE_SAVES = 0.2  # fraction of a step
WORTH_IT = 2.0  # compile if the saving is at least twice the cost; step times are overestimated on a shared GPU
WITHOUT_GRAPHS = ("default", "max-autotune-no-cudagraphs")  # modes of torch.compile that do not capture CUDA graphs
CLOSE = 0.03  # relative difference of two losses that bf16 rounding can explain
MOST_SHAPES = 3  # number of increasing batch shapes for which the fast step is rebuilt


class TrainingStep:
    """Compute the loss, accuracy and gradients of a batch.

    The model itself is not changed. The fast step, a compiled copy of the forward pass or a CUDA graph, is built for
    the largest batch shape so far. All other batches (the last one of an epoch, evaluation, measurements of recorders)
    use the model directly, so nothing is compiled twice. If the step cannot be compiled or captured, the model is used
    directly, and `notes` gives the reason.

    Args:
        model: (N, ...) -> logits (N, C).
        loss: `(logits, labels) -> scalar`.
        accuracy: `(logits, labels) -> scalar`, detached.
        compile: mode of torch.compile; "" to not compile; "auto" to compile on a GPU if it saves time.
        graphs: whether to capture CUDA graphs.
        others: other modules that the loss calls.

    Attributes:
        compiled: torch.compile's mode if the fast step is compiled, else "".
        captured: whether the fast step is a CUDA graph.
        notes: reasons why the step was not compiled or captured.
        building: whether the fast step is being built, which can take a minute.
        build_seconds: time spent on building, in seconds.
        announce: called with each line to print; does nothing by default.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        accuracy: Callable[[Tensor, Tensor], Tensor],
        compile: str = "",
        graphs: bool = False,
        others: Iterable[nn.Module] = (),
    ) -> None:
        self.model = model
        self.loss = loss
        self.accuracy = accuracy
        self.compile = compile
        self.graphs = graphs
        self.notes: list[str] = []
        self.announce: Callable[[str], None] = lambda _: None
        self.building = False
        self.build_seconds = 0.0
        self.compiled = ""
        self.captured = False
        self._compiled: Forward | None = None
        self._steps_left = math.inf
        self._alone = True
        self._parameters: list[nn.Parameter] = []
        self._modules = nn.ModuleList([model, *others])
        self._hooks = Hooks(self._modules)
        self._built_for: list[Any] = []  # the model's attributes and memory addresses at the build
        self._fast: Forward | CapturedStep | None = None
        self._largest = 0  # number of input values in the largest batch
        self._shapes = 0  # number of shapes for which the fast step was built
        self._key: tuple[Any, ...] = ()  # shapes and dtypes for which it was built
        self._attach: Callable[[], None] | None = None  # sets the gradients of the latest batch

    @property
    def facts(self) -> dict[str, Any]:
        """Description of the fast step for result.json."""
        return {"compile": self.compiled, "cuda_graphs": self.captured, "step_notes": self.notes}

    def begin(self, steps: int, alone: bool = True) -> None:
        """Prepare for training; the first step builds the fast step.

        Args:
            steps: number of steps left in the run.
            alone: whether the run has a single process. With several (DDP), gradients are exchanged during the
                backward pass, which is not captured.
        """
        self.end()
        self._steps_left, self._alone = steps, alone
        self._parameters, self._hooks = list(self.model.parameters()), Hooks(self._modules)

    def end(self) -> None:
        """Free the fast step's memory."""
        if isinstance(self._fast, CapturedStep):
            for parameter in self._parameters:
                parameter.grad = None
        self._fast, self._attach, self._key, self._largest, self._shapes = None, None, (), 0, 0

    def look_at_model(self) -> None:
        """Rebuild the fast step if the model has changed since the build; call this at every epoch.

        Compiled code detects changes itself, but a captured step depends on the attributes and memory of its capture.
        """
        if self._key and self._built_for != self._state():
            self._key = ()

    def _state(self) -> list[Any]:
        return [plain_attributes(self._modules), [p.data_ptr() for p in self._parameters]]

    def __call__(self, inputs: Tensor, labels: Tensor) -> LossAndAccuracy:
        """Return the loss, to be passed to `backward`, and the accuracy: scalars on the batch's device."""
        self._attach, rare = None, inputs.numel() < self._largest
        fast = None if rare else self._fast_step(inputs, labels)
        if fast is None:
            with one_time_shape() if rare else nullcontext():
                return self._plain(inputs, labels)
        loss, accuracy = fast(inputs, labels)
        if isinstance(fast, CapturedStep):
            self._attach = fast.attach_gradients
        return loss, accuracy

    def backward(self, loss: Tensor) -> None:
        """Compute every parameter's gradient of the loss that the latest call returned."""
        if self._attach is not None:
            self._attach()
        else:
            loss.backward()

    def _plain(self, inputs: Tensor, labels: Tensor) -> LossAndAccuracy:
        """Compute a batch with the model itself; if memory runs out, free the captured step and try again."""
        try:
            return self._forward(inputs, labels)
        except torch.OutOfMemoryError:
            if not self.captured:
                raise
        self.end()
        self.captured, self.compiled, self.graphs = False, "", False
        self._note("no CUDA graph: a batch of another size needs its memory")
        torch.cuda.empty_cache()
        return self._forward(inputs, labels)

    def _forward(self, inputs: Tensor, labels: Tensor) -> LossAndAccuracy:
        logits = self.model(inputs)
        return self.loss(logits, labels), self.accuracy(logits.detach(), labels)

    def _fast_step(self, inputs: Tensor, labels: Tensor) -> Forward | CapturedStep | None:
        """Return the fast step for a batch of the largest shape so far; build it if necessary."""
        larger, self._largest = inputs.numel() > self._largest, inputs.numel()
        if not (self.compile or self.graphs):
            return None
        if self._hooks.registered:
            self._note("not compiled or captured: a layer has a hook, which would not be called")
            return None
        key = (inputs.shape, inputs.dtype, labels.shape, labels.dtype, *[p.requires_grad for p in self._parameters])
        if key != self._key:
            self._key, self._shapes = key, self._shapes + larger
            self._fast, self.compiled, self.captured = None, "", False
            if self._shapes > MOST_SHAPES:
                self._note("not compiled or captured: batches have too many different shapes")
            else:
                self._build(inputs, labels)
        return self._fast

    def _build(self, inputs: Tensor, labels: Tensor) -> None:
        self.building, start = True, time.perf_counter()
        try:
            if self.compile == "auto":
                self._build_and_compare(inputs, labels)
            else:
                self._fast = self._compile_and_capture(self.compile, inputs, labels)
                if self._fast is None:
                    self._fast = self._capture(self._forward, inputs, labels)
        finally:
            self.building, self.captured = False, isinstance(self._fast, CapturedStep)
            self._built_for = self._state()
            self.build_seconds += time.perf_counter() - start

    def _build_and_compare(self, inputs: Tensor, labels: Tensor) -> None:
        """Capture the uncompiled step; compile it as well if that saves time, and keep the faster one."""
        plain = self._fast = self._capture(self._forward, inputs, labels)
        if not self._pays(plain, inputs, labels):
            return
        compiled = self._compile_and_capture("default", inputs, labels)
        if plain and isinstance(compiled, CapturedStep) and compiled.seconds() >= plain.seconds():
            self.compiled = ""
            self._note("not compiled: the compiled step is not faster")
        elif compiled is not None:
            self._fast = compiled

    def _compile_and_capture(self, mode: str, inputs: Tensor, labels: Tensor) -> Forward | CapturedStep | None:
        """Return the compiled step, captured unless its mode uses CUDA graphs itself; None if compiling fails."""
        compiled = self._compile(mode, inputs, labels) if mode else None
        if compiled is None:
            return None
        self.compiled = mode
        return (self._capture(compiled, inputs, labels) if mode in WITHOUT_GRAPHS else None) or compiled

    def _capture(self, forward: Forward, inputs: Tensor, labels: Tensor) -> CapturedStep | None:
        if not self.graphs:
            return None
        if not self._alone:
            self._note("no CUDA graph: several processes exchange gradients during the backward pass")
            return None
        try:
            return CapturedStep(forward, self._modules, inputs, labels)
        except CannotCaptureError as error:
            self._note(f"no CUDA graph: {error}")
            return None

    def _pays(self, plain: CapturedStep | None, inputs: Tensor, labels: Tensor) -> bool:
        """Return whether compiling saves much more time in the rest of the run than it takes."""
        if not self._alone:  # processes could decide differently, each by its own clock
            self._note("not compiled: trainer.compile=auto does not compile with several processes; true does")
            return False
        layers = sum(not list(m.children()) and not isinstance(m, nn.Identity) for m in self.model.modules())
        step = plain.seconds() if plain else self._seconds(inputs, labels)
        cost, saving = COMPILE_SECONDS * layers, COMPILE_SAVES * step * self._steps_left
        if saving < WORTH_IT * cost:
            self._note(f"not compiled: it would take about {cost:.0f} s and save about {saving:.0f} s")
            return False
        return True

    def _seconds(self, inputs: Tensor, labels: Tensor) -> float:
        """Measure the seconds of an uncompiled forward and backward pass."""
        with preserve_state(self._modules):
            for _ in range(2):  # the first pass is the warm-up
                torch.cuda.synchronize()
                start = time.perf_counter()
                self._gradients(self._forward, inputs, labels)
                torch.cuda.synchronize()
            return time.perf_counter() - start

    def _gradients(self, forward: Forward, inputs: Tensor, labels: Tensor) -> float:
        """Run a forward and backward pass; returns the loss."""
        loss = forward(inputs, labels)[0]
        with torch.autocast(inputs.device.type, enabled=False):
            torch.autograd.grad(loss, [p for p in self._parameters if p.requires_grad], allow_unused=True)
        return float(loss.detach())

    def _compile(self, mode: str, inputs: Tensor, labels: Tensor) -> Forward | None:
        """Return the compiled forward pass; None if it fails or its loss differs from that of the model."""
        self.announce("compiling the training step, which can take a minute")
        if self._compiled is None:
            keep_compiled_code()
            # torch limits the compilations of a function per process: without the reset, a sweep's 9th run would fail.
            torch.compiler.reset()
            self._compiled = torch.compile(self._forward, mode=mode, dynamic=False)
        compiled = self._compiled
        try:
            with preserve_state(self._modules):
                generators = _generators(inputs.device)
                expected = float(self._forward(inputs, labels)[0].detach())
                random = generators != _generators(inputs.device)
            with preserve_state(self._modules), _backward_compiled_with_forward():
                compiled_loss = self._gradients(compiled, inputs, labels)
        except KeyboardInterrupt:
            stop_compile_workers()
            raise
        except UserError:
            raise
        except Exception as error:
            self._note(f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return None
        # Compiled code draws different random numbers, so the losses of a model with dropout are not comparable.
        if not random and not abs(compiled_loss - expected) <= CLOSE * max(1.0, abs(expected)):  # also true for NaN
            self._note(f"not compiled: the compiled step's loss was {compiled_loss:.4g} instead of {expected:.4g}")
            return None
        return compiled

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            self.announce(f"training step: {note}")


class Hooks:
    """The hooks on a model's layers: Python code that a compiled or captured step would not run."""

    def __init__(self, model: nn.Module) -> None:
        kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
        everywhere = [getattr(nn.modules.module, f"_global{kind}") for kind in kinds]
        self._parameters = list(model.parameters())
        self._dicts = everywhere + [getattr(module, kind) for module in model.modules() for kind in kinds]
        self._harmless = sum(hook is contiguous_inputs for hooks in self._dicts for hook in hooks.values())

    @property
    def registered(self) -> bool:
        """Whether a layer or a parameter has a hook now; fast enough to check at every step."""
        return sum(map(len, self._dicts)) > self._harmless or any(
            p._backward_hooks or p._post_accumulate_grad_hooks for p in self._parameters
        )


def contiguous_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make a model's input tensors contiguous: a forward pre-hook that can be compiled and captured."""
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in inputs)


@contextmanager
def one_time_shape() -> Iterator[None]:
    """Turn off cuDNN's benchmark mode in the block: measuring algorithms takes seconds, too long for rare shapes."""
    measuring = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = measuring


def _backward_compiled_with_forward() -> AbstractContextManager[Any]:
    """Make torch compile the backward pass together with the forward pass, in the main thread.

    By default, the first backward pass compiles it. On a GPU that is a thread of autograd's, for which the main thread
    waits in C++, so it would not handle Ctrl-C and SIGTERM until the compilation ends.
    """
    option = "force_non_lazy_backward_lowering"  # an option of torch 2.11, not documented
    return functorch_config.patch({option: True}) if hasattr(functorch_config, option) else nullcontext()


def stop_compile_workers() -> None:
    """End the processes that compile kernels, if there are any; the next compilation starts others.

    After Ctrl-C, torch would wait at the exit until they have compiled all kernels of their queue.
    """
    if async_compile := sys.modules.get("torch._inductor.async_compile"):
        for pool in async_compile._pool_set:
            if process := getattr(pool, "process", None):
                pool.running = False  # otherwise a thread of torch's logs a warning
                process.kill()
        async_compile.after_fork()  # forgets the pools


def _generators(device: torch.device) -> list[bytes]:
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return [state.numpy().tobytes() for state in states]


def keep_compiled_code() -> None:
    """Set torch's cache of compiled code to the user's cache folder, so that later runs compile faster."""
    with suppress(RuntimeError, OSError):  # without a writable home folder, torch uses a temporary folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifarbn" / "torchinductor"
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
