"""The fast training step does not change the model, falls back with a reason, and compiles a batch shape once."""

import contextlib
import copy
import signal

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.async_compile import AsyncCompile
from torch.nn import functional

from cifarbn.fast.graphs import CapturedStep, plain_attributes
from cifarbn.fast.training_step import MOST_SHAPES, TrainingStep, contiguous_inputs, one_time_shape
from cifarbn.training.classifier import accuracy

COMPILE = torch.compile


def model():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*convolution, nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3))


def batch(size):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, 4, 4, generator=generator), torch.randint(3, (size,), generator=generator)


@pytest.fixture
def compiled(monkeypatch):
    """Replace torch.compile by its eager backend, and record the batch sizes of compiled calls."""
    sizes = []

    def compile(function, mode, dynamic):
        assert not dynamic
        inner = COMPILE(function, backend="eager", dynamic=False)
        return lambda x, y: sizes.append(len(x)) or inner(x, y)

    monkeypatch.setattr(torch, "compile", compile)
    return sizes


def make_step(net=None, **options):
    net = net or model()
    step = TrainingStep(net, functional.cross_entropy, accuracy, **options)
    step.begin(100)
    return step


def take(step, *inputs):
    for parameter in step.model.parameters():
        parameter.grad = None
    loss, acc = step(*inputs)
    step.backward(loss)
    return loss.item(), acc.item(), [p.grad for p in step.model.parameters()]


def test_an_uncompiled_step_equals_plain_torch():
    step, (x, y) = make_step(), batch(8)
    torch.manual_seed(1)
    loss, acc, gradients = take(step, x, y)
    net = model()
    torch.manual_seed(1)
    logits = net(x)
    functional.cross_entropy(logits, y).backward()
    assert loss == functional.cross_entropy(logits, y).item()
    assert acc == (logits.argmax(1) == y).float().mean().item()
    for gradient, parameter in zip(gradients, net.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


def test_building_the_compiled_step_does_not_change_the_model(compiled):
    fast, plain = make_step(compile="default"), make_step()
    for step in (fast, plain):
        torch.manual_seed(1)
        take(step, *batch(8))
    assert fast.compiled == "default" and fast.facts["step_notes"] == []
    for a, b in zip(fast.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(fast.model[0].weight.grad, plain.model[0].weight.grad)


def test_only_batches_of_the_largest_size_are_compiled(compiled):
    step = make_step(compile="default")
    for size in (8, 8, 3, 8, 5):
        take(step, *batch(size))
    assert compiled == [8, 8, 8, 8], "once to try, then three steps"
    take(step, *batch(9))
    assert compiled[4:] == [9, 9]


def test_growing_batches_are_compiled_a_limited_number_of_times(compiled):
    step = make_step(compile="default")
    for size in range(2, 4 + MOST_SHAPES):
        take(step, *batch(size))
    assert len(compiled) == 2 * MOST_SHAPES and "too many different shapes" in step.notes[0]


def test_freezing_a_parameter_rebuilds_the_step(compiled):
    step = make_step(compile="default")
    take(step, *batch(8))
    step.model[0].weight.requires_grad_(False)
    *_, gradients = take(step, *batch(8))
    assert len(compiled) == 4 and gradients[0] is None and gradients[1] is not None


def test_a_failing_compiler_is_a_note(monkeypatch):
    def broken(*args):
        raise ValueError("no such backend\nmore")

    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: broken)
    step = make_step(compile="default")
    *_, gradients = take(step, *batch(8))
    assert step.notes == ["not compiled: ValueError: no such backend"] and step.compiled == ""
    assert all(g is not None for g in gradients)


def test_a_wrong_compiled_loss_is_a_note(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: lambda x, y: (2 * f(x, y)[0], f(x, y)[1]))
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    step = make_step(net, compile="default")
    take(step, *batch(8))
    assert "loss was" in step.notes[0] and step.compiled == ""


def test_ctrl_c_during_compilation_ends_the_step(monkeypatch):
    seen = []

    def interrupted(*args):
        seen.append(step.building)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: interrupted)
    step = make_step(compile="default")
    before = copy.deepcopy(step.model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        step(*batch(8))
    assert seen == [True] and not step.building
    assert all(torch.equal(a, b) for a, b in zip(before.values(), step.model.state_dict().values(), strict=True))


def test_hooks_are_called_and_contiguous_inputs_is_compiled(compiled):
    step = make_step(compile="default")
    called = []
    handle = step.model[0].register_forward_hook(lambda *_: called.append(1))
    take(step, *batch(8))
    assert called == [1] and not compiled and "hook" in step.notes[0]
    handle.remove()
    take(step, *batch(8))
    assert compiled == [8, 8]
    net = model()
    net.register_forward_pre_hook(contiguous_inputs)
    step = make_step(net, compile="default")
    take(step, *batch(8))
    assert step.compiled == "default"


@pytest.mark.parametrize("steps, pays", [(100, False), (10_000, True)])
def test_auto_compiles_if_it_saves_time(compiled, monkeypatch, steps, pays):
    # Compiling five layers takes 1.5 s. A fifth of 2 ms per step is 4 s in 10,000 steps and 0.04 s in 100.
    monkeypatch.setattr(TrainingStep, "_seconds", lambda self, x, y: 0.002)
    step = make_step(nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 9), nn.Linear(9, 3)))
    step.compile = "auto"
    step.begin(steps)
    take(step, *batch(8))
    assert bool(compiled) == pays
    assert step.notes == ([] if pays else ["not compiled: it would take about 2 s and save about 0 s"])


def test_cudnn_benchmark_is_off_for_a_rare_shape():
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    with one_time_shape():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before


def test_plain_attributes_reflect_changes():
    net = nn.Sequential(nn.Dropout(0.1))
    before = plain_attributes(net)
    net[0].p = 0.2
    assert plain_attributes(net) != before


def test_a_nan_compiled_loss_is_a_note(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: lambda x, y: (torch.nan * f(x, y)[0], f(x, y)[1]))
    step = make_step(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), compile="default")
    loss, *_ = take(step, *batch(8))
    assert loss == loss and "loss was nan" in step.notes[0]


def test_hooks_on_parameters_are_called(compiled):
    step = make_step(compile="default")
    called = []
    step.model[0].weight.register_hook(lambda gradient: called.append(1))
    take(step, *batch(8))
    assert called == [1] and not compiled


def test_a_changed_model_rebuilds_the_step(compiled):
    step = make_step(compile="default")
    take(step, *batch(8))
    step.look_at_model()
    take(step, *batch(8))
    assert len(compiled) == 3
    step.model[3].p = 0.1
    step.look_at_model()
    take(step, *batch(8))
    assert len(compiled) == 5


def test_the_buffers_of_the_loss_are_not_changed(compiled):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits, labels):
            self.calls += 1
            return functional.cross_entropy(logits, labels)

    loss = Counting()
    step = TrainingStep(model(), loss, accuracy, compile="default", others=[loss])
    step.begin(10)
    take(step, *batch(8))
    assert loss.calls == 1


def test_auto_does_not_compile_with_several_processes(compiled):
    step = make_step(compile="auto")
    step.begin(10**9, alone=False)
    take(step, *batch(8))
    assert not compiled and "several processes" in step.notes[0]


def test_out_of_memory_frees_the_captured_step():
    class Full(nn.Sequential):
        free = False

        def forward(self, x):
            if not self.free:
                raise torch.OutOfMemoryError
            return super().forward(x)

    step = make_step(Full(nn.Flatten(), nn.Linear(48, 3)))
    with pytest.raises(torch.OutOfMemoryError):
        take(step, *batch(8))
    step.captured, step.end = True, lambda: setattr(step.model, "free", True)
    take(step, *batch(8))
    assert not step.captured and "memory" in step.notes[0]


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_the_backward_pass_is_compiled_before_it_runs(monkeypatch):
    events = []

    def compiler(name):
        return lambda graph, _: events.append(name) or graph.forward

    backend = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
    monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: COMPILE(f, backend=backend, dynamic=dynamic))
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kw: events.append("run") or grad(*args, **kw))
    take(make_step(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), compile="default"), *batch(8))
    assert events[events.index("forward") :] == ["forward", "backward", "run"]


def test_ctrl_c_during_compilation_ends_the_processes_that_compile(monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 2)
    pool = AsyncCompile.process_pool()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_step(compile="default")(*batch(8))
    assert pool.process.wait(60) == -signal.SIGKILL
    assert AsyncCompile.process_pool.cache_info().currsize == 0, "the next compilation starts another pool"


class FakeGraph:
    """A stand-in for torch.cuda.CUDAGraph whose replay runs the captured function again, into the same memory."""

    def replay(self):
        fresh = [(p, p.grad) for p, _ in self.step._gradients]
        for parameter, _ in fresh:
            parameter.grad = None
        with torch.enable_grad():
            loss, accuracy = self.forward(self.step._inputs, self.step._labels)
            loss.backward()
        self.step._outputs.copy_(torch.stack([loss.detach(), accuracy]))
        for parameter, captured in self.step._gradients:
            captured.copy_(parameter.grad)
        for parameter, gradient in fresh:
            parameter.grad = gradient


@pytest.fixture
def streams(monkeypatch):
    """Replace CUDA graphs by `FakeGraph`, and record the streams that are set."""
    streams, initialize = [], CapturedStep.__init__

    class Stream:
        def wait_stream(self, other):
            pass

    def capture(step, forward, *args):
        initialize(step, forward, *args)
        step._graph.step, step._graph.forward = step, forward

    fakes = {
        "current_stream": Stream,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "set_stream": streams.append,
        "CUDAGraph": FakeGraph,
        "graph": lambda graph, capture_error_mode: contextlib.nullcontext(),
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(CapturedStep, "__init__", capture)
    return streams


def without_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def test_a_captured_step_equals_a_plain_one(streams):
    captured, plain = (make_step(without_dropout(), graphs=graphs) for graphs in (True, False))
    for size in (8, 8, 3, 8):
        results = [take(step, *batch(size)) for step in (captured, plain)]
        assert results[0][:2] == results[1][:2]
        assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2], strict=True))
        assert (captured._attach is None) == (size == 3), "a smaller batch is not captured"
    assert captured.captured and captured.notes == []
    for a, b in zip(captured.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    captured.end()
    assert all(p.grad is None for p in captured.model.parameters())


def test_a_capture_that_fails_leaves_the_model_and_the_stream_as_they_were(streams, monkeypatch):
    @contextlib.contextmanager
    def failing(graph, capture_error_mode):
        yield
        model[1].running_mean.fill_(7)
        raise RuntimeError("operation failed due to a previous error during capture\nmore")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    model, plain = without_dropout(), make_step(without_dropout())
    step = make_step(model, graphs=True)
    results = [take(each, *batch(8)) for each in (step, plain)]
    assert results[0][:2] == results[1][:2] and len(streams) == 1
    assert step.notes == ["no CUDA graph: operation failed due to a previous error during capture"]
    assert torch.equal(model[1].running_mean, plain.model[1].running_mean)
