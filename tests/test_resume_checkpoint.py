"""When `last.ckpt` is written, what signals do, and that nothing of a run outlives it."""

import errno
import gc
import os
import signal
import weakref
from contextlib import suppress

import pytest
import pytorch_lightning as pl
import torch
from in_process import assert_same_run, checkpoint, make_run, result, rows
from pytorch_lightning.callbacks import Timer
from tensorboard.summary.writer.record_writer import RecordWriter
from test_recorders import bn_vgg, train

from cifarbn.data.images import Images
from cifarbn.errors import Interrupted, UserError
from cifarbn.training.callbacks import resume_checkpoint
from cifarbn.training.classifier import Classifier


@pytest.fixture
def tested(monkeypatch):
    """The weights that each test of a run begins with."""
    seen = []

    def note(self):
        seen.append({name: value.clone() for name, value in self.state_dict().items()})

    monkeypatch.setattr(Classifier, "on_test_start", note)
    return seen


class StopAfter(pl.Callback):
    """Stop the training as early stopping does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def use(monkeypatch, *callbacks):
    """Add callbacks to the runs of this test."""
    monkeypatch.setattr(Classifier, "configure_callbacks", lambda self: list(callbacks))


def assert_tested(folder, weights, steps):
    saved = checkpoint(folder)
    assert saved["global_step"] == steps == result(folder)["steps"] == len(rows(folder))
    for name, value in weights.items():
        assert torch.equal(saved["state_dict"][name], value), name


LONG = "checkpoint_minutes=5"  # longer than the run


@pytest.mark.parametrize("steps", [2, 4, 6])
def test_a_run_that_max_steps_ends_keeps_the_weights_it_tested(tmp_path, tested, steps):
    make_run(tmp_path, LONG, f"trainer.max_steps={steps}")
    assert_tested(tmp_path, tested[0], steps)


def test_a_run_that_max_time_ends_keeps_the_weights_it_tested(tmp_path, tested, monkeypatch):
    asked = iter(range(1000))
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage=None: 0.0 if next(asked) < 6 else 2.0)
    make_run(tmp_path, LONG, "+trainer.max_time=00:00:00:01")
    assert 0 < result(tmp_path)["steps"] < 8
    assert_tested(tmp_path, tested[0], result(tmp_path)["steps"])


def test_a_run_without_time_for_a_step_has_a_checkpoint_too(tmp_path, tested):
    make_run(tmp_path, LONG, "+trainer.max_time=00:00:00:00")
    assert result(tmp_path)["status"] == "done" and checkpoint(tmp_path)["global_step"] == 0
    assert all(torch.equal(checkpoint(tmp_path)["state_dict"][name], value) for name, value in tested[0].items())


@pytest.mark.parametrize("steps", [3, 4])
def test_a_run_that_a_callback_ends_stays_ended(tmp_path, tested, monkeypatch, steps):
    use(monkeypatch, StopAfter(steps))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Classifier, "on_test_start", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        make_run(tmp_path, LONG)
    use(monkeypatch)
    make_run(tmp_path, LONG)
    assert_tested(tmp_path, tested[0], steps)


@pytest.mark.parametrize("minutes", ["checkpoint_minutes=0", LONG])
def test_a_finished_run_s_checkpoint_can_be_trained_further(tmp_path, minutes):
    longer, two = tmp_path / "longer", tmp_path / "two"
    longer.mkdir(), two.mkdir()
    train(bn_vgg, two, [], epochs=2)
    train(bn_vgg, longer, [], epochs=1)
    train(bn_vgg, longer, [], epochs=2, checkpoint=longer / "last.ckpt")
    for name, value in checkpoint(two)["state_dict"].items():
        assert torch.equal(checkpoint(longer)["state_dict"][name], value), name
    assert (longer / "metrics.csv").read_text() == (two / "metrics.csv").read_text()


# Signals


class Send(pl.Callback):
    """Send this process a signal within a step."""

    def __init__(self, number, step=1):
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def handlers():
    """The signals' handlers, put back after the test."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield before
    for number, handler in before.items():
        if handler is not None and number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, handler)


def now():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_lets_the_step_finish_saves_and_stops(tmp_path, handlers, number):
    with pytest.raises(Interrupted) as caught:
        train(bn_vgg, tmp_path, [], extra=[Send(number)])
    assert checkpoint(tmp_path)["global_step"] == 2 and caught.value.exit_code == 128 + number
    assert now() == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_test_is_an_interruption(tmp_path, monkeypatch, number):
    class SendInTest(pl.Callback):
        def on_test_batch_start(self, *_):
            signal.raise_signal(number)

    use(monkeypatch, SendInTest())
    with pytest.raises(Interrupted) as caught:
        make_run(tmp_path, "trainer.eval_batch_size=5")
    assert result(tmp_path)["status"] == "interrupted" and caught.value.exit_code == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_launcher_s_handler_is_called_after_the_save_and_its_exit_passes(tmp_path, handlers, number, step):
    saved = []

    def requeue(received, frame):
        saved.append((received, checkpoint(tmp_path)["global_step"]))
        raise SystemExit(-1)

    signal.signal(number, requeue)
    before = now()
    with pytest.raises(SystemExit) as caught:
        train(bn_vgg, tmp_path, [], extra=[Send(number, step)])
    assert type(caught.value) is SystemExit and caught.value.code == -1
    assert saved == [(number, step + 1)] and now() == before


def test_a_handler_that_returns_lets_the_run_continue(tmp_path, handlers):
    saved = []
    signal.signal(signal.SIGUSR1, lambda *_: saved.append(checkpoint(tmp_path)["global_step"]))
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    ends = [train(bn_vgg, tmp_path, [], extra=[Send(signal.SIGUSR1)]), train(bn_vgg, undisturbed, [])]
    assert saved == [2]
    assert all(torch.equal(value, ends[1]["state"][name]) for name, value in ends[0]["state"].items())


def test_an_ignored_warning_stays_ignored(tmp_path, handlers):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    train(bn_vgg, tmp_path, [], extra=[Send(signal.SIGUSR1)])
    assert checkpoint(tmp_path)["global_step"] == 6


class Fail(pl.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, *_):
        raise self.error


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "bad", "disk")])
def test_signals_are_what_they_were_before_the_run_for_any_way_it_ends(tmp_path, handlers, monkeypatch, error):
    use(monkeypatch, *([Fail(error)] if error else []))
    signal.signal(signal.SIGUSR2, lambda *_: None)
    before = now()
    try:
        make_run(tmp_path)
    except BaseException as raised:
        expected = {KeyboardInterrupt: Interrupted, OSError: UserError}  # a fault of the machine is one message
        assert isinstance(raised, expected.get(type(error), type(error)))
    assert now() == before


@pytest.mark.parametrize("ending", ["done", "failed", "interrupted"])
def test_nothing_of_a_finished_run_stays_in_memory(tmp_path, monkeypatch, ending):
    made = []

    def watch(cls):
        create = cls.__init__

        def noting(self, *args, **options):
            made.append(weakref.ref(self))
            create(self, *args, **options)

        monkeypatch.setattr(cls, "__init__", noting)

    for cls in (pl.Trainer, Classifier, Images, torch.optim.Adam):
        watch(cls)
    with monkeypatch.context() as patch, suppress(ValueError, Interrupted):
        if ending == "failed":
            use(patch, Fail(ValueError("x")))
        if ending == "interrupted":
            use(patch, Send(signal.SIGTERM))
        make_run(tmp_path)
    assert result(tmp_path)["status"] == ending
    gc.collect()
    assert len(made) >= 5 and not [kept() for kept in made if kept() is not None]


# Folders and disks


def test_a_run_reads_checkpoints_of_its_own_folder_only(tmp_path, monkeypatch):
    other, undisturbed = tmp_path / "other", tmp_path / "undisturbed"
    make_run(undisturbed, "epochs=1")
    make_run(other, "epochs=1", "seed=1", "trainer.max_steps=2")
    (other / "last.ckpt").rename(tmp_path / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(tmp_path)
    for name, value in {"NTASKS": "1", "JOB_ID": "1", "JOB_NAME": "job", "NODELIST": "here", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("PROCID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    make_run(tmp_path / "run", "epochs=1")
    assert_same_run(tmp_path / "run", undisturbed)


class FullDisk(pl.Callback):
    """From the second step on there is no room for a file: what is written to its name goes to /dev/full."""

    def __init__(self, file):
        self.file = file

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:
            self.file.unlink(missing_ok=True)
            self.file.symlink_to("/dev/full")


@pytest.mark.parametrize("name", ["last.ckpt", "checkpoints.sha256", "recordings.npz", "metrics.csv"])
def test_a_full_disk_names_the_file_and_leaves_no_temporary_one(tmp_path, monkeypatch, name):
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    written = name if name == "metrics.csv" else f".{name}.0.tmp"
    use(monkeypatch, FullDisk(tmp_path / written))
    with pytest.raises(UserError, match="No space left") as caught:
        make_run(tmp_path, LONG, "epochs=1")
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert os.path.basename(caught.value.__cause__.filename) == name and name in str(caught.value)
    assert result(tmp_path)["status"] == "failed" and not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_under_the_event_file(tmp_path, monkeypatch, capfd):
    write, written = RecordWriter.write, []

    def full(self, data):
        written.append(data)
        if len(written) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(UserError, match="No space left") as caught:
        make_run(tmp_path, "epochs=1", "logger=tensorboard")
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert caught.value.__cause__.filename.startswith(str(tmp_path))
    assert result(tmp_path)["status"] == "failed" and "Traceback" not in capfd.readouterr().err


def test_a_signal_that_comes_while_a_checkpoint_is_written_is_not_lost(tmp_path, monkeypatch):
    write, written = resume_checkpoint.write_checkpoint, []

    def interrupted(path, state):
        written.append(state["global_step"])
        if len(written) == 2:
            signal.raise_signal(signal.SIGTERM)
        write(path, state)

    monkeypatch.setattr(resume_checkpoint, "write_checkpoint", interrupted)
    with pytest.raises(Interrupted):
        make_run(tmp_path, "epochs=3")
    assert result(tmp_path)["status"] == "interrupted" and len(written) == 3, "saved once more, and stopped"
