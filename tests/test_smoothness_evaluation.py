import pytest
import slow_smoothness as slow
import torch
from torch import nn

from cifarbn.smoothness.evaluation import loss_and_gradient, parameters_at, place, restore_parameters


def test_loss_and_gradient_agree_with_backward_and_touch_no_grad():
    model, x, y = slow.problem()
    sentinel = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, s in zip(model.parameters(), sentinel, strict=True):
        p.grad = s
    expected_loss, expected = slow.evaluate(model, x, y)
    with torch.no_grad():  # a callback may be called so
        loss, gradient = loss_and_gradient(lambda: nn.functional.cross_entropy(model(x), y), model.parameters())
    assert loss.item() == expected_loss and not loss.requires_grad
    assert torch.cat([g.flatten() for g in gradient]).double().numpy() == pytest.approx(expected, abs=0)
    for p, s in zip(model.parameters(), sentinel, strict=True):
        assert p.grad is s and torch.equal(s, torch.full_like(p, 7.0))


def test_an_unused_parameter_has_gradient_zero():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    gradient = loss_and_gradient(lambda: used.sum(), [used, unused]).gradient
    assert [g.tolist() for g in gradient] == [[1, 1], [0, 0, 0]]


def test_a_loss_without_any_parameter_is_an_error():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss_and_gradient(lambda: w.detach().sum(), [w])


def test_restored_puts_back_bits_that_adding_and_subtracting_would_lose():
    w = torch.tensor([0.1, 1e-8, -0.0, 3.0], requires_grad=True)
    bits = w.detach().clone().view(torch.int32)
    there_and_back = (w.detach() + 0.3) - 0.3
    assert not torch.equal(there_and_back.view(torch.int32), bits)
    with pytest.raises(KeyError), restore_parameters([w]), torch.no_grad():
        w.add_(0.3).sub_(0.3)
        raise KeyError
    assert torch.equal(w.detach().view(torch.int32), bits)
    assert w.requires_grad


def test_standing_at_moves_there_and_comes_back():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with parameters_at([w], [torch.tensor([5.0, 6.0])]) as (saved,):
        assert w.tolist() == [5.0, 6.0] and saved.tolist() == [1.0, 2.0]
    assert w.tolist() == [1.0, 2.0]


def test_a_value_that_would_broadcast_is_an_error():
    w = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="shapes"):
        place([w], [torch.ones(3)])
