"""`FusedBatchNorm2d` against torch's batch norm, and fused layers against separate ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarbn.fast.batch_norm import FusedBatchNorm2d, normalize_and_activate
from cifarbn.fast.kernels import library

pytestmark = pytest.mark.usefixtures("kernels_for_any_number_of_channels", "each_kernel_dtype")

dtype = torch.bfloat16  # of the maps


def maps(*shape, seed=0):
    """Return values around 1, so that subtracting the mean matters."""
    generator = torch.Generator().manual_seed(seed)
    values = (2 * torch.randn(shape, generator=generator) + 1).to(dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def layer(channels, kind=FusedBatchNorm2d, **options):
    norm = kind(channels, **options)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, -2, channels))
        norm.bias.copy_(torch.linspace(-1, 1, channels))
    return norm


def rounding(bf16):
    """Return a tolerance: `bf16`, or much less in float32, where rounded coefficients count as well."""
    return bf16 if dtype == torch.bfloat16 else 1e-3 * bf16


def distance(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def gradients(norm, out, x, shortcut=None, **options):
    inputs = [x, norm.weight, norm.bias] + ([] if shortcut is None else [shortcut])
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape).to(out.dtype), **options)


@pytest.fixture
def calls(monkeypatch):
    """Record the names of the kernel's functions that are called."""
    names = []
    call = library.call
    monkeypatch.setattr(library, "call", lambda name, *arguments: names.append(name) or call(name, *arguments))
    return names


SHAPES = [(4, 3, 5, 7), (2, 16, 1, 1), (130, 1, 1, 2), (3, 20, 8, 8), (2, 64, 9, 15)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_formula_up_to_rounding(calls, shape):
    x, norm, exact = maps(*shape), layer(shape[1]), layer(shape[1], nn.BatchNorm2d).double()
    x64 = x.detach().double().requires_grad_()
    out, expected = norm(x), exact(x64)
    found = gradients(norm, out, x)
    forward = ["moments", "batch_statistics", "normalize"]
    assert calls == [*forward, "gradient_sums", "gradient_coefficients", "gradient"]
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    assert distance(out, expected) < rounding(3e-3)
    torch.manual_seed(1)
    upstream = torch.randn(out.shape).to(dtype).double()
    grad_input, grad_weight, grad_bias = torch.autograd.grad(expected, [x64, exact.weight, exact.bias], upstream)
    # With two values per channel the gradient of x is a small difference of large terms, so compare it with `upstream`.
    assert (found[0].double() - grad_input).norm() < rounding(4e-3) * (grad_input.norm() + upstream.norm())
    assert torch.allclose(found[1].double(), grad_weight, rtol=1e-4, atol=1e-4 * grad_weight.abs().max().item())
    assert torch.allclose(found[2].double(), grad_bias, rtol=1e-5, atol=1e-5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(norm, name).double(), getattr(exact, name).double(), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*(st.integers(1, limit) for limit in (5, 40, 6, 6))).filter(lambda s: s[0] * s[2] * s[3] > 1),
    with_shortcut=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fused_and_separate_are_bit_identical(shape, with_shortcut, seed):
    x, shortcut = maps(*shape, seed=seed), maps(*shape, seed=seed + 100) if with_shortcut else None
    norm, relu = layer(shape[1]), nn.ReLU(inplace=True)
    together = normalize_and_activate(norm, relu, x, shortcut)
    assert type(together.grad_fn).__name__ == "_NormalizationBackward"
    alone = norm(x)
    one_by_one = relu(alone if shortcut is None else alone + shortcut)
    assert torch.equal(together, one_by_one)
    for found, expected in zip(
        gradients(norm, together, x, shortcut), gradients(norm, one_by_one, x, shortcut), strict=True
    ):
        assert torch.equal(found, expected)


def test_results_do_not_depend_on_the_number_of_threads():
    x, norm, found = maps(8, 24, 16, 16), layer(24), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = normalize_and_activate(norm, nn.ReLU(), x)
            found.append([out, *gradients(norm, out, x)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_non_finite_values_propagate():
    x = maps(2, 4, 3, 3)
    with torch.no_grad():
        x[1, 2, 0, 0] = float("nan")
        x[0, 1, 2, 2] = float("inf")
    out = normalize_and_activate(layer(4), nn.ReLU(), x)
    assert out[:, 2].isnan().all() and out[:, 1].isnan().all() and out[:, [0, 3]].isfinite().all()
    upstream = torch.ones_like(out)
    upstream[:, 3] = float("nan")
    grad_input = torch.autograd.grad(out, x, upstream)[0]
    assert (out[:, 3] > 0).any() and grad_input[:, 3].isnan().all() and grad_input[:, 0].isfinite().all()


@pytest.mark.parametrize("mean", [100, -3000])
def test_the_variance_is_accurate_for_a_large_mean(mean):
    step = torch.finfo(dtype).eps * abs(mean) / 1.5  # about the spacing of the dtype's numbers
    x = maps(64, 8, 16, 16).detach().float().sign().mul(step).add(mean).to(dtype)
    norm = layer(8)
    norm(x)
    deviation = x.double().std().item()
    assert 0 < deviation < abs(mean) / 100
    torch.testing.assert_close(norm.running_mean, 0.1 * x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    variance = x.double().var((0, 2, 3)).float()
    torch.testing.assert_close(norm.running_var - 0.9, 0.1 * variance, rtol=1e-3, atol=1e-6)


def test_fp32_is_more_accurate_than_torch():
    if dtype != torch.float32:
        pytest.skip("for float32")
    x, errors = maps(64, 32, 16, 16), []
    exact = layer(32, nn.BatchNorm2d).double()
    expected = gradients(exact, exact(x.double()), x)[0]
    for norm in (layer(32), layer(32, nn.BatchNorm2d)):
        errors.append(distance(gradients(norm, norm(x), x)[0], expected))
    assert errors[0] < 2e-7 and errors[0] < errors[1]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()])
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_gradients_are_twice_differentiable(activation, with_shortcut):
    x, shortcut = maps(4, 6, 3, 3), maps(4, 6, 3, 3, seed=5) if with_shortcut else None
    found = []
    for norm in (layer(6), layer(6, nn.BatchNorm2d)):
        out = normalize_and_activate(norm, activation, x, shortcut)
        once = gradients(norm, out, x, shortcut, retain_graph=True)
        again = gradients(norm, out, x, shortcut, create_graph=True)
        assert all(distance(a, b) < 5e-3 for a, b in zip(again, once, strict=True))
        found.append(torch.autograd.grad(again[0].float().square().sum(), [x, norm.weight]))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.norm() > 0 and distance(ours, theirs) < 0.02


def test_the_relu_masks_infinite_gradients():
    shortcut = maps(4, 6, 3, 3)
    out = normalize_and_activate(layer(6), nn.ReLU(), shortcut.detach().requires_grad_(), shortcut)
    upstream = torch.full_like(out, float("inf"))
    grad_residual = [
        torch.autograd.grad(out, shortcut, upstream, **options)[0]
        for options in ({"retain_graph": True}, {"create_graph": True})
    ]
    assert torch.equal(*grad_residual) and grad_residual[0][out <= 0].eq(0).all()


def test_only_the_residual_may_need_a_gradient():
    norm, shortcut = layer(6).requires_grad_(False), maps(4, 6, 3, 3, seed=5)
    out = normalize_and_activate(norm, nn.ReLU(), maps(4, 6, 3, 3).detach(), shortcut)
    once, again = (
        torch.autograd.grad(out.sum(), shortcut, **options)[0]
        for options in ({"retain_graph": True}, {"create_graph": True})
    )
    assert torch.equal(once, (out > 0).to(out.dtype)) and torch.equal(again, once)


def test_only_requested_gradients_are_computed():
    norm, x = layer(6), maps(4, 6, 3, 3).detach()
    norm.weight.requires_grad_(False)
    norm(x).sum().backward()
    assert norm.weight.grad is None and norm.bias.grad.tolist() == [36] * 6


def test_a_hook_sees_the_norms_output_and_does_not_change_results():
    x, norm, relu, seen = maps(4, 6, 3, 3), layer(6), nn.ReLU(), []
    together = normalize_and_activate(norm, relu, x)
    handle = norm.register_forward_hook(lambda module, given, out: seen.append(out.detach().clone()))
    hooked = normalize_and_activate(norm, relu, x)
    handle.remove()
    assert torch.equal(hooked, together) and torch.equal(seen[0].relu(), together) and (seen[0] < 0).any()
    assert all(map(torch.equal, gradients(norm, hooked, x), gradients(norm, together, x)))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics_equal_torchs(momentum):
    ours, theirs = layer(5, momentum=momentum), layer(5, nn.BatchNorm2d, momentum=momentum)
    for seed in range(3):
        ours(maps(4, 5, 3, 3, seed=seed)), theirs(maps(4, 5, 3, 3, seed=seed))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


def not_ours(**changes):
    """Return a layer and an input that the kernel does not support, because of one difference."""
    norm, x = layer(4, **changes.get("options", {})), maps(2, 4, 3, 3)
    norm.train(changes.get("training", True))
    if changes.get("double"):
        norm.double()
    return norm, changes.get("x", lambda x: x)(x)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": False},
        {"options": {"track_running_stats": False}},
        {"x": lambda x: x.double(), "double": True},
        {"x": lambda x: x.contiguous()},
    ],
)
def test_all_other_cases_are_bit_identical_to_torch(calls, changes):
    norm, x = not_ours(**changes)
    expected = nn.BatchNorm2d.forward(norm, x)
    norm.load_state_dict(not_ours(**changes)[0].state_dict())
    assert torch.equal(norm(x), expected) and not calls


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((1, 4, 1, 1), "Expected more than 1 value per channel"),
        ((2, 3, 2, 2), "running_mean should contain 3 elements"),
        ((2, 1, 2, 2), "running_mean should contain 1 elements"),
    ],
)
def test_invalid_inputs_raise_torchs_errors(shape, error):
    with pytest.raises((ValueError, RuntimeError), match=error):
        layer(4)(maps(*shape))


def test_torchs_default_dtype_and_device_do_not_matter():
    x, norm = maps(4, 6, 3, 3), layer(6)
    expected = norm(x)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = norm(x)
            grad_input = torch.autograd.grad(found, x, expected.detach())[0]
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
    assert torch.equal(grad_input, torch.autograd.grad(expected, x, expected.detach())[0])


@pytest.mark.parametrize("activation", [nn.GELU(), nn.LeakyReLU()])
def test_other_activations_are_not_fused(calls, activation):
    x, shortcut, norm = maps(4, 6, 3, 3), maps(4, 6, 3, 3, seed=5), layer(6)
    out = normalize_and_activate(norm, activation, x, shortcut)
    assert calls == ["moments", "batch_statistics", "normalize"]
    assert torch.equal(out, activation(norm(x) + shortcut))


def test_a_residual_of_another_dtype_is_added_separately(calls):
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    x, shortcut, norm, relu = maps(4, 6, 3, 3), maps(4, 6, 3, 3, seed=5).to(other), layer(6), nn.ReLU()
    out = normalize_and_activate(norm, relu, x, shortcut)
    assert calls == ["moments", "batch_statistics", "normalize"] and out.dtype == torch.float32
    assert torch.equal(out, relu(norm(x) + shortcut))


def test_a_contiguous_residual_is_supported(calls):
    x, shortcut, norm, relu = maps(4, 6, 3, 3), maps(4, 6, 3, 3, seed=5).detach().contiguous(), layer(6), nn.ReLU()
    assert torch.equal(normalize_and_activate(norm, relu, x, shortcut), relu(norm(x) + shortcut))
