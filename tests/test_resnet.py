import pytest
import torch
import torchvision
from torch import nn

from cifarbn.models import ResNet


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "arguments", "count"),
    [
        (18, {}, 11_173_962),
        (18, {"pool_blocks": True}, 11_188_042),
        (18, {"stem": "imagenet"}, 11_181_642),
        (34, {}, 21_282_122),
        (50, {}, 23_520_842),
        (101, {}, 42_512_970),
        (152, {}, 58_156_618),
    ],
)
def test_parameter_counts(depth, arguments, count):
    with torch.device("meta"):
        assert parameters(ResNet(depth, init="torch", **arguments)) == count


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvisions_weights_give_torchvisions_logits(depth):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", weights=None, num_classes=10)
    state = {name.replace("fc.", "head."): value for name, value in theirs.state_dict().items()}
    with torch.device("meta"):
        ours = ResNet(depth, stem="imagenet", init="torch")
    ours.to_empty(device="cpu").load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(("stem", "sides"), [("cifar", [32, 16, 8, 4]), ("imagenet", [8, 4, 2, 1])])
def test_the_cifar_stem_keeps_the_resolution_and_the_imagenet_stem_quarters_it(stem, sides):
    model = ResNet(18, stem=stem, width=1).eval()
    seen = []
    for block in model.blocks[::2]:
        block.register_forward_hook(lambda block, args, out: seen.append(out.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == sides


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("size", [(64, 64), (48, 48), (28, 28), (40, 17), (8, 8)])
def test_images_of_other_sizes(stem, size):
    for pool_blocks in (False, True):
        model = ResNet(18, stem=stem, width=1, pool_blocks=pool_blocks, num_classes=7)
        assert model(torch.zeros(2, 3, *size)).shape == (2, 7)


def test_pool_blocks_passes_the_mean_of_every_block_to_the_head():
    torch.manual_seed(0)
    model = ResNet(18, pool_blocks=True, width=2).eval()
    means = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, args, out: means.append(out.mean((2, 3))))
    logits = model(torch.randn(2, 3, 32, 32))
    assert [m.shape[1] for m in means] == [2, 2, 4, 4, 8, 8, 16, 16]
    torch.testing.assert_close(logits, model.head(torch.cat(means, 1)))


def test_the_head_is_the_last_layer_and_linear():
    for arguments in ({}, {"pool_blocks": True}, {"dropout": 0.5}):
        model = ResNet(50, width=1, **arguments)
        assert isinstance(model.head, nn.Linear)
        assert list(model.modules())[-1] is model.head


def test_convolutions_have_a_bias_only_without_a_norm():
    def biases(model):
        return [layer.bias is not None for layer in model.modules() if isinstance(layer, nn.Conv2d)]

    assert not any(biases(ResNet(50, width=1)))
    plain = ResNet(50, width=1, norm=nn.Identity)
    assert all(biases(plain))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())


def test_every_layer_has_its_own_activation():
    made = []

    def activation():
        made.append(nn.PReLU())
        return made[-1]

    for depth, places in ((18, 1 + 8 * 2), (50, 1 + 16 * 3)):
        made.clear()
        model = ResNet(depth, width=1, activation=activation)
        assert len(made) == places
        assert len({id(layer) for layer in model.modules() if isinstance(layer, nn.PReLU)}) == places


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_inplace_activations_do_not_change_gradients(depth, norm):
    gradients = []
    for inplace in (True, False):
        torch.manual_seed(0)
        model = ResNet(depth, width=2, norm=norm, pool_blocks=True, activation=lambda inplace=inplace: nn.ReLU(inplace))
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_kaiming_is_torchvisions_initialisation():
    torch.manual_seed(0)
    model = ResNet(18)
    weight = model.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    # torch's default for a linear layer: uniform in +-1/sqrt(512)
    assert model.head.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)


def test_dropout_drops_features_in_training_only():
    torch.manual_seed(0)
    model = ResNet(18, width=4, dropout=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_it_compiles_to_one_graph_and_supports_channels_last():
    torch.manual_seed(0)
    model = ResNet(18, width=4, pool_blocks=True).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), expected)
    channels_last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=channels_last)(images.to(memory_format=channels_last)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "depth must be one of 18, 34, 50, 101, 152, not 20"),
        ({"stem": "cifar10"}, "stem must be one of cifar, imagenet, not 'cifar10'"),
        ({"init": "he"}, "init must be one of kaiming, xavier, torch, not 'he'"),
        ({"width": 0}, "width must be a whole number of at least 1, not 0"),
        ({"width": 0.5}, "width must be a whole number of at least 1, not 0.5"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), not 1.0"),
        ({"dropout": -0.1}, "dropout must be in [0, 1), not -0.1"),
        ({"dropout": float("nan")}, "dropout must be in [0, 1), not nan"),
    ],
)
def test_invalid_arguments_raise_an_error(arguments, message):
    with pytest.raises(ValueError) as raised:
        ResNet(**({"depth": 18, "width": 1} | arguments))
    assert str(raised.value) == message
