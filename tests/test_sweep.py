"""Sweeps that finish: after a failed run, after a kill at any moment, beside another sweep."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_train import ENVIRONMENT, TINY, command

from cifarbn.sweep import Journal, Outcome, duration, table

SWEEP = ["-m", *TINY, "checkpoint_minutes=0", "optim.lr=1e-3,2e-3", "seed=0,1"]


def sweep(cwd, *overrides):
    return subprocess.run(command(*overrides), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def results(cwd):
    """Folder name -> what must be the same however often the sweep was cut off: no seconds, no throughput."""
    found = {}
    for file in Path(cwd).glob("multirun_outputs/train/*/result.json"):
        result = json.loads(file.read_text())
        kept = {key: result[key] for key in ("status", "metrics", "steps", "config", "confusion")}
        found[file.parent.name] = kept | {"metrics.csv": (file.parent / "metrics.csv").read_text()}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finished = sweep(cwd, *SWEEP)
    assert finished.returncode == 0, finished.stderr
    return cwd, finished.stdout, time.monotonic() - started


def test_progress_and_final_table(undisturbed):
    _, said, _ = undisturbed
    assert "sweep: 0 done of 4, 1 running, 3 left\n" in said
    assert re.search(r"sweep: 3 done of 4, 1 running, 0 left, about \d+ s to go\n", said)
    lines = said.strip().splitlines()
    assert lines[-1] == "4 done of 4"
    assert [line.split()[-2:] for line in lines[-6:-2]] == [
        [f"optim.lr={lr}", f"seed={seed}"] for lr in ("0.001", "0.002") for seed in "01"
    ]


def test_the_same_sweep_again_skips_every_run(undisturbed):
    cwd, _, _ = undisturbed
    before = results(cwd)
    again = sweep(cwd, *SWEEP)
    assert again.returncode == 0 and again.stdout.count("done before") == 4
    assert results(cwd) == before


def test_a_sweep_killed_at_random_moments_ends_as_the_undisturbed_one(undisturbed, tmp_path):
    cwd, _, seconds = undisturbed
    kills = int(os.environ.get("CIFARBN_KILLS", "4"))
    chance = random.Random(int(os.environ.get("CIFARBN_KILL_SEED", "0")))
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(*SWEEP), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while (line := process.stdout.readline()) and not line.startswith("sweep:"):
            pass
        time.sleep(chance.uniform(0, seconds / 2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    finished = sweep(tmp_path, *SWEEP)
    assert finished.returncode == 0, finished.stderr
    assert results(tmp_path) == results(cwd)


def test_two_sweeps_in_one_folder_share_the_work(undisturbed, tmp_path):
    cwd, _, _ = undisturbed
    both = [
        subprocess.Popen(
            command(*SWEEP), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("elsewhere" in out or "done before" in out for out, _ in said), "neither noticed the other"
    assert results(tmp_path) == results(cwd)


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(tmp_path):
    some = ["-m", *TINY, "epochs=1", "optim.lr=-1,1e-3,1e30", "loss=mse"]
    finished = sweep(tmp_path, *some)
    assert finished.returncode == 1
    assert "1 done, 1 diverged, 1 failed of 3" in finished.stdout
    assert re.search(r"failed .*optim.lr=-1: .*Invalid learning rate: -1", finished.stdout)
    assert "error: optim: Adam cannot be used so (Invalid learning rate: -1)" in finished.stderr
    assert "Traceback" not in finished.stderr
    left = sweep(tmp_path, *some, "retry=false")
    assert left.returncode == 1 and "failed before" in left.stdout and "Invalid" not in left.stderr
    retried = sweep(tmp_path, *some)
    assert retried.returncode == 1 and "Invalid" in retried.stderr


def test_a_run_under_changed_code_is_refused(tmp_path):
    one = [*TINY, "epochs=1"]
    assert sweep(tmp_path, *one).returncode == 0
    (file,) = tmp_path.glob("multirun_outputs/train/*/result.json")
    result = json.loads(file.read_text())
    result["code"]["cifarbn.models.resnet"] = "another"
    file.write_text(json.dumps(result))
    refused = sweep(tmp_path, *one)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "other code has made (changed: cifarbn.models.resnet). changed_code=accept" in refused.stderr
    assert json.loads(file.read_text()) == result
    assert "nothing to do" in sweep(tmp_path, *one, "changed_code=accept").stdout


def test_ddp_in_a_sweep_is_refused_at_once(tmp_path):
    finished = sweep(tmp_path, "-m", *TINY[:-2], "trainer=ddp", "seed=0,1")
    assert finished.returncode == 1 and "leave out -m" in finished.stderr and "Traceback" not in finished.stderr
    assert not list(tmp_path.glob("multirun_outputs/train/*/result.json"))


def test_the_journal_brings_back_what_was_put_in(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.started("a")
    journal.started("b")
    outcome = Outcome("a", ["seed=0"], "done", accuracy=0.5, seconds=3.0)
    journal.ended(outcome)
    assert journal.read() == ({"b"}, [outcome])


def test_the_table_says_what_sets_a_run_apart():
    shown = table(
        [
            Outcome("a", ["model=vgg_a", "seed=0"], "done", accuracy=0.51234, seconds=1234.5, found=True),
            Outcome("b", ["model=vgg_a", "seed=1"], "failed", why="no memory"),
        ]
    )
    assert shown.splitlines() == [
        "status       test acc  seconds  run",
        "done before    0.5123    1,234  seed=0",
        "failed                          seed=1: no memory",
    ]


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 05 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said
