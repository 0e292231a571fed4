import copy

import pytest
import slow_smoothness as slow
import torch
from torch import nn

from cifarbn.smoothness.internal_covariate_shift import internal_covariate_shift

LAYERS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # conv and its BN, conv and its BN, linear: positions in parameters()


def nested(model):
    parameters = list(model.parameters())
    return [[parameters[i] for i in layer] for layer in LAYERS]


def stepped(model, x, y, lr=0.05):
    model = copy.deepcopy(model)
    nn.functional.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= lr * p.grad
    return model


def test_agrees_with_the_second_implementation_and_costs_a_pass_per_layer():
    model, x, y = slow.problem()
    after = stepped(model, x, y)
    theta, calls = slow.get(model), []

    def loss_fn():
        calls.append(1)
        return nn.functional.cross_entropy(model(x), y)

    shift = internal_covariate_shift(loss_fn, nested(model), nested(after))
    distances, cosines = slow.covariate_shift(model, after, x, y, LAYERS)
    assert shift.distance.tolist() == pytest.approx(distances, rel=1e-5)
    assert shift.cosine.tolist() == pytest.approx(cosines, rel=1e-5)
    assert len(calls) == 3
    assert (slow.get(model) == theta).all()
    assert all(p.grad is None for p in model.parameters())


def test_the_first_layer_has_none_exactly():
    model, x, y = slow.problem()
    after = stepped(model, x, y, lr=1.0)
    shift = internal_covariate_shift(lambda: nn.functional.cross_entropy(model(x), y), nested(model), nested(after))
    assert shift.distance[0].item() == 0
    assert shift.cosine[0].item() == pytest.approx(1, rel=1e-6)
    assert (shift.distance[1:] > 0).all()


def test_two_linear_layers_by_hand():
    """L = w1 w2: G_2 = w1, so the shift of layer 2 is the step of w1, for any step of w2."""
    w1, w2 = (torch.tensor([v], requires_grad=True) for v in (3.0, 2.0))
    shift = internal_covariate_shift(
        lambda: (w1 * w2).sum(), [[w1], [w2]], [[torch.tensor([2.5])], [torch.tensor([99.0])]]
    )
    assert shift.distance.tolist() == [0, 0.5]
    assert shift.gradient_norm.tolist() == [2, 3]
    assert shift.cosine.tolist() == [1, 1]
    assert (w1.item(), w2.item()) == (3, 2)


def test_no_step_is_no_shift():
    model, x, y = slow.problem()
    shift = internal_covariate_shift(
        lambda: nn.functional.cross_entropy(model(x), y), nested(model), nested(copy.deepcopy(model))
    )
    assert shift.distance.tolist() == [0, 0, 0]


def test_values_are_nested_like_the_layers():
    w = torch.ones(2, requires_grad=True)
    v = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError):
        internal_covariate_shift(lambda: (w * v).sum(), [[w], [v]], [])
    with pytest.raises(ValueError):
        internal_covariate_shift(lambda: (w * v).sum(), [[w], [v]], [[torch.ones(1)], [torch.ones(2)]])
