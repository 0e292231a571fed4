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


def disturb(model, x, y):
    for _ in range(3):
        nn.functional.cross_entropy(model(x), y).backward()
    random.random()
    np.random.rand()


def test_a_block_of_passes_leaves_no_trace():
    model, x, y = slow.problem(dropout=0.5)
    nn.functional.cross_entropy(model(x), y).backward()
    model[1].eval()
    model[4].bias.grad = None
    gradient = model[0].weight.grad
    before = snapshot(model)

    with preserve_state(model, train=True):
        assert all(m.training for m in model.modules())
        disturb(model, x, y)
        inside = snapshot(model)
        model.eval()
    assert_same(before, snapshot(model))
    assert model[0].weight.grad is gradient

    assert inside["state"]["1.num_batches_tracked"] == before["state"]["1.num_batches_tracked"] + 3
    assert not torch.equal(inside["state"]["5.running_mean"], before["state"]["5.running_mean"])
    assert not torch.equal(inside["torch"], before["torch"])


def test_backward_passes_in_the_block_start_from_no_gradient():
    """No zero_grad before the second backward: the gradient would be the sum."""
    model, x, y = slow.problem()
    nn.functional.cross_entropy(model(x), y).backward()
    alone = model[0].weight.grad.clone()
    with preserve_state(model):
        assert model[0].weight.grad is None
        nn.functional.cross_entropy(model(x), y).backward()
        assert torch.equal(model[0].weight.grad, alone)
    assert torch.equal(model[0].weight.grad, alone)


def test_the_block_may_fail():
    model, x, y = slow.problem(dropout=0.5)
    before = snapshot(model)
    with pytest.raises(KeyError), preserve_state(model):
        disturb(model, x, y)
        raise KeyError
    assert_same(before, snapshot(model))


def test_a_buffer_replaced_in_the_block_is_the_old_tensor_again():
    model, _, _ = slow.problem()
    buffer = model[1].running_mean
    model[1].running_mean += 1
    before = snapshot(model)
    with preserve_state(model):
        model[1].running_mean = torch.zeros(6)
        buffer.zero_()
    assert model[1].running_mean is buffer
    assert_same(before, snapshot(model))


def test_modes_are_left_alone_unless_asked_for():
    model, _, _ = slow.problem()
    model[1].eval()
    with preserve_state(model):
        assert model.training and not model[1].training
    with preserve_state(model, train=False):
        assert not any(m.training for m in model.modules())


def test_train_mode_uses_the_batch_and_not_the_running_statistics():
    model, x, y = slow.problem()
    model.eval()
    other = copy.deepcopy(model)
    other[1].running_mean += 100
    losses = []
    for n in (model, other):
        with preserve_state(n, train=True):
            losses.append(nn.functional.cross_entropy(n(x), y).item())
    assert losses[0] == losses[1]


def test_replayed_draws_the_same_mask_at_every_pass():
    model, x, y = slow.problem(dropout=0.5)

    def loss_fn():
        return nn.functional.cross_entropy(model(x), y)

    state = torch.get_rng_state()
    mask_of_the_next_step = loss_fn().item()
    torch.set_rng_state(state)
    again = with_fixed_rng(loss_fn, model)
    torch.rand(5)
    losses = [loss_and_gradient(again, model.parameters()).loss.item() for _ in range(3)]
    assert losses == [mask_of_the_next_step] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_devices_random_numbers_are_put_back():
    model = slow.SmallVGG(dropout=0.5).cuda()
    before = torch.cuda.get_rng_state()
    with preserve_state(model):
        model(torch.randn(4, 3, 8, 8, device="cuda"))
    assert torch.equal(before, torch.cuda.get_rng_state())
