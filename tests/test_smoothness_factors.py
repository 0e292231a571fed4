import numpy as np
import pytest

from cifarbn.smoothness.factors import FEWEST, factor, factor_at_matched_loss, pair_by_loss

RNG = np.random.default_rng(0)


def test_median_over_median_with_the_numbers_of_runs_and_probes():
    found = factor([[6, 6, 6], [6, 6, np.nan]], [[2] * 5])
    assert found.medians == (6, 2) and found.factor == 3 and found.interval == (3, 3)
    assert found.runs == (2, 1) and found.probes == (5, 5)
    assert not found.over_seeds and factor([[6], [6]], [[2], [2]]).over_seeds


def test_without_values_or_without_positive_medians_there_is_none():
    assert factor([], [[1.0]]) is None
    assert factor([[np.nan]], [[1.0]]) is None
    assert factor([[1.0]], [[0.0]]) is None
    assert factor([[0.0]], [[1.0]]) is None
    assert factor_at_matched_loss([], [([1.0], [1.0])]) is None


def test_too_few_probes_have_no_interval():
    assert factor([[2.0] * (FEWEST - 1)], [[1.0] * 50]).interval is None
    assert factor([[2.0] * FEWEST], [[1.0] * 50]).interval == (2, 2)


def test_the_same_runs_always_give_the_same_interval():
    first, second = [RNG.lognormal(size=20)], [RNG.lognormal(size=20)]
    assert factor(first, second) == factor(first, second)
    assert factor(first, second).interval != factor(first, second, seed=1).interval


def test_seeds_that_differ_widen_the_interval():
    """The seeds' medians are 1 and 9 and every probe of a seed is alike: only drawing seeds can show the spread."""
    apart = factor([[1.0] * 20, [9.0] * 20], [[1.0] * 20, [1.0] * 20])
    assert apart.interval == (1, 9)
    assert factor([[1.0] * 20 + [9.0] * 20], [[1.0] * 20] * 2).interval[1] <= 9


def test_correlated_probes_widen_the_interval():
    """The same 216 values, once in any order and once sorted: neighbours are similar, as in a run."""
    values = np.exp(RNG.normal(size=216))
    shuffled, in_order = (factor([v], [[1.0] * 216]).interval for v in (values, np.sort(values)))
    assert np.log(in_order[1] / in_order[0]) > 1.5 * np.log(shuffled[1] / shuffled[0])


def test_the_interval_covers_the_truth_about_95_percent_of_the_time():
    covered = 0
    for i in range(100):
        rng = np.random.default_rng(i)
        low, high = factor([np.exp(rng.normal(size=40))], [np.exp(rng.normal(size=40))]).interval
        covered += low <= 1 <= high
    assert 88 <= covered <= 100


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ([1.0, 2.0], [2.1, 1.05], [(0, 1), (1, 0)]),
        ([1.0], [1.1], [(0, 0)]),
        ([1.0], [1.1001], []),
        ([1.1001], [1.0], []),
        ([1.0, 1.05], [1.1, 1.12], [(0, 0), (1, 1)]),  # taking 1.05 with 1.1 first would leave 1.0 alone
        ([1.0, 1.0, 1.0], [1.0], [(0, 0)]),
        ([np.nan, np.inf, 0.0, -1.0, 2.0], [2.0, np.nan], [(4, 0)]),
        ([], [1.0], []),
    ],
)
def test_pairs_by_hand(first, second, pairs):
    i, j = pair_by_loss(first, second)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == pairs


def test_no_matching_has_more_pairs():
    """Against all matchings of small lists, by brute force."""

    def most(first, second):
        if not first:
            return 0
        rest = [1 + most(first[1:], second[:k] + second[k + 1 :]) for k, b in enumerate(second) if near(first[0], b)]
        return max([most(first[1:], second), *rest])

    def near(a, b):
        return max(a, b) <= 1.1 * min(a, b)

    for _ in range(30):
        first, second = (np.exp(RNG.uniform(0, 0.5, size=5)).tolist() for _ in range(2))
        assert len(pair_by_loss(first, second)[0]) == most(first, second)


def test_at_matched_loss_only_pairs_count():
    """Both measures are 10 times the loss, so at equal loss the factor is 1, unlike over all steps."""
    high, low = np.linspace(2, 4, 11), np.linspace(1, 3, 11)
    assert factor([10 * high], [10 * low]).factor == 1.5
    found = factor_at_matched_loss([(high, 10 * high)], [(low, 10 * low)])
    assert found.factor == pytest.approx(1, rel=0.05)
    assert found.probes == (6, 6), "2.0 to 3.0 in both"
    assert found.interval[0] <= 1 <= found.interval[1]


def test_losses_that_never_meet_have_no_factor():
    assert factor_at_matched_loss([([3.0] * 9, [1.0] * 9)], [([1.0] * 9, [1.0] * 9)]) is None
