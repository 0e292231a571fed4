import doctest

import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness import hessian, model_hessian

cross_entropy = nn.functional.cross_entropy


def test_the_ends_of_the_spectrum_of_the_model_and_of_each_layer():
    model, x, y = slow.problem()
    result = hessian(model, cross_entropy, (x, y), lanczos_steps=60, trace_probes=0, per_layer=True)
    matrix = slow.hessian(model, x, y)
    values = np.linalg.eigvalsh(matrix)
    assert (result.smallest, result.largest) == pytest.approx((values[0], values[-1]), rel=1e-3)
    assert result.size == len(matrix) == sum(layer.size for layer in result.layers.values())
    assert np.isnan(result.trace)
    last = np.linalg.eigvalsh(matrix[-330:, -330:])
    assert result.layers["10"].largest == pytest.approx(last[-1], rel=1e-3)


def test_the_trace_lies_within_its_error():
    model, x, y = slow.problem()
    result = hessian(model, cross_entropy, (x, y), lanczos_steps=1, trace_probes=200)
    assert abs(result.trace - np.trace(slow.hessian(model, x, y))) < 4 * result.trace_error


def test_leaves_no_trace_also_if_the_loss_fails():
    model, x, y = slow.problem(dropout=0.5)
    cross_entropy(model(x), y).backward()
    before = snapshot(model)
    first = hessian(model, cross_entropy, (x, y), lanczos_steps=3, trace_probes=2, per_layer=True)
    assert_same(before, snapshot(model))
    assert first == hessian(model, cross_entropy, (x, y), lanczos_steps=3, trace_probes=2, per_layer=True)
    with pytest.raises(ZeroDivisionError):
        hessian(model, lambda outputs, targets: 1 / 0, (x, y))
    assert_same(before, snapshot(model))


def test_train_and_eval_mode_differ():
    model, x, y = slow.problem()
    train, evaluation = (hessian(model, cross_entropy, (x, y), lanczos_steps=5, train=mode) for mode in (True, False))
    assert train.largest != pytest.approx(evaluation.largest, rel=0.01)


def test_a_parameter_without_part_in_the_loss_has_no_curvature():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    model.forward = lambda x: model["used"](x)
    result = hessian(model, nn.MSELoss(), (torch.randn(4, 2), torch.zeros(4, 1)), per_layer=True)
    assert result.largest > 0 and result.layers["unused"].largest == result.layers["unused"].trace == 0


def test_numbers_out_of_range_are_errors():
    model, x, y = slow.problem()
    for options in ({"lanczos_steps": 0}, {"trace_probes": -1}):
        with pytest.raises(ValueError, match="lanczos_steps must be at least 1"):
            hessian(model, cross_entropy, (x, y), **options)


def test_the_examples_of_the_docstring():
    assert doctest.testmod(model_hessian) == (0, 4)
