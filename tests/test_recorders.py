"""Recorders change nothing, survive a resume, and record the right values."""

import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cifarbn.data import Augmentation, Shapes
from cifarbn.errors import Interrupted, UserError
from cifarbn.models import VGG, ResNet
from cifarbn.models.normalization import NoisyBatchNorm2d
from cifarbn.recorders import (
    ActivationDrift,
    CovariateShift,
    GradientProbe,
    HeldOutAccuracy,
    LastLayerGradients,
    ScaleInvariantBeta,
    StepChange,
)
from cifarbn.report.read import read_recordings
from cifarbn.smoothness.weight_probes import SHARES
from cifarbn.training.callbacks.resume_checkpoint import ResumeCheckpoint
from cifarbn.training.callbacks.standard import StandardCallbacks
from cifarbn.training.callbacks.timing import Timing
from cifarbn.training.classifier import Classifier

STEPS = 6


def everything(folder, weight_shares=SHARES[:1]):
    """All recorders. The probes of every weight take most of the time, so they have one fraction by default."""
    return [
        LastLayerGradients(folder, raw=True),
        GradientProbe(folder, every=2, points=3),
        ScaleInvariantBeta(folder, every=2, shares=weight_shares),
        StepChange(folder, every=2, per_layer=True),
        CovariateShift(folder, every=2),
        ActivationDrift(folder, every=2),
        HeldOutAccuracy(folder, every=2, images=30),
    ]


def vgg_without_norm():
    return VGG("A", width=4)


def bn_vgg():
    return VGG("A", norm=nn.BatchNorm2d, width=4)


def noisy_vgg():
    return VGG("A", norm=NoisyBatchNorm2d, width=4, dropout=0.3)


def resnet():
    return ResNet(18, width=4, dropout=0.1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def train(net, folder, recorders, optimizer=adam, precision="32-true", extra=(), checkpoint=None, epochs=2):
    """Train for two epochs of three steps; return everything that could differ."""
    torch.manual_seed(1)
    classifier = Classifier(net(), nn.CrossEntropyLoss(), optimizer)
    data = Shapes(train_size=62, test_size=20, val_size=40, batch_size=8, augmentation=Augmentation())
    standard = StandardCallbacks(folder, recorders, 1e9, progress_bar=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        callbacks=[*standard.in_order, *extra],
    )
    trainer.fit(classifier, data, ckpt_path=checkpoint, weights_only=True)
    return {
        "state": {k: v.clone() for k, v in classifier.net.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "rng": torch.get_rng_state(),
        "modes": [m.training for m in classifier.net.modules()],
    }


def assert_same(a, b):
    leaves_a, spec_a = torch.utils._pytree.tree_flatten(a)
    leaves_b, spec_b = torch.utils._pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("net", [vgg_without_norm, bn_vgg, noisy_vgg, resnet])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_recorders_change_nothing(net, precision, tmp_path):
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    alone.mkdir(), watched.mkdir()
    assert_same(
        train(net, watched, everything(watched), precision=precision), train(net, alone, [], precision=precision)
    )
    assert (watched / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


@pytest.mark.parametrize("net", [bn_vgg, resnet])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_every_precision_of_a_cpu_can_be_recorded(net, precision, tmp_path):
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    alone.mkdir(), watched.mkdir()
    assert_same(
        train(net, watched, everything(watched), precision=precision), train(net, alone, [], precision=precision)
    )
    assert (watched / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
    arrays = np.load(watched / "recordings.npz")
    # In half precision the two gradients of a step would be equal; they are measured in float32.
    assert arrays["probe.gradient.gradient_distance"].dtype in (np.float32, np.float64)
    for name in ("probe.update.gradient_distance", "step_change.change", "covariate_shift.distance", "held_out.loss"):
        assert np.isfinite(arrays[name]).all() and (arrays[name] > 0).any(), name


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of a model with batch norm and plain SGD with all recorders: its folder, recordings and metrics."""
    folder = tmp_path_factory.mktemp("recorded")
    recorders = everything(folder, weight_shares=SHARES)
    train(bn_vgg, folder, recorders, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    with open(folder / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    return folder, dict(np.load(folder / "recordings.npz")), metrics


def test_recordings_are_those_of_the_tables(recorded):
    folder, arrays, _ = recorded
    keys = {key: key.axes for recorder in everything(folder) for key in recorder.table.keys()}
    assert arrays.keys() == keys.keys()
    assert {name for name, array in arrays.items() if keys[name] and array.ndim != len(keys[name])} == set()
    assert read_recordings(folder).keys() == arrays.keys()


def test_the_probe_starts_from_the_step_s_own_loss_and_gradient(recorded):
    _, arrays, metrics = recorded
    assert arrays["probe.step"].tolist() == [0, 2, 4]
    losses = [float(metrics[t]["step/loss"]) for t in (0, 2, 4)]
    norms = [float(metrics[t]["step/grad_norm"]) for t in (0, 2, 4)]
    np.testing.assert_allclose(arrays["probe.gradient.loss_at_start"], losses, rtol=1e-6)
    np.testing.assert_allclose(arrays["probe.gradient.gradient_norm"], norms, rtol=1e-5)


def test_the_probe_uses_the_range_of_santurkar_et_al_in_both_directions(recorded):
    _, arrays, _ = recorded
    np.testing.assert_allclose(arrays["probe.s"], [0.05, np.sqrt(0.05 * 0.4), 0.4], rtol=1e-6)
    moved = arrays["probe.s"] * arrays["probe.gradient.gradient_norm"][:, None]
    np.testing.assert_allclose(arrays["probe.gradient.distance_moved"], moved, rtol=1e-6)
    np.testing.assert_allclose(arrays["probe.random.distance_moved"], moved, rtol=1e-5)
    assert arrays["probe.gradient.parameter_distance"].shape == (3, 3, len(arrays["probe.parameters"]))


def test_the_update_direction_ends_at_the_parameters_of_the_step_change(recorded):
    _, arrays, _ = recorded
    np.testing.assert_allclose(arrays["probe.update.loss"][:, 0], arrays["step_change.loss_after"], rtol=1e-6)
    distance = arrays["probe.update.gradient_distance"][:, 0]
    np.testing.assert_allclose(distance, arrays["step_change.change"], rtol=1e-5)


def test_the_matched_probe_is_along_the_gradient_at_multiples_of_the_step(recorded):
    _, arrays, _ = recorded
    assert arrays["probe.shares"].tolist() == [0.5, 1, 2, 4]
    update_length = arrays["probe.update.distance_moved"]
    np.testing.assert_allclose(arrays["probe.matched.distance_moved"], update_length * [0.5, 1, 2, 4], rtol=1e-5)
    # With plain SGD the step is along the gradient, so the two probes meet at a share of 1.
    for name in ("loss", "gradient_distance", "cosine"):
        matched, update = arrays[f"probe.matched.{name}"][:, 1], arrays[f"probe.update.{name}"][:, 0]
        np.testing.assert_allclose(matched, update, rtol=1e-4, err_msg=name)


def test_every_weight_is_probed_alone_by_fractions_of_its_norm(recorded):
    folder, arrays, _ = recorded
    prefix = "scale_invariant_beta"
    assert arrays[f"{prefix}.step"].tolist() == [0, 2, 4]
    names = arrays[f"{prefix}.weights"].tolist()
    assert names == [n for n, d in zip(arrays["probe.parameters"], arrays["probe.dimensions"], strict=True) if d > 1]
    assert len(names) == 8 + 3
    norms = arrays[f"{prefix}.weight_norm"]
    np.testing.assert_allclose(norms, arrays["probe.gradient.parameter_norm"][:, arrays["probe.dimensions"] > 1])
    moved = np.array([0.01, 0.03, 0.1])[:, None] * norms[:, None]
    np.testing.assert_allclose(arrays[f"{prefix}.distance_moved"], moved, rtol=1e-5)
    assert (arrays[f"{prefix}.gradient_distance"] > 0).all()


def test_the_step_under_sgd_is_lr_times_the_gradient(recorded):
    _, arrays, metrics = recorded
    assert arrays["step_change.step"].tolist() == [0, 2, 4], "the split of step 2 crosses an epoch's end"
    norms = np.array([float(metrics[t]["step/grad_norm"]) for t in (0, 2, 4)])
    np.testing.assert_allclose(arrays["step_change.moved"], 0.01 * norms, rtol=1e-4)
    np.testing.assert_allclose(
        arrays["step_change.ratio"], arrays["step_change.change"] / arrays["step_change.moved"], rtol=1e-6
    )


def test_the_split_adds_up_and_its_head_is_the_course_report_s_lipschitz(recorded):
    _, arrays, _ = recorded
    for prefix in ("", "head_"):
        total, drift, noise, inner = (arrays[f"step_change.{prefix}{k}"] for k in ("total", "drift", "noise", "inner"))
        np.testing.assert_allclose(total**2, drift**2 + noise**2 + 2 * inner, rtol=1e-4)
    # ||G_{t+1} - G_t|| is the entry of the stream at t + 1.
    np.testing.assert_allclose(
        arrays["step_change.head_total"], arrays["last_layer.first_difference"][[1, 3, 5]], rtol=1e-3
    )


def test_the_layers_of_a_step_change_add_up_to_the_model(recorded):
    _, arrays, _ = recorded
    assert arrays["step_change.layers"].tolist() == arrays["covariate_shift.layers"].tolist()
    for name in ("change", "moved", "drift", "noise"):
        total = np.sqrt(np.square(arrays[f"step_change.layer_{name}"]).sum(axis=1))
        np.testing.assert_allclose(total, arrays[f"step_change.{name}"], rtol=1e-6)
    np.testing.assert_array_less(arrays["step_change.head_drift"], arrays["step_change.layer_drift"][:, -1] + 1e-12)


def test_last_layer_gradients_against_the_raw_file(recorded):
    folder, arrays, metrics = recorded
    raw = np.load(folder / "last_layer_gradients.npy").astype(np.float64)
    assert raw.shape == (STEPS, 10, 32)
    np.testing.assert_allclose(arrays["last_layer.norm"], np.linalg.norm(raw, axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        arrays["last_layer.first_difference"][1:], np.linalg.norm(np.diff(raw, axis=0), axis=(1, 2)), rtol=1e-5
    )
    second = 2 * raw[1:-1] - raw[:-2] - raw[2:]
    np.testing.assert_allclose(
        arrays["last_layer.second_difference"][2:], np.linalg.norm(second, axis=(1, 2)), rtol=1e-5
    )
    norms = [float(row["step/grad_norm"]) for row in metrics]
    assert (arrays["last_layer.norm"] < norms).all(), "a part of the whole gradient"


def test_the_layer_is_the_head_and_not_one_found_by_its_index(tmp_path):
    # A BatchNorm after the head's predecessor, or a head that is not the last module, must not matter.
    recorder = LastLayerGradients(tmp_path)
    train(lambda: VGG("A", norm=nn.BatchNorm2d, classifier_norm=True, width=4), tmp_path, [recorder], epochs=1)
    assert recorder._stream.state_dict()["previous"].shape == (10, 32)


def test_covariate_shift_of_the_first_layer_is_exactly_zero(recorded):
    _, arrays, _ = recorded
    assert len(arrays["covariate_shift.layers"]) == 8 + 3
    assert (arrays["covariate_shift.distance"][:, 0] == 0).all()
    assert (arrays["covariate_shift.distance"][:, 1:] > 0).all()
    np.testing.assert_allclose(arrays["covariate_shift.cosine"][:, 0], 1, rtol=1e-6)
    assert (np.abs(arrays["covariate_shift.cosine"]) <= 1 + 1e-6).all()


def test_activations_are_those_after_normalisation(recorded):
    _, arrays, _ = recorded
    convolutions = slice(0, 8)
    # Batch norm at its initial scale and shift: mean 0 and standard deviation 1 for any input.
    np.testing.assert_allclose(arrays["activation_drift.mean"][0, convolutions], 0, atol=1e-5)
    np.testing.assert_allclose(arrays["activation_drift.std"][0, convolutions], 1, atol=2e-2)
    np.testing.assert_allclose(arrays["activation_drift.histogram"].sum(-1), 1, rtol=1e-5)


def test_held_out_accuracy_at_the_sampled_steps(recorded):
    _, arrays, _ = recorded
    assert arrays["held_out.step"].tolist() == [0, 2, 4]
    thirtieths = arrays["held_out.acc"] * 30
    np.testing.assert_allclose(thirtieths, thirtieths.round(), atol=1e-4)


def test_held_out_accuracy_needs_held_out_images(tmp_path):
    class NoValidation:
        val_names = ()

    recorder = HeldOutAccuracy(tmp_path)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule = NoValidation()
    with pytest.raises(UserError, match=r"set data\.val_size above 0"):
        recorder.on_train_start(trainer, None)


class StopWithin(pl.Callback):
    """Save and stop as after a signal: after a step within an epoch, or after an epoch."""

    def __init__(self, last, after):
        self.last, self.after = last, after

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.after and not self.at_the_end_of_an_epoch(trainer):
            self.last._save(trainer)
            raise Interrupted

    def on_train_epoch_end(self, trainer, *_):
        if trainer.global_step == self.after:
            self.last._save(trainer)
            raise Interrupted

    @staticmethod
    def at_the_end_of_an_epoch(trainer):
        return trainer.global_step % trainer.num_training_batches == 0


@pytest.fixture(scope="module")
def never_cut_off(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(noisy_vgg, folder, everything(folder))


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_recordings_after_a_resume_are_those_of_a_run_never_cut_off(tmp_path, never_cut_off, after):
    (whole, expected), cut = never_cut_off, tmp_path
    with pytest.raises(Interrupted):
        stop = StopWithin(ResumeCheckpoint(cut, 1e9, Timing()), after)
        train(noisy_vgg, cut, everything(cut), extra=[stop])
    got = train(noisy_vgg, cut, everything(cut), checkpoint=cut / "last.ckpt")
    assert_same(got, expected)
    a, b = (np.load(folder / "recordings.npz") for folder in (whole, cut))
    assert set(a.files) == set(b.files)
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    np.testing.assert_array_equal(*(np.load(f / "last_layer_gradients.npy") for f in (whole, cut)))
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "at least 1"),
        ({"steps": "resnet"}, "vgg, dln or a list"),
        ({"steps": [0.1, -1]}, "positive"),
        ({"steps": [0.1, float("inf")]}, "positive"),
        ({"steps": [float("nan")]}, "positive"),
        ({"directions": ["sideways"]}, "sideways"),
        ({"shares": [1, 0]}, "shares must be positive"),
    ],
)
def test_the_probe_rejects_invalid_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        GradientProbe(tmp_path, **options)


@pytest.mark.parametrize("options", [{"every": 0}, {"shares": []}, {"shares": [0.1, -0.1]}])
def test_scale_invariant_beta_rejects_invalid_options(tmp_path, options):
    with pytest.raises(UserError, match=rf"record\.scale_invariant_beta\.{next(iter(options))}"):
        ScaleInvariantBeta(tmp_path, **options)


def test_a_probe_without_shares_or_without_the_update_has_no_matched_probe(tmp_path):
    for options in ({"shares": []}, {"directions": ["gradient"]}):
        folder = tmp_path / str(len(options))
        folder.mkdir(exist_ok=True)
        train(vgg_without_norm, folder, [GradientProbe(folder, every=2, points=2, **options)], epochs=1)
        names = np.load(folder / "recordings.npz").files
        assert "probe.gradient.loss" in names and not [name for name in names if "matched" in name]


def test_weights_that_are_unfrozen_during_training_are_an_error(tmp_path):
    class Unfreezes(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            pl_module.net.head.weight.requires_grad_(trainer.global_step > 1)

    with pytest.raises(UserError, match=r"record\.scale_invariant_beta: the model freezes"):
        train(vgg_without_norm, tmp_path, [ScaleInvariantBeta(tmp_path, every=1)], extra=[Unfreezes()], epochs=1)


@pytest.mark.parametrize("reach", [0, -1, float("nan"), float("inf")])
def test_the_histogram_rejects_a_reach_that_is_not_positive(tmp_path, reach):
    with pytest.raises(UserError, match="reach a positive number"):
        ActivationDrift(tmp_path, reach=reach)
