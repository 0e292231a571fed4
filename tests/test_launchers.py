"""Hydra's own launchers execute sweeps of this package: the same table, exit code, skipping and resuming."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from subprocess import PIPE, Popen, check_output

import fake_slurm
import pytest
import torch
from processes import ENVIRONMENT, Command, run

from cifarbn.errors import machine_fault

TINY = [
    *("-m", "data=shapes", "data.train_size=100", "data.test_size=20", "data.val_size=20", "data.batch_size=20"),
    *("model=vgg_a", "model.width=1", "loss=mse", "trainer=cpu", "trainer.enable_progress_bar=false"),
    *("checkpoint_minutes=0", "epochs=3"),
]


def results(cwd):
    """Overrides that differ -> the parts of a result that interruptions must not change."""
    kept = {}
    for file in cwd.glob("multirun_outputs/train/*/result.json"):
        result = json.loads(file.read_text())
        parts = {key: result.get(key) for key in ("status", "metrics", "steps", "confusion", "error")}
        run = " ".join(override for override in result["overrides"] if override not in TINY)
        if (file.parent / "last.ckpt").exists():
            checkpoint = torch.load(file.parent / "last.ckpt", weights_only=True)
            weights = {name: value.tolist() for name, value in checkpoint["state_dict"].items()}
            parts |= {"weights": weights, "metrics.csv": (file.parent / "metrics.csv").read_text()}
        kept[run] = parts
    return kept


def starts(cwd):
    """The number of starts of each run."""
    files = cwd.glob("multirun_outputs/train/*/result.json")
    return sorted(len(json.loads(file.read_text()).get("starts", [])) for file in files)


def wait_for_checkpoints(cwd, number, process):
    deadline = time.monotonic() + 300
    while len(list(cwd.glob("multirun_outputs/train/*/last.ckpt"))) < number:
        assert process.returncode is None and time.monotonic() < deadline, process.communicate(timeout=1)
        time.sleep(0.05)


def undisturbed(cwd, *overrides):
    """The results of the same sweep in one process."""
    cwd.mkdir()
    finished = run("cifarbn.train", *TINY, *overrides, cwd=cwd)
    return finished, results(cwd)


def test_joblib_stops_with_the_sweep_resumes_and_skips(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'cifarbn[joblib]'")
    sweep = ["optim.lr=1e-3,2e-3,-1,1e30", "epochs=30"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    # Interpreters of their own: joblib ends its workers when the interpreter ends, which a forked command skips.
    command = [sys.executable, "-m", "cifarbn.train", *TINY, *launcher, *sweep]
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "stdout": PIPE, "stderr": PIPE, "text": True}
    process = Popen(command, **options)
    wait_for_checkpoints(tmp_path, 2, process)
    children = check_output(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], text=True).splitlines()
    workers = [child.split()[0] for child in children if "LokyProcess" in child]
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    finished = subprocess.run(command, **options)
    assert finished.returncode == 1 and "2 done, 1 diverged, 1 failed of 4" in finished.stdout
    assert re.search(r"failed .*optim.lr=-1: .*Invalid learning rate: -1", finished.stdout)
    assert "Traceback" not in finished.stderr and starts(tmp_path) == [0, 1, 2, 2]
    alone, expected = undisturbed(tmp_path / "alone", *sweep)
    assert alone.returncode == 1 and results(tmp_path) == expected
    again = run("cifarbn.train", *TINY, *launcher, *sweep, "retry=false", "hydra.launcher.n_jobs=1", cwd=tmp_path)
    assert again.returncode == 1 and again.stdout.count(" before ") == 4


def test_slurm_requeues_a_job_before_its_time_limit_and_the_run_resumes(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'cifarbn[slurm]'")
    slurm = tmp_path / "slurm"
    environment = ENVIRONMENT | fake_slurm.install(slurm)
    sweep = ["seed=0,1", "epochs=30"]
    process = Command("cifarbn.train", *TINY, "hydra/launcher=slurm", *sweep, cwd=tmp_path, env=environment)
    wait_for_checkpoints(tmp_path, 2, process)
    check_output(["scancel", "1000_0", "--signal", "SIGTERM"], env=environment)  # SLURM's notice of a preemption
    check_output(["scancel", "1000_0", "--signal", "SIGUSR2"], env=environment)
    out, err = process.communicate()
    assert process.returncode == 0 and "2 done of 2" in out, (out, err)
    assert {file.name for file in slurm.glob("requeued.*")} == {"requeued.1000_0"} and starts(tmp_path) == [1, 2]
    script = (slurm / "job.1000").read_text()
    options = ("--array=0-1%2", "--time=240", "--signal=USR2@120", "--gpus-per-node=1", "--cpus-per-task=4")
    assert all(f"#SBATCH {option}\n" in script for option in options)
    assert results(tmp_path) == undisturbed(tmp_path / "alone", *sweep)[1]


def test_slurm_s_absence_and_a_lost_job_are_one_error(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'cifarbn[slurm]'")
    from submitit.core.utils import UncompletedJobError

    refused = run("cifarbn.train", *TINY, "hydra/launcher=slurm", "seed=0,1", cwd=tmp_path)
    assert refused.returncode == 1 and refused.stderr.startswith("error: hydra/launcher=slurm needs SLURM")
    for lost in (UncompletedJobError("no result"), BrokenProcessPool()):
        assert "run the same command again to continue" in machine_fault(lost)


def test_submitit_local_restarts_a_run_after_its_signal(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'cifarbn[slurm]'")
    sweep = ["seed=0,1", "epochs=30"]
    process = Command("cifarbn.train", *TINY, "hydra/launcher=submitit_local", *sweep, cwd=tmp_path)
    wait_for_checkpoints(tmp_path, 2, process)
    jobs = check_output(["ps", "-o", "pid=", "--ppid", str(process._process.pid)], text=True).split()
    runs = [check_output(["ps", "-o", "pid=", "--ppid", job], text=True).split()[0] for job in jobs[-2:]]
    check_output(["kill", "-USR2", runs[0]])  # it saves, and submitit starts it again
    check_output(["kill", "-USR1", runs[1]])  # not submitit's signal: it saves and stops
    out, err = process.communicate()
    assert process.returncode == 1 and "1 done, 1 interrupted of 2" in out, (out, err)
    finished = run("cifarbn.train", *TINY, *sweep, cwd=tmp_path)
    assert finished.returncode == 0 and starts(tmp_path) == [2, 2]
    assert results(tmp_path) == undisturbed(tmp_path / "alone", *sweep)[1]


def test_a_lost_machine_of_a_ray_cluster_costs_no_run(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="pip install 'cifarbn[ray]'")
    from ray.cluster_utils import Cluster

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # the folder in which a machine's Ray is started must not matter
    sweep = ["seed=0,1,2,3", "epochs=30"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        launcher = ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}"]
        process = Command("cifarbn.train", *TINY, *launcher, *sweep, cwd=tmp_path)
        wait_for_checkpoints(tmp_path, 2, process)
        cluster.remove_node(second, allow_graceful=False)
        out, err = process.communicate()
        assert process.returncode == 0 and "4 done of 4" in out, (out, err)
        assert starts(tmp_path) == [1, 1, 1, 2] and not os.listdir(elsewhere)
        assert results(tmp_path) == undisturbed(tmp_path / "alone", *sweep)[1]
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("address=127.0.0.1:1", "no Ray cluster"),
        ("cpus=many", "hydra.launcher.cpus takes a number of at least 0, not 'many'"),
        ("gpus=-1", "hydra.launcher.gpus takes a number of at least 0, or auto, not -1"),
        ("jobs=0", "hydra.launcher.jobs takes a whole number of at least 1, or auto, not '0'"),
    ],
)
def test_wrong_options_of_ray_are_one_error(tmp_path, monkeypatch, option, message):
    pytest.importorskip("ray", reason="pip install 'cifarbn[ray]'")
    refused = run("cifarbn.train", *TINY, "hydra/launcher=ray", f"hydra.launcher.{option}", "seed=0,1", cwd=tmp_path)
    assert refused.returncode == 1 and message in refused.stderr and "Traceback" not in refused.stderr
