import copy
import random

import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.smoothness.randomness import with_fixed_rng


def disturb(net, x, y):
    for _ in range(3):
        nn.functional.cross_entropy(net(x), y).backward()
    random.random()
    np.random.rand()


def test_a_block_of_passes_leaves_no_trace():
    net, x, y = slow.problem(dropout=0.5)
    nn.functional.cross_entropy(net(x), y).backward()
    net[1].eval()
    net[4].bias.grad = None
    gradient = net[0].weight.grad
    before = snapshot(net)

    with preserve_state(net, train=True):
        assert all(m.training for m in net.modules())
        disturb(net, x, y)
        inside = snapshot(net)
        net.eval()
    assert_same(before, snapshot(net))
    assert net[0].weight.grad is gradient

    assert inside["state"]["1.num_batches_tracked"] == before["state"]["1.num_batches_tracked"] + 3
    assert not torch.equal(inside["state"]["5.running_mean"], before["state"]["5.running_mean"])
    assert not torch.equal(inside["torch"], before["torch"])


def test_backward_passes_in_the_block_start_from_no_gradient():
    """No zero_grad before the second backward: the gradient would be the sum."""
    net, x, y = slow.problem()
    nn.functional.cross_entropy(net(x), y).backward()
    alone = net[0].weight.grad.clone()
    with preserve_state(net):
        assert net[0].weight.grad is None
        nn.functional.cross_entropy(net(x), y).backward()
        assert torch.equal(net[0].weight.grad, alone)
    assert torch.equal(net[0].weight.grad, alone)


def test_the_block_may_fail():
    net, x, y = slow.problem(dropout=0.5)
    before = snapshot(net)
    with pytest.raises(KeyError), preserve_state(net):
        disturb(net, x, y)
        raise KeyError
    assert_same(before, snapshot(net))


def test_a_buffer_replaced_in_the_block_is_the_old_tensor_again():
    net, _, _ = slow.problem()
    buffer = net[1].running_mean
    net[1].running_mean += 1
    before = snapshot(net)
    with preserve_state(net):
        net[1].running_mean = torch.zeros(6)
        buffer.zero_()
    assert net[1].running_mean is buffer
    assert_same(before, snapshot(net))


def test_modes_are_left_alone_unless_asked_for():
    net, _, _ = slow.problem()
    net[1].eval()
    with preserve_state(net):
        assert net.training and not net[1].training
    with preserve_state(net, train=False):
        assert not any(m.training for m in net.modules())


def test_train_mode_uses_the_batch_whatever_the_running_statistics_are():
    net, x, y = slow.problem()
    net.eval()
    other = copy.deepcopy(net)
    other[1].running_mean += 100
    losses = []
    for n in (net, other):
        with preserve_state(n, train=True):
            losses.append(nn.functional.cross_entropy(n(x), y).item())
    assert losses[0] == losses[1]


def test_replayed_draws_the_same_mask_at_every_pass():
    net, x, y = slow.problem(dropout=0.5)

    def loss_fn():
        return nn.functional.cross_entropy(net(x), y)

    state = torch.get_rng_state()
    mask_of_the_next_step = loss_fn().item()
    torch.set_rng_state(state)
    again = with_fixed_rng(loss_fn, net)
    torch.rand(5)
    losses = [loss_and_gradient(again, net.parameters()).loss.item() for _ in range(3)]
    assert losses == [mask_of_the_next_step] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_devices_random_numbers_are_put_back():
    net = slow.SmallVGG(dropout=0.5).cuda()
    before = torch.cuda.get_rng_state()
    with preserve_state(net):
        net(torch.randn(4, 3, 8, 8, device="cuda"))
    assert torch.equal(before, torch.cuda.get_rng_state())
