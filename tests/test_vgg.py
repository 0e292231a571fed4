import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.vgg import cfgs, make_layers

from cifarbn.models import VGG


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("variant", "plain", "bn"),
    [
        ("A", 9_750_922, 9_756_426),
        ("B", 9_935_434, 9_941_322),
        ("D", 15_245_130, 15_253_578),
        ("E", 20_554_826, 20_565_834),
    ],
)
def test_parameter_counts(variant, plain, bn):
    with torch.device("meta"):
        assert parameters(VGG(variant, init="torch")) == plain
        assert parameters(VGG(variant, init="torch", norm=nn.BatchNorm2d)) == bn


def test_classifier_norm_adds_two_batch_norms():
    with torch.device("meta"):
        net = VGG("A", init="torch", norm=nn.BatchNorm2d, classifier_norm=True)
    assert parameters(net) == 9_758_474
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in net.modules()) == 2


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
@pytest.mark.parametrize("variant", "ABDE")
def test_torchvisions_weights_load_and_give_its_features(variant, norm):
    torch.manual_seed(0)
    # What torchvision's vgg11/13/16/19(_bn) calls `features`; its classifier of 120 million weights is left out.
    theirs = make_layers(cfgs[variant], batch_norm=norm is nn.BatchNorm2d)
    with torch.device("meta"):
        ours = VGG(variant, norm=norm, init="torch").features
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures), theirs(pictures))
        torch.testing.assert_close(ours.eval()(pictures), theirs.eval()(pictures))


def test_the_classifier_is_three_linear_layers():
    with torch.device("meta"):
        net = VGG("A")
    shapes = [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 512), (512, 512), (512, 10)]
    assert [type(layer).__name__ for layer in net.classifier] == ["Dropout", "Linear", "ReLU"] * 2


def test_the_head_is_the_last_layer_and_linear():
    for classifier_norm in (False, True):
        net = VGG("A", width=1, classifier_norm=classifier_norm)
        assert isinstance(net.head, nn.Linear)
        assert list(net.modules())[-1] is net.head


@pytest.mark.parametrize("variant", "AE")
def test_the_plain_net_starts_at_a_loss_of_about_ln_10(variant):
    torch.manual_seed(0)
    net = VGG(variant)
    with torch.no_grad():
        logits = net(torch.randn(8, 3, 32, 32))
    loss = functional.cross_entropy(logits, torch.arange(8)).item()
    assert loss == pytest.approx(math.log(10), abs=0.05)


def test_xavier_is_normal_with_zero_bias():
    torch.manual_seed(0)
    net = VGG("A")
    assert net.features[18].weight.std().item() == pytest.approx((2 / (2 * 512 * 9)) ** 0.5, rel=0.01)
    assert net.classifier[1].weight.std().item() == pytest.approx((2 / (2 * 512)) ** 0.5, rel=0.01)
    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 11
    assert all(layer.bias.count_nonzero() == 0 for layer in layers)


def test_torch_leaves_the_defaults():
    torch.manual_seed(0)
    net = VGG("A", width=1, init="torch")
    torch.manual_seed(0)
    assert torch.equal(net.features[0].weight, nn.Conv2d(3, 1, 3).weight)


def test_every_place_has_its_own_activation():
    net = VGG("A", width=1, activation=nn.PReLU)
    assert sum(isinstance(layer, nn.PReLU) for layer in net.modules()) == 8 + 2


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_an_inplace_activation_changes_no_gradient(norm):
    gradients = []
    for inplace in (True, False):
        torch.manual_seed(0)
        net = VGG("A", width=4, norm=norm, activation=lambda inplace=inplace: nn.ReLU(inplace))
        net(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_drops_features_in_training_only():
    torch.manual_seed(0)
    net = VGG("A", width=4, dropout=0.5)
    pictures = torch.randn(2, 3, 32, 32)
    assert not torch.equal(net(pictures), net(pictures))
    net.eval()
    assert torch.equal(net(pictures), net(pictures))


def test_a_larger_picture_goes_through():
    assert VGG("A", width=1)(torch.zeros(2, 3, 70, 64)).shape == (2, 10)


def test_compiles_into_one_graph_and_takes_channels_last():
    torch.manual_seed(0)
    net = VGG("A", width=4, norm=nn.BatchNorm2d).eval()
    pictures = torch.randn(2, 3, 32, 32)
    expected = net(pictures)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(pictures), expected)
    channels_last = torch.channels_last
    torch.testing.assert_close(net.to(memory_format=channels_last)(pictures.to(memory_format=channels_last)), expected)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"variant": "C"}, "variant must be one of A, B, D, E, not 'C'"),
        ({"variant": "a"}, "variant must be one of A, B, D, E, not 'a'"),
        ({"init": "glorot"}, "init must be one of kaiming, xavier, torch, not 'glorot'"),
        ({"width": 0}, "width must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), not 1.0"),
    ],
)
def test_what_no_switch_takes_is_refused(switches, message):
    with pytest.raises(ValueError) as refusal:
        VGG(**({"variant": "A", "width": 1} | switches))
    assert str(refusal.value) == message
