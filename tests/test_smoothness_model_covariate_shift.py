import copy

import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness import covariate_shift

cross_entropy = nn.functional.cross_entropy
LAYERS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # conv and its BN, conv and its BN, linear: positions in parameters()


def test_agrees_with_the_second_implementation():
    model, x, y = slow.problem()
    after = copy.deepcopy(model)
    cross_entropy(after(x), y).backward()
    torch.optim.SGD(after.parameters(), lr=0.05).step()
    result = covariate_shift(model, cross_entropy, (x, y), torch.optim.SGD(model.parameters(), lr=0.05))
    distances, cosines = slow.covariate_shift(model, after, x, y, LAYERS)
    assert result.layers == ("0", "4", "10")
    assert result.distance == pytest.approx(distances, rel=1e-5) and result.distance[0] == 0
    assert result.cosine == pytest.approx(cosines, rel=1e-5)
    assert result.gradient_norm[2] == pytest.approx(slow.length(slow.evaluate(model, x, y)[1][-330:]), rel=1e-5)


def test_the_order_of_the_layers_is_what_counts():
    model, x, y = slow.problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    forward = covariate_shift(model, cross_entropy, (x, y), optimizer, layers=["0", "10"])
    backward = covariate_shift(model, cross_entropy, (x, y), optimizer, layers=["10", "0"])
    assert forward.layers == ("0", "10") and backward.layers == ("10", "0")
    assert forward.distance[0] == backward.distance[0] == 0
    assert forward.distance[1] > 0 and backward.distance[1] > 0
    with pytest.raises(ValueError, match=r"no layers \['head'\]; its layers are \['0', '4', '10'\]"):
        covariate_shift(model, cross_entropy, (x, y), optimizer, layers=["head"])
    with pytest.raises(ValueError, match="name at least one layer"):
        covariate_shift(model, cross_entropy, (x, y), optimizer, layers=[])


def test_leaves_no_trace_also_if_the_update_fails():
    model, x, y = slow.problem(dropout=0.5)
    cross_entropy(model(x), y).backward()
    before = snapshot(model)
    covariate_shift(model, cross_entropy, (x, y), torch.optim.Adam(model.parameters()))
    assert_same(before, snapshot(model))
    with pytest.raises(ZeroDivisionError):
        covariate_shift(model, cross_entropy, (x, y), lambda: 1 / 0)
    assert_same(before, snapshot(model))


def test_the_figure_has_a_bar_for_each_layer():
    model, x, y = slow.problem()
    result = covariate_shift(model, cross_entropy, (x, y), torch.optim.SGD(model.parameters(), lr=0.05))
    left, right = result.plot().axes
    assert [bar.get_width() for bar in left.patches] == result.distance.tolist()
    np.testing.assert_array_equal(right.lines[0].get_xdata(), result.cosine)
