"""The smoothness section, on recordings whose measures can be computed by hand."""

import csv
import io
import json
import math

import numpy as np
import pytest

from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.smoothness import smoothness
from cifarbn.runs.measures import MEASURES, curves
from cifarbn.runs.schema import COLUMNS

NORMS = {"vgg_a": "torch.nn.Identity", "vgg_a_bn": "torch.nn.BatchNorm2d"}


def write_run(root, model, lr, *, steps=30, scale=1.0, status="done", loss=None, batch=8, seed=0, **facts):
    """Write a run whose last-layer differences are all `scale` and whose gradient distance is 2 scale s at every probe.

    The distance moved is s / 2, so the gradient distance is 4 scale times that; the optimizer's step length is 0.1.
    """
    folder = root / f"data.batch_size={batch},model={model},optim.lr={lr},seed={seed}"
    folder.mkdir(parents=True)
    config = {
        "model": {"norm": {"_target_": NORMS[model]}, "num_classes": 10},
        "optim": {"lr": lr},
        "schedule": {"max_lr": lr},
        "record": {"gradient_probe": {"eta": lr}},
        "data": {"_target_": "cifarbn.data.Shapes", "batch_size": batch},
        "seed": seed,
    }
    result = {
        "status": status,
        "config": config,
        "overrides": [f"model={model}", f"optim.lr={lr}", f"data.batch_size={batch}"],
        "metrics": {"test/acc": 0.5},
        "data": {"name": "shapes", "train_size": 240, "val_size": 0, "test_size": 10},
        **facts,
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
        "probe.gradient.loss_at_start": np.full(n, 0.5) * scale,
        "probe.gradient.loss": np.tile([1.0, 2.0, 4.0], (n, 1)) * scale,
        "probe.gradient.gradient_norm": np.full(n, 0.5),
        "probe.gradient.distance_moved": np.tile(s * 0.5, (n, 1)),
        "probe.gradient.gradient_distance": np.tile(2 * scale * s, (n, 1)),
        "probe.update.distance_moved": np.full((n, 1), 0.1),
        "scale_invariant_beta.step": probes,
        "scale_invariant_beta.weights": np.array(["a", "b", "c"]),
        "scale_invariant_beta.gradient_distance": np.array([[0, 0, np.nan], [0.5, 1, np.nan]])
        * np.full((n, 1, 1), scale),
        "scale_invariant_beta.distance_moved": np.tile([[0.01, 0.01, 0.01], [0.1, 0.1, 0.1]], (n, 1, 1)),
        "scale_invariant_beta.weight_norm": np.full((n, 3), 2.0),
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
    measured = curves(recordings)
    assert list(measured) == [measure.name for measure in MEASURES if measure.name in measured]
    # The curve of the course report is defined at step 0 but not at the last step.
    lipschitz = measured["course report Lipschitz"][1]
    assert lipschitz[0] == 6 and np.isnan(lipschitz[-1])
    assert np.isnan(measured["course handout gradient distance"][1][0])
    expected = {
        "loss range": 6 * (4 - 1),
        "gradient predictiveness": 2 * 6 * 0.4,
        "effective beta": 2 * 6 / 0.5,
        "relative gradient distance": 2 * 6 * 0.4 / 0.5,
        # The median over the weights that have a gradient: beta is 30 and 60 at the larger share, ||w||^2 is 4.
        "scale-invariant beta": 4 * (30 + 60) / 2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name][1], value, err_msg=name)


def test_a_joint_probe_of_all_weights_gives_no_scale_invariant_beta(tmp_path):
    """Recordings of versions that did not probe each weight alone give all other measures."""
    recordings = dict(np.load(write_run(tmp_path, "vgg_a", 0.001) / "recordings.npz"))
    old = {name: array for name, array in recordings.items() if not name.startswith("scale_invariant_beta")}
    n = len(old["probe.step"])
    old |= {f"probe.gradient.parameter_{k}": np.ones((n, 3, 2)) for k in ("distance", "moved")}
    old |= {"probe.gradient.parameter_norm": np.ones((n, 2)), "probe.dimensions": np.array([4, 2])}
    assert set(curves(recordings)) - set(curves(old)) == {"scale-invariant beta"}


def test_runs_that_differ_only_in_learning_rate_form_a_family(sweep):
    section = smoothness(gather(sweep), Options())
    assert {drawing.name for drawing in section.drawings} == {
        "accuracy-every-few-steps",
        "loss-landscape-over-rates",
        "course-handout-gradient-distance",
        "course-report-lipschitz",
        "course-report-beta",
        "along-gradient-lr-0.001",
        "along-gradient-lr-0.002",
        "distance-curves",
        "ratios",
        "ratios-at-equal-distance-and-loss",
    }
    for drawing in section.drawings:
        assert "Data: shapes, 240 training images, batch size 8." in drawing.caption, drawing.name
        assert "Nothing is smoothed." in drawing.caption


def test_ratios_compare_the_model_without_normalisation_with_the_other(sweep):
    files = smoothness(gather(sweep), Options()).files
    rows = list(csv.DictReader(io.StringIO(files["factors.csv"])))
    assert {float(row["factor"]) for row in rows} == {3.0}, "6 / 2, for every measure and rate"
    assert {row["lr"] for row in rows} == {"0.001", "0.002"}
    assert {(row["reference"], row["other"]) for row in rows} == {("vgg_a", "vgg_a_bn")}
    row = next(row for row in rows if (row["definition"], row["lr"]) == ("course report Lipschitz", "0.001"))
    assert row == {
        "matched": "step",
        "definition": "course report Lipschitz",
        "source": "course report",
        "true steps": "",
        "lr": "0.001",
        "reference": "vgg_a",
        "other": "vgg_a_bn",
        "median reference": "6",
        "median other": "2",
        "factor": "3",
        "interval low": "3",
        "interval high": "3",
        "interval over": "probes",
        "runs reference": "1",
        "runs other": "1",
        "probes reference": "19",  # steps 10 to 28: the last has no successor
        "probes other": "19",
    }
    few = next(row for row in rows if (row["definition"], row["lr"]) == ("effective beta", "0.001"))
    assert few["probes reference"] == "4" and not few["interval low"] and not few["interval over"]


def test_captions_of_ratios_explain_their_intervals(sweep):
    drawings = {drawing.name: drawing for drawing in smoothness(gather(sweep), Options()).drawings}
    caption = drawings["ratios"].caption
    assert "n = 1 run of each model with 2 to 20 steps or probes" in caption
    assert "bootstrap interval over probes. An interval over the probes of a single run" in caption
    assert "A hollow dot has fewer than 5 probes" in caption


def rows_of(root):
    return list(csv.DictReader(io.StringIO(smoothness(gather(root), Options()).files["factors.csv"])))


def keep_only(folder, *prefixes):
    with np.load(folder / "recordings.npz") as file:
        kept = {name: array for name, array in file.items() if name.startswith(prefixes)}
    np.savez(folder / "recordings.npz", **kept)


def test_only_families_that_differ_only_in_normalisation_are_compared(tmp_path):
    """As in report_laptop.record: two models at four rates, last-layer gradients only, and models without a pair."""
    for model, scale in (("vgg_a", 6.0), ("vgg_a_bn", 2.0)):
        for lr in (1e-4, 5e-4, 1e-3, 2e-3):
            write_run(tmp_path, model, lr, scale=scale)
    for batch in (16, 32):
        write_run(tmp_path, "vgg_a_bn", 1e-3, batch=batch)
    for folder in tmp_path.iterdir():
        keep_only(folder, "last_layer")
    rows = rows_of(tmp_path)
    assert len(rows) == 12
    assert {float(row["factor"]) for row in rows} == {3.0}
    assert {row["lr"] for row in rows} == {"0.0001", "0.0005", "0.001", "0.002"}
    assert {row["reference"] for row in rows} == {"vgg_a, batch_size 8"}


def test_every_pair_has_its_own_figure(sweep):
    for model in ("vgg_a", "vgg_a_bn"):
        write_run(sweep, model, 0.001, batch=16)
    drawings = {drawing.name: drawing for drawing in smoothness(gather(sweep), Options()).drawings}
    labels = {drawings[f"ratios-{i}"].figure.axes[0].get_xlabel().split(";")[0] for i in (1, 2)}
    assert {" ".join(label.split()) for label in labels} == {
        f"vgg_a, batch_size {batch} divided by vgg_a_bn, batch_size {batch}" for batch in (8, 16)
    }
    assert "ratios" not in drawings


def test_at_equal_distance_the_curves_are_evaluated_at_multiples_of_the_step_length(tmp_path):
    """The steps of the model with batch norm are twice as long, so at one step length the ratio is 1.5, not 3."""
    write_run(tmp_path, "vgg_a", 0.001, scale=6.0, steps=60)
    bn = write_run(tmp_path, "vgg_a_bn", 0.001, scale=2.0, steps=60)
    with np.load(bn / "recordings.npz") as file:
        arrays = dict(file)
    arrays["probe.update.distance_moved"] *= 2
    np.savez(bn / "recordings.npz", **arrays)
    ratios = {
        (row["definition"], row["true steps"]): (float(row["factor"]), row["median reference"])
        for row in rows_of(tmp_path)
        if row["matched"] == "distance"
    }
    assert ratios["gradient predictiveness", "0.5"] == (1.5, "1.2")
    assert ratios["gradient predictiveness", "1"] == (1.5, "2.4")
    assert ratios["effective beta", "1"] == (3.0, "24")
    assert ratios["relative gradient distance", "1"] == (1.5, "4.8")
    assert {share for _, share in ratios} == {"0.5", "1"}, "the probes range from 0.025 to 0.2"


def test_measured_multiples_of_the_step_length_are_not_interpolated(tmp_path):
    for model, scale in (("vgg_a", 6.0), ("vgg_a_bn", 2.0)):
        folder = write_run(tmp_path, model, 0.001, scale=scale, steps=60)
        with np.load(folder / "recordings.npz") as file:
            arrays = dict(file)
        n = len(arrays["probe.step"])
        arrays["probe.shares"] = np.array([1.0, 32.0])
        arrays["probe.matched.gradient_distance"] = np.tile([scale, scale**2], (n, 1))
        arrays["probe.matched.loss"] = np.tile([0.25 * scale, 2 * scale], (n, 1))
        np.savez(folder / "recordings.npz", **arrays)
    ratios = {
        (row["definition"], row["true steps"]): float(row["factor"])
        for row in rows_of(tmp_path)
        if row["matched"] == "distance"
    }
    assert ratios["gradient predictiveness", "1"] == 3
    assert ratios["gradient predictiveness", "32"] == 9
    assert ratios["loss change", "1"] == ratios["loss change", "32"] == 3
    assert ("gradient predictiveness", "4") not in ratios, "neither measured nor within the range of the probe"


def test_at_equal_loss_probes_with_equal_initial_losses_are_paired(tmp_path):
    """The losses are 12 to 6 and 7.2 to 3.6, so only probes with losses of about 6 to 7.2 form pairs."""
    write_run(tmp_path, "vgg_a", 0.001, scale=6.0, steps=200)
    write_run(tmp_path, "vgg_a_bn", 0.001, scale=3.6, steps=200)
    rows = [row for row in rows_of(tmp_path) if row["matched"] == "loss"]
    assert {row["definition"] for row in rows} == {
        *("loss range", "gradient predictiveness", "effective beta", "relative gradient distance"),
        "scale-invariant beta",
    }
    (pairs,) = {int(row["probes reference"]) for row in rows} & {int(row["probes other"]) for row in rows}
    assert 8 <= pairs <= 14, "of 38 probes"
    assert all(float(row["factor"]) == pytest.approx(6 / 3.6, rel=1e-3) and row["interval low"] for row in rows)
    write_run(tmp_path, "vgg_a", 0.002, scale=6.0)
    write_run(tmp_path, "vgg_a_bn", 0.002, scale=2.0)
    matched = [row for row in rows_of(tmp_path) if row["lr"] == "0.002" and row["matched"] == "loss"]
    assert not matched, "12 to 6 and 4 to 2 do not overlap"


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    root = tmp_path_factory.mktemp("three_seeds")
    for model, scale in (("vgg_a", 6.0), ("vgg_a_bn", 2.0)):
        for lr in (0.001, 0.002):
            for seed in range(3):
                write_run(root, model, lr, scale=scale * (1 + seed), steps=60, seed=seed)
    return smoothness(gather(root), Options())


def test_every_seed_is_drawn_and_counted(three_seeds):
    drawings = {drawing.name: drawing for drawing in three_seeds.drawings}
    for name in ("accuracy-every-few-steps", "course-report-lipschitz", "course-report-beta"):
        assert [len(axes.lines) for axes in drawings[name].figure.axes] == [2 * 3] * 2, "two rates, three seeds"
        assert "vgg_a: n = 3 runs at each of lr 0.001, 0.002" in drawings[name].caption
    assert "12 (6 to 18 over 3 runs) at lr 0.001" in drawings["course-report-lipschitz"].alt
    assert "vgg_a: n = 3 seeds with a run at each of lr 0.001, 0.002" in drawings["loss-landscape-over-rates"].caption
    assert "the pale band spans all seeds" in drawings["loss-landscape-over-rates"].caption
    assert "vgg_a: n = 3 runs of 12 probes" in drawings["along-gradient-lr-0.001"].caption
    curves = [len(axes.lines) for axes in drawings["distance-curves"].figure.axes]
    assert curves == [4 * 3] * 2 and "n = 3 runs at each of 4 steps" in drawings["distance-curves"].caption
    assert "n = 3 runs of each model with 30 to 150 steps" in drawings["ratios"].caption
    assert "bootstrap interval over probes and seeds. With few seeds" in drawings["ratios"].caption


def test_bands_over_seeds_have_the_median_edges_and_the_range(three_seeds):
    drawings = {drawing.name: drawing for drawing in three_seeds.drawings}
    beta = drawings["along-gradient-lr-0.001"].figure.axes[2]
    # beta is 4 scale: 8, 16 and 24 with norm, 24, 48 and 72 without.
    assert [set(np.round(line.get_ydata(), 6)) for line in beta.lines] == [{16}, {48}]
    ranges = [set(np.round(c.get_paths()[0].vertices[:, 1], 6)) for c in beta.collections]
    assert ranges == [{8, 24}, {24, 72}]


def test_the_interval_covers_several_seeds(three_seeds):
    rows = csv.DictReader(io.StringIO(three_seeds.files["factors.csv"]))
    row = next(row for row in rows if (row["definition"], row["lr"]) == ("course report Lipschitz", "0.001"))
    assert (row["factor"], row["interval over"], row["runs reference"]) == ("3", "probes and seeds", "3")
    assert row["probes reference"] == str(3 * 49)
    # The medians of the seeds are 6, 12, 18 and 2, 4, 6, so the extreme ratios are 6 / 6 and 18 / 2.
    assert 1 <= float(row["interval low"]) < 2 and 5 < float(row["interval high"]) <= 9


def test_a_seed_without_all_rates_is_excluded_from_bands_over_rates(sweep):
    for lr in (0.001, 0.002):
        write_run(sweep, "vgg_a", lr, seed=1)
    write_run(sweep, "vgg_a", 0.001, seed=2)
    for folder in sweep.iterdir():
        keep_only(folder, "last_layer")
    drawings = {drawing.name: drawing for drawing in smoothness(gather(sweep), Options()).drawings}
    assert "vgg_a: n = 2 seeds with a run at each of lr 0.001, 0.002" in drawings["loss-landscape-over-rates"].caption
    assert "vgg_a: n = 3 runs at lr 0.001 and n = 2 runs at lr 0.002" in drawings["course-report-beta"].caption


def test_another_batch_size_is_another_family(sweep):
    write_run(sweep, "vgg_a", 0.001, batch=16)
    captions = [drawing.caption for drawing in smoothness(gather(sweep), Options()).drawings]
    assert "vgg_a, batch_size 16: n = 1 run at lr 0.001; vgg_a, batch_size 8: n = 1 run at each of" in captions[0]


def test_smoothness_csv_has_step_rate_norm_measure_and_value(sweep):
    files = smoothness(gather(sweep), Options()).files
    rows = list(csv.DictReader(io.StringIO(files["smoothness.csv"])))
    selected = [
        r
        for r in rows
        if (r["definition"], r["lr"], r["norm"], r["step"]) == ("course report Lipschitz", "0.001", "BatchNorm2d", "7")
    ]
    assert [float(r["value"]) for r in selected] == [2.0]
    origins = {"course report", "course handout", "Santurkar et al. 2018", "control"}
    assert {r["source"] for r in rows} == origins


def test_dead_and_diverged_runs_are_excluded_from_bands(sweep):
    note = "Runs that are excluded from all means are also excluded from all bands."
    assert note not in smoothness(gather(sweep), Options()).text
    write_run(sweep, "vgg_a", 0.004, loss=2.3026, steps=150)
    write_run(sweep, "vgg_a", 0.008, status="diverged")
    runs = gather(sweep)
    assert [reason.partition(" ")[0] for _, _, reason in runs.excluded] == ["dead", "diverged:"]
    section = smoothness(runs, Options())
    assert section.text.endswith(note)
    probed = [drawing.name for drawing in section.drawings if "along-gradient" in drawing.name]
    assert probed == ["along-gradient-lr-0.001", "along-gradient-lr-0.002"]


@pytest.mark.parametrize(
    ("facts", "loss", "dead"),
    [
        ({"constant_prediction_loss": 0.09}, 0.09, True),
        ({"constant_prediction_loss": 0.09}, 0.08, False),
        ({"constant_prediction_loss": 0.09}, math.log(10), False),
        ({"constant_prediction_loss": None}, math.log(10), False),
        ({}, math.log(10), True),
    ],
)
def test_a_run_is_dead_at_the_constant_prediction_loss_of_its_own_loss(tmp_path, facts, loss, dead):
    write_run(tmp_path, "vgg_a", 0.004, loss=loss, steps=150, **facts)
    assert_dead(tmp_path, dead)


def assert_dead(root, dead):
    (group,) = gather(root).groups
    (run,) = group.runs + group.excluded
    assert (run.exclusion_reason or "").startswith("dead since step 0") is dead


@pytest.mark.parametrize(
    ("target", "loss", "dead"),
    [
        ("cifarbn.losses.OneHotMSELoss", 0.09, True),
        ("cifarbn.losses.OneHotMSELoss", math.log(10), False),
        ("torch.nn.CrossEntropyLoss", math.log(10), True),
        ("cifarbn.losses.SumOfSquares", math.log(10), False),
        ("my.own.Loss", math.log(10), False),
    ],
)
def test_old_results_derive_the_constant_prediction_loss_from_the_name_of_the_loss(tmp_path, target, loss, dead):
    folder = write_run(tmp_path, "vgg_a", 0.004, loss=loss, steps=150)
    result = json.loads((folder / "result.json").read_text())
    result["config"]["loss"] = {"_target_": target}
    (folder / "result.json").write_text(json.dumps(result))
    assert_dead(tmp_path, dead)


def test_families_of_several_folders_are_drawn_separately(tmp_path):
    for name, scale in (("before", 6.0), ("after", 2.0)):
        write_run(tmp_path / name, "vgg_a", 0.001, scale=scale)
        write_run(tmp_path / name, "vgg_a_bn", 0.001, scale=1.0)
    section = smoothness(gather(tmp_path / "before", tmp_path / "after"), Options())
    rows = list(csv.DictReader(io.StringIO(section.files["factors.csv"])))
    lipschitz = [row for row in rows if row["definition"] == "course report Lipschitz"]
    assert {(row["reference"], row["other"], row["factor"]) for row in lipschitz} == {
        ("before: vgg_a", "before: vgg_a_bn", "6"),
        ("after: vgg_a", "after: vgg_a_bn", "2"),
    }


def test_captions_include_caveats(sweep):
    captions = {drawing.name: drawing.caption for drawing in smoothness(gather(sweep), Options()).drawings}
    assert "minibatch noise" in captions["course-report-lipschitz"]
    assert "sensitivity to the learning rate" in captions["loss-landscape-over-rates"]
    assert "not invariant to reparametrisation" in captions["along-gradient-lr-0.001"]
    assert "s from 0.05 to 0.4" in captions["along-gradient-lr-0.001"]


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "fp32"), (np.float64, "fp64")])
def test_the_caption_of_the_probe_names_its_precision(tmp_path, dtype, name):
    folder = write_run(tmp_path, "vgg_a", 0.001)
    arrays = dict(np.load(folder / "recordings.npz"))
    np.savez(folder / "recordings.npz", **arrays | {"probe.gradient.loss": arrays["probe.gradient.loss"].astype(dtype)})
    captions = {drawing.name: drawing.caption for drawing in smoothness(gather(tmp_path), Options()).drawings}
    assert f"on that step's minibatch, in {name}, with" in captions["along-gradient-lr-0.001"]


def test_runs_without_recordings_have_no_section(tmp_path):
    folder = write_run(tmp_path, "vgg_a", 0.001)
    (folder / "recordings.npz").unlink()
    assert smoothness(gather(tmp_path), Options()) is None


def test_runs_with_different_recorders_share_a_report(sweep):
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
    assert "Every 5 steps, loss and gradient" in drawings["along-gradient-lr-0.001"].caption


def test_a_figure_shows_and_names_one_data_set(sweep):
    for folder in sweep.glob("*lr=0.002,*"):
        result = json.loads((folder / "result.json").read_text())
        result["data"] |= {"name": "cifar10", "train_size": 50_000}
        result["config"]["data"]["_target_"] = "cifarbn.data.CIFAR10"
        (folder / "result.json").write_text(json.dumps(result))
    captions = {drawing.name: drawing.caption for drawing in smoothness(gather(sweep), Options()).drawings}
    assert "Data: shapes, 240 training" in captions["course-report-beta-shapes"]
    assert "Data: cifar10, 50,000 training" in captions["course-report-beta-cifar10"]
    assert "Data: cifar10" in captions["along-gradient-lr-0.002-cifar10"]
    assert all(("cifar10" in name) == ("Data: cifar10" in caption) for name, caption in captions.items())


def test_a_run_without_a_learning_rate_is_skipped(sweep):
    folder = write_run(sweep, "vgg_a", 0.5)
    result = json.loads((folder / "result.json").read_text())
    result["config"]["optim"] = {"_target_": "torch.optim.Adadelta"}
    (folder / "result.json").write_text(json.dumps(result))
    section = smoothness(gather(sweep), Options())
    assert "lr 0.5" not in section.drawings[0].caption


def test_targets_do_not_distinguish_families(sweep):
    for i, folder in enumerate(sorted(sweep.glob("*lr=*"))):
        result = json.loads((folder / "result.json").read_text())
        result["config"] |= {"target": i / 10, "source": f"row {i}"}
        (folder / "result.json").write_text(json.dumps(result))
    names = [drawing.name for drawing in smoothness(gather(sweep), Options()).drawings]
    assert "loss-landscape-over-rates" in names and "ratios" in names


def test_a_family_with_one_rate_has_no_band_and_the_others_are_still_compared(sweep):
    write_run(sweep, "vgg_a", 0.001, batch=16)
    drawings = {drawing.name: drawing for drawing in smoothness(gather(sweep), Options()).drawings}
    assert drawings["loss-landscape-over-rates"].alt.count("median width") == 2
    assert "batch_size 16" not in drawings["ratios"].figure.axes[0].get_xlabel()
    assert "batch_size 16" in drawings["course-report-beta"].alt


def test_every_one_of_many_families_is_drawn_along_the_gradient(tmp_path):
    for batch in range(1, 10):
        write_run(tmp_path, "vgg_a", 0.001, batch=batch)
    drawings = {drawing.name: drawing for drawing in smoothness(gather(tmp_path), Options()).drawings}
    assert len(drawings["along-gradient-lr-0.001"].figure.axes[2].lines) == 9
