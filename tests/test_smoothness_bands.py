import numpy as np
import pytest
import slow_smoothness as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarbn.smoothness.bands import band, over_seeds

NAN, INF = float("nan"), float("inf")

CURVE = st.dictionaries(st.integers(0, 12), st.floats(-100, 100), max_size=8).map(lambda d: dict(sorted(d.items())))
RUNS = st.dictionaries(st.sampled_from(["1e-3", "2e-3", "1e-4", "5e-4"]), CURVE, max_size=4)


def curves(runs):
    return {name: (list(run), list(run.values())) for name, run in runs.items()}


def test_band_of_two_runs_by_hand():
    result = band({"slow": ([0, 1, 2], [5.0, 4.0, 3.0]), "fast": ([0, 1, 2], [5.0, 1.0, 6.0])})
    assert result.steps.tolist() == [0, 1, 2]
    assert result.low.tolist() == [5, 1, 3]
    assert result.high.tolist() == [5, 4, 6]
    assert result.count.tolist() == [2, 2, 2]
    assert result.omitted == {}


def test_band_runs_over_runs_and_not_over_steps():
    """Three runs of three steps: a square table, in which the wrong axis would give no error, only wrong numbers."""
    table = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [3.0, 30.0, 300.0]])
    result = band({f"run{i}": (range(3), row) for i, row in enumerate(table)})
    assert result.low.tolist() == [1, 10, 100]
    assert result.high.tolist() == [3, 30, 300]


def test_runs_are_aligned_by_step_and_not_by_position():
    result = band({"every": ([0, 1, 2, 3], [9.0, 8.0, 7.0, 6.0]), "late": ([2, 3, 4], [1.0, 2.0, 3.0])})
    assert result.steps.tolist() == [0, 1, 2, 3, 4]
    assert result.low.tolist() == [9, 8, 1, 2, 3]
    assert result.high.tolist() == [9, 8, 7, 6, 3]
    assert result.count.tolist() == [1, 1, 2, 2, 1]


def test_nothing_is_smoothed_before_min_and_max():
    """Two runs that jump against each other: smoothed first, the band would close."""
    jumps = np.tile([0.0, 1.0], 50)
    result = band({"a": (range(100), jumps), "b": (range(100), 1 - jumps)})
    assert set(result.low) == {0.0} and set(result.high) == {1.0}


def test_dead_and_diverged_runs_are_left_out_by_name():
    runs = {"lives": ([0, 1], [2.0, 1.0]), "dies": ([0, 1], [2.303, 2.303])}
    result = band(runs, omit={"dies": "dead since step 0"})
    assert result.high.tolist() == [2, 1] and result.count.tolist() == [1, 1]
    assert result.omitted == {"dies": "dead since step 0"}


def test_a_non_finite_value_ends_a_curve():
    result = band({"a": (range(5), [1.0, 2.0, INF, 0.0, 0.0]), "b": (range(5), [3.0] * 5)})
    assert result.low.tolist() == [1, 2, 3, 3, 3]
    assert result.count.tolist() == [2, 2, 1, 1, 1]


def test_nans_before_the_first_value_only_delay_a_curve():
    """The course handout's gradient distance is not defined at step 0."""
    result = band({"a": (range(4), [NAN, 1.0, NAN, 1.0]), "b": (range(4), [NAN, 5.0, 5.0, 5.0])})
    assert result.steps.tolist() == [1, 2, 3]
    assert result.low.tolist() == [1, 5, 5]


def test_a_band_without_runs_is_empty_and_lists_the_reasons():
    result = band({"a": ([0], [INF]), "b": ([0], [NAN]), "c": ([], []), "d": ([0], [1.0])}, omit={"d": "dead"})
    assert len(result.steps) == len(result.low) == len(result.high) == len(result.count) == 0
    assert result.omitted == {"d": "dead", "a": "no finite value", "b": "no finite value", "c": "no finite value"}


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (([0, 1], [[1.0, 2.0], [3.0, 4.0]]), "1-D"),
        (([0, 1], [1.0]), "equal length"),
        (([0, 1, 1], [1.0, 2.0, 3.0]), "increase"),
        (([1, 0], [1.0, 2.0]), "increase"),
    ],
)
def test_invalid_curves_are_errors(curve, message):
    with pytest.raises(ValueError, match=message):
        band({"a": curve})


def test_leaving_out_an_unknown_run_is_an_error():
    with pytest.raises(ValueError, match="unknwon"):
        band({"unknown": ([0], [1.0])}, omit={"unknwon": "dead"})


@settings(max_examples=100)
@given(RUNS)
def test_agrees_with_the_second_implementation(runs):
    result = band(curves(runs))
    expected = slow.band(runs)
    assert result.steps.tolist() == list(expected)
    assert list(zip(result.low, result.high, result.count, strict=True)) == list(expected.values())


@settings(max_examples=100)
@given(RUNS)
def test_contains_every_curve(runs):
    result = band(curves(runs))
    at = {int(step): i for i, step in enumerate(result.steps)}
    for run in runs.values():
        for step, value in run.items():
            assert result.low[at[step]] <= value <= result.high[at[step]]


@settings(max_examples=100)
@given(RUNS, st.randoms(use_true_random=False))
def test_the_order_of_runs_does_not_matter(runs, rng):
    shuffled = list(curves(runs).items())
    rng.shuffle(shuffled)
    first, second = band(curves(runs)), band(dict(shuffled))
    for name in ("steps", "low", "high", "count"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_over_seeds_takes_the_median_edge_and_the_extremes_by_step():
    found = over_seeds(
        [
            ([0, 1, 2], [1.0, 2.0, 3.0], [5.0, 6.0, 7.0]),
            ([1, 2, 3], [4.0, 1.0, 9.0], [8.0, 9.0, 10.0]),
            ([1], [0.0], [7.0]),
        ]
    )
    assert found.steps.tolist() == [0, 1, 2, 3] and found.seeds == 3
    assert found.low.tolist() == [1, 2, 2, 9] and found.high.tolist() == [5, 7, 8, 10]
    assert found.lowest.tolist() == [1, 0, 1, 9] and found.highest.tolist() == [5, 8, 9, 10]


def test_over_one_seed_is_its_own_band():
    found = over_seeds([([3, 5], [1.0, np.nan], [2.0, np.nan])])
    assert (found.steps.tolist(), found.seeds) == ([3], 1)
    assert found.low == found.lowest == 1 and found.high == found.highest == 2


def test_the_edges_come_before_the_median():
    """Two seeds whose lowest and highest run are exchanged: the band of their mean curves would have no width."""
    one = band({"a": ([0], [0.0]), "b": ([0], [2.0])})
    other = band({"a": ([0], [2.0]), "b": ([0], [0.0])})
    found = over_seeds([(b.steps, b.low, b.high) for b in (one, other)])
    assert (found.low.item(), found.high.item()) == (0, 2)


def test_over_no_seed_is_an_error():
    with pytest.raises(ValueError, match="bands is empty"):
        over_seeds([])
