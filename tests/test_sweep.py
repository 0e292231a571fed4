"""Sweeps finish: after a failed run, after a kill at any moment, and while another sweep uses the same folder."""

import errno
import fcntl
import hashlib
import json
import os
import pickle
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from processes import Command, run

from cifarbn import train
from cifarbn.cli.outcomes import Outcome, table
from cifarbn.cli.sweep import Journal, SweepCallback
from cifarbn.errors import UserError
from cifarbn.runs.result_file import read_result, write_result

TINY = [
    *("data=shapes", "data.train_size=150", "data.test_size=30", "data.val_size=30", "data.batch_size=30"),
    *("model=vgg_a_bn", "model.width=2", "model.dropout=0.2", "epochs=2"),
    *("trainer=cpu", "trainer.enable_progress_bar=false"),
]
SWEEP = ["-m", *TINY, "checkpoint_minutes=0", "optim.lr=1e-3,2e-3", "seed=0,1"]


def sweep(cwd, *overrides):
    return run("cifarbn.train", *overrides, cwd=cwd)


def results(cwd):
    """Folder name -> the parts of a result that interruptions must not change, so no durations and no throughput."""
    kept = {}
    for file in Path(cwd).glob("multirun_outputs/train/*/result.json"):
        result = json.loads(file.read_text())
        parts = {key: result[key] for key in ("status", "metrics", "steps", "config", "confusion")}
        state = torch.load(file.parent / "last.ckpt", weights_only=True)["state_dict"]
        parts["weights"] = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
        kept[file.parent.name] = parts | {"metrics.csv": (file.parent / "metrics.csv").read_text()}
    return kept


def finished_sweep(cwd, *overrides):
    """Execute a sweep; return its folder and its output."""
    finished = sweep(cwd, *overrides)
    assert finished.returncode == 0, finished.stderr
    return cwd, finished.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finished_sweep(tmp_path_factory.mktemp("undisturbed"), *SWEEP)


def test_progress_and_final_table(undisturbed):
    _, printed = undisturbed
    assert "sweep: 0 done of 4, 1 running, 3 left\n" in printed
    assert re.search(r"sweep: 3 done of 4, 1 running, 0 left, about \d+ s to go\n", printed)
    lines = printed.strip().splitlines()
    assert lines[-1] == "4 done of 4"
    assert [line.split()[-2:] for line in lines[-6:-2]] == [
        [f"optim.lr={lr}", f"seed={seed}"] for lr in ("0.001", "0.002") for seed in "01"
    ]


def test_the_same_sweep_again_skips_every_run(undisturbed):
    cwd, _ = undisturbed
    before = results(cwd)
    again = sweep(cwd, *SWEEP)
    assert again.returncode == 0 and again.stdout.count("done before") == 4
    assert results(cwd) == before


def test_a_sweep_killed_at_random_moments_ends_as_the_undisturbed_one(undisturbed, tmp_path):
    cwd, _ = undisturbed
    kills = int(os.environ.get("CIFARBN_KILLS", "4"))
    chance = random.Random(int(os.environ.get("CIFARBN_KILL_SEED", "0")))
    killed = 0
    for _ in range(kills):
        process = Command("cifarbn.train", *SWEEP, cwd=tmp_path)
        while (line := process.stdout.readline()) and not line.startswith("sweep:"):
            pass
        time.sleep(chance.uniform(0, 0.4))  # the first kill always hits, since four runs take longer
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    finished = sweep(tmp_path, *SWEEP)
    assert finished.returncode == 0, finished.stderr
    assert results(tmp_path) == results(cwd)


def test_two_sweeps_in_one_folder_share_the_work(undisturbed, tmp_path):
    cwd, _ = undisturbed
    both = [Command("cifarbn.train", *SWEEP, cwd=tmp_path) for _ in range(2)]
    printed = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert any("locked" in out or "done before" in out for out, _ in printed), "neither noticed the other"
    assert results(tmp_path) == results(cwd)


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(tmp_path):
    some = ["-m", *TINY, "epochs=1", "optim.lr=-1,1e-3,1e30", "loss=mse"]
    finished = sweep(tmp_path, *some)
    assert finished.returncode == 1
    assert "1 done, 1 diverged, 1 failed of 3" in finished.stdout
    assert re.search(r"failed .*optim.lr=-1: .*Invalid learning rate: -1", finished.stdout)
    assert "error: optim: Adam does not work with these arguments (Invalid learning rate: -1)" in finished.stderr
    assert "Traceback" not in finished.stderr
    left = sweep(tmp_path, *some, "retry=false")
    assert left.returncode == 1 and "failed before" in left.stdout and "Invalid" not in left.stderr
    retried = sweep(tmp_path, *some)
    assert retried.returncode == 1 and "Invalid" in retried.stderr


def test_a_run_of_changed_code_is_an_error(tmp_path):
    one = [*TINY, "epochs=1"]
    assert sweep(tmp_path, *one).returncode == 0
    (file,) = tmp_path.glob("multirun_outputs/train/*/result.json")
    result = json.loads(file.read_text())
    result["code"]["cifarbn.models.vgg"] = "another"
    write_result(file, result)
    result = json.loads(file.read_text())
    refused = sweep(tmp_path, *one)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "created by different code (changed: cifarbn.models.vgg). Use on_code_change=accept" in refused.stderr
    assert json.loads(file.read_text()) == result
    assert "nothing to do" in sweep(tmp_path, *one, "on_code_change=accept").stdout


@pytest.fixture
def here(monkeypatch, tmp_path, capsys):
    """The command line, run in this process in an empty folder; returns the exit code and the captured output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFARBN_DATA", raising=False)

    def run(*overrides):
        monkeypatch.setattr("sys.argv", ["train", *overrides, *TINY, "epochs=1"])
        try:
            train.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "option", ["hydra/launcher=local", "hydra.sweep.dir=elsewhere", "hydra.sweeper.max_batch_size=1"]
)
def test_an_option_of_sweeps_without_m_is_an_error(here, tmp_path, option):
    code, (_, _) = here(option)
    assert code.endswith(" has an effect on sweeps only: add -m") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["a folder", "a link to itself", "5", "nothing"])
def test_a_run_whose_result_cannot_be_read_has_failed(here, monkeypatch, left):
    """Another program may write to the folder between the end of the run and the check by the sweep."""

    def spoilt(cfg, folder, overrides):
        file = folder / "result.json"
        if left == "a folder":
            file.mkdir()
        elif left == "a link to itself":
            file.symlink_to(file)
        elif left == "5":
            file.write_text("5")
        return {"status": "done", "metrics": {"val/acc": 0.5}}

    monkeypatch.setattr(train, "train", spoilt)
    code, printed = here("-m", "seed=0,1")
    assert code == 1 and "0 done, 2 failed of 2" in printed.out
    assert re.search(r"^failed .*seed=0: .*result\.json", printed.out, re.MULTILINE)


def test_runs_with_several_names_or_the_same_folder_are_counted_separately(here, monkeypatch):
    def done(cfg, folder, overrides):
        write_result(folder / "result.json", {"status": "done", "overrides": [], "config": {}})
        return read_result(folder)

    monkeypatch.setattr(train, "train", done)
    assert "2 done of 2" in here("-m", "name=na,nb")[1].out
    assert "2 done of 2" in here("-m", "seed=0,0")[1].out


@pytest.mark.parametrize(("back", "status"), [(True, "done "), (False, "done before")])
def test_a_clock_that_is_set_back_does_not_make_a_new_run_old(here, monkeypatch, back, status):
    def result(cfg, folder, overrides):
        if not (folder / "result.json").exists() or back:
            write_result(folder / "result.json", {"status": "done", "overrides": [], "config": {}, "steps": calls[0]})
            os.utime(folder / "result.json", (1, 1) if back else None)
        calls[0] += 1
        return read_result(folder)

    calls = [0]
    monkeypatch.setattr(train, "train", result)
    here("-m", "seed=0,1")
    assert here("-m", "seed=0,1")[1].out.count(f"\n{status}") == 2


def test_a_machine_error_prints_one_line_per_run(here, tmp_path, monkeypatch):
    def full(cfg, folder, overrides):
        raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/metrics.csv")

    monkeypatch.setattr(train, "train", full)
    code, printed = here("-m", "seed=0,1")
    assert (
        code == 1
        and printed.err.count("\n") == 2
        and printed.err.count("No space left on device; free some space") == 2
    )
    table = printed.out[printed.out.index("\nstatus") :]
    assert "cannot read or write metrics.csv: No space left" in table and str(tmp_path) not in table


def test_a_launcher_s_exit_ends_the_sweep_and_passes_unchanged(here, monkeypatch):
    def requeued(cfg, folder, overrides):
        raise SystemExit(-1)

    monkeypatch.setattr(train, "train", requeued)
    assert here("-m", "seed=0,1")[0] == -1


def test_a_search_without_validation_images_is_an_error_at_the_start(tmp_path, capsys):
    sweeper = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"}
    launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    hydra = {"sweeper": sweeper, "launcher": launcher, "sweep": {"dir": str(tmp_path)}, "mode": RunMode.MULTIRUN}
    config = OmegaConf.create({"data": {"val_size": 0}, "hydra": hydra})
    with pytest.raises(SystemExit, match=r"^error: .*OptunaSweeper optimizes .*; raise data\.val_size$"):
        SweepCallback().on_multirun_start(config)
    config.data.val_size = 5
    SweepCallback().on_multirun_start(config)


def test_a_sweep_without_runs_is_an_error(here):
    code, printed = here("-m", "seed=range(0)")
    assert code.startswith("error: the sweep has no runs, because a key has no values") and not printed.out


def test_a_grid_takes_globs_but_no_intervals(here, monkeypatch):
    composed = []
    monkeypatch.setattr(train, "train", lambda cfg, folder, overrides: composed.append(overrides[0]) or {})
    here("-m", "optim=glob(adam*)")
    assert composed == ["optim=adam", "optim=adamw"]
    code, _ = here("-m", "optim.lr=interval(1e-4,1e-2)")
    assert code.startswith(
        "error: optim.lr=interval(1e-4,1e-2): a grid needs a list of values; add hydra/sweeper=optuna"
    )


class Searching:
    """Calls a sweep's callback as a launcher does for a sweeper that searches."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "run"
        self.folder.mkdir()
        self.sweep = SweepCallback()
        self.sweep.journal = Journal.begin(tmp_path)
        self.config = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(self.folder)}}})

    def end(self, status, value):
        self.sweep.on_job_start(self.config)
        job = JobReturn(overrides=[], status=status)
        job.return_value = value
        self.sweep.on_job_end(self.config, job)
        return job


def test_a_sweeper_that_searches_gets_an_error_for_a_run_without_a_result(tmp_path, capsys):
    searching = Searching(tmp_path)
    write_result(searching.folder / "result.json", {"status": "done", "config": {}})
    assert searching.end(JobStatus.COMPLETED, 0.5).return_value == 0.5
    with pytest.raises(UserError, match=r"the sweeper cannot use run \(failed\): bad"):
        _ = searching.end(JobStatus.FAILED, UserError("bad")).return_value
    write_result(searching.folder / "result.json", {"status": "diverged", "error": "too fast", "config": {}})
    with pytest.raises(UserError, match=r"the sweeper cannot use run \(diverged\): too fast"):
        _ = searching.end(JobStatus.COMPLETED, None).return_value


def test_ddp_in_a_sweep_is_an_error_at_the_start(tmp_path):
    finished = sweep(tmp_path, "-m", *TINY[:-2], "trainer=ddp", "seed=0,1")
    assert (
        finished.returncode == 1
        and "add hydra/launcher=local, or leave out -m" in finished.stderr
        and "Traceback" not in finished.stderr
    )
    assert not list(tmp_path.glob("multirun_outputs/train/*/result.json"))


def test_the_journal_returns_the_stored_events(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.started("a")
    journal.started("b")
    journal.started("b")  # requeued by its launcher
    outcome = Outcome("a", ["seed=0"], "done", accuracy=0.5, seconds=3.0)
    journal.ended(outcome)
    assert journal.read() == (1, [outcome])


def test_the_journal_of_a_killed_sweep_is_removed_by_the_next(tmp_path):
    (tmp_path / "killed.jsonl").write_text('{"started": "a"}\n')
    alive = Journal.begin(tmp_path)
    assert list(tmp_path.iterdir()) == [alive.file]
    other = Journal.begin(tmp_path)
    assert set(tmp_path.iterdir()) == {alive.file, other.file}
    pickle.loads(pickle.dumps(alive)).started("a")  # as when a launcher sends it to another process
    assert alive.read() == (1, [])
    alive.end()
    del other
    last = Journal.begin(tmp_path)
    assert list(tmp_path.iterdir()) == [last.file]


def test_a_sweep_works_on_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "other.jsonl").touch()
    assert Journal.begin(tmp_path).file.exists() and (tmp_path / "other.jsonl").exists()
    assert capsys.readouterr().err.count("does not support locks") == 1


def test_the_table_shows_the_overrides_that_differ():
    text = table(
        [
            Outcome("a", ["model=vgg_a", "seed=0"], "done", accuracy=0.51234, seconds=1234.5, ended_before=True),
            Outcome("b", ["model=vgg_a", "seed=1"], "failed", reason="no memory"),
        ]
    )
    assert text.splitlines() == [
        "status       test acc  seconds  run",
        "done before    0.5123    1,234  seed=0",
        "failed                          seed=1: no memory",
    ]
