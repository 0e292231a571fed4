import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.minibatch_loss import minibatch_loss


def test_the_loss_of_the_batch_in_the_mode_that_is_asked_for():
    model, x, y = slow.problem()
    with minibatch_loss(model, nn.functional.cross_entropy, (x, y)) as loss_fn:
        in_train_mode = loss_fn().item()
    with minibatch_loss(model, nn.functional.cross_entropy, (x, y), train=False) as loss_fn:
        in_eval_mode = loss_fn().item()
    assert in_train_mode == nn.functional.cross_entropy(model(x), y).item() != in_eval_mode
    model[1].eval()
    with minibatch_loss(model, nn.functional.cross_entropy, (x, y), train=None):
        assert model.training and not model[1].training


def test_every_pass_draws_the_same_dropout_mask_and_leaves_no_trace():
    model, x, y = slow.problem(dropout=0.5)
    before = snapshot(model)
    with minibatch_loss(model, nn.CrossEntropyLoss(), (x, y)) as loss_fn:
        assert len({loss_and_gradient(loss_fn, model.parameters()).loss.item() for _ in range(3)}) == 1
    assert_same(before, snapshot(model))


def test_a_half_precision_model_is_measured_in_float32_and_gets_its_weights_back():
    model, x, y = slow.problem()
    model.to(torch.bfloat16)
    before, weights = snapshot(model), [p.data_ptr() for p in model.parameters()]
    with minibatch_loss(model, nn.functional.cross_entropy, (x.to(torch.bfloat16), y)) as loss_fn:
        assert loss_fn().dtype == torch.float32
    assert_same(before, snapshot(model))
    assert weights == [p.data_ptr() for p in model.parameters()]


def test_autocast_is_off_inside():
    model, x, y = slow.problem()
    with torch.autocast("cpu", torch.bfloat16), minibatch_loss(model, lambda out, y: out.sum(), (x, y)) as loss_fn:
        assert loss_fn().dtype == torch.float32


def test_a_loss_with_a_state_of_its_own_gets_it_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, outputs, targets):
            self.calls += 1
            return nn.functional.cross_entropy(outputs, targets)

    model, x, y = slow.problem()
    loss = Counting()
    with minibatch_loss(model, loss, (x, y)) as loss_fn:
        loss_fn()
        assert loss.calls == 1
    assert loss.calls == 0


def test_a_batch_that_is_no_pair_and_a_loss_that_is_no_scalar_are_errors():
    model, x, y = slow.problem()
    with pytest.raises(ValueError, match=r"batch must be a pair \(inputs, targets\), not Tensor"):
        with minibatch_loss(model, nn.functional.cross_entropy, x):
            pass
    with pytest.raises(ValueError, match=r"loss must return a scalar tensor, not \(16,\); average over the batch"):
        with minibatch_loss(model, nn.CrossEntropyLoss(reduction="none"), (x, y)) as loss_fn:
            loss_fn()
