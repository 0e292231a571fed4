import doctest

import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn
from unchanged import assert_same, snapshot

from cifarbn.smoothness import model_probe, probe, vgg_steps

cross_entropy = nn.functional.cross_entropy


def test_agrees_with_the_second_implementation():
    model, x, y = slow.problem()
    result = probe(model, nn.CrossEntropyLoss(), (x, y), steps=[0.05, 0.2])
    rows = slow.probe_along(model, x, y, [0.05, 0.2])
    assert result.loss == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    assert result.distance_moved == pytest.approx([row["moved"] for row in rows], rel=1e-5)
    assert result.gradient_distance == pytest.approx([row["distance"] for row in rows], rel=1e-5)
    assert result.relative_distance == pytest.approx([row["relative"] for row in rows], rel=1e-5)
    assert result.cosine == pytest.approx([row["cosine"] for row in rows], rel=1e-5)
    assert result.effective_beta == pytest.approx(max(row["beta"] for row in rows), rel=1e-5)
    assert result.predictiveness_band == (result.gradient_distance.min(), result.gradient_distance.max())
    assert result.loss_band == (result.loss.min(), result.loss.max())


def test_layers_add_up_to_the_model():
    model, x, y = slow.problem()
    result = probe(model, cross_entropy, (x, y), per_layer=True)
    assert list(result.layers) == ["0", "4", "10"]
    for name in ("gradient_distance", "distance_moved", "gradient_norm", "parameter_norm"):
        total = sum(np.square(getattr(layer, name)) for layer in result.layers.values())
        np.testing.assert_allclose(np.sqrt(total), getattr(result, name), rtol=1e-6)
    first = slow.probe_along(model, x, y, vgg_steps())[0]
    expected = slow.length(first["layer_distance"][4:8])  # the second convolution and its batch norm
    assert result.layers["4"].gradient_distance[0] == pytest.approx(expected, rel=1e-5)
    assert probe(model, cross_entropy, (x, y)).layers == {}


def test_leaves_no_trace_also_if_the_loss_fails():
    model, x, y = slow.problem(dropout=0.5)
    cross_entropy(model(x), y).backward()
    model[1].eval()
    before = snapshot(model)
    probe(model, cross_entropy, (x, y), direction="random", per_layer=True)
    assert_same(before, snapshot(model))

    calls = []

    def fails_at_its_third_call(outputs, targets):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError
        return cross_entropy(outputs, targets)

    with pytest.raises(KeyError):
        probe(model, fails_at_its_third_call, (x, y))
    assert_same(before, snapshot(model))


def test_directions():
    model, x, y = slow.problem()
    along_gradient = probe(model, cross_entropy, (x, y))
    first, again, other = (probe(model, cross_entropy, (x, y), direction="random", seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.gradient_distance, again.gradient_distance)
    assert (first.gradient_distance != other.gradient_distance).all()
    np.testing.assert_allclose(first.distance_moved, along_gradient.distance_moved, rtol=1e-6)
    ones = [torch.ones_like(p) for p in model.parameters()]
    moved = probe(model, cross_entropy, (x, y), steps=[0.1], direction=ones).distance_moved
    assert moved == pytest.approx([0.1 * sum(p.numel() for p in model.parameters()) ** 0.5], rel=1e-6)


def test_what_makes_no_sense_is_an_error():
    model, x, y = slow.problem()
    with pytest.raises(ValueError, match='direction must be "gradient", "random" or .*, not \'uphill\''):
        probe(model, cross_entropy, (x, y), direction="uphill")
    with pytest.raises(ValueError, match="positive"):
        probe(model, cross_entropy, (x, y), steps=[0.0])
    with pytest.raises(ValueError, match="no trained parameter"):
        probe(model.requires_grad_(False), cross_entropy, (x, y))


def test_models_that_are_no_image_classifiers():
    """A regression on sequences of tokens, in float64, with a parameter that has no part in the loss."""

    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.recur = nn.GRU(4, 3, batch_first=True)
            self.head, self.unused = nn.Linear(3, 1), nn.Linear(2, 2)

        def forward(self, tokens):
            return self.head(self.recur(self.embed(tokens))[0][:, -1])

    torch.manual_seed(0)
    model = Regression().double()
    result = probe(model, nn.MSELoss(), (torch.randint(5, (6, 7)), torch.randn(6, 1).double()), per_layer=True)
    assert result.effective_beta > 0
    assert result.layers["unused"].gradient_norm == 0 and np.isnan(result.layers["unused"].effective_beta)


def test_the_figure_shows_the_points():
    model, x, y = slow.problem()
    result = probe(model, cross_entropy, (x, y))
    figure = result.plot()
    left, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_ydata()[1:], result.loss)
    np.testing.assert_array_equal(right.lines[0].get_xdata()[1:], result.distance_moved)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_examples_of_the_docstring():
    assert doctest.testmod(model_probe) == (0, 4)
