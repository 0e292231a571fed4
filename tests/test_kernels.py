"""The C library: compiled where that is possible, done without elsewhere, always said."""

import os
import subprocess
import sys

import pytest
import torch

from cifarbn.errors import UserError
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.kernels import library
from cifarbn.models import VGG, BatchNorm2d, ResNet, SpeedNet

CODE = """
import torch
from cifarbn.fast.hardware import Hardware
from cifarbn.kernels.library import why_unavailable
from cifarbn.models import VGG, BatchNorm2d

hardware = Hardware.choose("cpu", "bf16-mixed")
net = hardware.prepare(VGG("A", norm=BatchNorm2d, width=4))
with torch.autocast("cpu", torch.bfloat16):
    net(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
print(hardware.kernels, why_unavailable())
"""


def run(code=CODE, **environment):
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_without_a_compiler_a_net_trains_without():
    assert (
        run(CC="no-such-compiler")
        == "False there is no C compiler 'no-such-compiler' (install gcc, or name it in CC)\n"
    )


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cc: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert run(CC=str(compiler)) == f"False {compiler} failed: cc: error: no such luck\n"


@pytest.mark.usefixtures("kernels")
def test_there_is_one_openmp_in_the_process():
    loaded = "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line})"
    first, second = run(CODE + loaded).splitlines()
    assert first == "True None" and len(second.split()) == 1


def test_they_are_chosen_for_bf16_on_a_cpu_and_said():
    chosen = Hardware.choose("cpu", "bf16-mixed")
    assert chosen.kernels == (library.why_unavailable() is None)
    assert str(chosen).endswith(", own kernels") == chosen.kernels
    assert not Hardware.choose("cpu", "32-true").kernels
    assert not Hardware.choose("cpu", "bf16-mixed", compile=True).kernels
    assert not Hardware.choose("cpu", "bf16-mixed", channels_last=False).kernels
    assert not Hardware.choose("cpu", "bf16-mixed", kernels=False).kernels


@pytest.mark.parametrize("options", [{"precision": "32-true"}, {"precision": "bf16-mixed", "compile": True}])
def test_asked_for_where_they_are_no_use_they_are_refused(options):
    with pytest.raises(UserError, match="trainer.kernels=true: they are for bf16-mixed"):
        Hardware.choose("cpu", kernels=True, **options)


def test_asked_for_without_a_compiler_they_are_refused(monkeypatch):
    monkeypatch.setattr("cifarbn.fast.hardware.why_unavailable", lambda: "there is no C compiler")
    with pytest.raises(UserError, match="trainer.kernels=true: there is no C compiler; trainer.kernels=auto"):
        Hardware.choose("cpu", "bf16-mixed", kernels=True)


@pytest.mark.parametrize("kernels", [True, False])
def test_prepare_tells_every_layer(kernels):
    hardware = Hardware.choose("cpu", "bf16-mixed", compile=False, kernels=kernels)
    net = hardware.prepare(VGG("A", norm=BatchNorm2d, width=4))
    told = [module.kernels for module in net.modules() if hasattr(module, "kernels")]
    assert told == 21 * [kernels]  # eight convolutions and norms, five pools


NETS = [lambda: ResNet(18, width=8), lambda: VGG("A", norm=BatchNorm2d, width=8), SpeedNet]


@pytest.mark.parametrize("make", NETS)
def test_a_net_compiles_into_one_graph_without_them(make):
    torch.manual_seed(0)
    net, pictures = make(), torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    parameters = [p for p in net.parameters() if p.requires_grad]
    found = []
    for kernels, call in ((False, net), (True, torch.compile(net, backend="eager", fullgraph=True))):
        Hardware.choose("cpu", "bf16-mixed", compile=False, kernels=kernels).prepare(net)
        with torch.autocast("cpu", torch.bfloat16):
            loss = call(pictures).float().square().sum()
        found.append([loss, *torch.autograd.grad(loss, parameters)])
    for compiled, expected in zip(*found, strict=True):
        torch.testing.assert_close(compiled, expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("make", NETS)
def test_a_net_s_gradient_is_as_near_to_the_exact_one_as_without(make):
    torch.manual_seed(0)
    net, pictures, labels = make(), torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    pictures = pictures.contiguous(memory_format=torch.channels_last)

    def gradient(kernels, bf16=True):
        Hardware.choose("cpu", "bf16-mixed", compile=False, kernels=kernels).prepare(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(net(pictures).float(), labels)
        parameters = [p for p in net.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    exact, with_kernels, without = gradient(True, bf16=False), gradient(True), gradient(False)
    assert not torch.equal(with_kernels, without)
    assert (with_kernels - exact).norm() < 1.2 * (without - exact).norm()


def channels_last(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("kernels")
def test_maps_are_taken_whose_channels_fill_whole_registers():
    assert library.takes(channels_last(2, 16, 3, 3)) and library.takes(channels_last(1, 48, 1, 1))
    assert not library.takes(channels_last(2, 24, 3, 3))
    assert not library.takes(channels_last(2, 16, 3, 3, dtype=torch.float32))
    assert not library.takes(torch.zeros(2, 16, 3, 3, dtype=torch.bfloat16))
    assert not library.takes(torch.zeros(16, 3, 3, dtype=torch.bfloat16))
