"""Faults and what is true after them: `faults.FAULTS` is the list, whose table is published in docs/reliability.md.

Each file that a run writes is interrupted at every moment of its writes, and damaged in every way of `DAMAGES`.
"""

import ast
import contextlib
import csv
import errno
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from disk import restore, watched
from faults import FAULTS, table
from hydra import compose, initialize_config_dir
from in_process import assert_same_run, checkpoint, make_run, result
from omegaconf import OmegaConf
from processes import fork_context
from test_run_folder import small_disk  # noqa: F401

from cifarbn import train
from cifarbn.cli.command_line import CONF, friendly_errors, read_arguments
from cifarbn.data import CIFAR10
from cifarbn.errors import Interrupted, UserError, machine_fault
from cifarbn.report import write
from cifarbn.report.__main__ import main as report
from cifarbn.report.page import Image
from cifarbn.report.read import read_recordings
from cifarbn.runs import data_frame
from cifarbn.runs.load import load_run
from cifarbn.runs.result_file import read_result, write_result
from cifarbn.training.classifier import Classifier

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
# Two epochs of one step.
FEW = ["data.train_size=24", "data.val_size=8", "data.test_size=8", "data.batch_size=16", "model.width=1"]
FEW += ["logger=none"]
# In CI, some of the moments and damages; the long form, once before a release, takes all.
EVERY = "CIFARBN_EVERY_FAULT" in os.environ


# The list.


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_has_tests_and_every_test_exists(fault):
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        functions = {
            node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, test


def test_the_published_table_is_the_list():
    assert table() in PAGE.read_text(), f"replace the table in {PAGE} by the output of `python tests/faults.py`"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Draw no figures, which takes most of the time of a report."""
    monkeypatch.setattr(write, "_save", lambda drawing, folder, options: Image(b"", 5.0))


# Killed while a file is written.


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """An undisturbed run's folder, and (file, content of the disk) for every moment at which a kill may leave a file.

    A killed process loses nothing that it has written, so the moments are those before and after each write, sync and
    rename. Files are written in order; of a longer write, a kill may leave any part: none, half and all but one byte.
    """
    root = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as monkeypatch, watched(root, monkeypatch) as disk:
        make_run(root / "run", *FEW)
    states = [state for kind, state in disk.cuts if kind == "all"]
    found = []
    for before, after in zip([{}, *states], states, strict=False):
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name, b""), after.get(name, b"")
            file = re.sub(r"^\.|\.[0-9a-f]{8}\.tmp$", "", Path(name).name)
            if old == new or file.endswith(".lock"):
                continue
            found.append((file, after))
            if name.endswith(".tmp") or file == "metrics.csv":
                lengths = {len(old), (len(old) + len(new)) // 2, len(new) - 1}
                found += [(file, before | {name: new[:length]}) for length in sorted(lengths)]
    return root / "run", found


WRITTEN = [
    "last.ckpt",
    "checkpoints.sha256",
    "previous.ckpt",
    "result.json",
    "run.json",
    "metrics.csv",
    "recordings.npz",
]


@pytest.mark.parametrize("file", WRITTEN)
def test_a_kill_at_any_moment_of_a_write_costs_nothing_but_time(moments, tmp_path, file):
    undisturbed, found = moments
    states = [state for name, state in found if name == file]
    assert len(states) >= 2
    for number, state in enumerate(states if EVERY else states[len(states) // 2 :][:1]):
        folder = tmp_path / str(number) / "run"
        restore(state, folder.parent)
        make_run(folder, *FEW)
        assert_same_run(folder, undisturbed)
        assert not list(folder.glob(".*.tmp")), "what the kill left is removed"


def test_a_report_that_is_killed_at_any_moment_is_completed_by_the_same_command(undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed, tmp_path / "runs" / "run")
    out = tmp_path / "runs" / "report"
    with watched(out, monkeypatch) as disk:
        report([str(tmp_path / "runs"), "--models", "0"])
    whole = content(out)
    states = [state for kind, state in disk.cuts if kind == "all"]
    assert len(states) >= 2 * len(whole) > 0
    for state in states:
        shutil.rmtree(out)
        restore(state, out)
        assert all(text == whole[name] for name, text in content(out).items() if not name.endswith(".tmp"))
        write._refuse_files_of_others(out)  # accepts what the killed report has left
    for file in out.glob(".*.tmp"):
        os.utime(file, (0, 0))  # otherwise another report may be writing it
    report([str(tmp_path / "runs"), "--models", "0"])
    assert content(out) == whole


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# Damaged files.


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file, place=None):
    bytes_ = bytearray(file.read_bytes())
    bytes_[len(bytes_) // 3 if place is None else place] ^= 0x01
    file.write_bytes(bytes_)


DAMAGES = {
    "truncated": truncated,
    "flipped": flipped,
    "empty": lambda file: file.write_bytes(b""),
    "binary": lambda file: file.write_bytes(np.random.default_rng(0).bytes(5000)),
    "removed": lambda file: file.unlink(),
}
FILES = ["result.json", ".run.json", "metrics.csv", "recordings.npz", "last.ckpt", "checkpoints.sha256"]


@pytest.fixture(scope="module")
def undisturbed(moments):
    return moments[0]


@pytest.fixture(scope="module")
def half(moments, tmp_path_factory):
    """The folder of a run that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("half") / "run"
    state = next(
        s for file, s in moments[1] if file == "last.ckpt" and {"run/last.ckpt", "run/previous.ckpt"} <= s.keys()
    )
    restore(state, folder.parent)
    assert result(folder)["status"] == "running"
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_finished_run_with_a_damaged_file_is_never_reported_wrongly(undisturbed, tmp_path, file, damage, capsys):
    folder = tmp_path / "runs" / "run"
    shutil.copytree(undisturbed, folder)
    other = tmp_path / "runs" / "other"
    shutil.copytree(undisturbed, other)
    write_result(other / "result.json", {**result(other), "config": result(other)["config"] | {"seed": 1}})
    DAMAGES[damage](folder / file)
    before = content(folder)

    report([str(tmp_path / "runs"), "--models", "0"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    with (tmp_path / "runs" / "report" / "runs.csv").open() as opened:
        rows = {row["run"]: row for row in csv.DictReader(opened)}
    page = (tmp_path / "runs" / "report" / "report.md").read_text()
    if file == "result.json":
        assert "run" not in rows or rows["run"]["test/acc"] == ""
        assert damage == "removed" or "result.json is not a valid result" in page
    elif file in ("metrics.csv", "recordings.npz"):
        assert f"{file} is missing" in page or f"{file} was changed since the run ended" in page
    accuracy = result(undisturbed)["metrics"]["test/acc"]
    frame = data_frame.frame(tmp_path / "runs")
    assert set(frame["test/acc"].dropna()) == {accuracy}
    if file == "result.json" and damage != "removed":
        assert set(frame["status"]) == {"done", "unreadable"}

    damaged = file in ("result.json", "last.ckpt") or (file == "checkpoints.sha256" and damage not in ("removed",))
    try:
        trained = load_run(folder)
    except UserError as error:
        assert damaged and "\n" not in str(error)
    else:
        assert not damaged
        for name, value in trained.model.state_dict().items():
            torch.testing.assert_close(value, checkpoint(undisturbed)["state_dict"][f"net.{name}"].cpu(), msg=name)
    assert content(folder) == before, "reading repairs nothing"


@pytest.mark.parametrize("damage", DAMAGES if EVERY else ["flipped", "removed"])
@pytest.mark.parametrize("file", ["result.json", ".run.json"])
def test_the_command_of_a_finished_run_repairs_its_result(undisturbed, tmp_path, file, damage):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    DAMAGES[damage](folder / file)
    make_run(folder, *FEW)
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("damage", DAMAGES if EVERY else ["truncated"])
@pytest.mark.parametrize("file", FILES)
def test_an_interrupted_run_with_a_damaged_file_ends_like_the_undisturbed_one(
    half, undisturbed, tmp_path, file, damage
):
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    DAMAGES[damage](folder / file)
    make_run(folder, *FEW)
    assert_same_run(folder, undisturbed)


def test_any_flipped_byte_of_a_result_is_an_error_or_changes_nothing(undisturbed, tmp_path):
    whole, expected = (undisturbed / "result.json").read_bytes(), read_result(undisturbed)
    for place in range(0, len(whole), 1 if EVERY else 53):
        (tmp_path / "result.json").write_bytes(whole)
        flipped(tmp_path / "result.json", place)
        try:
            found = read_result(tmp_path)
        except UserError as error:
            assert "is not a valid result" in str(error)
        else:
            assert {key: found.get(key) for key in expected} == expected, place


def test_any_flipped_byte_of_recordings_is_an_error_or_changes_nothing(undisturbed, tmp_path):
    """Also in folders of older versions, whose result.json has no checksum of the file: the archive has its own."""
    whole, expected = (undisturbed / "recordings.npz").read_bytes(), read_recordings(undisturbed)
    for place in range(0, len(whole), 1 if EVERY else 5):
        (tmp_path / "recordings.npz").write_bytes(whole)
        flipped(tmp_path / "recordings.npz", place)
        try:
            found = read_recordings(tmp_path)
        except UserError as error:
            assert "recordings.npz" in str(error) and "\n" not in str(error)
        else:
            assert found.keys() == expected.keys(), place
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, err_msg=f"{place} {name}")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["config.yaml", "overrides.yaml", "hydra.yaml"])
def test_a_run_whose_hydra_folder_is_damaged_is_repeated_as_it_was_or_not_at_all(tmp_path, monkeypatch, file, damage):
    overrides = ["data=shapes", "optim.lr=0.004", "seed=3", "trainer=cpu"]
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    sources = {"config_sources": [{"provider": "main", "path": str(CONF)}]}
    OmegaConf.save({"hydra": {"runtime": sources}}, folder / "hydra.yaml")
    OmegaConf.save(overrides, folder / "overrides.yaml")
    OmegaConf.save(cfg, folder / "config.yaml")
    whole = (folder / file).read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 4)) if damage == "flipped" else [None]
    for place in places:
        (folder / file).write_bytes(whole)
        flipped(folder / file, place) if place is not None else DAMAGES[damage](folder / file)
        monkeypatch.setattr("sys.argv", ["train", "--config-path", str(folder), "--config-name", "config"])
        try:
            with friendly_errors():
                read_arguments()
        except SystemExit as ended:
            assert re.match(r"error: \S", str(ended.code)) and "\n" not in str(ended.code)
        else:
            assert sys.argv[1:] == [*overrides, "hydra.mode=RUN"], place


def test_any_flipped_byte_of_the_images_is_named(tiny_cifar10):
    chance = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        file = tiny_cifar10 / "cifar-10-batches-py" / name
        whole = file.read_bytes()
        for place in [0, len(whole) - 1, *chance.integers(len(whole), size=20)]:
            flipped(file, int(place))
            with pytest.raises(UserError, match=f"is damaged: {name} is truncated or altered"):
                CIFAR10(tiny_cifar10, download=False).setup("fit")
            file.write_bytes(whole)


# The machine.


def test_a_full_disk_ends_a_report_with_one_message_and_keeps_the_earlier_one(undisturbed, tmp_path, small_disk):  # noqa: F811
    out = small_disk(400) / "out"
    report([str(undisturbed), "--out", str(out), "--models", "0"])
    before = content(out)
    small_disk(0)
    shutil.copytree(undisturbed, tmp_path / "runs" / "a")
    shutil.copytree(undisturbed, tmp_path / "runs" / "b")
    with pytest.raises(SystemExit, match=r"^error: cannot read or write .*No space left on device; free some space"):
        report([str(tmp_path / "runs"), "--out", str(out), "--models", "0"])
    assert content(out) == before
    (out.parent / "ballast").unlink()
    report([str(tmp_path / "runs"), "--out", str(out), "--models", "0"])


@pytest.mark.parametrize("kilobytes", [0, 40])
def test_a_sweep_on_a_full_disk_fails_with_a_message_and_the_same_command_continues(
    sweep,
    small_disk,  # noqa: F811
    monkeypatch,
    kilobytes,
):
    monkeypatch.chdir(small_disk(kilobytes))
    code, printed, _ = sweep()
    message = f"{code}\n{printed.err}"
    assert code and "Traceback" not in message and "Callback" not in message
    assert "No space left on device; free some space" in message
    Path("ballast").unlink()
    code, printed, _ = sweep()
    assert code == 0 and "2 done of 2" in printed.out


def tell_from_real(allocate):
    """Return the error that an allocation raises here."""
    try:
        allocate()
    except (MemoryError, RuntimeError) as error:
        return error
    raise AssertionError("the machine has that much memory")


OUT_OF_MEMORY = {
    "Python": lambda: MemoryError(),
    "numpy": lambda: tell_from_real(lambda: np.empty(2**55, np.uint8)),
    "torch": lambda: tell_from_real(lambda: torch.empty(2**55, dtype=torch.uint8)),
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
}


@pytest.fixture
def sweep(monkeypatch, tmp_path, capsys):
    """A sweep of seeds 1 and 0 in this process: returns the exit code, the output, and the results by seed."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides):
        few = [*FEW, "data=shapes", "model=vgg_a", "epochs=2", "trainer=cpu", "trainer.enable_progress_bar=false"]
        monkeypatch.setattr("sys.argv", ["train", "-m", *few, "seed=1,0", *overrides])
        try:
            train.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        found = [json.loads(file.read_text()) for file in tmp_path.glob("multirun_outputs/train/*/result.json")]
        return code, capsys.readouterr(), {each["config"]["seed"]: each for each in found}

    return run


class AtStep(pl.Callback):
    """Call a function in one step of the run with seed 1."""

    def __init__(self, act, step=1):
        self.act, self.step = act, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and torch.initial_seed() == 1:
            self.act(pl_module)


def use(monkeypatch, *callbacks):
    monkeypatch.setattr(Classifier, "configure_callbacks", lambda self: list(callbacks))


def throw(error):
    raise error


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_every_kind_of_memory_shortage_is_one_message_with_the_remedy(kind):
    message = machine_fault(OUT_OF_MEMORY[kind]())
    assert re.match(r"out of memory \(\w.*\): close other .*data\.batch_size", message) and "\n" not in message


def test_a_run_without_enough_memory_is_one_message_and_the_sweep_continues(sweep, monkeypatch):
    with monkeypatch.context() as patch:
        use(patch, AtStep(lambda _: torch.empty(2**55, dtype=torch.uint8)))
        code, printed, results = sweep()
    assert code == 1 and "Traceback" not in printed.err
    assert re.search(r"^error: out of memory \(.*\): close other .*data\.batch_size", printed.err, re.MULTILINE)
    assert {seed: each["status"] for seed, each in results.items()} == {0: "done", 1: "failed"}
    code, printed, results = sweep()
    assert code == 0 and results[1]["status"] == "done" and printed.out.count("done before") == 1


def test_a_model_that_does_not_fit_into_memory_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"^out of memory \(.*: you tried to allocate"):
        make_run(tmp_path, *FEW, "model.width=1000000000000")


def test_a_loss_that_becomes_nan_at_a_step_ends_that_run_only(sweep, monkeypatch, step=1):
    def spoil(module):
        next(module.parameters()).data.fill_(torch.nan)

    use(monkeypatch, AtStep(spoil, step))
    code, _, results = sweep()
    assert code == 0, "a diverged run is a result"
    assert {seed: each["status"] for seed, each in results.items()} == {0: "done", 1: "diverged"}
    assert results[1]["divergence"]["step"] == step


# Signals.


class Send(pl.Callback):
    def __init__(self, *numbers):
        self.numbers = numbers

    def on_train_batch_start(self, *_):
        for number in self.numbers:
            os.kill(os.getpid(), number)


def test_a_second_ctrl_c_stops_at_once_and_the_same_command_continues(undisturbed, tmp_path, monkeypatch):
    make_run(tmp_path / "run", *FEW, "epochs=1")  # so that there is a checkpoint to continue from
    use(monkeypatch, Send(signal.SIGINT, signal.SIGINT))
    with pytest.raises(Interrupted):
        make_run(tmp_path / "run", *FEW)
    assert result(tmp_path / "run")["status"] == "interrupted" and checkpoint(tmp_path / "run")["global_step"] == 1
    use(monkeypatch)
    make_run(tmp_path / "run", *FEW)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_hangup_saves_and_stops_unless_it_is_ignored_as_by_nohup(undisturbed, tmp_path, monkeypatch):
    use(monkeypatch, Send(signal.SIGHUP))
    with pytest.raises(Interrupted):
        make_run(tmp_path / "run", *FEW)
    assert result(tmp_path / "run")["status"] == "interrupted" and checkpoint(tmp_path / "run")["global_step"] == 1
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        make_run(tmp_path / "run", *FEW)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_run(tmp_path / "run", undisturbed)


def _run_in_terminal(folder, terminal):
    """Train with a progress bar in a process whose controlling terminal is `terminal`."""
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)  # the first terminal that the leader of a session opens controls it
    for standard in range(3):
        os.dup2(descriptor, standard)
    with contextlib.suppress(Interrupted):
        make_run(folder, *FEW, "epochs=2000", "checkpoint_minutes=5", "trainer.enable_progress_bar=true")


def test_a_run_whose_terminal_is_closed_saves(tmp_path):
    """Writing to a closed terminal is an error."""
    ours, theirs = pty.openpty()
    process = fork_context().Process(target=_run_in_terminal, args=(tmp_path / "run", os.ttyname(theirs)))
    process.start()
    shown = b""
    while b"epoch 2/" not in shown:
        shown += os.read(ours, 10_000)
    os.close(theirs), os.close(ours)
    process.join(timeout=120)
    assert result(tmp_path / "run")["status"] == "interrupted", result(tmp_path / "run").get("error")
    assert checkpoint(tmp_path / "run")["global_step"] == result(tmp_path / "run")["steps"] > 1


# Folders.


def _run_without_locks(folder):
    """Train in a process that finds no locks."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = flock
    try:
        make_run(folder, *FEW, "epochs=8")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


@pytest.mark.parametrize("processes", [2, 4] if EVERY else [4])
def test_without_locks_several_processes_in_one_folder_never_mix_their_runs(tmp_path, processes, capfd):
    started = [fork_context().Process(target=_run_without_locks, args=(tmp_path / "run",)) for _ in range(processes)]
    for process in started:
        process.start()
        time.sleep(0.3)
    for process in started:
        process.join()
    codes = [process.exitcode for process in started]
    assert set(codes) <= {0, 1}, codes
    make_run(tmp_path / "run", *FEW, "epochs=8")
    make_run(tmp_path / "alone", *FEW, "epochs=8")
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_a_run_that_another_process_has_taken_over_writes_nothing_more(tmp_path, monkeypatch):
    """On a file system without locks: the process that started last continues."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    after = []

    def start_another(_):
        use(monkeypatch)
        make_run(tmp_path / "run", *FEW, "seed=1")
        after.append(content(tmp_path / "run"))

    use(monkeypatch, AtStep(start_another))
    with pytest.raises(UserError, match="another process has started the same run in .* so this one ends"):
        make_run(tmp_path / "run", *FEW, "seed=1")
    assert content(tmp_path / "run") == after[0] and result(tmp_path / "run")["status"] == "done"


def test_a_folder_in_which_no_step_was_made_is_taken_over_by_another_config(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_start", lambda self: throw(UserError("bad image")))
        with pytest.raises(UserError, match="bad image"):
            make_run(tmp_path, *FEW)
    assert result(tmp_path)["status"] == "failed"
    make_run(tmp_path, *FEW, "data.seed=5")
    assert result(tmp_path)["status"] == "done" and result(tmp_path)["config"]["data"]["seed"] == 5
    with pytest.raises(UserError, match=r"different config \(data\.seed: 5 -> 0\)"):
        make_run(tmp_path, *FEW)


def test_a_run_that_failed_in_its_test_is_only_tested_again(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_test_start", lambda self: throw(ValueError("no test")))
        with pytest.raises(ValueError, match="no test"):
            make_run(tmp_path, *FEW)
    assert result(tmp_path)["status"] == "failed"
    use(monkeypatch, AtStep(lambda _: throw(AssertionError("trained again")), 0), AtStep(lambda _: 1 / 0, 1))
    make_run(tmp_path, *FEW)
    assert_same_run(tmp_path, undisturbed)


# Epochs of two steps.
OPTIONS = {
    "max_steps": ["epochs=4", "trainer.max_steps=5"],
    "max_steps_at_the_end_of_an_epoch": ["epochs=4", "trainer.max_steps=4"],
    "check_val_every_n_epoch": ["epochs=3", "+trainer.check_val_every_n_epoch=2"],
    "limit_train_batches": ["epochs=3", "data.train_size=80", "trainer.limit_train_batches=2"],
    "no_validation": ["epochs=2", "trainer.limit_val_batches=0"],
}


@pytest.mark.parametrize("option", OPTIONS if EVERY else list(OPTIONS)[:1])
def test_a_run_that_is_interrupted_at_any_step_continues_under_every_option(option, tmp_path, monkeypatch):
    """At once before a step, also after the checkpoint at an epoch's end, and by a signal in the last step."""
    overrides = [*FEW, "data.train_size=40", "seed=1", *OPTIONS[option]]
    make_run(tmp_path / "undisturbed", *overrides)
    last = result(tmp_path / "undisturbed")["steps"] - 1
    moments = [AtStep(lambda _: throw(Interrupted()), step) for step in range(1, last + 1)]
    for number, moment in enumerate([*moments, AtStep(lambda _: signal.raise_signal(signal.SIGTERM), last)]):
        folder = tmp_path / str(number)
        use(monkeypatch, moment)
        with pytest.raises(Interrupted):
            make_run(folder, *overrides)
        use(monkeypatch)
        make_run(folder, *overrides)
        assert_same_run(folder, tmp_path / "undisturbed")
