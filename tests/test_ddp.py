"""Two processes over gloo take the same steps as one."""

import csv
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, CompletedProcess

import numpy as np
import pytest
import torch
from processes import ENVIRONMENT, Command
from processes import run as run_command

RUN = [
    *("data=shapes", "data.train_size=330", "data.test_size=90", "data.val_size=70", "data.batch_size=64"),
    *("model=vgg_a", "model.width=4", "optim=sgd", "optim.lr=0.05", "epochs=2"),
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]


def start(cwd, *overrides):
    return run_command("cifarbn.train", *RUN, *overrides, cwd=cwd)


def run(cwd, *overrides):
    return content(cwd, start(cwd, *overrides))


def run_two(cwd, *overrides):
    """As two processes with the environment of torchrun, forked: Lightning would start the second as an interpreter."""
    shared = rendezvous() | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0"} for rank in "01"]
    return run_ranks(cwd, ranks, *overrides, "trainer=ddp", "trainer.devices=2")


def run_ranks(cwd, environments, *overrides):
    """Execute a run in one process for each of the environments."""
    ranks = [Command("cifarbn.train", *RUN, *overrides, cwd=cwd, env=ENVIRONMENT | each) for each in environments]
    printed = [rank.communicate() for rank in ranks]
    return content(cwd, *(CompletedProcess([], r.returncode, *p) for r, p in zip(ranks, printed, strict=True)))


def rendezvous():
    """The variables by which processes find each other."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def content(cwd, *finished):
    """Return what the run has written, after all of its processes have succeeded."""
    assert [each.returncode for each in finished] == [0] * len(finished), finished
    (result,) = (cwd / "multirun_outputs").glob("*/*/result.json")
    with open(result.parent / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (
        json.loads(result.read_text()),
        rows,
        torch.load(result.parent / "last.ckpt", weights_only=True)["state_dict"],
        "".join(each.stdout for each in finished),
        dict(np.load(result.parent / "recordings.npz")),
    )


RECORDERS = ("gradient_probe", "step_change", "covariate_shift", "activation_drift", "scale_invariant_beta")
RECORD = ("epochs=1", "trainer.precision=64-true", "record=all", *(f"record.{name}.every=3" for name in RECORDERS))
RECORD += ("data.train_size=138", "data.batch_size=16")


@pytest.fixture(scope="module", params=["vgg_a", "vgg_a_bn"])
def model(request):
    return f"model={request.param}"


@pytest.fixture(scope="module")
def one(tmp_path_factory, model):
    return run(tmp_path_factory.mktemp("one"), model, *RECORD)


@pytest.fixture(scope="module")
def two(tmp_path_factory, model):
    return run_two(tmp_path_factory.mktemp("two"), model, *RECORD)


def test_two_processes_end_with_the_weights_of_one(one, two):
    assert set(one[2]) == set(two[2])
    for name, weights in one[2].items():
        torch.testing.assert_close(two[2][name], weights, rtol=1e-6, atol=1e-8, msg=name)


def test_two_processes_log_what_one_logs(one, two):
    assert [row["step"] for row in one[1]] == [row["step"] for row in two[1]]
    # The last batch of an epoch, 68 - 4 * 16 = 4 images, is shared too.
    for a, b in zip(one[1], two[1], strict=True):
        for column in ("step/loss", "step/acc", "step/grad_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-5)
    for name, value in one[0]["metrics"].items():
        assert two[0]["metrics"][name] == pytest.approx(value, rel=1e-5)


def test_two_processes_record_what_one_records(one, two):
    assert set(one[4]) == set(two[4])
    for key, array in one[4].items():
        if array.dtype.kind != "f":
            assert (two[4][key] == array).all(), key
            continue
        # The scale of each tensor: the gradient of a bias in front of a batch norm is 0 but for rounding.
        scale = np.abs(array[np.isfinite(array)]).max(initial=0)
        np.testing.assert_allclose(two[4][key], array, rtol=1e-4, atol=1e-6 * scale, err_msg=key)


def test_only_one_process_speaks(two):
    assert two[3].count("done: ") == 1


def test_a_layer_that_several_processes_cannot_share_is_refused(tmp_path):
    refused = start(tmp_path, "trainer=ddp", "trainer.devices=2", "model=vgg_a_bn", "norm=noisy_batch")
    assert refused.returncode == 1
    assert refused.stderr.count("error: ") == 1, "one message for both processes"
    assert "error: NoisyBatchNorm2d computes statistics per process" in refused.stderr
    assert "Traceback" not in refused.stderr


def second_process(run):
    """Return the id of the process that Lightning has started; None if there is none yet."""
    for child in subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], text=True, stdout=PIPE).stdout.split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if b"cifarbn.train\0data" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)


def cut_off(cwd, victim):
    """Start a run of two processes and kill one of them after the first checkpoint; return what it printed."""
    run = Command("cifarbn.train", *RUN, *LONG, "trainer=ddp", "trainer.devices=2", cwd=cwd)
    while not list(cwd.glob("multirun_outputs/*/*/last.ckpt")):
        assert run.returncode is None, run.communicate()[1]
        time.sleep(0.1)
    os.kill(run.pid if victim == "first" else second_process(run), signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    return errors


def test_a_process_ends_although_the_first_one_was_killed_before_they_were_connected(tmp_path):
    run = Command("cifarbn.train", *RUN, *LONG, "trainer=ddp", "trainer.devices=2", cwd=tmp_path)
    while not second_process(run):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    _, errors = run.communicate(timeout=120)  # both processes have this output, so both have ended
    assert "error: another process of this command ended" in errors


LONG = ("trainer.precision=32-true", "epochs=8", "checkpoint_minutes=0", "model=vgg_a")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run_two(tmp_path_factory.mktemp("uninterrupted"), *LONG)


@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_killed_process_ends_the_run_which_continues_later(tmp_path, victim, uninterrupted):
    errors = cut_off(tmp_path, victim)
    if victim == "second":
        assert "error: another process of this command ended" in errors and "Traceback" not in errors
    _, rows, weights, _, _ = run_two(tmp_path, *LONG)
    _, whole, expected, _, _ = uninterrupted
    assert [row["step/loss"] for row in rows] == [row["step/loss"] for row in whole]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_torchrun_on_two_nodes_takes_the_same_steps(tmp_path, uninterrupted):
    torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    options = ("trainer=ddp", "trainer.devices=1", "+trainer.num_nodes=2")
    nodes = [
        Command(*torchrun, f"--node-rank={rank}", "-m", "cifarbn.train", *RUN, *LONG, *options, cwd=tmp_path)
        for rank in (0, 1)
    ]
    printed = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    (checkpoint,) = tmp_path.glob("multirun_outputs/*/*/last.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], expected) for name, expected in uninterrupted[2].items())


def test_slurm_tasks_on_two_nodes_take_the_same_steps(tmp_path, uninterrupted):
    shared = rendezvous() | {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    shared |= {"SLURM_JOB_ID": "1000", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "node[1-2]"}
    tasks = [shared | {"SLURM_PROCID": task, "SLURM_NODEID": task, "SLURM_LOCALID": "0"} for task in "01"]
    options = ("trainer=ddp", "trainer.devices=1", "+trainer.num_nodes=2")
    result, _, weights, printed, _ = run_ranks(tmp_path, tasks, *LONG, *options)
    assert result["devices"] == 2 and printed.count("done: ") == 1
    assert all(torch.equal(weights[name], expected) for name, expected in uninterrupted[2].items())
