"""Kill sweeps at random moments, 100 times: `python tests/slow_faults.py --kills 100`.

A sweep of four tiny runs that save after every step is killed repeatedly until it is done. Then its table, weights,
optimizer states and recordings must equal those of an undisturbed sweep, to the bit, and the next sweep begins. Prints
the number of kills by what they hit. `--victim` selects the process that is killed: the sweep itself, a run of
`hydra/launcher=local` or the server from which it was forked, or one of the two processes of a run with `trainer=ddp`.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from processes import Command
from test_sweep import results

FEW = ["data=shapes", "data.train_size=108", "data.val_size=8", "data.test_size=20", "data.batch_size=20"]
FEW += ["model=vgg_a", "model.width=2", "model.dropout=0.2", "epochs=2", "trainer.enable_progress_bar=false"]
FEW += ["checkpoint_minutes=0"]  # ten steps, each with a checkpoint
SWEEP = ["-m", *FEW, "trainer=cpu", "optim.lr=1e-3,2e-3", "seed=0,1"]
COMMANDS = {
    "sweep": SWEEP,
    "local": [*SWEEP, "hydra/launcher=local", "hydra.launcher.jobs=2"],
    "rank": [*FEW, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
}


def start(command, cwd):
    return Command("cifarbn.train", *command, cwd=cwd)


def weights(cwd):
    """Return run folder -> the checkpoint's tensors and the recorded arrays."""
    found = {}
    for file in Path(cwd).glob("multirun_outputs/train/*/last.ckpt"):
        state = torch.load(file, weights_only=True)
        leaves = torch.utils._pytree.tree_leaves([state[key] for key in ("state_dict", "optimizer_states", "rng")])
        with np.load(file.parent / "recordings.npz") as recordings:
            found[file.parent.name] = [leaves, dict(recordings)]
    return found


def assert_equal(cwd, expected):
    assert results(cwd) == results(expected)
    ours, theirs = weights(cwd), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, (leaves, arrays) in ours.items():
        for a, b in zip(leaves, theirs[name][0], strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, theirs[name][1][key], err_msg=f"{name} {key}")


def hit(cwd):
    """Return what the killed command was doing, as its folders show it."""
    folders = [file.parent for file in Path(cwd).glob("multirun_outputs/train/*/.hydra")]
    for folder in folders:
        if files := sorted(folder.glob(".*.tmp")):
            return f"the write of {files[0].name[1 : -len('.0a1b2c3d.tmp')]}"
    for folder in folders:
        if not (folder / "result.json").exists():
            return "the start of a run"
        result = json.loads((folder / "result.json").read_text())
        if result["status"] == "running":
            if not (folder / "last.ckpt").exists():
                return "a run before its first checkpoint"
            return "the test" if "train/acc" in result.get("metrics", {}) else "training"
    return "the start of the command, or between two runs"


def wait(process, cwd, chance):
    """Wait for a random moment: up to five seconds, or up to 14 checkpoints and a moment more."""
    early = chance.random() < 0.3
    deadline, count = time.monotonic() + chance.uniform(0.1, 5.0), chance.randint(1, 14)
    seen, fresh = set(checkpoints(cwd)), set()
    while process.returncode is None and (time.monotonic() < deadline if early else len(fresh) < count):
        time.sleep(0.002)
        fresh |= set(checkpoints(cwd)) - seen
    time.sleep(chance.uniform(0.0, 0.2))


def checkpoints(cwd):
    """Return each run's newest checkpoint, by the time of its write."""
    for file in Path(cwd).glob("multirun_outputs/train/*/last.ckpt"):
        with contextlib.suppress(FileNotFoundError):
            yield file, file.stat().st_mtime_ns


def descendants(pid):
    """Return the processes that a process has started, such as the server of parallel runs, and those of these."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    children = [int(each) for each in found.split()]
    return children + [each for child in children for each in descendants(child)]


def kill(process, victim, chance):
    """Kill the victim; return whether there was one."""
    pid = process._process.pid
    pids = [] if victim == "local" else [pid]
    pids += [] if victim == "sweep" else descendants(pid)
    if process.returncode is not None or not pids:
        return False
    try:
        os.kill(chance.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def main():
    """Print the kills by what they hit, and fail at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--victim", choices=COMMANDS, default="sweep")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command, chance = COMMANDS[args.victim], random.Random(args.seed)
    counts, sweeps = collections.Counter(), 0
    with tempfile.TemporaryDirectory() as root:
        expected = Path(root, "undisturbed")
        expected.mkdir()
        began = time.monotonic()
        undisturbed = start(command, expected)
        _, errors = undisturbed.communicate()
        assert undisturbed.returncode == 0, errors
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        while sum(counts.values()) < args.kills:
            cwd = Path(root, str(sweeps))
            cwd.mkdir()
            while True:
                process = start(command, cwd)
                wait(process, cwd, chance)
                killed = sum(counts.values()) < args.kills and kill(process, args.victim, chance)
                output, errors = process.communicate()
                if killed and process.returncode:
                    counts[hit(cwd)] += 1
                    continue
                if process.returncode == 0:
                    break
                assert args.victim != "sweep" and "Traceback" not in errors, errors
            assert_equal(cwd, expected)
            sweeps += 1
            print(f"{sum(counts.values())} kills, {sweeps} sweeps equal; {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
