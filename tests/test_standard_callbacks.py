"""The order of the callbacks that every run has."""

import pytorch_lightning as pl

from cifarbn.fast.threads import choose_threads
from cifarbn.recorders import HeldOutAccuracy, StepChange
from cifarbn.training.callbacks.standard import StandardCallbacks


def names(callbacks):
    return [type(callback).__name__ for callback in callbacks]


def test_the_callbacks_stand_in_the_order_in_which_they_need_each_other(tmp_path):
    recorders = [HeldOutAccuracy(tmp_path), StepChange(tmp_path)]
    found = names(StandardCallbacks(tmp_path, recorders, threads=choose_threads(environment={})).in_order)
    first = ["Timing", "ThreadWatch", "MetricsLogger", "HeldOutAccuracy", "StepChange", "RecordingsFile"]
    assert found == [*first, "ProgressBar", "EpochLine", "ResumeCheckpoint"]


def test_lightning_keeps_the_order(tmp_path):
    standard = StandardCallbacks(tmp_path, [])
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=standard.in_order, enable_model_summary=False)
    assert trainer.callbacks == standard.in_order


def test_without_a_bar_and_threads_to_watch_there_is_neither(tmp_path):
    standard = StandardCallbacks(tmp_path, [], progress_bar=False)
    assert names(standard.in_order) == ["Timing", "MetricsLogger", "RecordingsFile", "EpochLine", "ResumeCheckpoint"]
    assert standard.thread_changes == []
