"""The real entry point, end to end, on the embedded data."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ENVIRONMENT, Command
from processes import run as run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifarbn.runs.result_file import write_result

TINY = [
    *("data=shapes", "data.train_size=400", "data.test_size=100", "data.val_size=80", "data.batch_size=64"),
    *(
        "model=resnet18",
        "model.width=4",
        "model.dropout=0.2",
        "epochs=2",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
    ),
]
STEPS = 2 * 5


def run(cwd, *overrides):
    return run_command("cifarbn.train", *overrides, cwd=cwd)


def only_folder(cwd) -> Path:
    (result,) = (Path(cwd) / "multirun_outputs").glob("*/*/result.json")
    return result.parent


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "cifarbn.train", *TINY]
    finished = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return only_folder(cwd)


def test_result_is_complete(undisturbed):
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["status"] == "done"
    assert result["steps"] == STEPS
    assert set(result["metrics"]) == {f"{part}/{what}" for part in ("train", "val", "test") for what in ("loss", "acc")}
    assert result["data"]["name"] == "shapes" and result["data"]["fingerprint"]
    assert result["constant_prediction_loss"] == pytest.approx(math.log(10))
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["images_per_second"] > 0
    assert {"first_step", "train", "evaluate", "checkpoint", "total"} <= set(result["seconds"])
    assert str(undisturbed.parent) not in (undisturbed / "result.json").read_text()
    assert (undisturbed / ".hydra" / "config.yaml").exists()


def test_every_step_and_epoch_is_in_metrics_csv(undisturbed):
    table = rows(undisturbed)
    assert [int(row["step"]) for row in table] == list(range(STEPS))
    assert all(float(row["step/grad_norm"]) > 0 for row in table)
    epochs = [row for row in table if row["val/acc"]]
    assert [int(row["step"]) for row in epochs] == [4, 9]
    # 320 images in batches of 64, so the epoch's mean is that of its steps.
    losses = [float(row["step/loss"]) for row in table[5:]]
    assert float(epochs[1]["train/loss"]) == pytest.approx(sum(losses) / 5, rel=1e-6)


def test_tensorboard_has_scalars_hparams_and_the_confusion_matrix(undisturbed):
    events = EventAccumulator(str(undisturbed)).Reload()
    tags = events.Tags()
    assert {"train/loss", "val/acc", "test/acc", "step/loss", "step/lr"} <= set(tags["scalars"])
    assert "test/confusion" in tags["images"]
    assert any("hparams" in tag for tag in events.summary_metadata)
    result = json.loads((undisturbed / "result.json").read_text())
    assert events.Scalars("test/acc")[-1].value == pytest.approx(result["metrics"]["test/acc"])


def test_the_same_command_again_does_nothing(undisturbed):
    before = (undisturbed / "last.ckpt").stat().st_mtime_ns
    again = run(undisturbed.parents[2], *TINY)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert (undisturbed / "last.ckpt").stat().st_mtime_ns == before


def assert_equal_state(a, b):
    """Weights, buffers, optimizer state and generators, bit for bit."""
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng"):
        flat_a, spec_a = torch.utils._pytree.tree_flatten(a[key])
        flat_b, spec_b = torch.utils._pytree.tree_flatten(b[key])
        assert spec_a == spec_b
        for x, y in zip(flat_a, flat_b, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def start_and_signal(cwd, number, after_steps):
    """Start a run that saves every step, and signal it after some; try again if the run ends before that."""
    for _ in range(5):
        process = Command("cifarbn.train", *TINY, "checkpoint_minutes=0", cwd=cwd)
        while process.returncode is None:
            found = list(Path(cwd).glob("multirun_outputs/*/*/last.ckpt"))
            if found and torch.load(found[0], weights_only=True)["global_step"] >= after_steps:
                process.send_signal(number)
                break
            time.sleep(0.001)
        _, err = process.communicate()
        if checkpoint(only_folder(cwd))["global_step"] < STEPS:
            return process.returncode, err
        shutil.rmtree(cwd / "multirun_outputs")
    pytest.fail("the run was always over before the signal came")


def test_a_run_killed_in_the_middle_of_an_epoch_continues_bit_for_bit(undisturbed, tmp_path):
    code, _ = start_and_signal(tmp_path, signal.SIGKILL, after_steps=7)
    folder = only_folder(tmp_path)
    assert code == -signal.SIGKILL
    assert json.loads((folder / "result.json").read_text())["status"] == "running"
    assert 7 <= checkpoint(folder)["global_step"] < STEPS, "killed within the second epoch"

    resumed = run(tmp_path, *TINY, "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_state(checkpoint(folder), checkpoint(undisturbed))
    assert rows(folder) == rows(undisturbed)
    old, new = (json.loads((f / "result.json").read_text())["metrics"] for f in (undisturbed, folder))
    assert new == old


def test_ctrl_c_saves_reports_it_and_can_be_resumed(undisturbed, tmp_path):
    code, err = start_and_signal(tmp_path, signal.SIGINT, after_steps=2)
    folder = only_folder(tmp_path)
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"

    resumed = run(tmp_path, *TINY)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_state(checkpoint(folder), checkpoint(undisturbed))
    assert rows(folder) == rows(undisturbed)


def test_sigterm_during_validation_saves_the_epoch_first(undisturbed, tmp_path):
    # Lightning's own handler would leave in the middle of the validation, and nothing would be saved.
    slow = [*TINY[:-1], "trainer.enable_progress_bar=true", "data.eval_batch_size=1"]
    slow += ["data.train_size=720", "data.val_size=400"]  # 5 steps an epoch, and time to signal in a validation
    process = Command("cifarbn.train", *slow, cwd=tmp_path)
    output = ""
    while "Validation DataLoader" not in output and (character := process.stdout.read(1)):
        output += character
    process.send_signal(signal.SIGTERM)
    process.communicate()
    folder = only_folder(tmp_path)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert checkpoint(folder)["global_step"] == 5 and len(rows(folder)) == 5


def test_a_run_cut_off_while_testing_keeps_the_metrics_of_its_training(undisturbed, tmp_path):
    folder = tmp_path / undisturbed.relative_to(undisturbed.parents[2])
    shutil.copytree(undisturbed, folder)
    result = json.loads((folder / "result.json").read_text())
    write_result(folder / "result.json", result | {"status": "running", "metrics": {}})
    resumed = run(tmp_path, *TINY)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((folder / "result.json").read_text())["metrics"] == result["metrics"]
    assert rows(folder) == rows(undisturbed)


def test_an_epoch_cut_short_by_max_steps_has_no_validation_of_another_epoch(tmp_path):
    finished = run(tmp_path, *TINY, "trainer.max_steps=8")
    assert finished.returncode == 0, finished.stderr
    table = rows(only_folder(tmp_path))
    assert len(table) == 8 and table[4]["val/acc"] and table[7]["train/acc"] and not table[7]["val/acc"]
    result = json.loads((only_folder(tmp_path) / "result.json").read_text())
    assert "val/acc" not in result["metrics"] and result["metrics"]["test/acc"] >= 0


def test_recorders_by_name_on_the_deep_linear_net(tmp_path):
    recorders = "record=[last_layer_gradients,gradient_probe,step_change,covariate_shift]"
    finished = run(
        tmp_path,
        *(
            "-m",
            "experiment=santurkar2018_dln",
            "model=dln,dln_bn",
            "optim.lr=1e-6",
            "data.steps_per_epoch=20",
            "epochs=2",
        ),
        *(recorders, "record.gradient_probe.every=10", "record.gradient_probe.steps=[1e-8,1e-7]"),
        "trainer.enable_progress_bar=false",
    )
    assert finished.returncode == 0, finished.stderr
    files = list((tmp_path / "multirun_outputs" / "santurkar2018_dln").glob("*/recordings.npz"))
    assert len(files) == 2
    for file in files:
        recorded = np.load(file)
        assert recorded["probe.step"].tolist() == [0, 10, 20, 30]
        assert recorded["probe.gradient.loss"].shape == (4, 2)
        assert len(recorded["last_layer.norm"]) == 40
        assert (recorded["covariate_shift.distance"][:, 0] == 0).all()


def test_a_diverged_run_is_a_result(tmp_path):
    finished = run(tmp_path, *TINY, "optim=sgd", "optim.lr=1e30", "loss=mse")
    assert finished.returncode == 0, finished.stderr
    result = json.loads((only_folder(tmp_path) / "result.json").read_text())
    assert result["status"] == "diverged"
    assert result["divergence"]["lr"] == 1e30
    assert result["divergence"]["step"] >= 1 and result["divergence"]["grad_norm"] > 0
    assert f"step {result['divergence']['step']} is not finite" in finished.stdout
    assert "test/acc" not in result.get("metrics", {})
    assert result["data"]["train_size"] == 320 and result["seconds"]["total"] > 0
    table = rows(only_folder(tmp_path))
    assert len(table) == result["divergence"]["step"] + 1, "its curve, the last loss included"


def test_a_signal_while_the_step_is_compiled_ends_the_run_at_once(tmp_path):
    process = Command("cifarbn.train", *TINY, "trainer.compile=true", "trainer.enable_progress_bar=false", cwd=tmp_path)
    while (line := process.stdout.readline()) and not line.startswith("compiling the training step"):
        pass
    time.sleep(1)  # compiling takes many seconds
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    result = json.loads((only_folder(tmp_path) / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("interrupted", 0), "the step in progress is not waited for"
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
