import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarbn.smoothness.theorem_4_1 import normalised_gradient_norm


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 20), st.floats(0.1, 5.0), st.floats(0.05, 20.0), st.integers(0, 100))
def test_theorem_4_1_holds_with_equality(m, gamma, spread, seed):
    """autograd through torch's own batch normalisation against the formula of Santurkar et al. with coefficient 1/m."""
    torch.manual_seed(seed)
    y = (spread * torch.randn(m, 4, dtype=torch.float64) + 3).requires_grad_()
    bn = nn.BatchNorm1d(4, eps=1e-30, dtype=torch.float64)  # torch refuses 0
    nn.init.constant_(bn.weight, gamma)
    out = bn(y)
    weights = torch.randn(m, 4, dtype=torch.float64)
    loss = (weights * out.tanh()).sum() + (out**3).mean()
    front, behind = torch.autograd.grad(loss, [out, y])
    sigma = y.detach().std(dim=0, correction=0)
    normalised = (y.detach() - y.detach().mean(0)) / sigma
    found = normalised_gradient_norm(front, normalised, gamma, sigma)
    assert found.tolist() == pytest.approx(behind.norm(dim=0).tolist(), rel=1e-7)


def test_a_gradient_that_only_shifts_or_rescales_is_removed_whole():
    normalised = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    for gradient in (torch.ones(4, 1), 3 * normalised):
        assert normalised_gradient_norm(gradient, normalised, 1.0, torch.ones(1)).item() == 0


def test_never_above_gamma_over_sigma_times_the_gradient():
    gradient = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    normalised = torch.nn.functional.layer_norm(gradient.roll(1, 0).T, (8,)).T
    found = normalised_gradient_norm(gradient, normalised, 2.0, torch.tensor([1.0, 2.0, 4.0]))
    assert (found <= torch.tensor([2.0, 1.0, 0.5]) * gradient.norm(dim=0)).all()
