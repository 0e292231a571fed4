import copy
import doctest

import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness import model_step_change, step_change

cross_entropy = nn.functional.cross_entropy


def after_a_step(model, x, y):
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    cross_entropy(model(x), y).backward()
    optimizer.step()
    return model


def test_agrees_with_the_second_implementation():
    model, x, y = slow.problem()
    _, *next_batch = slow.problem(seed=1)
    after = after_a_step(model, x, y)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    result = step_change(model, cross_entropy, (x, y), optimizer, next_batch=next_batch)
    change, ratio = slow.step_change(model, after, x, y)
    assert (result.change, result.ratio) == pytest.approx((change, ratio), rel=1e-5)
    assert result.loss_before == pytest.approx(slow.evaluate(model, x, y)[0], rel=1e-6)
    assert result.loss_after == pytest.approx(slow.evaluate(after, x, y)[0], rel=1e-6)
    split = result.next_batch
    expected = slow.consecutive(model, after, (x, y), next_batch)
    assert (split.total, split.drift, split.noise) == pytest.approx(expected, rel=1e-5)
    assert split.total**2 == pytest.approx(split.drift**2 + split.noise**2 + 2 * split.inner, rel=1e-6)


def test_the_three_kinds_of_update_agree():
    model, x, y = slow.problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    results = [
        step_change(model, cross_entropy, (x, y), update)
        for update in (after_a_step(model, x, y).state_dict(), optimizer, optimizer.step)
    ]
    assert results[0] == results[1] == results[2]


def test_layers_add_up_to_the_model():
    model, x, y = slow.problem()
    _, *next_batch = slow.problem(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = step_change(model, cross_entropy, (x, y), optimizer, next_batch=next_batch, per_layer=True)
    assert list(result.layers) == ["0", "4", "10"]
    for name in ("change", "moved", "gradient_norm"):
        total = sum(getattr(layer, name) ** 2 for layer in result.layers.values())
        assert total**0.5 == pytest.approx(getattr(result, name), rel=1e-6)
    assert sum(layer.next_batch.inner for layer in result.layers.values()) == pytest.approx(result.next_batch.inner)


def test_leaves_no_trace_also_if_the_update_fails():
    model, x, y = slow.problem(dropout=0.5)
    cross_entropy(model(x), y).backward()
    model[1].eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = snapshot(model)
    step_change(model, cross_entropy, (x, y), optimizer, next_batch=(x, y), per_layer=True)
    assert_same(before, snapshot(model))
    assert not optimizer.state

    def fails():
        optimizer.step()
        raise KeyError

    with pytest.raises(KeyError):
        step_change(model, cross_entropy, (x, y), fails)
    assert_same(before, snapshot(model))


def test_the_examples_of_the_docstring():
    assert doctest.testmod(model_step_change) == (0, 5)
