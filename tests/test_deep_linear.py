import pytest
import torch
from torch import nn

from cifarbn.models import DeepLinear


def test_twenty_five_layers_of_10_by_10():
    net = DeepLinear()
    assert [tuple(p.shape) for p in net.parameters()] == [(10, 10)] * 25


@pytest.mark.parametrize("depth", [1, 2, 25])
def test_it_is_the_product_of_its_weights(depth):
    torch.manual_seed(0)
    net = DeepLinear(depth, features=3).double()
    product = torch.eye(3, dtype=torch.double)
    for weight in net.parameters():
        product = weight @ product
    x = torch.randn(5, 3, dtype=torch.double)
    torch.testing.assert_close(net(x), x @ product.T)


def test_a_normalisation_stands_after_every_layer_but_the_last():
    net = DeepLinear(4, norm=nn.BatchNorm1d)
    kinds = [type(module) for module in net.modules() if not list(module.children())]
    assert kinds == 3 * [nn.Linear, nn.BatchNorm1d] + [nn.Linear]


def test_the_head_is_the_last_layer():
    for depth in (1, 25):
        net = DeepLinear(depth)
        assert isinstance(net.head, nn.Linear)
        assert list(net.modules())[-1] is net.head


def test_xavier_has_variance_one_over_the_features():
    torch.manual_seed(0)
    weights = torch.cat([p.flatten() for p in DeepLinear(depth=100).parameters()])
    assert weights.std().item() == pytest.approx(10**-0.5, rel=0.03)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"depth": 0}, "depth must be a whole number of at least 1, not 0"),
        ({"features": 0}, "features must be a whole number of at least 1, not 0"),
        ({"init": "zero"}, "init must be one of kaiming, xavier, torch, not 'zero'"),
    ],
)
def test_what_no_switch_takes_is_refused(switches, message):
    with pytest.raises(ValueError) as refusal:
        DeepLinear(**switches)
    assert str(refusal.value) == message
