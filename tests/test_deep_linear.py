import pytest
import torch
from torch import nn

from cifarbn.models import DeepLinear


def test_twenty_five_layers_of_10_by_10():
    model = DeepLinear()
    assert [tuple(p.shape) for p in model.parameters()] == [(10, 10)] * 25


@pytest.mark.parametrize("depth", [1, 2, 25])
def test_it_equals_the_product_of_its_weights(depth):
    torch.manual_seed(0)
    model = DeepLinear(depth, features=3).double()
    product = torch.eye(3, dtype=torch.double)
    for weight in model.parameters():
        product = weight @ product
    x = torch.randn(5, 3, dtype=torch.double)
    torch.testing.assert_close(model(x), x @ product.T)


def test_a_norm_follows_every_layer_but_the_last():
    model = DeepLinear(4, norm=nn.BatchNorm1d)
    kinds = [type(module) for module in model.modules() if not list(module.children())]
    assert kinds == 3 * [nn.Linear, nn.BatchNorm1d] + [nn.Linear]


def test_the_head_is_the_last_layer():
    for depth in (1, 25):
        model = DeepLinear(depth)
        assert isinstance(model.head, nn.Linear)
        assert list(model.modules())[-1] is model.head


def test_xavier_has_variance_one_over_the_features():
    torch.manual_seed(0)
    weights = torch.cat([p.flatten() for p in DeepLinear(depth=100).parameters()])
    assert weights.std().item() == pytest.approx(10**-0.5, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth must be a whole number of at least 1, not 0"),
        ({"features": 0}, "features must be a whole number of at least 1, not 0"),
        ({"init": "zero"}, "init must be one of kaiming, xavier, torch, not 'zero'"),
    ],
)
def test_invalid_arguments_raise_an_error(arguments, message):
    with pytest.raises(ValueError) as raised:
        DeepLinear(**arguments)
    assert str(raised.value) == message
