import pytest
import torch

from cifarbn.smoothness.vectors import distance, dot, dots, norm, norms, random_direction

FIRST = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([12.0])]
SECOND = [torch.tensor([[1.0, 5.0], [5.0, 1.0]]), torch.tensor([2.0])]


def test_a_list_of_tensors_is_one_long_vector():
    assert norms(FIRST).tolist() == [5.0, 12.0]
    assert norm(FIRST).item() == 13.0
    assert dots(FIRST, SECOND).tolist() == [7.0, 24.0]
    assert dot(FIRST, SECOND).item() == 31.0
    assert distance(FIRST, SECOND).item() == pytest.approx((4 + 25 + 25 + 9 + 100) ** 0.5, rel=1e-12)


def test_a_scalar_parameter_is_a_vector_too():
    assert norm([torch.tensor(-3.0), torch.tensor([4.0])]).item() == 5.0
    assert distance([torch.tensor(-3.0)], [torch.tensor(1.0)]).item() == 4.0


def test_norm_of_a_vgg_layer_is_exact_where_a_float32_sum_is_not():
    weights = torch.randn(512 * 512 * 9, generator=torch.Generator().manual_seed(0))
    truth = weights.double().norm().item()
    assert norm([weights]).item() == pytest.approx(truth, rel=1e-9)
    assert dot([weights], [weights]).item() == pytest.approx(truth**2, rel=1e-7)


def test_random_direction_has_the_given_length_and_uses_only_the_generator():
    state = torch.get_rng_state()
    first, again, other = (random_direction(FIRST, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert norm(first).item() == pytest.approx(13.0, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [d.shape for d in first] == [d.shape for d in FIRST]
    assert distance(first, other) > 1


def test_lists_of_unequal_length_are_an_error():
    with pytest.raises(ValueError):
        dot(FIRST, FIRST[:1])
