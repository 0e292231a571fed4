"""`hydra/launcher=local`: several runs of a sweep at a time, each in a process of its own."""

import importlib.util
import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Command
from processes import run as run_command

from cifarbn import train
from cifarbn.cli import local_launcher
from cifarbn.cli.parallel_runs import ParallelProcesses

SWEEP = [
    *("-m", "hydra/launcher=local", "hydra.launcher.jobs=2", "data=shapes", "data.train_size=330", "data.test_size=90"),
    *("data.val_size=70", "data.batch_size=64", "model=vgg_a", "model.width=4", "trainer=cpu"),
]


def results(cwd):
    found = [json.loads(file.read_text()) for file in cwd.glob("multirun_outputs/train/*/result.json")]
    return {next(o for o in result["overrides"] if o.startswith("seed=")): result for result in found}


def started(cwd, sweep):
    """Start a sweep of two runs; return its process once both have a checkpoint."""
    process = Command("cifarbn.train", *sweep, cwd=cwd)
    while len(list(cwd.glob("multirun_outputs/train/*/last.ckpt"))) < 2:
        assert process.returncode is None, process.communicate()[1]
        time.sleep(0.1)
    return process


def test_a_failed_run_leaves_the_others_alone_and_ended_runs_are_skipped(tmp_path):
    sweep = [*SWEEP, "epochs=1", "model.width=4,0,2"]
    first = run_command("cifarbn.train", *sweep, cwd=tmp_path)
    assert first.returncode == 1 and "Traceback" not in first.stderr, first.stderr
    assert "up to 2 parallel runs" in first.stdout and "2 done, 1 failed of 3" in first.stdout
    assert re.search(r"^\[model\.width=4\] done: ", first.stdout, re.MULTILINE)
    assert re.search(r"failed .*width=0: .*width must be", first.stdout)
    again = run_command("cifarbn.train", *sweep, "retry=false", cwd=tmp_path)
    assert again.stdout.count("done before") == 2 and again.stdout.count("failed before") == 1
    assert "done: " not in again.stdout, "no process was started"


def test_sigterm_saves_all_runs_and_the_same_sweep_continues(tmp_path):
    sweep = [*SWEEP, "epochs=8", "seed=0,1", "checkpoint_minutes=0"]
    process = started(tmp_path, sweep)
    process.send_signal(signal.SIGTERM)
    printed, error = process.communicate(timeout=120)
    assert "interrupted; run the same command again to continue from the last checkpoint" in error
    assert process.returncode == 128 + signal.SIGTERM and "0 done, 2 interrupted of 2" in printed
    assert [result["status"] for result in results(tmp_path).values()] == ["interrupted"] * 2
    finished = run_command("cifarbn.train", *sweep, cwd=tmp_path)
    assert finished.returncode == 0 and "2 done of 2" in finished.stdout
    assert all(len(result["starts"]) == 2 for result in results(tmp_path).values())


def process_in(folder):
    """Return the id of the process that has a file of the run folder open, such as its lock."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if descriptor.readlink().is_relative_to(folder):
                return int(descriptor.parts[2])


def test_a_killed_run_is_reported_and_the_others_finish(tmp_path):
    sweep = [*SWEEP, "epochs=8", "seed=0,1", "checkpoint_minutes=0"]
    process = started(tmp_path, sweep)
    folder = next(file.parent for file in tmp_path.rglob("result.json") if "seed=0" in file.read_text())
    os.kill(process_in(folder), signal.SIGKILL)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 done, 1 failed of 2" in printed
    assert re.search(r"failed .*seed=0: its process was killed by SIGKILL", printed) and "Traceback" not in errors


def test_slots_fit_each_run_s_own_trainer(tmp_path, monkeypatch):
    accelerators, started = [], []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_launcher, "make_slots", lambda jobs, each: accelerators.extend(each) or [{}])
    start = ParallelProcesses.start

    def start_nothing(self, key, command, label):
        started.append(label)
        start(self, key, [sys.executable, "-S", "-c", ""], label)

    monkeypatch.setattr(ParallelProcesses, "start", start_nothing)
    sweep = [override for override in SWEEP if override != "trainer=cpu"]
    monkeypatch.setattr("sys.argv", ["train", *sweep, "trainer=cpu,gpu"])
    with pytest.raises(SystemExit):
        train.main()
    assert accelerators == ["cpu", "gpu"] and started == ["trainer=cpu", "trainer=gpu"]


def test_a_run_that_is_stopped_before_its_training_has_not_failed(tmp_path, monkeypatch, capsys):
    start, stopped = ParallelProcesses.start, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    monkeypatch.setattr(
        *(ParallelProcesses, "start"),
        lambda self, key, _, label: start(self, key, [sys.executable, "-S", "-c", stopped], label),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *SWEEP, "seed=0,1"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    printed = capsys.readouterr()
    assert ended.value.code == 1 and "failed" not in printed.out
    assert "2 runs left no outcome; run the same command again" in printed.err


def test_runs_of_several_processes_are_executed_one_after_the_other(tmp_path):
    sweep = [*SWEEP[:2], *SWEEP[3:-1], "epochs=1", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    finished = run_command("cifarbn.train", *sweep, "seed=0", cwd=tmp_path)
    assert finished.returncode == 0 and "1 done of 1" in finished.stdout, finished.stderr
    assert results(tmp_path)["seed=0"]["devices"] == 2
    refused = run_command("cifarbn.train", *sweep, "seed=0,1", "hydra.launcher.jobs=2", cwd=tmp_path)
    assert refused.returncode == 1 and "one after the other; use hydra.launcher.jobs=1" in refused.stderr


@pytest.mark.parametrize("jobs", ["0", "many"])
def test_a_wrong_number_of_jobs_is_an_error(tmp_path, jobs):
    refused = run_command("cifarbn.train", *SWEEP, "seed=0,1", f"hydra.launcher.jobs={jobs}", cwd=tmp_path)
    assert refused.returncode == 1
    assert f"error: hydra.launcher.jobs takes a whole number of at least 1, or auto, not '{jobs}'" in refused.stderr
    assert not refused.stdout, "no table of a sweep that has not started"


@pytest.mark.parametrize(
    ("choice", "plugin", "extra"),
    [
        ("hydra/launcher=slurm", "hydra_plugins.hydra_submitit_launcher", "slurm"),
        ("hydra/launcher=joblib", "hydra_plugins.hydra_joblib_launcher", "joblib"),
        ("hydra/launcher=ray", "ray", "ray"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(tmp_path, choice, plugin, extra):
    if importlib.util.find_spec(plugin):
        pytest.skip(f"{plugin} is installed")
    refused = run_command("cifarbn.train", "-m", choice, "data=shapes", "seed=0,1", cwd=tmp_path)
    assert refused.returncode == 1 and f"pip install 'cifarbn[{extra}]'" in refused.stderr
