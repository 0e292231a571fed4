"""Figures of single layers, on recordings written by hand."""

import numpy as np
import pytest
from test_report_smoothness import write_run

from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.smoothness import smoothness
from cifarbn.runs.measures import ActivationDriftKeys, CovariateShiftKeys

STEPS = np.array([0, 10, 20])


def add_layers(folder, layers=5, scale=1.0, **replaced):
    """Layer i is called `f.i`; its cosine is 1 - i / 10, its distance `scale` i, its mean i, its std 1 + i."""
    shift, drift = CovariateShiftKeys, ActivationDriftKeys
    i = np.tile(np.arange(layers, dtype=np.float32), (len(STEPS), 1))
    names = np.array([f"f.{layer}" for layer in range(layers)])
    histogram = np.zeros((len(STEPS), layers, 4))
    histogram[..., 2] = 1
    with np.load(folder / "recordings.npz") as file:
        arrays = dict(file)
    arrays |= {shift.step: STEPS, shift.layers: names, shift.gradient_norm: i}
    arrays |= {shift.cosine: 1 - i / 10, shift.distance: scale * i}
    arrays |= {drift.step: STEPS, drift.layers: names, drift.mean: i, drift.std: 1 + i}
    arrays |= {drift.histogram: histogram, drift.edges: np.linspace(-5, 5, 5)}
    arrays |= replaced
    np.savez(folder / "recordings.npz", **{str(key): array for key, array in arrays.items()})


def drawings_of(root):
    return {drawing.name: drawing for drawing in smoothness(gather(root), Options()).drawings}


def lines_of(figure, row, column):
    """Label -> y values, of a panel in a grid of two columns."""
    return {line.get_label(): line.get_ydata().tolist() for line in figure.axes[2 * row + column].lines}


def test_covariate_shift_is_drawn_of_an_early_a_middle_and_the_last_layer(tmp_path):
    for model, scale in (("vgg_a", 1.0), ("vgg_a_bn", 3.0)):
        for seed in (0, 1):
            add_layers(write_run(tmp_path, model, 0.001, seed=seed), scale=scale * (1 + seed))
    one = drawings_of(tmp_path)["covariate-shift-lr-0.001"]
    assert "Layers: 2 (f.1), 3 (f.2), 5 (f.4) of 5." in one.caption
    assert "vgg_a: n = 2 runs of 3 measurements" in one.caption and "Data: shapes" in one.caption
    assert lines_of(one.figure, 0, 0) == {name: pytest.approx([0.9] * 3) for name in ("vgg_a_bn", "vgg_a")}
    # The median over seeds: 1.5 times the first seed's.
    assert lines_of(one.figure, 2, 1) == {"vgg_a_bn": [18.0] * 3, "vgg_a": [6.0] * 3}
    assert "median ‖G − G′‖ 3" in one.alt


def test_moments_and_distributions_begin_with_the_first_layer(tmp_path):
    add_layers(write_run(tmp_path, "vgg_a", 0.001))
    found = drawings_of(tmp_path)
    moments = found["activation-moments-lr-0.001"]
    assert "Layers: 1 (f.0), 3 (f.2), 5 (f.4) of 5." in moments.caption
    for column, expected in enumerate(([0, 2, 4], [1, 3, 5])):
        assert [list(lines_of(moments.figure, row, column).values()) for row in range(3)] == [
            [[v] * 3] for v in expected
        ]
    distributions = found["activation-distributions"].figure
    mesh = distributions.axes[0].collections[0].get_array().reshape(4, 3)
    assert mesh.tolist() == [[0] * 3, [0] * 3, [1] * 3, [0] * 3], "steps along the axis, bins upwards"
    assert distributions.axes[0].get_xlim() == (-5, 25)


def test_families_with_other_layers_are_drawn_beside_each_other(tmp_path):
    add_layers(write_run(tmp_path, "vgg_a", 0.001), layers=5)
    add_layers(write_run(tmp_path, "vgg_a_bn", 0.001), layers=2)
    caption = drawings_of(tmp_path)["covariate-shift-lr-0.001"].caption
    assert "vgg_a: 2 (f.1), 3 (f.2), 5 (f.4) of 5" in caption and "vgg_a_bn: 2 (f.1) of 2" in caption


def test_a_model_of_one_layer_is_drawn(tmp_path):
    add_layers(write_run(tmp_path, "vgg_a", 0.001), layers=1)
    assert "Layers: 1 (f.0) of 1." in drawings_of(tmp_path)["covariate-shift-lr-0.001"].caption


def test_more_families_than_fit_beside_each_other_have_further_figures(tmp_path):
    for batch in (8, 16, 32, 64):
        add_layers(write_run(tmp_path, "vgg_a", 0.001, batch=batch))
    found = drawings_of(tmp_path)
    assert [len(found[f"activation-distributions-{i}"].figure.axes) for i in (1, 2)] == [9, 3]


def test_new_measures_are_compared_like_their_neighbours(tmp_path):
    for model, scale in (("vgg_a", 6.0), ("vgg_a_bn", 2.0)):
        add_layers(write_run(tmp_path, model, 0.001), scale=scale)
    files = smoothness(gather(tmp_path), Options()).files
    row = next(row for row in files["factors.csv"].splitlines() if row.startswith("step,covariate shift,"))
    assert row == "step,covariate shift,paper,,0.001,vgg_a,vgg_a_bn,15,5,3,,,,1,1,2,2", "of steps 10 and 20"
    assert "20,0.001,BatchNorm2d,vgg_a_bn,0,covariate shift,paper,5\n" in files["smoothness.csv"]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({CovariateShiftKeys.cosine: np.ones((3, 4))}, "covariate_shift.cosine is float64 (3, 4), not numbers (3, 5)"),
        ({ActivationDriftKeys.edges: np.arange(4)}, "does not say the edges of activation_drift.histogram"),
        ({ActivationDriftKeys.mean: np.ones((2, 5))}, "activation_drift.mean is float64 (2, 5), not numbers (3, 5)"),
    ],
)
def test_damaged_layers_are_named(tmp_path, replaced, message):
    add_layers(write_run(tmp_path, "vgg_a", 0.001), **{str(key): array for key, array in replaced.items()})
    sweep = gather(tmp_path)
    smoothness(sweep, Options())
    ((_, _, reason),) = sweep.read_in_part
    assert message in reason
