import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn

from cifarbn.smoothness.curvature import Hessian, extreme_eigenvalues, spectral_density, trace
from cifarbn.smoothness.lanczos import lanczos


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(eigenvalues, dtype=torch.float32):
    """L = theta' H theta / 2 with the given spectrum in a random basis; theta in two tensors."""
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator(1), dtype=torch.float64))
    h = (basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T).to(dtype)
    h = (h + h.T) / 2
    parameters = [torch.ones(2, 2, dtype=dtype, requires_grad=True), torch.ones(n - 4, dtype=dtype, requires_grad=True)]

    def loss_fn():
        theta = torch.cat([p.flatten() for p in parameters])
        return theta @ h @ theta / 2

    return h, Hessian(loss_fn, parameters)


@pytest.fixture(scope="module")
def small_vgg():
    model, x, y = slow.problem()
    hessian = Hessian(lambda: nn.functional.cross_entropy(model(x), y), model.parameters())
    matrix = slow.hessian(model, x, y)
    return hessian, (matrix + matrix.T) / 2


def test_product_with_a_quadratic_is_the_matrix_product():
    h, hessian = quadratic([5.0, 3.0, 1.0, 0.5, -2.0, 0.0])
    v = torch.randn(6, generator=generator())
    torch.testing.assert_close(hessian @ v, h @ v)
    torch.testing.assert_close(hessian @ v, h @ v)  # and again, from the same graph


def test_product_agrees_with_the_second_implementation(small_vgg):
    hessian, matrix = small_vgg
    for seed in range(3):
        v = torch.randn(hessian.size, generator=generator(seed))
        expected = matrix @ v.double().numpy()
        assert np.linalg.norm((hessian @ v).double().numpy() - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_linear_loss_has_no_curvature():
    w, v = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    assert (Hessian(lambda: w.sum(), [w]) @ torch.ones(3)).tolist() == [0, 0, 0]
    partly = Hessian(lambda: w.sum() + (v**2).sum(), [w, v])
    assert (partly @ torch.ones(5)).tolist() == [0, 0, 0, 2, 2]
    assert extreme_eigenvalues(Hessian(lambda: w.sum(), [w]), generator()).largest == 0


@pytest.mark.parametrize("spectrum", [[7.0, 3.0, 1.0, 0.5, 0.1, -2.0], [1.0, 0.5, 0.2, 0.1, -3.0, -9.0]])
def test_extreme_eigenvalues_of_a_quadratic_are_signed(spectrum):
    """The second spectrum's eigenvalue of largest magnitude is negative: power iteration would return -9."""
    _, hessian = quadratic(spectrum)
    found = extreme_eigenvalues(hessian, generator())
    assert (found.smallest, found.largest) == pytest.approx((min(spectrum), max(spectrum)), rel=1e-5)
    assert found.smallest_residual < 1e-4 and found.largest_residual < 1e-4


def test_extreme_eigenvalues_agree_with_the_second_implementation(small_vgg):
    hessian, matrix = small_vgg
    values = np.linalg.eigvalsh(matrix)
    found = extreme_eigenvalues(hessian, generator(), steps=60)
    assert (found.smallest, found.largest) == pytest.approx((values[0], values[-1]), rel=1e-5)


def test_too_few_steps_show_in_the_residual():
    _, hessian = quadratic(list(np.linspace(-1, 1, 50)), torch.float64)
    few, many = (extreme_eigenvalues(hessian, generator(), steps=steps) for steps in (4, 50))
    assert few.largest < 1 and few.largest_residual > 1e-2
    assert many.largest == pytest.approx(1, rel=1e-9) and many.largest_residual < 1e-9


def test_lanczos_does_not_count_an_eigenvalue_twice():
    """Without full reorthogonalisation the well separated 1000 appears twice."""
    spectrum = torch.cat([torch.tensor([1000.0]), torch.linspace(0, 1, 99)])
    values, _ = lanczos(lambda v: spectrum * v, torch.randn(100, generator=generator()), 60).eigen()
    assert (values > 500).sum() == 1


def test_lanczos_stops_at_an_invariant_subspace():
    spectrum = torch.tensor([2.0, 2.0, 2.0, 5.0, 5.0])
    t = lanczos(lambda v: spectrum * v, torch.ones(5), 5)
    assert t.eigen()[0] == pytest.approx([2, 5], rel=1e-6)
    assert t.remainder == 0


def test_trace_of_a_diagonal_is_exact():
    """v_i^2 = 1: only off-diagonal entries make Rademacher probes differ."""
    w = torch.ones(4, requires_grad=True)
    estimate = trace(Hessian(lambda: (torch.tensor([1.0, 2.0, 3.0, -4.0]) * w**2).sum(), [w]), generator(), probes=3)
    assert estimate == (4.0, 0.0)


def test_trace_lies_within_its_standard_error(small_vgg):
    hessian, matrix = small_vgg
    estimate = trace(hessian, generator(), probes=100)
    assert abs(estimate.trace - np.trace(matrix)) < 3 * estimate.standard_error
    off_diagonal = matrix - np.diag(np.diag(matrix))
    expected_error = (2 * (off_diagonal**2).sum() / 100) ** 0.5
    assert estimate.standard_error == pytest.approx(expected_error, rel=0.3)


def test_one_probe_has_no_standard_error():
    _, hessian = quadratic([1.0] * 5)
    assert np.isnan(trace(hessian, generator(), probes=1).standard_error)


def test_density_of_a_known_spectrum():
    """Two fifths of the eigenvalues at -1, three fifths at 2."""
    _, hessian = quadratic([-1.0] * 40 + [2.0] * 60)
    density = spectral_density(hessian, generator(), probes=20, steps=10)
    assert density.weights.sum() == pytest.approx(1, rel=1e-9)
    assert density.weights[density.nodes < 0].sum() == pytest.approx(0.4, abs=0.05)
    assert density.nodes[density.weights > 1e-3] == pytest.approx(np.where(density.nodes < 0, -1, 2), rel=1e-4)


def test_density_has_the_moments_of_the_spectrum(small_vgg):
    hessian, matrix = small_vgg
    density = spectral_density(hessian, generator(), probes=40, steps=15)
    n = hessian.size
    assert n * density.weights @ density.nodes == pytest.approx(np.trace(matrix), rel=0.1)
    assert n * density.weights @ density.nodes**2 == pytest.approx((matrix**2).sum(), rel=0.2)


def test_smeared_density_integrates_to_one():
    _, hessian = quadratic([-1.0, 0.0, 0.5, 1.0, 2.0])
    x = np.linspace(-3, 4, 2001)
    density = spectral_density(hessian, generator(), probes=3).smeared(x, width=0.1)
    assert np.sum(density) * (x[1] - x[0]) == pytest.approx(1, rel=1e-6)


def test_nothing_global_is_drawn_and_a_seed_repeats():
    _, hessian = quadratic([5.0, 3.0, 1.0, 0.5, -2.0])
    state = torch.get_rng_state()
    first, again = (trace(hessian, generator(4), probes=2) for _ in range(2))
    extreme_eigenvalues(hessian, generator())
    spectral_density(hessian, generator(), probes=1)
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
