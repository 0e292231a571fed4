import math

import pytest
import torch
from torch import nn

from cifarbn.models import VGG, ResNet
from cifarbn.models.normalization import GroupNorm2d, LayerNorm2d, LpNorm2d, NoisyBatchNorm2d

# One channel of four values, mean 1: mean |y| = 2, mean y^2 = 6, max |y| = 4.
Y = torch.tensor([-2.0, 0.0, 2.0, 4.0]).reshape(2, 1, 2, 1)
NORMS = {1: 2.0, 2: math.sqrt(6.0), math.inf: 4.0}


@pytest.mark.parametrize("p", NORMS)
def test_lp_norm_centres_and_divides_by_the_norm_before_centring(p):
    layer = LpNorm2d(1, p, eps=0.0)
    torch.testing.assert_close(layer(Y), (Y - 1) / NORMS[p])


@pytest.mark.parametrize("p", NORMS)
def test_lp_norm_evaluates_with_running_statistics(p):
    layer = LpNorm2d(1, p, eps=0.0)
    layer(Y)
    mean, norm = 0.1 * 1, 0.9 + 0.1 * NORMS[p]
    assert layer.running_mean.item() == pytest.approx(mean)
    assert layer.running_norm.item() == pytest.approx(norm)
    torch.testing.assert_close(layer.eval()(Y), (Y - mean) / norm)
    assert layer.running_mean.item() == pytest.approx(mean)


def test_lp_norm_scales_and_shifts_each_channel():
    layer = LpNorm2d(2, 1, eps=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, 1.0]))
        layer.bias.copy_(torch.tensor([0.0, 5.0]))
    out = layer(torch.cat([Y, 10 * Y], 1))
    torch.testing.assert_close(out[:, :1], 3 * (Y - 1) / 2)
    torch.testing.assert_close(out[:, 1:], (Y - 1) / 2 + 5)


def test_l2_equals_batch_norm_if_the_mean_is_zero():
    torch.manual_seed(0)
    y = torch.randn(4, 3, 5, 5, dtype=torch.double)
    y -= y.mean((0, 2, 3), keepdim=True)
    ours, theirs = LpNorm2d(3, 2).double(), nn.BatchNorm2d(3).double()
    inputs = [y.clone().requires_grad_(), y.clone().requires_grad_()]
    outputs = [ours(inputs[0]), theirs(inputs[1])]
    torch.testing.assert_close(*outputs)
    weight = torch.randn_like(y)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out, x in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("p", NORMS)
def test_lp_norm_has_the_gradient_of_its_formula(p):
    torch.manual_seed(0)
    layer = LpNorm2d(2, p).double()
    layer.momentum = 0.0
    assert torch.autograd.gradcheck(layer, torch.randn(2, 2, 2, 2, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("p", NORMS)
def test_lp_norm_of_zeros_is_zero(p):
    assert torch.equal(LpNorm2d(1, p)(torch.zeros(2, 1, 2, 2)), torch.zeros(2, 1, 2, 2))


def test_lp_norm_of_half_precision_has_float32_statistics():
    layer = LpNorm2d(1, 2, eps=0.0)
    out = layer(Y.bfloat16())
    assert out.dtype == torch.bfloat16
    assert layer.running_norm.item() == pytest.approx(0.9 + 0.1 * math.sqrt(6.0), rel=1e-6)


def test_other_exponents_are_an_error():
    with pytest.raises(ValueError, match=r"^p must be one of 1, 2, inf, not 3$"):
        LpNorm2d(1, 3)


def test_noisy_batch_norm_without_noise_is_batch_norm():
    torch.manual_seed(0)
    y = torch.randn(4, 3, 5, 5)
    ours, theirs = NoisyBatchNorm2d(3, n_mu=0, n_sigma=1, r_mu=0, r_sigma=0), nn.BatchNorm2d(3)
    torch.testing.assert_close(ours(y), theirs(y))


def test_noisy_batch_norm_in_evaluation_is_batch_norm_without_random_numbers():
    torch.manual_seed(0)
    ours, theirs = NoisyBatchNorm2d(3), nn.BatchNorm2d(3)
    y = torch.randn(4, 3, 5, 5)
    ours(y), theirs(y)
    before = torch.get_rng_state()
    torch.testing.assert_close(ours.eval()(y), theirs.eval()(y))
    assert torch.equal(torch.get_rng_state(), before)


def test_noisy_batch_norm_is_reproducible_from_the_seed():
    layer, y = NoisyBatchNorm2d(3), torch.randn(4, 3, 5, 5)
    torch.manual_seed(0)
    first, second = layer(y), layer(y)
    torch.manual_seed(0)
    assert torch.equal(layer(y), first)
    assert not torch.equal(first, second)


def test_the_shift_of_noisy_batch_norm_has_the_documented_distribution():
    torch.manual_seed(0)
    channels = 2000
    layer = NoisyBatchNorm2d(channels)
    shift = layer(torch.zeros(4, channels, 5, 5))  # batch norm of zeros is zero for any scale
    mu = shift.mean((0, 2, 3))
    assert mu.abs().max().item() == pytest.approx(0.5, abs=0.05)
    assert mu.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05)
    around = shift - mu[:, None, None]
    assert around.std().item() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)
    assert (shift.amax((0, 2, 3)) - shift.amin((0, 2, 3))).max().item() <= 0.2


def test_the_scale_of_noisy_batch_norm_has_the_documented_distribution():
    torch.manual_seed(0)
    channels = 2000
    layer = NoisyBatchNorm2d(channels, n_mu=0, r_mu=0)
    scale = layer(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, channels, 10, 10))
    scale[0] *= -1
    sigma = scale.mean((0, 2, 3))
    assert sigma.min().item() == pytest.approx(1.0, abs=0.03)
    assert sigma.max().item() == pytest.approx(1.25, abs=0.03)
    assert sigma.mean().item() == pytest.approx(1.125, abs=0.01)
    assert (scale - sigma[:, None, None]).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_noise_does_not_change_the_running_statistics():
    torch.manual_seed(0)
    y = torch.randn(4, 3, 5, 5)
    ours, theirs = NoisyBatchNorm2d(3), nn.BatchNorm2d(3)
    ours(y), theirs(y)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_layer_norm_normalises_each_sample():
    y = torch.tensor([0.0, 2.0, 4.0, 6.0]).reshape(1, 2, 1, 2)
    out = LayerNorm2d(2)(torch.cat([y, 100 * y]))
    torch.testing.assert_close(out[0], out[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[0], (y[0] - 3) / math.sqrt(5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (48, 16), (10, 2), (7, 1)])
def test_group_norm_uses_the_gcd_of_groups_and_channels(channels, groups):
    assert GroupNorm2d(channels).num_groups == groups


@pytest.mark.parametrize("make", [lambda c: LpNorm2d(c, 1), NoisyBatchNorm2d, GroupNorm2d, LayerNorm2d])
def test_every_norm_works_in_resnet_and_vgg_with_inplace_activations(make):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    for model in (
        ResNet(18, width=2, norm=make, activation=lambda: nn.ReLU(inplace=True)),
        VGG("A", width=2, norm=make, activation=lambda: nn.ReLU(inplace=True)),
    ):
        model(images).sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("make", [lambda c: LpNorm2d(c, math.inf), NoisyBatchNorm2d])
def test_norms_keep_channels_last_and_compile_to_one_graph(make):
    layer, y = make(4), torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
    out = torch.compile(layer, backend="eager", fullgraph=True)(y)
    assert out.is_contiguous(memory_format=torch.channels_last)
