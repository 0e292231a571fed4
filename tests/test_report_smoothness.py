"""The smoothness section, on run folders written by hand: every number in it can be worked out on paper."""

import csv
import io
import json

import numpy as np
import pytest

from cifarbn.recorders.step_history import COLUMNS
from cifarbn.report.definitions import WHOSE, curves
from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.smoothness import smoothness

NORMS = {"vgg_a": "torch.nn.Identity", "vgg_a_bn": "torch.nn.BatchNorm2d"}


def write_run(root, model, lr, *, steps=30, scale=1.0, status="done", loss=None, batch=8):
    """A run whose last-layer differences are all `scale` and whose walk has d(s) = 2 scale s at every probe."""
    folder = root / f"data.batch_size={batch},model={model},optim.lr={lr}"
    folder.mkdir(parents=True)
    config = {
        "model": {"norm": {"_target_": NORMS[model]}, "num_classes": 10},
        "optim": {"lr": lr},
        "schedule": {"max_lr": lr},
        "record": {"gradient_probe": {"eta": lr}},
        "data": {"_target_": "cifarbn.data.Shapes", "batch_size": batch},
        "seed": 0,
    }
    result = {
        "status": status,
        "config": config,
        "overrides": [f"model={model}", f"optim.lr={lr}", f"data.batch_size={batch}"],
        "metrics": {"test/acc": 0.5},
        "data": {"name": "shapes", "train_size": 240, "val_size": 0, "test_size": 10},
    }
    (folder / "result.json").write_text(json.dumps(result))
    losses = np.linspace(2, 1, steps) * scale if loss is None else np.full(steps, loss)
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for t in range(steps):
            writer.writerow({"step": t, "epoch": 0, "lr": lr, "step/loss": losses[t], "step/grad_norm": 1.0})
    t, s = np.arange(steps), np.array([0.05, 0.1, 0.4])
    probes = np.arange(0, steps, 5)
    n = len(probes)
    first, second = np.full(steps, scale), np.full(steps, 3 * scale)
    first[0], second[:2] = np.nan, np.nan
    arrays = {
        "last_layer.step": t,
        "last_layer.norm": np.ones(steps),
        "last_layer.first_difference": first,
        "last_layer.second_difference": second,
        "held_out.step": probes,
        "held_out.acc": np.linspace(0.1, 0.5, n),
        "held_out.source": np.array("val"),
        "probe.step": probes,
        "probe.s": s,
        "probe.every": np.array(5),
        "probe.parameters": np.array(["conv.weight", "conv.bias", "head.weight"]),
        "probe.dimensions": np.array([4, 1, 2]),
        "probe.gradient.loss": np.tile([1.0, 2.0, 4.0], (n, 1)) * scale,
        "probe.gradient.gradient_norm": np.full(n, 0.5),
        "probe.gradient.distance_moved": np.tile(s * 0.5, (n, 1)),
        "probe.gradient.gradient_distance": np.tile(2 * scale * s, (n, 1)),
        "probe.gradient.parameter_distance": np.ones((n, 3, 3)) * scale,
        "probe.gradient.parameter_moved": np.ones((n, 3, 3)),
        "probe.gradient.parameter_norm": np.full((n, 3), 2.0),
    }
    np.savez(folder / "recordings.npz", **arrays)
    return folder


@pytest.fixture
def sweep(tmp_path):
    for model, scale in (("vgg_a", 6.0), ("vgg_a_bn", 2.0)):
        for lr in (0.001, 0.002):
            write_run(tmp_path, model, lr, scale=scale, steps=30 if lr == 0.001 else 20)
    return tmp_path


def test_definitions_of_one_run_by_hand(tmp_path):
    recordings = dict(np.load(write_run(tmp_path, "vgg_a", 0.001, scale=6.0) / "recordings.npz"))
    found = curves(recordings)
    assert list(found) == [name for name in WHOSE if name in found]
    # The report's curve lies one step to the left of the stream's: defined at step 0, not at the last.
    lipschitz = found["report Lipschitz"][1]
    assert lipschitz[0] == 6 and np.isnan(lipschitz[-1])
    assert np.isnan(found["course gradient distance"][1][0])
    expected = {
        "paper loss range": 6 * (4 - 1),
        "paper gradient predictiveness": 2 * 6 * 0.4,
        "paper effective beta": 2 * 6 / 0.5,
        "relative gradient distance": 2 * 6 * 0.4 / 0.5,
        "scale-invariant beta": 6 * 2.0**2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][1], value, err_msg=name)


def test_families_differ_in_more_than_rate_and_what_follows_from_it(sweep):
    section = smoothness(gather(sweep), Options())
    assert {drawing.name for drawing in section.drawings} == {
        "accuracy-every-few-steps",
        "loss-landscape-over-rates",
        "course-gradient-distance",
        "report-lipschitz",
        "report-beta",
        "paper-figure-4-lr-0.001",
        "paper-figure-4-lr-0.002",
        "distance-curves",
        "where-definitions-disagree",
    }
    for drawing in section.drawings:
        assert "Data: shapes, 240 training pictures, batch 8. vgg_a_bn: n = 2" in drawing.caption, drawing.name


def test_factors_compare_the_net_without_normalisation_with_the_other(sweep):
    files = smoothness(gather(sweep), Options()).files
    rows = list(csv.DictReader(io.StringIO(files["factors.csv"])))
    assert {float(row["factor"]) for row in rows} == {3.0}, "6 over 2, for every definition and rate"
    assert {row["lr"] for row in rows} == {"0.001", "0.002"}


def test_another_batch_size_is_another_family(sweep):
    write_run(sweep, "vgg_a", 0.001, batch=16)
    captions = [drawing.caption for drawing in smoothness(gather(sweep), Options()).drawings]
    assert "vgg_a, batch_size 16: n = 1 (lr 0.001)" in captions[0]


def test_the_long_table_has_step_rate_norm_definition_and_value(sweep):
    files = smoothness(gather(sweep), Options()).files
    rows = list(csv.DictReader(io.StringIO(files["smoothness.csv"])))
    one = [
        r
        for r in rows
        if (r["definition"], r["lr"], r["norm"], r["step"]) == ("report Lipschitz", "0.001", "BatchNorm2d", "7")
    ]
    assert [float(r["value"]) for r in one] == [2.0]
    assert {r["source"] for r in rows} == {"report", "course", "paper", "control"}


def test_dead_and_diverged_runs_are_in_no_band_and_named(sweep):
    write_run(sweep, "vgg_a", 0.004, loss=2.3026, steps=150)
    write_run(sweep, "vgg_a", 0.008, status="diverged")
    section = smoothness(gather(sweep), Options())
    assert "optim.lr=0.004 (dead since step 0" in section.text
    assert "optim.lr=0.008 (diverged" in section.text
    figure4 = [drawing.name for drawing in section.drawings if "figure-4" in drawing.name]
    assert figure4 == ["paper-figure-4-lr-0.001", "paper-figure-4-lr-0.002"]


def test_captions_carry_the_caveats(sweep):
    captions = {drawing.name: drawing.caption for drawing in smoothness(gather(sweep), Options()).drawings}
    assert "minibatch noise" in captions["report-lipschitz"]
    assert "sensitivity to the rate" in captions["loss-landscape-over-rates"]
    assert "not invariant to reparametrisation" in captions["paper-figure-4-lr-0.001"]
    assert "s from 0.05 to 0.4" in captions["paper-figure-4-lr-0.001"]


def test_runs_that_recorded_nothing_have_no_section(tmp_path):
    folder = write_run(tmp_path, "vgg_a", 0.001)
    (folder / "recordings.npz").unlink()
    assert smoothness(gather(tmp_path), Options()) is None


def test_runs_that_recorded_different_things_stand_in_one_sweep(sweep):
    """The family that comes first has neither probes nor held-out accuracy."""
    for folder in sweep.glob("*model=vgg_a_bn*"):
        with np.load(folder / "recordings.npz") as file:
            kept = {name: array for name, array in file.items() if name.startswith("last_layer")}
        np.savez(folder / "recordings.npz", **kept)
    section = smoothness(gather(sweep), Options())
    drawings = {drawing.name: drawing for drawing in section.drawings}
    assert "At the end: vgg_a: 50.0%" in drawings["accuracy-every-few-steps"].alt
    assert "vgg_a_bn" not in drawings["accuracy-every-few-steps"].alt
    assert "every 5 steps" in drawings["accuracy-every-few-steps"].caption
    assert "At every 5th step the loss" in drawings["paper-figure-4-lr-0.001"].caption


def test_a_figure_says_and_shows_one_data_set(sweep):
    for folder in sweep.glob("*lr=0.002"):
        result = json.loads((folder / "result.json").read_text())
        result["data"] |= {"name": "cifar10", "train_size": 50_000}
        result["config"]["data"]["_target_"] = "cifarbn.data.CIFAR10"
        (folder / "result.json").write_text(json.dumps(result))
    captions = {drawing.name: drawing.caption for drawing in smoothness(gather(sweep), Options()).drawings}
    assert "Data: shapes, 240 training" in captions["report-beta-shapes"]
    assert "Data: cifar10, 50,000 training" in captions["report-beta-cifar10"]
    assert "Data: cifar10" in captions["paper-figure-4-lr-0.002-cifar10"]
    assert all(("cifar10" in name) == ("Data: cifar10" in caption) for name, caption in captions.items())


def test_a_run_without_a_learning_rate_is_passed_over(sweep):
    folder = write_run(sweep, "vgg_a", 0.5)
    result = json.loads((folder / "result.json").read_text())
    result["config"]["optim"] = {"_target_": "torch.optim.Adadelta"}
    (folder / "result.json").write_text(json.dumps(result))
    section = smoothness(gather(sweep), Options())
    assert "lr 0.5" not in section.drawings[0].caption


def test_targets_do_not_set_families_apart(sweep):
    for i, folder in enumerate(sorted(sweep.glob("*lr=*"))):
        result = json.loads((folder / "result.json").read_text())
        result["config"] |= {"target": i / 10, "source": f"row {i}"}
        (folder / "result.json").write_text(json.dumps(result))
    names = [drawing.name for drawing in smoothness(gather(sweep), Options()).drawings]
    assert "loss-landscape-over-rates" in names and "where-definitions-disagree" in names


def test_a_family_of_one_rate_has_no_band_and_does_not_keep_the_others_from_being_compared(sweep):
    write_run(sweep, "vgg_a", 0.001, batch=16)
    drawings = {drawing.name: drawing for drawing in smoothness(gather(sweep), Options()).drawings}
    assert drawings["loss-landscape-over-rates"].alt.count("median width") == 2
    assert "batch_size 16" not in drawings["where-definitions-disagree"].figure.axes[0].get_xlabel()
    assert "batch_size 16" in drawings["report-beta"].alt


def test_every_one_of_many_families_is_drawn_along_the_gradient(tmp_path):
    for batch in range(1, 10):
        write_run(tmp_path, "vgg_a", 0.001, batch=batch)
    drawings = {drawing.name: drawing for drawing in smoothness(gather(tmp_path), Options()).drawings}
    assert len(drawings["paper-figure-4-lr-0.001"].figure.axes[2].lines) == 9
