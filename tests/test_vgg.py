import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.vgg import cfgs, make_layers

from cifarbn.models import VGG
from cifarbn.models.vgg import pad_to_32


def parameters(model):
    return sum(p.numel() for p in model.parameters())


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
        model = VGG("A", init="torch", norm=nn.BatchNorm2d, classifier_norm=True)
    assert parameters(model) == 9_758_474
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in model.modules()) == 2


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
@pytest.mark.parametrize("variant", "ABDE")
def test_torchvisions_weights_give_torchvisions_features(variant, norm):
    torch.manual_seed(0)
    # `features` of torchvision's vgg11/13/16/19(_bn), without the classifier's 120 million weights.
    theirs = make_layers(cfgs[variant], batch_norm=norm is nn.BatchNorm2d)
    with torch.device("meta"):
        ours = VGG(variant, norm=norm, init="torch").features
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_the_classifier_is_three_linear_layers():
    with torch.device("meta"):
        model = VGG("A")
    shapes = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 512), (512, 512), (512, 10)]
    assert [type(layer).__name__ for layer in model.classifier] == ["Dropout", "Linear", "ReLU"] * 2


def test_the_head_is_the_last_layer_and_linear():
    for classifier_norm in (False, True):
        model = VGG("A", width=1, classifier_norm=classifier_norm)
        assert isinstance(model.head, nn.Linear)
        assert list(model.modules())[-1] is model.head


@pytest.mark.parametrize("variant", "AE")
def test_the_initial_loss_without_norm_is_about_ln_10(variant):
    torch.manual_seed(0)
    model = VGG(variant)
    with torch.no_grad():
        logits = model(torch.randn(8, 3, 32, 32))
    loss = functional.cross_entropy(logits, torch.arange(8)).item()
    assert loss == pytest.approx(math.log(10), abs=0.05)


def test_xavier_is_normal_with_zero_bias():
    torch.manual_seed(0)
    model = VGG("A")
    assert model.features[18].weight.std().item() == pytest.approx((2 / (2 * 512 * 9)) ** 0.5, rel=0.01)
    assert model.classifier[1].weight.std().item() == pytest.approx((2 / (2 * 512)) ** 0.5, rel=0.01)
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 11
    assert all(layer.bias.count_nonzero() == 0 for layer in layers)


def test_init_torch_keeps_the_defaults():
    torch.manual_seed(0)
    model = VGG("A", width=1, init="torch")
    torch.manual_seed(0)
    assert torch.equal(model.features[0].weight, nn.Conv2d(3, 1, 3).weight)


def test_every_layer_has_its_own_activation():
    model = VGG("A", width=1, activation=nn.PReLU)
    assert sum(isinstance(layer, nn.PReLU) for layer in model.modules()) == 8 + 2


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_inplace_activations_do_not_change_gradients(norm):
    gradients = []
    for inplace in (True, False):
        torch.manual_seed(0)
        model = VGG("A", width=4, norm=norm, activation=lambda inplace=inplace: nn.ReLU(inplace))
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_drops_features_in_training_only():
    torch.manual_seed(0)
    model = VGG("A", width=4, dropout=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("size", [(70, 64), (48, 48), (40, 33), (28, 28), (16, 40), (1, 1)])
def test_images_of_other_sizes(size):
    assert VGG("A", width=1)(torch.zeros(2, 3, *size)).shape == (2, 10)


def test_small_images_are_padded_on_all_sides():
    padded = pad_to_32(torch.ones(1, 1, 28, 31))
    assert padded.shape == (1, 1, 32, 32) and padded.sum() == 28 * 31
    assert padded[0, 0, :2].sum() == padded[0, 0, 30:].sum() == padded[0, 0, :, 31].sum() == 0
    images = torch.ones(1, 1, 32, 40)
    assert pad_to_32(images) is images


def test_it_compiles_to_one_graph_and_supports_channels_last():
    torch.manual_seed(0)
    model = VGG("A", width=4, norm=nn.BatchNorm2d).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), expected)
    channels_last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=channels_last)(images.to(memory_format=channels_last)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "C"}, "variant must be one of A, B, D, E, not 'C'"),
        ({"variant": "a"}, "variant must be one of A, B, D, E, not 'a'"),
        ({"init": "glorot"}, "init must be one of kaiming, xavier, torch, not 'glorot'"),
        ({"width": 0}, "width must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), not 1.0"),
    ],
)
def test_invalid_arguments_raise_an_error(arguments, message):
    with pytest.raises(ValueError) as raised:
        VGG(**({"variant": "A", "width": 1} | arguments))
    assert str(raised.value) == message
