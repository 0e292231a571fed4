"""The C library is compiled if possible, and its absence is reported; and its operators."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from cifarbn.errors import UserError
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.kernels import library, ops
from cifarbn.models import VGG, ResNet, SpeedNet

CODE = """
import torch
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.kernels.library import why_unavailable
from cifarbn.models import VGG

hardware = Hardware.choose("cpu", "bf16-mixed")
model = accelerate(VGG("A", norm=torch.nn.BatchNorm2d, width=4), hardware)
with torch.autocast("cpu", torch.bfloat16):
    model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
print(hardware.kernels, why_unavailable(torch.bfloat16))
"""


def run(code=CODE, **environment):
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_without_a_compiler_the_kernels_are_off():
    message = "C compiler 'no-such-compiler' not found; install gcc, or set CC to your compiler"
    assert run(CC="no-such-compiler") == f"False {message}\n"


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cc: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert run(CC=str(compiler)) == f"False {compiler} failed: cc: error: no such luck\n"


@pytest.mark.parametrize(
    ("variable", "message"), [("gcc '", "CC=gcc ' is not a command .*unset CC"), (" ", "compiler 'cc' not found")]
)
def test_any_value_of_the_compilers_variable_is_a_reason_and_no_other_error(monkeypatch, variable, message):
    monkeypatch.setenv("CC", variable)
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    with pytest.raises(OSError, match=message):
        library._library.__wrapped__(torch.float32)


@pytest.mark.usefixtures("kernels")
def test_there_is_one_openmp_in_the_process():
    loaded = "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line})"
    first, second = run(CODE + loaded).splitlines()
    assert first == "True None" and len(second.split()) == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_kernels_are_chosen_for_bf16_and_fp32_on_a_cpu(precision):
    chosen = Hardware.choose("cpu", precision)
    assert chosen.kernels == (library.why_unavailable(torch.float32) is None)
    assert str(chosen).endswith(", C kernels") == chosen.kernels
    assert not Hardware.choose("cpu", precision, compile=True).kernels
    assert not Hardware.choose("cpu", precision, channels_last=False).kernels
    assert not Hardware.choose("cpu", precision, kernels=False).kernels
    assert not Hardware.choose("cpu", "64-true").kernels


@pytest.mark.parametrize("options", [{"precision": "64-true"}, {"precision": "bf16-mixed", "compile": True}])
def test_kernels_true_is_an_error_where_they_do_not_apply(options):
    with pytest.raises(UserError, match="trainer.kernels=true: they need a CPU, bf16-mixed or 32-true"):
        Hardware.choose("cpu", kernels=True, **options)


def test_kernels_true_without_a_compiler_is_an_error(monkeypatch):
    monkeypatch.setattr("cifarbn.fast.hardware.why_unavailable", lambda dtype: "no C compiler")
    with pytest.raises(UserError, match="trainer.kernels=true: no C compiler. Use trainer.kernels=auto"):
        Hardware.choose("cpu", "bf16-mixed", kernels=True)


MODELS = [lambda: ResNet(18, width=8), lambda: VGG("A", norm=nn.BatchNorm2d, width=8), SpeedNet]


@pytest.mark.parametrize("make", MODELS)
def test_a_compiled_model_is_one_graph_without_kernels(make):
    torch.manual_seed(0)
    model, images = make(), torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for kernels, call in ((False, model), (True, torch.compile(model, backend="eager", fullgraph=True))):
        accelerate(model, Hardware.choose("cpu", "bf16-mixed", compile=False, kernels=kernels))
        with torch.autocast("cpu", torch.bfloat16):
            loss = call(images).float().square().sum()
        found.append([loss, *torch.autograd.grad(loss, parameters)])
    for compiled, expected in zip(*found, strict=True):
        torch.testing.assert_close(compiled, expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("make", MODELS)
def test_gradients_with_kernels_are_as_accurate_as_without(make):
    torch.manual_seed(0)
    model, images, labels = make(), torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    images = images.contiguous(memory_format=torch.channels_last)

    def gradient(kernels, bf16=True):
        accelerate(model, Hardware.choose("cpu", "bf16-mixed", compile=False, kernels=kernels))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    exact, with_kernels, without = gradient(True, bf16=False), gradient(True), gradient(False)
    assert not torch.equal(with_kernels, without)
    assert (with_kernels - exact).norm() < 1.2 * (without - exact).norm()


def channels_last(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("kernels")
def test_kernels_take_inputs_whose_channels_fill_simd_registers():
    assert library.takes(channels_last(2, 16, 3, 3)) and library.takes(channels_last(1, 48, 1, 1))
    assert not library.takes(channels_last(2, 24, 3, 3))
    assert library.takes(channels_last(2, 16, 3, 3, dtype=torch.float32))
    assert not library.takes(channels_last(2, 16, 3, 3, dtype=torch.float64))
    assert not library.takes(torch.zeros(2, 16, 3, 3, dtype=torch.bfloat16))
    assert not library.takes(torch.zeros(16, 3, 3, dtype=torch.bfloat16))


# The operators


def maps(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().contiguous(memory_format=torch.channels_last)


def batch_norm_arguments(residual=True, relu=True):
    return (maps(2, 6, 3, 5), torch.rand(6), torch.rand(6), maps(2, 6, 3, 5, seed=1) if residual else None, relu, 1e-5)


def statistics(channels):
    """Return statistics and inverse like those of `ops.batch_norm`."""
    return torch.rand(4, channels), torch.rand(channels, dtype=torch.float64)


def calls():
    """Yield (operator, valid arguments) for every case of every operator."""
    for residual, relu in [(True, True), (False, True), (False, False)]:
        forward = batch_norm_arguments(residual, relu)
        y, statistics, inverse = ops.batch_norm(*forward)
        yield ops.batch_norm, forward
        kept = y if residual else None
        yield ops.batch_norm_backward, (maps(2, 6, 3, 5, seed=2), forward[0], kept, statistics, inverse, relu)
    for height, width in [(4, 6), (5, 3)]:
        x = maps(2, 6, height, width)
        y, which = ops.max_pool(x)
        yield ops.max_pool, (x,)
        yield ops.max_pool_backward, (maps(*y.shape, seed=1), which, height, width)
    yield ops.patches, (maps(2, 6, 4, 5), [3, 2], [2, 1], [1, 0])


@pytest.mark.usefixtures("kernels")
def test_operators_pass_torchs_opcheck():
    """Check schema, fake shapes and memory formats, and tracing with symbolic shapes."""
    for operator, arguments in calls():
        torch.library.opcheck(operator, arguments)


WRONG = {
    "dtype": lambda x: x.double(),
    "layout": lambda x: x.contiguous(),
    "dimensions": lambda x: x[0],
    "fewer images": lambda x: x[:1],
    "fewer channels": lambda x: x[:, :5].contiguous(memory_format=torch.channels_last),
    "fewer rows": lambda x: x[:, :, 1:].contiguous(memory_format=torch.channels_last),
    "a part of larger maps": lambda x: x.repeat(1, 2, 1, 1)[:, : x.shape[1]],
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", WRONG)
def test_maps_of_wrong_shape_dtype_or_layout_raise(monkeypatch, wrong):
    found = list(calls())
    monkeypatch.setattr(library, "call", lambda *a: pytest.fail("the kernel was called"))
    for operator, arguments in found:
        tensors = [i for i, each in enumerate(arguments) if isinstance(each, torch.Tensor) and each.dim() == 4]
        if "fewer" in wrong and len(tensors) == 1:
            continue  # a single smaller map is valid
        for i in tensors:
            with pytest.raises(ValueError):
                operator(*arguments[:i], WRONG[wrong](arguments[i]), *arguments[i + 1 :])


@pytest.mark.usefixtures("kernels")
def test_channel_values_of_wrong_shape_or_dtype_raise(monkeypatch):
    found = list(calls())
    monkeypatch.setattr(library, "call", lambda *a: pytest.fail("the kernel was called"))
    for operator, arguments in found:
        for i, each in enumerate(arguments):
            if not isinstance(each, torch.Tensor) or each.dim() == 4:
                continue
            wrong = [
                each[..., :5],
                torch.cat([each, each]),
                each[None],
                each.half(),
                torch.stack([each, each], -1)[..., 0],
            ]
            for other in wrong:
                with pytest.raises(ValueError, match="and contiguous, not"):
                    operator(*arguments[:i], other, *arguments[i + 1 :])


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        (ops.max_pool, (maps(1, 2, 1, 4),), "at least 2x2, not 1x4"),
        (ops.max_pool_backward, (maps(1, 2, 2, 2), maps(1, 2, 2, 2).short(), 6, 4), "does not match an input of 6x4"),
        (ops.patches, (maps(1, 2, 4, 4), [5, 5], [1, 1], [0, 0]), "no patches of"),
        (ops.patches, (maps(1, 2, 4, 4), [3, 3], [0, 1], [1, 1]), "stride"),
        (ops.batch_norm, batch_norm_arguments(relu=False), "only before a ReLU"),
        (ops.batch_norm_backward, (*[maps(2, 6, 3, 5)] * 3, *statistics(6), False), "only with a ReLU"),
        (ops.batch_norm, (maps(2, 0, 3, 5), torch.rand(0), torch.rand(0), None, True, 1e-5), "one channel"),
        (ops.batch_norm_backward, (*[maps(2, 0, 3, 5)] * 2, None, *statistics(0), True), "one channel"),
        (ops.max_pool, (maps(1, 0, 4, 4),), "one channel"),
        (ops.max_pool_backward, (maps(1, 0, 2, 2), maps(1, 0, 2, 2).short(), 4, 4), "one channel"),
        (ops.patches, (maps(1, 0, 4, 4), [3, 3], [1, 1], [1, 1]), "one channel"),
    ],
)
def test_invalid_sizes_raise(monkeypatch, operator, arguments, message):
    monkeypatch.setattr(library, "call", lambda *a: pytest.fail("the kernel was called"))
    with pytest.raises(ValueError, match=message):
        operator(*arguments)


@pytest.mark.usefixtures("kernels")
def test_operators_raise_if_a_tensor_requires_a_gradient():
    for operator, arguments in calls():
        places = [i for i, each in enumerate(arguments) if isinstance(each, torch.Tensor) and each.is_floating_point()]
        for i in places:
            leaf = arguments[i].clone().requires_grad_()
            changed = (*arguments[:i], leaf, *arguments[i + 1 :])
            with pytest.raises(RuntimeError, match=r"does not compute gradients; use the layers of cifarbn\.fast"):
                operator(*changed)
            with torch.no_grad():
                torch.testing.assert_close(operator(*changed), operator(*arguments), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("kernels")
def test_torch_compile_supports_the_operators():
    def largest(x):
        return ops.max_pool(x * 2)[0] + 1

    x = maps(2, 6, 4, 4)
    assert torch.equal(torch.compile(largest, fullgraph=True, backend="aot_eager")(x), largest(x))
    torch.compiler.reset()
