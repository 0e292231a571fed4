"""Tiny complete runs in this process: `cifarbn.train.train` without starting another Python."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from cifarbn.cli.command_line import CONF
from cifarbn.train import train

OVERRIDES = [
    *("data=shapes", "data.train_size=100", "data.test_size=20", "data.val_size=20", "data.batch_size=20"),
    *("model=vgg_a", "model.width=4", "model.dropout=0.2", "epochs=2", "trainer=cpu", "trainer.precision=32-true"),
    *("trainer.enable_progress_bar=false", "checkpoint_minutes=0", "logger=none"),
]
STEPS_PER_EPOCH = 4
STEPS = 2 * STEPS_PER_EPOCH


def make_run(folder, *overrides):
    """Train the run, or continue it; returns its result."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[*OVERRIDES, *overrides])
    Path(folder).mkdir(parents=True, exist_ok=True)
    return train(config, Path(folder), [*OVERRIDES, *overrides])


def result(folder):
    return json.loads((folder / "result.json").read_text())


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(folder, name="last.ckpt"):
    return torch.load(folder / name, weights_only=True)


def assert_same_run(folder, expected):
    """The same weights, optimizer and generators bit for bit, the same rows, recordings and metrics."""
    checkpoints = checkpoint(folder), checkpoint(expected)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng", "global_step"):
        ours, theirs = (torch.utils._pytree.tree_flatten(each[key]) for each in checkpoints)
        assert ours[1] == theirs[1]
        for a, b in zip(ours[0], theirs[0], strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, key
    assert (folder / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    ours, theirs = (dict(np.load(f / "recordings.npz")) for f in (folder, expected))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert result(folder)["status"] == "done" and result(folder)["metrics"] == result(expected)["metrics"]
