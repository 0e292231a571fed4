"""Each weight moved alone: exact on a quadratic, invariant to the scale of a weight before batch norm."""

import copy

import numpy as np
import pytest
import slow_smoothness as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarbn.models import VGG
from cifarbn.smoothness.directional_probe import probe_along, vgg_steps
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.smoothness.weight_probes import probe_each_weight, scale_invariant_beta

SCALES = (0.5, 1.0, 2.0, 4.0)


def loss_of(model, x, y):
    return lambda: nn.functional.cross_entropy(model(x), y)


def weights_of(model):
    return [p for p in model.parameters() if p.ndim > 1]


def betas(model, x, y):
    """The median over the weights, as the report shows it."""
    seen = probe_each_weight(loss_of(model, x, y), weights_of(model))
    return scale_invariant_beta(seen.gradient_distance, seen.distance_moved, seen.weight_norm)


def batch_norm_vgg():
    """A VGG in float64 without eps (torch refuses 0; 1e-30 is lost in the variance), with a minibatch."""
    torch.manual_seed(0)
    model = VGG("A", norm=nn.BatchNorm2d, width=4).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    return model, torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randint(10, (16,))


@pytest.fixture(scope="module")
def scaled():
    """The same model at four scales of all its convolutions, and the minibatch."""
    model, x, y = batch_norm_vgg()
    models = []
    for c in SCALES:
        one = copy.deepcopy(model)
        with torch.no_grad():
            for module in one.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.mul_(c)
        models.append(one)
    return models, x, y


def test_the_same_at_every_scale_of_all_convolutions_before_batch_norm(scaled):
    models, x, y = scaled
    losses = [loss_of(model, x, y)().item() for model in models]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12), "the scale leaves the loss alone"
    found = np.array([betas(model, x, y) for model in models])
    assert found.shape == (4, 11) and (found > 0).all()
    np.testing.assert_allclose(found, np.broadcast_to(found[1], found.shape), rtol=1e-6)


def test_one_probe_of_all_weights_together_is_not_scale_invariant(scaled):
    """An earlier, wrong formula: each tensor's distance divided by its move, times its squared norm."""
    models, x, y = scaled
    found = []
    for model in models:
        parameters = list(model.parameters())
        seen = probe_along(loss_of(model, x, y), parameters, vgg_steps(0.1))
        weights = [i for i, p in enumerate(parameters) if p.ndim > 1]
        slope = (seen.parameter_distance / seen.parameter_moved).amax(0)
        found.append((slope * seen.parameter_norm**2)[weights].median().item())
    assert max(found) > 2 * min(found)


@settings(deadline=None, max_examples=15)
@given(st.floats(0.1, 10.0), st.integers(0, 3))
def test_any_scale_of_one_convolution_divides_raw_beta_by_its_square_and_leaves_this_alone(c, seed):
    model, x, y = slow.problem(seed=seed)
    model, x = model.double(), x.double()
    model[1].eps = 1e-30
    seen = []
    for scale in (1.0, c):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            scaled[0].weight.mul_(scale)
        seen.append(probe_each_weight(loss_of(scaled, x, y), [scaled[0].weight]))
    raw = [(s.gradient_distance / s.distance_moved).max().item() for s in seen]
    assert raw[1] == pytest.approx(raw[0] / c**2, rel=1e-6)
    found = [scale_invariant_beta(s.gradient_distance, s.distance_moved, s.weight_norm)[0] for s in seen]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_quadratic_has_its_curvature_times_the_squared_norm():
    """L = (4 |u|^2 + 9 |v|^2) / 2: beta is 4 and 9, alone, at every share; |u|^2 = 5 and |v|^2 = 1."""
    u = torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    seen = probe_each_weight(lambda: (4 * (u**2).sum() + 9 * (v**2).sum()) / 2, [u, v], [0.01, 0.5])
    assert seen.distance_moved.tolist() == [pytest.approx([share * 5**0.5, share]) for share in (0.01, 0.5)]
    # The weight shrinks by its share, and its own half of the loss by the square of what is left.
    expected = [[10 * (1 - share) ** 2 + 4.5, 10 + 4.5 * (1 - share) ** 2] for share in (0.01, 0.5)]
    assert seen.loss.tolist() == [pytest.approx(row) for row in expected]
    found = scale_invariant_beta(seen.gradient_distance, seen.distance_moved, seen.weight_norm)
    assert found.tolist() == pytest.approx([4 * 5, 9 * 1], rel=1e-12)


def test_agrees_with_a_second_implementation():
    model, x, y = slow.problem()
    shares = (0.01, 0.1)
    seen = probe_each_weight(loss_of(model, x, y), weights_of(model), shares)
    theta, (_, g) = slow.get(model), slow.evaluate(model, x, y)
    parts = [part for part, p in zip(slow.spans(model), model.parameters(), strict=True) if p.ndim > 1]
    for i, part in enumerate(parts):
        for j, share in enumerate(shares):
            moved = theta.copy()
            step = share * slow.length(theta[part]) / slow.length(g[part])
            moved[part] -= step * g[part]
            loss, there = slow.evaluate(slow.put(model, moved), x, y)
            assert seen.loss[j, i].item() == pytest.approx(loss, rel=1e-5)
            distance = slow.length((there - g)[part])
            assert seen.gradient_distance[j, i].item() == pytest.approx(distance, rel=1e-4)
            assert seen.distance_moved[j, i].item() == pytest.approx(share * slow.length(theta[part]), rel=1e-5)


def test_the_greatest_share_of_each_weight_counts_and_weights_stay_apart():
    distance = np.array([[1.0, 9.0], [6.0, 2.0], [2.0, 1.0]])  # three shares, two weights
    moved = np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 1.0]])
    assert scale_invariant_beta(distance, moved, [2.0, 1.0]).tolist() == [12, 3]
    assert scale_invariant_beta([distance] * 2, [moved] * 2, [[2.0, 1.0], [1.0, 2.0]]).tolist() == [[12, 3], [3, 12]]


def test_weights_buffers_gradients_and_random_numbers_are_as_they_were():
    model, x, y = slow.problem(dropout=0.3)
    loss_of(model, x, y)().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    rng = torch.get_rng_state()
    with preserve_state(model, train=True):
        probe_each_weight(loss_of(model, x, y), weights_of(model))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is t and torch.equal(t, v) for p, (t, v) in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(rng, torch.get_rng_state())


def test_costs_one_pass_and_one_for_every_share_of_every_weight():
    u, v = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    calls = []

    def loss_fn():
        calls.append(1)
        return (u**2).sum() + (v**3).sum()

    probe_each_weight(loss_fn, [u, v], [0.1, 0.2, 0.3])
    assert len(calls) == 1 + 2 * 3


def test_a_weight_without_a_gradient_is_nan_and_comes_back():
    u, v = torch.ones(2, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    seen = probe_each_weight(lambda: 0 * u.sum() + (v**2).sum(), [u, v])
    found = scale_invariant_beta(seen.gradient_distance, seen.distance_moved, seen.weight_norm)
    assert np.isnan(found[0]) and found[1] == pytest.approx(4, rel=1e-5)
    assert torch.equal(u, torch.ones(2, 2))
