import copy
import weakref

import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn

from cifarbn.smoothness.directional_probe import dln_steps, probe_along, vgg_steps
from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.smoothness.probe_curves import (
    at_distance,
    effective_beta,
    loss_band,
    predictiveness_band,
    relative_distance,
)
from cifarbn.smoothness.randomness import with_fixed_rng
from cifarbn.smoothness.vectors import random_direction


def loss_of(model, x, y):
    return lambda: nn.functional.cross_entropy(model(x), y)


def quadratic():
    """L = theta' H theta / 2 with eigenvalues 5, 2, -1, and parameters in two tensors."""
    basis, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    h = basis @ torch.diag(torch.tensor([5.0, 2.0, -1.0], dtype=torch.float64)) @ basis.T
    first = torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)

    def loss_fn():
        theta = torch.cat([first.flatten(), second])
        return theta @ h @ theta / 2

    return h, [first, second], loss_fn


# --- closed forms -------------------------------------------------------------------------------------------------


def test_quadratic_has_beta_hg_over_g_at_every_s_and_distance_linear_in_s():
    h, parameters, loss_fn = quadratic()
    g = h @ torch.cat([p.detach().flatten() for p in parameters])
    seen = probe_along(loss_fn, parameters, [0.01, 0.1, 1.0, 7.0])
    beta = ((h @ g).norm() / g.norm()).item()
    slope = seen.gradient_distance / seen.distance_moved
    assert slope.tolist() == pytest.approx([beta] * 4, rel=1e-12)
    assert (seen.gradient_distance / seen.s).tolist() == pytest.approx([(h @ g).norm().item()] * 4, rel=1e-12)
    assert effective_beta(seen.gradient_distance, seen.distance_moved) == pytest.approx(beta, rel=1e-12)
    assert seen.loss.tolist() == pytest.approx(
        [(t @ h @ t / 2).item() for t in (torch.linalg.solve(h, g) - s * g for s in (0.01, 0.1, 1.0, 7.0))], rel=1e-9
    )


def test_linear_loss_has_beta_zero_and_cosine_one():
    w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    seen = probe_along(lambda: w @ torch.tensor([2.0, 0.0, 1.0]), [w], vgg_steps())
    assert effective_beta(seen.gradient_distance, seen.distance_moved) == 0
    assert seen.cosine.tolist() == pytest.approx([1.0] * 8, rel=1e-7)


def test_presets_are_the_ranges_of_santurkar_et_al_in_log_spaced_points():
    assert vgg_steps() == pytest.approx([0.05 * 8 ** (i / 7) for i in range(8)])
    assert (dln_steps()[0], dln_steps()[-1], len(dln_steps())) == (pytest.approx(1e-8), pytest.approx(3e-5), 8)
    assert np.diff(np.log(dln_steps(1e-7, points=5))) == pytest.approx(np.log(3000) / 4)


# --- the second implementation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda channels: nn.Identity()], ids=["bn", "plain"])
@pytest.mark.parametrize("along", ["gradient", "random", "update"])
def test_agrees_with_the_second_implementation(norm, along):
    model, x, y = slow.problem(norm=norm)
    parameters = list(model.parameters())
    start = loss_and_gradient(loss_of(model, x, y), parameters)
    direction = {
        "gradient": None,
        "random": random_direction(start.gradient, torch.Generator().manual_seed(5)),
        "update": [1e-2 * g.sign() for g in start.gradient],
    }[along]
    steps = vgg_steps(points=4)
    seen = probe_along(loss_of(model, x, y), parameters, steps, start=start, direction=direction)
    vector = None if direction is None else torch.cat([d.flatten() for d in direction]).double().numpy()
    rows = slow.probe_along(model, x, y, steps, vector)

    def column(name):
        return [row[name] for row in rows]

    loss, _ = slow.evaluate(model, x, y)
    assert seen.loss_at_start.item() == loss
    assert seen.s.tolist() == list(steps)
    assert seen.distance_moved.tolist() == pytest.approx(column("moved"), rel=1e-5)
    assert seen.loss.tolist() == pytest.approx(column("loss"), rel=1e-5)
    assert seen.gradient_distance.tolist() == pytest.approx(column("distance"), rel=1e-5)
    assert seen.cosine.tolist() == pytest.approx(column("cosine"), rel=1e-5)
    # A conv bias before BN has gradient 0: what is left there is rounding.
    np.testing.assert_allclose(seen.parameter_distance, column("layer_distance"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.parameter_moved, column("layer_moved"), rtol=1e-5)
    assert relative_distance(seen.gradient_distance, seen.gradient_norm) == pytest.approx(column("relative"), rel=1e-5)
    assert effective_beta(seen.gradient_distance, seen.distance_moved) == pytest.approx(max(column("beta")), rel=1e-5)
    assert loss_band(seen.loss) == pytest.approx((min(column("loss")), max(column("loss"))), rel=1e-5)
    low, high = predictiveness_band(seen.gradient_distance)
    assert (low, high) == pytest.approx((min(column("distance")), max(column("distance"))), rel=1e-5)


# --- cost and traces ----------------------------------------------------------------------------------------------


def test_costs_one_pass_per_s_and_one_for_the_start():
    _, parameters, loss_fn = quadratic()
    calls = []

    def counted():
        calls.append(1)
        return loss_fn()

    probe_along(counted, parameters, vgg_steps())
    assert len(calls) == 9
    start = loss_and_gradient(counted, parameters)
    probe_along(counted, parameters, vgg_steps(), start=start)
    assert len(calls) == 18


def test_leaves_weights_buffers_gradients_and_random_numbers_as_they_were():
    """A wrong probe changes the running statistics of batch norm, the random generators or the weights."""
    model, x, y = slow.problem(dropout=0.3)
    loss_of(model, x, y)().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    rng = torch.get_rng_state()
    with preserve_state(model, train=True):
        probe_along(with_fixed_rng(loss_of(model, x, y), model), model.parameters(), [0.1, 3.0])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    for p, (tensor, value) in zip(model.parameters(), gradients, strict=True):
        assert p.grad is tensor and torch.equal(tensor, value)
        assert not p._backward_hooks
    assert torch.equal(rng, torch.get_rng_state())


def test_weights_and_hooks_are_restored_when_a_pass_fails():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    calls = []

    def fails_at_the_third_pass():
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return (w**2).sum()

    with pytest.raises(MemoryError):
        probe_along(fails_at_the_third_pass, [w], vgg_steps())
    assert w.tolist() == [1.0, 2.0] and not w._backward_hooks


def test_training_after_a_probe_is_the_same_as_without():
    finals = []
    for probing in (False, True):
        model, x, y = slow.problem(dropout=0.2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model, x, y)().backward()
            if probing:
                with preserve_state(model, train=True):
                    probe_along(loss_of(model, x, y), model.parameters(), vgg_steps(points=2))
            optimizer.step()
        finals.append((model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()))
    (state, moments, rng), (other_state, other_moments, other_rng) = finals
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    assert all(torch.equal(moments[i][k], other_moments[i][k]) for i in moments for k in moments[i])
    assert torch.equal(rng, other_rng)


def test_every_pass_has_its_own_gradient_and_not_a_sum():
    """No zero_grad before the second backward: on a linear loss the second gradient would be twice the first."""
    w = torch.ones(3, requires_grad=True)
    w.grad = torch.full((3,), 5.0)
    seen = probe_along(lambda: w.sum(), [w], [0.1, 0.2, 0.4])
    assert seen.gradient_distance.tolist() == [0.0, 0.0, 0.0]
    assert w.grad.tolist() == [5.0, 5.0, 5.0]


def test_gradients_at_the_points_are_freed_one_by_one():
    """At most two copies of the parameters: the gradient of one tensor is freed before the next one is computed."""
    parameters = [torch.ones(1000, requires_grad=True) for _ in range(6)]
    alive, most = [], []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            made = gradient * 2
            alive.append(weakref.ref(made))
            most.append(sum(ref() is not None for ref in alive))
            return made

    start = loss_and_gradient(lambda: sum((p**2).sum() for p in parameters), parameters)

    def loss_fn():
        total = torch.zeros(())
        for p in parameters:
            total = total + (Watch.apply(p) ** 2).sum()
        return total

    probe_along(loss_fn, parameters, [0.1], start=start)
    assert len(most) == 6 and max(most) <= 2


def test_two_parameters_may_share_one_gradient_tensor():
    """autograd hands a and b of a + b the same tensor: subtracting g from it in place would spoil the other."""
    a, b = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    seen = probe_along(lambda: ((a + b) ** 2).sum(), [a, b], [0.25])
    assert seen.parameter_distance.tolist() == [pytest.approx([80**0.5, 80**0.5])]


@pytest.mark.parametrize("steps", [[], [0.0], [-0.1], [0.1, float("nan")]])
def test_step_sizes_are_positive(steps):
    _, parameters, loss_fn = quadratic()
    with pytest.raises(ValueError, match="positive"):
        probe_along(loss_fn, parameters, steps)


def test_a_direction_has_the_parameters_shapes():
    _, parameters, loss_fn = quadratic()
    with pytest.raises(ValueError, match="direction"):
        probe_along(loss_fn, parameters, [0.1], direction=[torch.ones(2), torch.ones(1)])


# --- the measures of Santurkar et al. -----------------------------------------------------------------------------


def test_the_optimizers_update_is_reached_exactly_at_s_one():
    """Direction theta_t - theta_{t+1}, s = 1: the sign that leads to theta_{t+1} and not away from it."""
    model, x, y = slow.problem()
    after = copy.deepcopy(model)
    optimizer = torch.optim.Adam(after.parameters(), lr=1e-3)
    loss_of(after, x, y)().backward()
    optimizer.step()
    update = [p.detach() - q.detach() for p, q in zip(model.parameters(), after.parameters(), strict=True)]
    seen = probe_along(loss_of(model, x, y), model.parameters(), [1.0], direction=update)
    loss, _ = slow.evaluate(after, x, y)
    assert seen.loss.item() == pytest.approx(loss, rel=1e-6)
    assert seen.distance_moved.item() == pytest.approx(slow.length(slow.get(after) - slow.get(model)), rel=1e-6)


def test_beta_divides_by_the_distance_moved_and_not_by_the_training_learning_rate():
    distance, s, gradient_norm = np.array([1.0, 8.0]), np.array([0.5, 2.0]), 2.0
    assert effective_beta(distance, s * gradient_norm) == 2.0  # max(1 / 1, 8 / 4), at any learning rate


def test_bands_run_over_s_and_not_over_steps():
    """Two probes of two points: a square, in which the wrong axis would give no error, only wrong numbers."""
    values = np.array([[1.0, 2.0], [10.0, 30.0]])
    for function in (loss_band, predictiveness_band):
        low, high = function(values)
        assert low.tolist() == [1, 10] and high.tolist() == [2, 30]
    assert effective_beta(values, np.array([[1.0, 4.0], [1.0, 2.0]])).tolist() == [1, 15]
    assert relative_distance(values, [2.0, 10.0]).tolist() == [[0.5, 1], [1, 3]]


def test_predictiveness_is_a_distance_and_not_a_norm():
    """A linear loss with a huge gradient is perfectly predictable."""
    w = torch.ones(3, requires_grad=True)
    seen = probe_along(lambda: 1000 * w.sum(), [w], vgg_steps())
    assert predictiveness_band(seen.gradient_distance) == (0, 0)
    assert seen.gradient_norm > 1000


def test_a_dead_gradient_gives_nan_and_no_warning():
    assert np.isnan(effective_beta([0.0, 0.0], [0.0, 0.0]))
    assert np.isnan(relative_distance([0.0], 0.0)).all()


def test_interpolation_is_exact_for_a_quadratic_and_nothing_is_extrapolated():
    h, parameters, loss_fn = quadratic()
    seen = probe_along(loss_fn, parameters, [0.4, 0.1])  # in any order
    g = h @ torch.cat([p.detach().flatten() for p in parameters])
    distances = np.array([0.1, 0.25, 0.4, 0.099, 0.41]) * g.norm().item()
    moved, curve = (np.tile(a.numpy(), (5, 1)) for a in (seen.distance_moved, seen.gradient_distance))
    found = at_distance(moved, curve, distances)
    assert found[:3] == pytest.approx([s * (h @ g).norm().item() for s in (0.1, 0.25, 0.4)], rel=1e-12)
    assert np.isnan(found[3:]).all()


def test_an_end_that_only_rounding_leaves_outside_is_inside():
    assert at_distance([[1.0, 2.0]] * 2, [[3.0, 5.0]] * 2, [1 - 1e-7, 2 + 1e-7]).tolist() == [3, 5]


def test_arrays_are_the_fields():
    _, parameters, loss_fn = quadratic()
    seen = probe_along(loss_fn, parameters, [0.1, 0.2])
    arrays = seen.arrays()
    assert {name: a.shape for name, a in arrays.items()} == {
        "s": (2,),
        "distance_moved": (2,),
        "loss_at_start": (),
        "gradient_norm": (),
        "loss": (2,),
        "gradient_distance": (2,),
        "cosine": (2,),
        "parameter_distance": (2, 2),
        "parameter_moved": (2, 2),
        "parameter_norm": (2,),
    }
    np.testing.assert_array_equal(arrays["gradient_distance"], seen.gradient_distance)
