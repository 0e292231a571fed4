"""Training longer with resume_from: a run continues another one that has fewer epochs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_config import CONF
from test_train import assert_equal_state, checkpoint, rows

from cifarbn.errors import Interrupted, RunConflict, UserError
from cifarbn.runs.identity import experiment
from cifarbn.runs.longer import check_longer, shorter_run
from cifarbn.train import train
from cifarbn.training.callbacks.metrics_logger import MetricsLogger

SMALL = ["data=shapes", "data.train_size=200", "data.test_size=50", "data.val_size=40", "data.batch_size=32"]
SMALL += ["model=vgg_a", "model.width=4", "model.dropout=0.2", "trainer=cpu", "trainer.precision=32-true"]
SMALL += ["trainer.enable_progress_bar=false"]
STEP = ["schedule=step", "schedule.milestones=[1]"]


def train_run(folder: Path, *overrides: str, schedule=STEP):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*SMALL, *schedule, *overrides])
    return train(cfg, folder, [*SMALL, *schedule, *overrides])


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert train_run(folder, "epochs=1")["status"] == "done"
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("long") / "run"
    train_run(folder, "epochs=2")
    return folder


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def assert_equal_runs(one, other):
    assert_equal_state(checkpoint(one), checkpoint(other))
    assert rows(one) == rows(other)
    recorded, expected = (np.load(folder / "recordings.npz") for folder in (one, other))
    assert set(recorded) == set(expected)
    assert all(recorded[name].tobytes() == expected[name].tobytes() for name in expected)
    metrics = [json.loads((folder / "result.json").read_text())["metrics"] for folder in (one, other)]
    assert metrics[0] == metrics[1]


def test_a_run_that_begins_where_a_finished_one_ended_is_the_undisturbed_one(short, long, tmp_path):
    before = content(short)
    result = train_run(tmp_path / "run", "epochs=2", f"resume_from={short}")
    assert_equal_runs(tmp_path / "run", long)
    assert content(short) == before
    assert result["resumed_from"] == "run" and [start["step"] for start in result["starts"]] == [0, 5]
    assert str(short) not in (tmp_path / "run" / "result.json").read_text()
    assert len(list((tmp_path / "run").glob("events*"))) >= 2, "the curves of the first epoch too"


def test_raw_gradients_continue_too(tmp_path):
    raw = "record.last_layer_gradients.raw=true"
    train_run(tmp_path / "short", "epochs=1", raw)
    train_run(tmp_path / "long", "epochs=2", raw)
    train_run(tmp_path / "run", "epochs=2", raw, f"resume_from={tmp_path / 'short'}")
    short, long, run = (np.load(tmp_path / name / "last_layer_gradients.npy") for name in ("short", "long", "run"))
    assert len(short) == 5 and np.array_equal(run, long) and run.any(axis=(1, 2)).all()
    train_run(tmp_path / "run", "epochs=2", raw, "resume=false")
    assert (tmp_path / ".replaced" / "run.1" / "last_layer_gradients.npy").exists()


def test_where_an_interrupted_one_ended_and_its_own_checkpoint_comes_first(long, short, tmp_path, monkeypatch):
    def interrupt(self, trainer, pl_module):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLogger, "on_validation_end", interrupt)
        with pytest.raises(Interrupted):
            train_run(tmp_path / "cut", "epochs=2", "checkpoint_minutes=0")
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["global_step"] == 4
    train_run(tmp_path / "run", "epochs=2", f"resume_from={tmp_path / 'cut'}")
    assert_equal_runs(tmp_path / "run", long)
    # The interrupted run continues from its own four steps, not from the other folder.
    train_run(tmp_path / "cut", "epochs=2", f"resume_from={short}")
    result = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert "resumed_from" not in result and [start["step"] for start in result["starts"]] == [0, 4]
    assert_equal_runs(tmp_path / "cut", long)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["epochs=2", "optim.lr=0.5"], r"different config \(optim\.lr: 0\.001 -> 0\.5\); only the number of epochs"),
        (["epochs=1", "trainer.max_steps=3"], r"different config \(trainer\.max_steps: -1 -> 3\)"),
        (["epochs=2", "schedule.milestones=[2]"], r"schedule depends on the length of the run \(schedule\.milestones"),
    ],
)
def test_another_run_is_an_error_by_its_keys(short, tmp_path, overrides, reason):
    with pytest.raises(RunConflict, match=reason):
        train_run(tmp_path / "run", *overrides, f"resume_from={short}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("schedule", ["onecycle", "linear", "cosine"])
def test_a_schedule_that_depends_on_the_length_is_an_error(tmp_path, schedule):
    def config(epochs):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=[f"schedule={schedule}", f"epochs={epochs}"])
        return experiment(OmegaConf.to_container(cfg, resolve=True))

    with pytest.raises(RunConflict, match="its schedule depends on the length"):
        check_longer(tmp_path, {"status": "done", "config": config(1)}, config(2))
    check_longer(tmp_path, {"status": "interrupted", "config": config(2)}, config(2))
    with pytest.raises(RunConflict, match="it diverged"):
        check_longer(tmp_path, {"status": "diverged", "config": config(1)}, config(2))


def test_what_nothing_can_begin_with(short, long, tmp_path):
    with pytest.raises(UserError, match="already has 2 epochs, more than epochs=1"):
        train_run(tmp_path / "run", "epochs=1", f"resume_from={long}")
    with pytest.raises(UserError, match="is not a run folder"):
        train_run(tmp_path / "run", "epochs=2", f"resume_from={tmp_path}")
    bare = tmp_path / "bare"
    shutil.copytree(short, bare)
    (bare / "last.ckpt").unlink()
    with pytest.raises(UserError, match="no intact checkpoint"):
        train_run(tmp_path / "run", "epochs=2", f"resume_from={bare}")
    (bare / "last.ckpt").write_text("no checkpoint")
    with pytest.raises(UserError, match="last.ckpt"):
        train_run(tmp_path / "run", "epochs=2", f"resume_from={bare}")


def test_more_epochs_continue_the_finished_run_of_the_same_sweep(short, long, tmp_path, capsys):
    shutil.copytree(short, tmp_path / "epochs=1,model=vgg_a")
    result = train_run(tmp_path / "epochs=2,model=vgg_a", "epochs=2")
    output = capsys.readouterr().out
    assert "epochs=1,model=vgg_a; changed: epochs: 1 -> 2" in output and "resume=false trains from scratch" in output
    assert result["resumed_from"] == "epochs=1,model=vgg_a"
    assert_equal_runs(tmp_path / "epochs=2,model=vgg_a", long)


@pytest.mark.parametrize("change", [["resume=false"], ["seed=1"], ["schedule.milestones=[2]"], ["trainer.max_steps=9"]])
def test_more_epochs_start_from_scratch_if_anything_else_differs(short, tmp_path, change):
    shutil.copytree(short, tmp_path / "epochs=1,model=vgg_a")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = experiment(
            OmegaConf.to_container(compose("train", [*SMALL, *STEP, "epochs=2", *change]), resolve=True)
        )
    config.pop("init_from")
    shorter = shorter_run(tmp_path / "epochs=2,model=vgg_a", config)
    assert (shorter is None) == (change != ["resume=false"])
    if change == ["resume=false"]:
        assert "resumed_from" not in train_run(tmp_path / "epochs=2,model=vgg_a", "epochs=2", *change)


def test_only_runs_of_the_same_overrides_are_considered(short, tmp_path):
    shutil.copytree(short, tmp_path / "epochs=1,seed=0")
    assert shorter_run(tmp_path / "epochs=2,model=vgg_a", {}) is None


def test_more_epochs_in_the_same_folder_continue_its_run(short, long, tmp_path, capsys):
    shutil.copytree(short, tmp_path / "run")
    result = train_run(tmp_path / "run", "epochs=2")
    assert "run; changed: epochs: 1 -> 2" in capsys.readouterr().out
    assert result["config"]["epochs"] == 2 and "epochs=2" in result["overrides"]
    assert_equal_runs(tmp_path / "run", long)
    with pytest.raises(RunConflict, match="cannot be continued: it already has 2 epochs, more than epochs=1"):
        train_run(tmp_path / "run", "epochs=1")
    with pytest.raises(RunConflict, match=r"different config \(epochs: 2 -> 3; .*schedule"):
        train_run(tmp_path / "run", "epochs=3", "schedule.milestones=[2]")


def test_without_a_checkpoint_a_finished_run_is_not_replaced_by_a_longer_one(short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    (tmp_path / "run" / "last.ckpt").unlink()
    with pytest.raises(RunConflict, match="it has no intact checkpoint"):
        train_run(tmp_path / "run", "epochs=2")
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_a_run_in_double_precision_continues_bit_for_bit(tmp_path):
    double = ("trainer.precision=64-true", "record=none", "logger=none", "model.width=1")
    train_run(tmp_path / "whole", *double, "epochs=2")
    for epochs in (1, 2):
        train_run(tmp_path / "parts", *double, f"epochs={epochs}")
    weights, expected = (checkpoint(tmp_path / name)["state_dict"] for name in ("parts", "whole"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
