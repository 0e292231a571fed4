"""Two processes over gloo take the same steps as one."""

import csv
import json

import pytest
import torch
from processes import run as run_command

RUN = [
    *("data=shapes", "data.train_size=330", "data.test_size=90", "data.val_size=70", "data.batch_size=64"),
    *("model=vgg_a", "model.width=4", "optim=sgd", "optim.lr=0.05", "epochs=2", "trainer.precision=32-true"),
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]


def start(cwd, *overrides):
    return run_command("cifarbn.train", *RUN, *overrides, cwd=cwd)


def run(cwd, *overrides):
    finished = start(cwd, *overrides)
    assert finished.returncode == 0, finished.stderr
    (result,) = (cwd / "multirun_outputs").glob("*/*/result.json")
    with open(result.parent / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (
        json.loads(result.read_text()),
        rows,
        torch.load(result.parent / "last.ckpt", weights_only=True)["state_dict"],
        finished.stdout,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), "trainer=ddp", "trainer.devices=2")


def test_two_processes_end_with_the_weights_of_one(one, two):
    assert set(one[2]) == set(two[2])
    for name, weights in one[2].items():
        torch.testing.assert_close(two[2][name], weights, rtol=1e-3, atol=1e-5, msg=name)


def test_two_processes_record_what_one_records(one, two):
    assert [row["step"] for row in one[1]] == [row["step"] for row in two[1]]
    # The last batch of an epoch, 260 - 4 * 64 = 4 images, is shared too.
    for a, b in zip(one[1], two[1], strict=True):
        for column in ("step/loss", "step/acc", "step/grad_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-3, abs=1e-4)
    for name, value in one[0]["metrics"].items():
        assert two[0]["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-3)


def test_only_one_process_speaks(two):
    assert two[3].count("done: ") == 1


def test_a_layer_that_several_processes_cannot_share_is_an_error(tmp_path):
    refused = start(tmp_path, "trainer=ddp", "trainer.devices=2", "model=vgg_a_bn", "norm=noisy_batch")
    assert refused.returncode == 1
    assert "error: NoisyBatchNorm2d would compute its statistics in each process" in refused.stderr
    assert "Traceback" not in refused.stderr
