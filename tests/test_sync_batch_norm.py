"""Batch norm over two processes gives what torch's gives on the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import fork_context
from torch import nn

from cifarbn.fast.sync_batch_norm import SyncBatchNormCPU, SyncOnCPU


def small_model(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))


def batch():
    generator = torch.Generator().manual_seed(1)
    return 5 + torch.randn(6, 2, 4, 4, generator=generator), torch.randn(6, 4, generator=generator)


def step(model, inputs, targets):
    """One forward and backward pass; outputs, gradients and buffers by name."""
    inputs = inputs.clone().requires_grad_()
    outputs = model(inputs)
    loss = (outputs * targets).sum()
    loss.backward()
    return {
        "outputs": outputs.detach(),
        "inputs": inputs.grad,
        **{f"gradient of {name}": p.grad for name, p in model.named_parameters()},
        **{name: buffer.clone() for name, buffer in model.named_buffers()},
    }


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    inputs, targets = (values[rank::2] for values in batch())
    for norm in NORMS:
        model = SyncOnCPU().apply(small_model(norm))
        assert sum(isinstance(module, SyncBatchNormCPU) for module in model) == 2
        torch.save(step(model, inputs, targets), folder / f"{norm.__name__}_{rank}.pt")
    dist.destroy_process_group()


def no_momentum(channels):
    return nn.BatchNorm2d(channels, momentum=None)


def no_affine(channels):
    return nn.BatchNorm2d(channels, affine=False)


def no_running_statistics(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


NORMS = [nn.BatchNorm2d, no_momentum, no_affine, no_running_statistics]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    fork_context()  # its server has imported torch
    mp.start_processes(process, (folder,), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("norm", NORMS)
def test_two_processes_give_what_one_gives_on_the_whole_batch(folder, norm):
    first, second = (torch.load(folder / f"{norm.__name__}_{rank}.pt") for rank in (0, 1))
    for name, whole in step(small_model(norm), *batch()).items():
        if name in ("outputs", "inputs"):
            both = torch.empty_like(whole)
            both[0::2], both[1::2] = first[name], second[name]
        elif name.startswith("gradient"):
            both = first[name] + second[name]  # DDP averages them; here the loss is a sum
        else:
            torch.testing.assert_close(first[name], second[name])
            both = first[name]
        torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_evaluation_and_a_single_process_are_torchs():
    plain = small_model(nn.BatchNorm2d)
    synchronised = SyncOnCPU().apply(copy.deepcopy(plain))
    for train in (True, False):
        plain.train(train), synchronised.train(train)
        assert torch.equal(plain(batch()[0]), synchronised(batch()[0]))
    assert [*plain.state_dict()] == [*synchronised.state_dict()]


def test_every_layer_gets_its_own_class_back():
    model, sync = small_model(nn.BatchNorm2d), SyncOnCPU()
    before = [type(module) for module in model.modules()]
    sync.revert(sync.apply(model))
    assert [type(module) for module in model.modules()] == before
