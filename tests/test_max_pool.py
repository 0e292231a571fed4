"""`FastMaxPool2d` is bit-identical to torch's max pooling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cifarbn.fast.kernels import library
from cifarbn.fast.max_pool import FastMaxPool2d

pytestmark = pytest.mark.usefixtures("kernels_for_any_number_of_channels", "each_kernel_dtype")

dtype = torch.bfloat16  # of the maps


def maps(*shape, seed=0):
    """Return small integers, so that there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, shape, generator=generator).to(dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def both(x, **options):
    """Return the output and the gradient of the input, of `FastMaxPool2d` and of torch."""
    found = []
    for out in (FastMaxPool2d(2)(x), functional.max_pool2d(x, 2)):
        torch.manual_seed(1)
        upstream = torch.randn(out.shape).to(out.dtype)
        found.append((out, *torch.autograd.grad(out, x, upstream, **options)))
    return found


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(2, 9), st.integers(2, 9)),
    seed=st.integers(0, 99),
)
def test_it_is_bit_identical_to_torch(shape, seed):
    ours, theirs = both(maps(*shape, seed=seed))
    assert type(ours[0].grad_fn).__name__ == "_MaxPoolBackward"
    assert all(map(torch.equal, ours, theirs))
    assert ours[0].stride() == theirs[0].stride() or min(ours[0].shape) == 1


@pytest.mark.parametrize("positions", [[(0, 0)], [(0, 1), (1, 0)], [(1, 1), (0, 0), (0, 1), (1, 0)]])
def test_nan_is_the_maximum_as_in_torch(positions):
    x = maps(1, 3, 2, 2)
    with torch.no_grad():
        for row, column in positions:
            x[:, 1, row, column] = float("nan")
    ours, theirs = both(x)
    assert ours[0][:, 1].isnan().all() and torch.equal(ours[0].nan_to_num(9), theirs[0].nan_to_num(9))
    assert torch.equal(ours[1], theirs[1])


def test_infinities_and_zeros_of_both_signs():
    values = [[float("-inf"), float("-inf"), 0.0, -0.0], [float("-inf"), float("-inf"), -0.0, float("inf")]]
    x = torch.tensor(values).to(dtype)[None, None].contiguous(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = both(x)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("side", [4, 5])
def test_gradients_are_twice_differentiable(side):
    x = maps(2, 3, side, side)
    ours, theirs = both(x, create_graph=True)
    assert torch.equal(ours[1], theirs[1])
    out = FastMaxPool2d(2)(x)
    upstream = torch.randn_like(out, requires_grad=True)
    grad_input = torch.autograd.grad(out, x, upstream, create_graph=True)[0]
    weights = torch.randn_like(grad_input)
    gathered = torch.autograd.grad((grad_input * weights).sum(), upstream)[0]
    expected = weights.flatten(2).gather(2, functional.max_pool2d(x, 2, return_indices=True)[1].flatten(2))
    assert torch.equal(gathered.flatten(2), expected)


def test_an_infinite_gradient_reaches_only_the_maximum():
    x = maps(1, 3, 4, 4)
    out = FastMaxPool2d(2)(x)
    once, again = (
        torch.autograd.grad(out, x, torch.full_like(out, float("inf")), **options)[0]
        for options in ({"retain_graph": True}, {"create_graph": True})
    )
    assert torch.equal(once, again) and once.isinf().sum() == out.numel() and not once.isnan().any()


@pytest.mark.parametrize(
    ("pool", "x"),
    [
        (FastMaxPool2d(3), maps(1, 2, 6, 6)),
        (FastMaxPool2d(2, stride=1), maps(1, 2, 6, 6)),
        (FastMaxPool2d(2, ceil_mode=True), maps(1, 2, 5, 5)),
        (FastMaxPool2d(2, padding=1), maps(1, 2, 6, 6)),
        (FastMaxPool2d(2), maps(1, 2, 6, 6).double()),
        (FastMaxPool2d(2), maps(2, 2, 6, 6).contiguous()),
    ],
)
def test_all_other_cases_use_torch(monkeypatch, pool, x):
    monkeypatch.setattr(library, "call", lambda *a: pytest.fail("the kernel was called"))
    assert torch.equal(pool(x), nn.MaxPool2d.forward(pool, x))


def test_too_small_inputs_raise_torchs_error():
    with pytest.raises(RuntimeError, match="too small"):
        FastMaxPool2d(2)(maps(1, 2, 1, 4))
