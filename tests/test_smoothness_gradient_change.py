import copy

import pytest
import slow_smoothness as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.gradient_change import drift_noise_split, gradient_change


def gradient(model, x, y):
    return loss_and_gradient(lambda: nn.functional.cross_entropy(model(x), y), model.parameters()).gradient


def after_a_step(model, x, y):
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return model


def test_quadratic_changes_by_h_times_the_step():
    h = torch.diag(torch.tensor([5.0, 2.0]))
    before, after = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0])
    result = gradient_change([h @ before], [h @ after], [before], [after])
    assert (result.change.item(), result.moved.item(), result.ratio.item()) == (6.0, 3.0, 2.0)


def test_a_step_that_moves_nothing_has_no_ratio():
    w, g = torch.ones(2), torch.ones(2)
    assert gradient_change([g], [g], [w], [w]).ratio.isnan()


def test_step_change_agrees_with_the_second_implementation():
    model, x, y = slow.problem()
    after = after_a_step(model, x, y)
    result = gradient_change(
        gradient(model, x, y), gradient(after, x, y), list(model.parameters()), list(after.parameters())
    )
    change, ratio = slow.step_change(model, after, x, y)
    assert result.change.item() == pytest.approx(change, rel=1e-5)
    assert result.ratio.item() == pytest.approx(ratio, rel=1e-5)


def test_split_agrees_with_the_second_implementation():
    model, x, y = slow.problem()
    _, x2, y2 = slow.problem(seed=1)
    after = after_a_step(model, x, y)
    result = drift_noise_split(gradient(model, x, y), gradient(model, x2, y2), gradient(after, x2, y2))
    expected = slow.consecutive(model, after, (x, y), (x2, y2))
    assert [v.item() for v in result[:3]] == pytest.approx(expected, rel=1e-5)


VECTOR = st.lists(st.floats(-10, 10), min_size=3, max_size=3).map(lambda v: [torch.tensor(v, dtype=torch.float64)])


@settings(deadline=None, max_examples=50)
@given(VECTOR, VECTOR, VECTOR)
def test_the_parts_add_up(now, crossed, following):
    split = drift_noise_split(now, crossed, following)
    parts = split.drift**2 + split.noise**2 + 2 * split.inner
    assert parts.item() == pytest.approx(split.total.item() ** 2, abs=1e-9)


def test_one_minibatch_is_all_drift_and_one_point_is_all_noise():
    a, b = [torch.tensor([1.0, 2.0])], [torch.tensor([4.0, 6.0])]
    assert [v.item() for v in drift_noise_split(a, a, b)] == [5, 5, 0, 0]
    assert [v.item() for v in drift_noise_split(a, b, b)] == [5, 0, 5, 0]


def test_noise_is_twice_the_trace_of_the_covariance_over_the_batch():
    """Per-sample gradient of |theta - x|^2 / 2 is theta - x: at a fixed point E noise^2 = 2 tr(Sigma) / |B|."""
    generator = torch.Generator().manual_seed(0)
    theta, step, size, dim = torch.ones(3), torch.full((3,), 0.5), 8, 3
    squares = []
    for _ in range(4000):
        now, following = (torch.randn(size, dim, generator=generator).mean(0) for _ in range(2))
        split = drift_noise_split([theta - now], [theta - following], [theta + step - following])
        assert split.drift.item() == pytest.approx(0.75**0.5, rel=1e-5)
        squares.append(split.noise.item() ** 2)
    assert sum(squares) / 4000 == pytest.approx(2 * dim / size, rel=0.05)
