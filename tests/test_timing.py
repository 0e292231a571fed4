"""Where the seconds of a run go, by a clock that the test moves."""

from types import SimpleNamespace

import pytest
import torch

from cifarbn.training.callbacks import timing
from cifarbn.training.callbacks.timing import Timing


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.seconds)
    return now


def test_the_first_step_of_each_batch_size_counts_neither_as_training_nor_in_the_throughput(clock):
    watched, trainer, module = Timing(), SimpleNamespace(world_size=1), SimpleNamespace(device=torch.device("cpu"))

    def step(size, seconds):
        batch = (None, torch.zeros(size))
        watched.on_train_batch_start(trainer, module, batch, 0)
        clock.seconds += seconds
        watched.on_train_batch_end(trainer, module, None, batch, 0)

    watched.on_train_start(trainer, module)
    for size, seconds in [(4, 50.0), (4, 1.0), (4, 2.0), (2, 30.0), (4, 1.0), (2, 0.5)]:
        step(size, seconds)
    watched.on_train_end(trainer, module)
    assert watched.seconds == {"first_step": 80.0, "train": 4.5, "evaluate": 0.0, "checkpoint": 0.0}
    assert watched.images_per_second == (3 * 4 + 2) / 4.5


def test_a_run_that_fails_before_training_has_no_seconds_and_no_throughput(clock):
    clock.seconds = 4555.0
    watched = Timing()
    watched.on_exception(None, None, ValueError())
    assert set(watched.seconds.values()) == {0.0} and watched.images_per_second is None
