import math

import numpy as np
import pytest

from cifarbn.smoothness.dead_runs import dead_since, diverged_at

GUESS = math.log(10)
LEARNS = list(np.linspace(GUESS, 0.5, 100))


def test_a_loss_stuck_at_a_guess_is_dead_from_its_first_stuck_step():
    assert dead_since([3.0, 2.0, *[2.303] * 100]) == 2
    assert dead_since([3.0, 2.0, *[2.303] * 99]) is None


@pytest.mark.parametrize(("loss", "dead"), [(1.009, True), (0.991, True), (1.011, False), (0.989, False)])
def test_stuck_means_within_one_percent(loss, dead):
    assert (dead_since([loss * GUESS] * 5, patience=5) == 0) is dead


def test_a_plain_vgg_that_sits_at_a_guess_and_then_learns_is_alive():
    assert dead_since([2.303] * 500 + LEARNS) is None


def test_a_run_that_dies_after_learning_is_dead():
    assert dead_since(LEARNS + [2.303] * 200, patience=200) == 100


def test_one_loss_off_the_guess_starts_the_count_anew():
    assert dead_since([2.303] * 150 + [2.1] + [2.303] * 99) is None


def test_no_gradient_is_dead_at_any_loss_but_a_vanishing_one():
    norms = [1.0, *[0.0] * 5]
    assert dead_since([0.09] * 6, norms, patience=5) == 1  # mean squared error of a guess
    assert dead_since([1e-9] * 6, norms, patience=5) is None  # everything learnt
    assert dead_since([0.09] * 6, [1e-3] * 6, patience=5) is None


def test_other_numbers_of_classes():
    assert dead_since([math.log(100)] * 5, num_classes=100, patience=5) == 0
    assert dead_since([math.log(100)] * 5, patience=5) is None


def test_a_diverged_run_is_not_dead_and_a_dead_one_not_diverged():
    diverged = [2.3, 3.0, float("inf"), float("nan")]
    assert diverged_at(diverged) == 2 and dead_since(diverged, patience=1) is None
    assert diverged_at([2.303] * 200) is None
    assert diverged_at([]) is None and dead_since([]) is None
