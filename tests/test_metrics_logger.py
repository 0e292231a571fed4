"""metrics.csv grows within an epoch, without waiting at each step, and does not depend on how often it is written."""

import errno

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from in_process import make_run, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_recorders import bn_vgg, train, vgg_without_norm

from cifarbn.errors import Diverged, UserError
from cifarbn.runs.old_names import METRICS_STATE
from cifarbn.training.callbacks import metrics_logger
from cifarbn.training.callbacks.host_copy import HostCopy
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.classifier import Classifier


class Watch(pl.Callback):
    """Calls a function at the beginning of each step, and stores the values."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(self.look())


def lines(folder):
    return len((folder / "metrics.csv").read_text().splitlines()) - 1 if (folder / "metrics.csv").exists() else 0


@pytest.fixture
def flush_every(monkeypatch):
    """Set the number of steps after which the runs of this test write rows."""

    def choose(steps):
        monkeypatch.setattr(MetricsLogger.__init__, "__defaults__", (steps,))

    return choose


@pytest.mark.parametrize(
    ("steps", "seen"), [(50, [0, 0, 0, 3, 3, 3]), (2, [0, 0, 2, 3, 3, 5]), (1, [0, 1, 2, 3, 4, 5])]
)
def test_rows_are_written_within_an_epoch_and_are_the_same_however_often(tmp_path, flush_every, steps, seen):
    (tmp_path / "once").mkdir(), (tmp_path / "often").mkdir()
    train(bn_vgg, tmp_path / "once", [])
    flush_every(steps)
    watch = Watch(lambda: lines(tmp_path / "often"))
    train(bn_vgg, tmp_path / "often", [], extra=[watch])
    assert watch.seen == seen
    assert (tmp_path / "often" / "metrics.csv").read_bytes() == (tmp_path / "once" / "metrics.csv").read_bytes()


def test_rows_are_written_after_ten_seconds_too(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_logger, "FLUSH_SECONDS", 0)
    watch = Watch(lambda: lines(tmp_path))
    train(bn_vgg, tmp_path, [], extra=[watch])
    assert watch.seen == [0, 1, 2, 3, 4, 5]


def test_the_host_reads_the_device_only_when_rows_are_written(tmp_path, monkeypatch, flush_every):
    flush_every(2)
    read, fetch = [], MetricsLogger._fetch
    monkeypatch.setattr(MetricsLogger, "_fetch", lambda self, *args: read.append(1) or fetch(self, *args))
    monkeypatch.setattr(metrics_logger, "HostCopy", lambda values: read.append(1) or HostCopy(values))
    train(bn_vgg, tmp_path, [])
    assert len(read) == 2 * 2 + 1, "behind the second step and at the end of each epoch, and for the checkpoint"


def test_tensorboard_gets_an_epoch_s_steps_within_it(tmp_path, flush_every, monkeypatch):
    def drawn():
        events = EventAccumulator(str(tmp_path)).Reload()
        return [event.step for event in events.Scalars("step/loss")] if "step/loss" in events.Tags()["scalars"] else []

    flush_every(1)
    watch = Watch(drawn)
    monkeypatch.setattr(Classifier, "configure_callbacks", lambda self: [watch])
    make_run(tmp_path, "checkpoint_minutes=5", "epochs=1", "logger=tensorboard")
    assert watch.seen == [[], [0], [0, 1], [0, 1, 2]]


def test_a_checkpoint_s_state_is_bit_equal_however_often_rows_are_written(tmp_path, flush_every):
    states = []
    for steps in (1, 50):
        flush_every(steps)
        folder = tmp_path / str(steps)
        make_run(folder, "epochs=1")
        states.append(torch.load(folder / "last.ckpt", weights_only=True)["callbacks"][METRICS_STATE])
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        if name != "buffer":
            assert states[0][name] == states[1][name], name
    assert len(rows(folder)) == states[1]["rows"] == 4 and states[1]["written"] == 0


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_first_bad_step_is_found_however_often_it_looks(tmp_path, flush_every, steps, monkeypatch):
    flush_every(steps)

    class Spoil(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                with torch.no_grad():
                    pl_module.net.head.bias.fill_(torch.nan)

    with pytest.raises(Diverged) as caught:
        train(vgg_without_norm, tmp_path, [], extra=[Spoil()])
    assert caught.value.step == 4 and np.isfinite(caught.value.grad_norm)
    assert lines(tmp_path) == 5


def test_a_row_that_the_disk_has_no_room_for_leaves_no_half_of_it(tmp_path, flush_every, monkeypatch):
    flush_every(1)
    opened = type(tmp_path).open

    class Full:
        """A file that takes ten bytes of a write."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, content):
            self.file.write(content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(self, mode="r", *args, **options):
        file = opened(self, mode, *args, **options)
        return Full(file) if mode == "ab" and lines(self.parent) == 2 else file

    monkeypatch.setattr(type(tmp_path), "open", open_full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(bn_vgg, tmp_path, [])
    assert caught.value.filename == str(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]
    assert (tmp_path / "metrics.csv").read_bytes().endswith(b"\r\n")


def test_a_file_that_somebody_else_changes_is_an_error(tmp_path, flush_every):
    flush_every(1)

    class Meddle(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                (tmp_path / "metrics.csv").unlink()

    with pytest.raises(UserError, match=r"metrics\.csv was changed by another program"):
        train(bn_vgg, tmp_path, [], extra=[Meddle()])
