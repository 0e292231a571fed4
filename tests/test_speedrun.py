"""The recipe of the speedrun, and what its benchmark runs and prints; speeds are not tested."""

import json
import re

import pytest
import torch

from cifarbn.benchmark.__main__ import main
from cifarbn.benchmark.speedrun_bare import BareSpeedrun
from cifarbn.benchmark.speedrun_peer import parse, run_peer
from cifarbn.benchmark.speedrun_recipe import Outcome, Recipe
from cifarbn.data import InMemoryLoader, draw_shapes
from cifarbn.data.augmentation import PaddedImages
from cifarbn.data.cifar10 import MEAN, STD
from cifarbn.errors import UserError
from cifarbn.fast.hardware import Hardware

TINY = ["epochs=2", "data.batch_size=20", "model.widths=[4,8,8]"]

PEER = """
import torch
train, test = (torch.load(f"cifar10/{part}.pt") for part in ("train", "test"))
assert train["images"].shape[1:] == (32, 32, 3) and train["images"].dtype == torch.uint8, train["images"].shape
def main(run):
    print("|  %s  |      1  |   0.5000  |   0.4000  |                |          0.5000  |" % str(run).rjust(6))
    print("|          |   eval  |   0.5000  |   0.4000  |        0.6000  |          %.4f  |" % (len(test["labels"])))
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
main("warmup")
accs = [main(run) for run in range(200)]
"""


def bare(recipe, images, test, **options):
    return BareSpeedrun(recipe, images, test, Hardware.choose("cpu", compile=False), **options)


def test_the_gpu_recipe_equals_airbench94():
    recipe = Recipe.of("speedrun_gpu")
    assert (recipe.batch_size, recipe.epochs, recipe.tta) == (2000, 8, "flip_shift")
    assert (recipe.augmentation.pad, recipe.augmentation.flip) == (2, "alternating")
    assert recipe.loss.label_smoothing == 0.2
    model = recipe.make_model()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 6 and all(norm.momentum == 0.4 for norm in norms)
    banks, head, vectors = recipe.make_optimizer(model.parameters()).param_groups
    batch, decay = 2000, 2e-6 * 2000
    assert (banks["lr"], banks["momentum"], banks["iterations"]) == (0.24, 0.6, 3)
    assert head["lr"] * head["relative_lr"] == pytest.approx(0.67 * batch / 256**2, rel=1e-3)
    assert head["lr"] * head["relative_lr"] * head["weight_decay"] == pytest.approx(decay, rel=1e-3)
    assert vectors["lr"] * vectors["relative_lr"] == pytest.approx(0.053 * batch)
    assert vectors["lr"] * vectors["relative_lr"] * vectors["weight_decay"] == pytest.approx(decay, rel=1e-3)
    assert head["momentum"] == vectors["momentum"] == 0.85


def test_the_bare_loop_trains_on_the_batches_of_the_loader():
    recipe, images = Recipe.of("speedrun_gpu", TINY), draw_shapes(50, seed=0)
    loop = bare(recipe, images, images)
    loader = InMemoryLoader(
        images, 20, mean=MEAN, std=STD, augmentation=recipe.augmentation, shuffle=True, drop_last=True, seed=3
    )
    loader.sampler.set_epoch(1)
    batches = list(loop._batches(PaddedImages(images.pixels, recipe.augmentation), seed=3, epoch=1))
    assert len(batches) == len(loader) == 2
    for (pixels, labels), (expected, expected_labels) in zip(batches, loader, strict=True):
        torch.testing.assert_close(loop._normalize(pixels), expected)
        assert torch.equal(labels, expected_labels)


def test_every_run_after_the_warm_up_starts_from_scratch():
    images = draw_shapes(60, seed=0)
    loop = bare(Recipe.of("speedrun_gpu", TINY), images, images)
    ends = []
    for seed in (5, 0, 1, 0):
        outcome = loop(seed)
        assert outcome.seconds > 0 and 0 <= outcome.accuracy_without_tta <= 1
        ends.append({name: value.clone() for name, value in loop.model.state_dict().items()})
    _, first, other, again = ends
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert loop.lr == 0


def test_the_bare_loop_learns():
    recipe = Recipe.of("speedrun_gpu", ["epochs=6", "data.batch_size=50", "model.widths=[16,32,32]", "optim.lr=0.1"])
    outcome = bare(recipe, draw_shapes(1000, seed=0), draw_shapes(200, seed=1))(0)
    assert outcome.accuracy > 0.5


def test_the_bare_loop_continues_if_compilation_or_capture_fails(capsys, monkeypatch):
    images = draw_shapes(40, seed=0)
    loop = bare(Recipe.of("speedrun_gpu", TINY), images, images, graph=True)

    def broken(*args):
        raise RuntimeError("no such kernel\nand more")

    loop.loss = loop.logits = broken
    monkeypatch.setattr(torch.cuda, "Stream", broken)
    assert loop(0).seconds > 0
    shown = capsys.readouterr().out
    assert "torch.compile failed for the loss, running uncompiled (RuntimeError: no such kernel)" in shown
    assert "torch.compile failed for the logits" in shown
    assert shown.count("capturing a CUDA graph failed") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", ["", "default"])
def test_a_captured_step_trains_like_an_uncaptured_one(compile):
    # Four epochs, so that the whitening bias is trained, then frozen; a small lr keeps rounding errors small.
    gentle = ["epochs=4", "optim.lr=0.02", "optim.vector_lr=0.1", "optim.normalize=false"]
    recipe = Recipe.of("speedrun_gpu", [*TINY, *gentle])
    images = draw_shapes(60, seed=0).to("cuda")
    ends = []
    for graph in (True, False):
        loop = BareSpeedrun(recipe, images, images, Hardware.choose("gpu", compile=False), compile=compile, graph=graph)
        loop(0)
        assert loop.graph == graph and set(loop.steps) == {True, False}
        loop(1)
        ends.append(loop.model.groups[2].conv2.weight.detach().clone())
    torch.manual_seed(1)
    start = recipe.make_model().groups[2].conv2.weight.detach().cuda()
    assert (ends[0] - ends[1]).norm() < 0.3 * (ends[1] - start).norm()


def test_the_peer_gets_the_images_and_the_number_of_runs():
    outcomes = run_peer(PEER, draw_shapes(10, seed=0), draw_shapes(5, seed=1), runs=2, minutes=1)
    assert outcomes == [Outcome(seconds=5.0, accuracy=0.6, accuracy_without_tta=0.4)] * 2


def test_a_failing_or_wrong_peer_script_is_one_error_message():
    images = draw_shapes(2, seed=0)
    with pytest.raises(UserError, match="must be an unchanged airbench94_muon.py"):
        run_peer("print(1)", images, images, runs=1, minutes=1)
    with pytest.raises(UserError, match="exit status 1: ZeroDivisionError"):
        run_peer("1 / 0\nrange(200)", images, images, runs=1, minutes=1)
    with pytest.raises(UserError, match="printed 0 results instead of 1"):
        run_peer("range(200)", images, images, runs=1, minutes=1)
    with pytest.raises(UserError, match=re.escape("stopped after 0.001 minutes")):
        run_peer("import time\ntime.sleep(60)\nrange(200)", images, images, runs=1, minutes=0.001)


def test_lines_without_results_are_ignored_in_the_peers_table():
    assert parse("-----\n|  run  |  epoch  |\n") == []


def test_the_benchmark_reports_every_side(tmp_path, capsys):
    peer, file = tmp_path / "peer.py", tmp_path / "report.json"
    peer.write_text(PEER)
    command = "speedrun --runs 2 --images 50 --epochs 1 --batch-size 20 --width-scale 0.05 --peer"
    main([*command.split(), str(peer), "--root", str(tmp_path), "--json", str(file)])
    report = json.loads(file.read_text())
    sides = ["airbench94_muon", "a bare loop", "cifarbn.train"]
    assert list(report["seconds"]) == list(report["accuracy"]) == list(report["accuracy_without_tta"]) == sides
    assert all(len(values) == 2 for values in report["seconds"].values())
    shown = capsys.readouterr().out
    assert "1 epochs of 50 images of shapes (no CIFAR-10 in" in shown
    assert "airbench94_muon: 60.00% (std 0.00%) with TTA (flip_shift), 40.00% (std 0.00%) without, n = 2" in shown
    assert re.search(r"a bare loop: .* n = 2; median \d+\.\d+ s, \d+\.\d+ times the peer's", shown)


def test_a_failing_peer_keeps_the_other_results(tmp_path, capsys):
    peer = tmp_path / "peer.py"
    peer.write_text("1 / 0\nrange(200)")
    command = "speedrun --no-full --runs 1 --images 20 --epochs 1 --batch-size 20 --width-scale 0.05 --peer"
    main([*command.split(), str(peer), "--root", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "cifarbn.train" not in shown
    assert (
        "a bare loop, warm-up: " in shown
        and "a bare loop, seed 0: " in shown
        and "the script failed with exit status 1" in shown
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--images 10", "10 images are fewer than one batch of 2000; lower --batch-size"),
        ("--width-scale 0", "--width-scale must be above 0, not 0"),
        ("--peer none.py", "none.py"),
    ],
)
def test_invalid_speedrun_options_are_one_error_message(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{re.escape(message)}"):
        main(["speedrun", *options.split(), "--root", str(tmp_path)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_graph_without_a_gpu_is_one_error_message(tmp_path):
    with pytest.raises(SystemExit, match="error: --graph needs a CUDA device; run without --graph"):
        main(["speedrun", "--graph", "--images", "20", "--batch-size", "20", "--root", str(tmp_path)])
