import numpy as np
import pytest
import slow_smoothness as slow
import torch
from torch import nn

from cifarbn.smoothness.landscape import filter_normalised_direction, line, surface
from cifarbn.smoothness.trajectory import trajectory_plane


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors]).double().numpy()


def test_each_filter_of_a_direction_is_as_long_as_the_weights_filter():
    model, _, _ = slow.problem()
    direction = filter_normalised_direction(model.parameters(), generator())
    for d, w in zip(direction, model.parameters(), strict=True):
        assert d.shape == w.shape and not d.requires_grad
        if w.dim() < 2:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.detach().flatten(1).norm(dim=1))


def test_direction_agrees_with_the_second_implementation():
    model, _, _ = slow.problem()
    drawn = [torch.randn(p.shape, generator=g) if p.dim() > 1 else p for g in [generator()] for p in model.parameters()]
    expected = slow.filter_normalise(model, flat([d.detach() for d in drawn]))
    direction = flat(filter_normalised_direction(model.parameters(), generator()))
    np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-8)


def test_direction_scales_with_the_weights():
    """This makes models comparable: a convolution twice as large gets a direction twice as large."""
    model, _, _ = slow.problem()
    first = filter_normalised_direction(model.parameters(), generator())
    with torch.no_grad():
        model[0].weight.mul_(2)
    second = filter_normalised_direction(model.parameters(), generator())
    torch.testing.assert_close(second[0], 2 * first[0])
    torch.testing.assert_close(second[4], first[4])


def test_surface_agrees_with_the_second_implementation_and_restores():
    model, x, y = slow.problem()
    first, second = (filter_normalised_direction(model.parameters(), generator(seed)) for seed in (1, 2))
    theta = slow.get(model)
    a, b = [-0.5, 0.0, 0.7], [0.0, 0.3]
    found = surface(lambda: nn.functional.cross_entropy(model(x), y), model.parameters(), first, second, a, b)
    assert found.shape == (3, 2) and not found.requires_grad
    np.testing.assert_allclose(found, slow.surface(model, x, y, flat(first), flat(second), a, b), rtol=1e-5)
    along = line(lambda: nn.functional.cross_entropy(model(x), y), model.parameters(), first, a)
    assert torch.equal(along, found[:, 0])
    assert (slow.get(model) == theta).all()


def test_rows_are_the_first_direction_and_columns_the_second():
    w = torch.zeros(2, requires_grad=True)
    e1, e2 = torch.eye(2)
    found = surface(lambda: w[0] + 10 * w[1], [w], [e1], [e2], [0.0, 1.0, 2.0], [0.0, 3.0])
    assert found.tolist() == [[0, 30], [1, 31], [2, 32]]


def test_plane_of_a_path_agrees_with_the_second_implementation():
    path = torch.randn(6, 4, generator=generator()) * torch.tensor([5.0, 3.0, 1.0, 0.5])
    points = [[p[:2].view(1, 2), p[2:]] for p in path]
    plane = trajectory_plane(points)
    axes, shares = slow.principal_directions(path.double().numpy())
    for direction, axis, share, found in zip(plane.directions, axes, shares, plane.explained, strict=True):
        assert [d.shape for d in direction] == [(1, 2), (2,)]
        assert abs(flat(direction) @ axis) == pytest.approx(1, rel=1e-5)
        assert found.item() == pytest.approx(share, rel=1e-5)


def test_a_path_in_a_plane_is_fully_explained():
    e1, e2 = torch.eye(3)[:2]
    path = [4 * e1, 2 * e1 + e2, e1, 0 * e1]
    plane = trajectory_plane([[p] for p in path])
    assert plane.explained.sum().item() == pytest.approx(1)
    rebuilt = path[-1] + plane.coordinates @ torch.stack([d[0] for d in plane.directions])
    torch.testing.assert_close(rebuilt, torch.stack(path), atol=1e-5, rtol=1e-5)
    assert plane.coordinates[-1].tolist() == [0, 0]
    assert (plane.coordinates[0] >= 0).all()


def test_two_points_span_no_plane():
    with pytest.raises(ValueError, match="three points"):
        trajectory_plane([[torch.zeros(2)], [torch.ones(2)]])
