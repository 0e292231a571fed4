import numpy as np
import pytest
import slow_smoothness as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cifarbn.smoothness.differences import (
    GradientDifferences,
    course_handout_distance,
    course_report_beta,
    course_report_lipschitz,
    difference_norms,
)

NAN = float("nan")
STACKS = arrays(np.float32, st.tuples(st.integers(0, 7), st.just(2), st.just(3)), elements=st.floats(-9, 9, width=32))


def stream(gradients):
    """The rows of the stream, shape (T, 3)."""
    differences = GradientDifferences()
    rows = [differences.push(torch.as_tensor(g)) for g in gradients]
    return torch.stack(rows).double().numpy() if rows else np.empty((0, 3))


def test_rows_of_a_hand_computed_stream():
    rows = stream([torch.tensor([v]) for v in (3.0, 4.0, 7.0, 7.0)])
    np.testing.assert_array_equal(rows, [[3, NAN, NAN], [4, 1, NAN], [7, 3, 2], [7, 0, 3]])


def test_each_definition_has_its_own_index():
    """Other implementations are off by one step."""
    rows = stream([torch.tensor([v]) for v in (3.0, 4.0, 7.0, 7.0)])
    np.testing.assert_array_equal(course_handout_distance(rows[:, 1]), [NAN, 1, 3, 0])
    np.testing.assert_array_equal(course_report_lipschitz(rows[:, 1]), [1, 3, 0, NAN])
    np.testing.assert_array_equal(course_report_beta(rows[:, 2]), [NAN, 2, 3, NAN])


def test_agrees_with_the_second_implementation_at_the_size_of_a_real_head():
    gradients = np.random.default_rng(0).normal(size=(6, 10, 512)).astype(np.float32) * 1e-2
    wide = gradients.astype(np.float64)
    for rows in (stream(gradients), difference_norms(gradients)):
        for curve, expected in (
            (course_report_lipschitz(rows[:, 1]), slow.course_report_lipschitz(wide)),
            (course_report_beta(rows[:, 2]), slow.course_report_beta(wide)),
            (course_handout_distance(rows[:, 1]), slow.course_handout_distance(wide)),
            (rows[:, 0], {t: slow.length(g.ravel()) for t, g in enumerate(wide)}),
        ):
            assert set(np.flatnonzero(~np.isnan(curve))) == set(expected)
            for t, value in expected.items():
                assert curve[t] == pytest.approx(value, rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(STACKS)
def test_stream_and_stack_agree(gradients):
    np.testing.assert_allclose(stream(gradients), difference_norms(gradients), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(STACKS)
def test_the_course_reports_curve_is_the_course_handouts_one_step_earlier(gradients):
    first = difference_norms(gradients)[:, 1]
    np.testing.assert_array_equal(course_report_lipschitz(first)[:-1], course_handout_distance(first)[1:])


def test_a_constant_added_to_every_gradient_changes_no_difference():
    """A norm is not a distance: norms called predictiveness would change here."""
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    still, moved = stream(gradients), stream(gradients + 100)
    np.testing.assert_allclose(moved[:, 1:], still[:, 1:], rtol=1e-9)
    assert np.all(moved[:, 0] > 100)


def test_second_difference_of_nearly_equal_large_gradients_is_exact():
    """2 G_{t-1} - G_t - G_{t-2}, evaluated in that order in float32, gives 0 here."""
    ulp = 2.0**-23
    g = [torch.tensor([v], dtype=torch.float32) for v in (1.0, 1.0 + 2 * ulp, 1.0 + ulp)]
    assert stream(g)[2, 2] == 3 * ulp


def test_resumes_bit_for_bit():
    gradients = torch.randn(9, 10, 7, generator=torch.Generator().manual_seed(0))
    whole = stream(gradients)
    for cut in range(9):
        first = GradientDifferences()
        for g in gradients[:cut]:
            first.push(g)
        second = GradientDifferences()
        second.load_state_dict(first.state_dict())
        rest = torch.stack([second.push(g) for g in gradients[cut:]]).double().numpy()
        np.testing.assert_array_equal(rest, whole[cut:])


def test_state_is_a_copy_of_two_tensors_at_any_number_of_steps():
    differences = GradientDifferences()
    assert differences.state_dict() == {}
    for _ in range(5):
        differences.push(torch.ones(4))
    state = differences.state_dict()
    assert {k: v.shape for k, v in state.items()} == {"previous": (4,), "difference": (4,)}
    differences.push(torch.full((4,), 2.0))
    assert torch.equal(state["previous"], torch.ones(4))


def test_a_gradient_that_is_overwritten_or_zeroed_later_does_not_matter():
    differences, gradient = GradientDifferences(), torch.ones(4)
    differences.push(gradient)
    gradient.zero_()
    assert differences.push(torch.full((4,), 2.0)).tolist() == [4.0, 2.0, pytest.approx(NAN, nan_ok=True)]


def test_reset_forgets():
    differences = GradientDifferences()
    differences.push(torch.ones(4))
    differences.reset()
    assert differences.push(torch.ones(3))[1].isnan()


def test_half_precision_gradients_are_differenced_in_float32():
    differences = GradientDifferences()
    differences.push(torch.tensor([60000.0, 60000.0], dtype=torch.float16))
    assert differences.push(torch.tensor([-60000.0, -60000.0], dtype=torch.float16))[1].isfinite()


def test_a_nan_affects_three_rows():
    rows = stream([torch.tensor([v]) for v in (1.0, 2.0, NAN, 4.0, 6.0, 9.0)])
    np.testing.assert_array_equal(rows[:, 1], [NAN, 1, NAN, NAN, 2, 3])
    np.testing.assert_array_equal(rows[:, 2], [NAN, NAN, NAN, NAN, NAN, 1])


def test_another_shape_is_an_error_and_not_a_broadcast():
    differences = GradientDifferences()
    differences.push(torch.ones(2, 3))
    with pytest.raises(ValueError, match="shape"):
        differences.push(torch.ones(3))


def test_curves_are_one_value_per_step():
    with pytest.raises(ValueError, match="one value per step"):
        course_report_lipschitz(np.ones((4, 3)))


def test_reads_a_memory_mapped_file(tmp_path):
    raw = np.memmap(tmp_path / "raw.bin", dtype=np.float32, mode="w+", shape=(4, 2))
    raw[:] = np.arange(8).reshape(4, 2)
    np.testing.assert_allclose(difference_norms(raw)[:, 1], [NAN, 8**0.5, 8**0.5, 8**0.5])
