import copy

import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness.evaluation import loss_and_gradient
from cifarbn.smoothness.update import parameters_after, trained_parameters


def gradient_of(model, x, y):
    return loss_and_gradient(lambda: nn.functional.cross_entropy(model(x), y), model.parameters()).gradient


def a_step(model, x, y, **state):
    """What one real step of Adam gives, on a copy."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer.load_state_dict(state) if state else None
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return list(model.parameters())


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def comparable(state):
    """An optimizer's state_dict with tensors as lists."""
    return {
        "groups": [{k: v for k, v in group.items()} for group in state["param_groups"]],
        "state": {i: {k: torch.as_tensor(v).tolist() for k, v in s.items()} for i, s in state["state"].items()},
    }


@pytest.mark.parametrize("steps_before", [0, 2])
def test_an_optimizer_takes_its_next_step_and_keeps_its_state(steps_before):
    model, x, y = slow.problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps_before):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    expected = a_step(model, x, y, **copy.deepcopy(optimizer.state_dict()))
    gradient = gradient_of(model, x, y)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    tensors = [id(v) for s in optimizer.state.values() for v in s.values()]
    after = parameters_after(model, optimizer, gradient)
    assert equal(after, expected)
    assert_same(before, snapshot(model))
    assert comparable(state) == comparable(optimizer.state_dict())
    assert tensors == [id(v) for s in optimizer.state.values() for v in s.values()]


def test_options_that_a_step_changes_are_put_back():
    class Counting(torch.optim.SGD):
        def step(self):
            super().step()
            self.param_groups[0]["lr"] /= 2
            self.param_groups[0]["steps"] = 1

    model, x, y = slow.problem()
    optimizer = Counting(model.parameters(), lr=0.1)
    parameters_after(model, optimizer, gradient_of(model, x, y))
    assert optimizer.param_groups[0]["lr"] == 0.1 and "steps" not in optimizer.param_groups[0]


def test_a_callable_finds_the_gradient_and_may_compute_its_own():
    model, x, y = slow.problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def whole_step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    gradient, before = gradient_of(model, x, y), snapshot(model)
    assert equal(parameters_after(model, optimizer.step, gradient), a_step(model, x, y))
    optimizer.state.clear()
    assert equal(parameters_after(model, whole_step, gradient), a_step(model, x, y))
    assert_same(before, snapshot(model))


def test_a_state_dict_is_the_parameters_after():
    model, x, y = slow.problem()
    other = slow.problem(seed=1)[0]
    assert equal(parameters_after(model, other.state_dict(), gradient_of(model, x, y)), other.parameters())


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        (lambda m: {}, ValueError, "update lacks the parameters .*'0.weight'"),
        (lambda m: m.state_dict() | {"other": torch.ones(1)}, ValueError, r"update has \['other'\], which the model"),
        (lambda m: m.state_dict() | {"0.bias": torch.ones(1)}, ValueError, r"0.bias of shape \(1,\), not \(6,\)"),
        (lambda m: torch.optim.SGD([torch.ones(1)], 0.1), ValueError, "no trained parameter of this model"),
        (lambda m: 0.1, TypeError, "update must be an optimizer, a callable, or a mapping .* not float"),
    ],
)
def test_an_update_that_does_not_fit_is_an_error(update, error, message):
    model, x, y = slow.problem()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        parameters_after(model, update(model), gradient_of(model, x, y))
    assert before["state"].keys() == snapshot(model)["state"].keys()


def test_an_update_that_fails_leaves_model_and_optimizer_as_they_were():
    class Failing(torch.optim.Adam):
        def step(self):
            super().step()
            raise KeyError

    model, x, y = slow.problem(dropout=0.5)
    gradient, before = gradient_of(model, x, y), None
    optimizer, before = Failing(model.parameters()), snapshot(model)
    with pytest.raises(KeyError):
        parameters_after(model, optimizer, gradient)
    assert_same(before, snapshot(model))
    assert not optimizer.state


def test_a_model_without_trained_parameters_is_an_error():
    with pytest.raises(ValueError, match="no trained parameter"):
        trained_parameters(nn.Linear(2, 2).requires_grad_(False))
