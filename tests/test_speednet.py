import pytest
import torch
from torch import nn
from torch.nn import functional

from cifarbn.models import SpeedNet
from cifarbn.models.speednet import Group, Whitening


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    # Convolutions 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256), a scale and a shift for 2 * (64 + 256 + 256)
    # channels, 24 biases of the whitening layer (its filters are buffers), 10 * 256 weights of the head.
    assert parameters(SpeedNet()) == 1_967_616 + 2 * 1_152 + 24 + 2_560 == 1_972_504
    assert parameters(SpeedNet(norm=nn.Identity)) == 1_967_616 + 1_152 + 24 + 2_560
    trained = [p for p in SpeedNet().parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 1_972_504 - 1_152
    assert all(p.requires_grad for p in SpeedNet(norm_scale=True).parameters())


def test_whitened_patches_have_the_identity_as_second_moment():
    torch.manual_seed(0)
    mixed = torch.einsum("ij,njhw->nihw", torch.randn(3, 3), torch.randn(200, 3, 8, 8)) + 0.5
    whitening = Whitening(3, 2, eps=0.0)
    whitening.fit(mixed)
    out = whitening(mixed)
    assert out.shape == (200, 24, 7, 7)
    assert torch.equal(out[:, :12], -out[:, 12:])
    white = out[:, :12].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(12).double(), atol=1e-4, rtol=0)


def test_directions_of_little_variance_are_whitened():
    """The smallest eigenvalue is 1e-8 of the largest; in float32 it would be lost."""
    torch.manual_seed(0)
    pixels = torch.randn(100, 3, 8, 8, dtype=torch.float64)
    pixels[:, 1] = pixels[:, 0] + 1e-4 * pixels[:, 1]
    whitening = Whitening(3, 2, eps=0.0).double()
    whitening.fit(pixels)
    patches = functional.unfold(pixels, 2).transpose(0, 1).flatten(1)
    white = whitening.weight[:12].flatten(1) @ patches
    torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0)


def test_eps_bounds_the_filters_of_directions_without_variance():
    whitening = Whitening(3, 2, eps=0.01)
    whitening.fit(torch.ones(4, 3, 8, 8))  # all patches are equal: one eigenvalue is 12, eleven are 0
    lengths = whitening.weight[:12].flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.01**-0.5] * 11 + [12.01**-0.5]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("side", [31, 15, 7, 16])
def test_a_group_equals_a_padded_convolution_and_a_pool(side):
    torch.manual_seed(0)
    group = Group(4, 6, norm=nn.Identity, norm_scale=False, activation=nn.Identity, dirac_init=False)
    x = torch.randn(2, 4, side, side)
    padded = functional.conv2d(x, group.conv1.weight, group.conv1.bias, padding=1)
    expected = group.conv2(functional.max_pool2d(padded, 2))
    torch.testing.assert_close(group(x), expected, atol=1e-5, rtol=1e-5)


def test_dirac_init_passes_the_input_through():
    group = SpeedNet().groups[1]
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(functional.conv2d(x, group.conv1.weight, padding=1)[:, :64], x)
    torch.testing.assert_close(group.conv2(torch.ones(1, 256, 4, 4)), torch.ones(1, 256, 4, 4))
    plain = SpeedNet(dirac_init=False).groups[1].conv2.weight
    assert plain.abs().max() < 0.05  # torch's default: uniform in +-1 / sqrt(fan_in) = +-1/48


def test_the_whitening_bias_is_trained_for_its_epochs():
    def trained(epochs, epoch):
        model = SpeedNet((1, 1, 1), whitening_bias_epochs=epochs)
        model.start_epoch(epoch)
        return model.whitening.bias.requires_grad

    assert [trained(3, epoch) for epoch in (0, 2, 3, 7)] == [True, True, False, False]
    assert trained(None, 100)
    assert not SpeedNet((1, 1, 1), whitening_bias_epochs=0).whitening.bias.requires_grad


@pytest.mark.parametrize("side", [25, 28, 32, 64])
def test_images_of_any_size_from_25(side):
    assert SpeedNet((2, 2, 2))(torch.zeros(3, 3, side, side)).shape == (3, 10)


def test_the_head_is_the_last_layer_and_its_logits_start_small():
    torch.manual_seed(0)
    model = SpeedNet()
    assert list(model.modules())[-1] is model.head and isinstance(model.head, nn.Linear)
    assert model(torch.randn(8, 3, 32, 32)).abs().max() < 1


def test_every_layer_has_its_own_activation():
    model = SpeedNet((1, 1, 1), activation=nn.PReLU)
    assert sum(isinstance(layer, nn.PReLU) for layer in model.modules()) == 1 + 3 * 2


def test_invalid_widths_are_an_error():
    with pytest.raises(ValueError, match="widths must be three numbers, one per group, not \\[64, 256\\]"):
        SpeedNet((64, 256))
    with pytest.raises(ValueError, match="width must be a whole number of at least 1, not 0"):
        SpeedNet((64, 0, 256))


def test_it_compiles_to_one_graph_with_and_without_a_frozen_whitening_bias():
    model = SpeedNet((4, 4, 4)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for epoch in (0, 3):
        model.start_epoch(epoch)
        compiled(images).sum().backward()
    torch.compiler.reset()
