"""What the benchmarks run and print. Speeds are not tested: they are only meaningful on a quiet machine."""

import json
import os
import sys
from functools import partial

import processes
import pytest
import torch

from cifarbn.benchmark import kills, loop, sweep, threads
from cifarbn.benchmark.__main__ import main
from cifarbn.benchmark.harness import as_text, in_turn
from cifarbn.benchmark.kernels import FAST, TORCH
from cifarbn.benchmark.step import MODELS, training_flops
from cifarbn.benchmark.threads import busy_processes
from cifarbn.models import VGG, ResNet
from cifarbn.runs.measures import TABLES

# Warnings of the usual DataLoader: on machines with few cores, and about forking a process with threads.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork:DeprecationWarning")


def report(tmp_path, command):
    file = tmp_path / "report.json"
    main([*command.split(), "--json", str(file)])
    return json.loads(file.read_text())


@pytest.fixture
def tiny_model(monkeypatch):
    """The option for a model whose recorders and steps take milliseconds."""
    monkeypatch.setitem(MODELS, "tiny", lambda: VGG("A", width=1))
    return "--model tiny"


def test_the_first_step_of_each_batch_size_is_not_measured(monkeypatch):
    now, sizes, trained = [0.0], [4, 4, 2, 4, 2, 4, 2], set()

    def train_on(images, labels):
        now[0] += 1.0 if len(labels) in trained else 100.0
        trained.add(len(labels))

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    batches = [(torch.zeros(size), torch.zeros(size)) for size in sizes]
    side = loop._Loop(torch.nn.Linear(1, 1), batches, torch.device("cpu"))
    monkeypatch.setattr(side, "_train_on", train_on)
    # 4 + 4 + 2 + 4 + 2 images in 5 s, without the first 4 and the first 2; six batches of 4 have 24 images.
    assert side(6) == 5 * 24 / 16


def test_in_turn_alternates_the_sides_after_a_warm_up_round():
    ran = []
    seconds = in_turn(2, {"a": lambda: ran.append("a"), "b": lambda: ran.append("b") or 7.0})
    assert ran == ["a", "b"] * 3
    assert len(seconds["a"]) == 2 and seconds["b"] == [7.0, 7.0]


def test_the_table_has_rates_and_speed_ups_over_the_first_side():
    seconds = {"a": [4.0, 2.0], "b": [1, 1]}
    text = as_text({"title": "w", "device": "d", "unit": "u/s", "amount": 12, "seconds": seconds})
    assert "x1.00" in text and "x3.00" in text and "12 u/s" in text


@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.cifar10), False])
def test_data_names_the_images_it_used(tmp_path, capsys, request, real):
    root = request.getfixturevalue("cifar10_root") if real else tmp_path
    found = report(tmp_path, f"data --rounds 1 --images 500 --root {root}")
    shown = capsys.readouterr().out
    assert ("500 images of cifar10" if real else f"500 images of shapes (no CIFAR-10 in {root})") in shown
    assert [len(seconds) for seconds in found["seconds"].values()] == [1, 1]
    assert found["device"] and found["versions"]["torch"]


def test_step_measures_every_mode_and_the_peak(tmp_path, capsys, tiny_model):
    found = report(tmp_path, f"step {tiny_model} --rounds 1 --steps 1 --batch-size 8")
    assert len(found["seconds"]) == 3
    assert all(rate > 0 for rate in found["peak_flops"].values())
    assert "of the best square matrix product in bfloat16" in capsys.readouterr().out


@pytest.mark.usefixtures("kernels")
def test_kernels_measures_both_kinds_of_layers_in_turn(tmp_path, capsys, tiny_model, monkeypatch):
    monkeypatch.setattr("cifarbn.benchmark.kernels.multiplies_bf16", lambda cuda: True)
    found = report(tmp_path, f"kernels {tiny_model} --rounds 2 --steps 1 --batch-size 8")
    assert list(found["seconds"]) == [f"{p}, {layers}" for p in ("fp32", "bf16") for layers in (TORCH, FAST)]
    assert "bf16: " in capsys.readouterr().out and len(found["notes"]) == 2


@pytest.mark.usefixtures("kernels")
def test_kernels_without_a_compiler_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("cifarbn.benchmark.kernels.why_unavailable", lambda dtype: "no C compiler")
    with pytest.raises(SystemExit, match="error: benchmark kernels needs the C kernels: no C compiler"):
        main(["kernels"])


def test_loop_measures_three_ways_of_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cifarbn.benchmark.loop.IMAGES", 100)
    forked = processes.fork_context()  # spares it the imports
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: forked)
    found = report(tmp_path, f"loop --model resnet18_narrow --rounds 1 --steps 2 --batch-size 8 --root {tmp_path}")
    assert list(found["seconds"]) == ["the usual way", "a bare loop", "cifarbn.train"]
    assert {"first_step", "evaluate", "checkpoint", "start and end"} == set(found["outside_training_seconds"])
    assert "of the bare loop's images/s" in capsys.readouterr().out


def test_probe_measures_every_recorder(tmp_path, capsys, tiny_model):
    found = report(tmp_path, f"probe {tiny_model} --rounds 1 --steps 3 --batch-size 8")
    assert len(found["seconds"]) == 1 + len(TABLES) and min(s[0] for s in found["seconds"].values()) > 0
    assert "last-layer gradients:" in capsys.readouterr().out


# Stands for a run: five checkpoints in a second.
RUN = """
import json, os, time
os.makedirs("run", exist_ok=True)
done = int(open("run/last.ckpt").read() or 0) if os.path.exists("run/last.ckpt") else 0
while done < 5:
    time.sleep(0.2)
    done += 1
    open("run/new", "w").write(str(done))
    os.replace("run/new", "run/last.ckpt")
seconds = {"train": 1, "evaluate": 0, "checkpoint": 0}
json.dump({"seconds": seconds}, open("run/result.json", "w"))
"""


def test_kills_measures_the_overhead_of_a_kill(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kills, "_command", lambda args: [sys.executable, "-S", "-c", RUN])
    found = report(tmp_path, "kills --rounds 2 --every 0.8 --checkpoint 0.2")
    assert list(found["seconds"]) == ["undisturbed", "SIGKILL every 0.8 s"] and min(found["kills"]) >= 1
    assert len(found["overhead_seconds_per_kill"]) == 2 and found["start_seconds"] > 0
    assert "checkpoint interval 0.2 s + start" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: 0\.01 s are too short for a start and a checkpoint; raise --every"):
        main(["kills", "--rounds", "1", "--every", "0.01"])
    monkeypatch.setattr(
        kills, "_command", lambda args: [sys.executable, "-S", "-c", RUN.replace("done < 5", "done < 1")]
    )
    with pytest.raises(SystemExit, match="lower --every or raise --steps"):
        main(["kills", "--rounds", "1", "--every", "100"])


def test_threads_measures_each_number_alone_and_next_to_busy_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # must not affect the measured processes
    monkeypatch.setattr(threads, "BUSY", 1)
    monkeypatch.setattr(threads, "in_turn", partial(in_turn, warm_up=False))
    found = report(tmp_path, "threads --model resnet18_narrow --rounds 1 --steps 1 --batch-size 8")
    names = list(found["seconds"])
    assert names[0] == "alone: auto" and {"busy: auto", "busy: 1 thread", "busy: auto, surprised"} <= set(names)
    assert min(s[0] for s in found["seconds"].values()) > 0
    assert found["threads_at_the_end"]["busy: 1 thread"] == [1]
    assert "busy: auto reaches" in capsys.readouterr().out and os.environ["OMP_NUM_THREADS"] == "1"


def test_sweep_measures_runs_in_parallel_and_one_after_another(tmp_path, capsys, monkeypatch):
    commands = []

    def execute(arguments, folder):
        commands.append(arguments)
        if "hydra.launcher.jobs=1" not in arguments:  # with one run, the launcher does the same for 2
            finished = processes.run("cifarbn.train", *arguments, cwd=folder)
            assert finished.returncode == 0 and "1 done of 1" in finished.stdout, finished

    monkeypatch.setattr(sweep, "execute", execute)
    found = report(tmp_path, "sweep --rounds 1 --runs 1 --images 20 --width 1 --batch-size 20")
    jobs = [[override for override in command if "jobs" in override] for command in commands]
    assert jobs == [[], ["hydra.launcher.jobs=1"], ["hydra.launcher.jobs=2"]]
    assert [len(seconds) for seconds in found["seconds"].values()] == [1, 1, 1]
    assert "two in parallel: " in capsys.readouterr().out


def test_busy_processes_end_with_the_block():
    with busy_processes(1) as started:
        assert [process.poll() for process in started] == [None]
    assert [process.poll() for process in started] != [None]


def test_flops_of_a_resnet18_by_hand():
    # 0.5556 G multiply-adds forward (convolutions and head). Backward has as many for the weights and as many for the
    # inputs, except for the first convolution, whose input needs no gradient (1.77 M).
    forward = 2 * 555_422_720
    first = 2 * 3 * 9 * 64 * 32 * 32
    assert training_flops(ResNet(18), 1) == 3 * forward - first


def test_an_unwritable_file_is_one_error_message(tmp_path):
    file = tmp_path / "no such" / "file"
    with pytest.raises(SystemExit, match="error: .*no such"):
        main(["data", "--rounds", "1", "--images", "130", "--root", str(tmp_path), "--json", str(file)])


def test_a_number_below_1_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["step", "--steps", "0"])
    assert "must be at least 1" in capsys.readouterr().err
