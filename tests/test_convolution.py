"""`GemmConv2d` against torch's convolution."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cifarbn.fast import convolution
from cifarbn.fast.convolution import GemmConv2d, _Convolution, convolve, input_gradient, patches_of, weight_gradient

# (kernel, stride, padding, height, width)
SHAPES = [(3, 1, 1, 4, 4), (3, 2, 1, 8, 8), (3, 2, 1, 7, 5), (1, 2, 0, 8, 7), (3, 1, 0, 6, 5), (2, 1, (0, 1), 3, 4)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), SHAPES)
def test_the_three_products_equal_torchs_convolution(kernel, stride, padding, height, width, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, stride, padding).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    out = conv(x)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    patches = patches_of(x.detach(), conv.kernel_size, conv.stride, conv.padding)
    torch.testing.assert_close(convolve(patches, conv.weight, conv.bias), out)
    torch.testing.assert_close(weight_gradient(patches, gradient, conv.weight.shape), conv.weight.grad)
    if stride == 1:
        torch.testing.assert_close(input_gradient(conv.weight, gradient, conv.padding), x.grad)


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(*(st.integers(1, limit) for limit in (3, 9, 8, 8))),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(-1, 3), st.integers(-1, 3)),
)
@pytest.mark.usefixtures("kernels")
def test_the_kernels_patches_equal_torchs(shape, size, stride, padding):
    assume(all(side + 2 * p >= k for side, p, k in zip(shape[2:], padding, size, strict=True)))
    x = torch.randn(shape).repeat(1, 16, 1, 1).bfloat16().contiguous(memory_format=torch.channels_last)
    assert torch.equal(patches_of(x, size, stride, padding, kernels=True), patches_of(x, size, stride, padding))


def test_an_input_smaller_than_the_kernel_raises_torchs_error():
    conv = GemmConv2d(512, 512, 3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        conv(torch.randn(1, 512, 2, 4))


def test_padding_beyond_the_kernel():
    torch.manual_seed(0)
    weight, gradient = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.randn(2, 5, 8, 8, dtype=torch.float64)
    expected = nn.grad.conv2d_input([2, 3, 3, 3], weight, gradient, 1, 3)
    torch.testing.assert_close(input_gradient(weight, gradient, (3, 3)), expected)


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_first_and_second_derivatives(stride, everything):
    torch.manual_seed(0)
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(2, 2, 4, 3), (3, 2, 3, 3), (3,)]
    ]

    def call(x, weight, bias):
        return _Convolution.apply(x, weight, bias, stride, (1, 1), everything)

    torch.testing.assert_close(call(*tensors), functional.conv2d(*tensors, stride, (1, 1)))
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def both(side, channels=64, outputs=64, bf16=True, **options):
    """Return output and gradients of `GemmConv2d` and `nn.Conv2d` with equal weights and input, in bf16 or fp32."""
    torch.manual_seed(0)
    ours, theirs = (kind(channels, outputs, 3, padding=1, **options) for kind in (GemmConv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(8, channels, side, side)
    found = []
    for conv in (ours, theirs):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = conv(x)
        out.float().square().sum().backward()
        found.append({"out": out, "x": x.grad, **{name: p.grad for name, p in conv.named_parameters()}})
    return found


@pytest.fixture
def used(monkeypatch):
    """Record the matrix products that are computed, as on a CPU with AVX2."""
    monkeypatch.setattr(convolution, "FASTER_IN_FP32", True)
    names = []
    for product in (convolve, input_gradient, weight_gradient):
        name = product.__name__
        monkeypatch.setattr(convolution, name, lambda *a, p=product, name=name: names.append(name) or p(*a))
    return names


ALL = ["convolve", "input_gradient", "weight_gradient"]


@pytest.mark.parametrize(
    ("changes", "products"),
    [
        ({"side": 4}, ["weight_gradient"]),
        ({"side": 8, "outputs": 256}, ["weight_gradient"]),
        ({"side": 4, "channels": 512, "outputs": 256}, ALL),
        ({"side": 8, "channels": 512, "outputs": 256}, ["weight_gradient"]),
        ({"side": 8, "channels": 512, "outputs": 256, "stride": 2}, ["convolve", "weight_gradient"]),
        ({"side": 4, "bf16": False}, ["weight_gradient"]),
        ({"side": 4, "channels": 512, "outputs": 256, "bf16": False}, ["weight_gradient"]),
    ],
)
def test_matrix_products_are_used_for_small_maps(used, changes, products):
    ours, theirs = both(**changes)
    assert used == products
    assert ours.keys() == theirs.keys() == {"out", "x", "weight", "bias"}
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        rounding = 0.01 if changes.get("bf16", True) else 1e-5
        assert (ours[name] - expected).float().norm() < rounding * expected.float().norm(), name


@pytest.mark.parametrize(
    "options",
    [
        {"side": 5},
        {"side": 9, "outputs": 256},
        {"side": 4, "channels": 32},
        {"side": 4, "groups": 2},
        {"side": 8, "outputs": 256, "bf16": False},
    ],
)
def test_all_other_cases_are_bit_identical_to_torch(used, options):
    ours, theirs = both(**options)
    assert not used
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_avx2_or_with_avx512_fp32_is_bit_identical_to_torch(used, monkeypatch):
    monkeypatch.setattr(convolution, "FASTER_IN_FP32", False)
    ours, theirs = both(4, bf16=False)
    assert not used and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_fp64_is_bit_identical_to_torch(used, autocast):
    torch.manual_seed(0)
    conv, x = GemmConv2d(64, 64, 3, padding=1).double(), torch.randn(2, 64, 4, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, expected = conv(x), nn.Conv2d.forward(conv, x)
    assert not used and out.dtype == expected.dtype == torch.float64
    assert torch.equal(*(torch.autograd.grad(each.sum(), conv.weight)[0] for each in (out, expected)))
