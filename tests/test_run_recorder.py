"""A user's own training loop, in plain PyTorch or Lightning, records what `cifarbn.train` records."""

import copy
import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import slow_smoothness as slow
import torch
from test_recorders import adam, noisy_vgg, train
from torch import nn

from cifarbn.data import Augmentation, Shapes
from cifarbn.errors import UserError
from cifarbn.losses import accuracy
from cifarbn.recorders import (
    ActivationDrift,
    CovariateShift,
    GradientProbe,
    HeldOutAccuracy,
    LastLayerGradients,
    RunRecorder,
    RunRecorderCallback,
    ScaleInvariantBeta,
    StepChange,
)
from cifarbn.recorders.training import LightningTraining
from cifarbn.report.__main__ import main as report
from cifarbn.report.gather import gather

cross_entropy = nn.functional.cross_entropy


def everything():
    return [
        LastLayerGradients(),
        GradientProbe(every=2, points=2),
        ScaleInvariantBeta(every=4, shares=[0.1]),
        StepChange(every=2),
        CovariateShift(every=4),
        ActivationDrift(every=2),
    ]


def own_loop(folder, recorders, epochs=2, **options):
    """The training of `test_recorders.train`, in a loop without Lightning; returns the model."""
    torch.manual_seed(1)
    model = noisy_vgg()
    optimizer = adam(model.parameters())
    data = Shapes(train_size=62, test_size=20, val_size=40, batch_size=8, augmentation=Augmentation())
    data.setup("fit")
    loader = data.train_dataloader()
    loss = nn.CrossEntropyLoss()
    options = {"held_out": list(data.val_dataloader()[0])} | options
    with RunRecorder(folder, model, loss, optimizer, recorders, **options) as recorder:
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            model.train()
            for inputs, labels in loader:
                recorder.before_step((inputs, labels))
                optimizer.zero_grad()
                logits = model(inputs)
                value = loss(logits, labels)
                value.backward()
                recorder.after_backward()
                optimizer.step()
                recorder.after_step(value, accuracy(logits.detach(), labels))
            recorder.after_epoch()
        recorder.log({"test/acc": 0.5})
    return model


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_plain_loop_records_bit_for_bit_what_a_run_of_this_package_records(tmp_path):
    ours, own = tmp_path / "ours", tmp_path / "own"
    ours.mkdir()
    recorders = [*everything(), HeldOutAccuracy(every=2, images=30)]
    state = train(noisy_vgg, ours, copy.deepcopy(recorders))["state"]
    model = own_loop(own, recorders)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    a, b = (np.load(folder / "recordings.npz") for folder in (ours, own))
    assert set(a.files) == set(b.files)
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for expected, row in zip(rows(ours), rows(own), strict=True):
        for name in ("step", "epoch", "lr", "step/loss", "step/acc", "step/grad_norm", "train/loss", "train/acc"):
            assert expected[name] == row[name], name


def test_the_report_reads_the_folder(tmp_path, monkeypatch):
    own_loop(tmp_path / "a" / "run", everything(), config={"seed": 0, "model": {"norm": "BatchNorm2d"}})
    result = json.loads((tmp_path / "a" / "run" / "result.json").read_text())
    assert (result["status"], result["steps"], result["metrics"]["test/acc"]) == ("done", 6, 0.5)
    assert set(result["overrides"]) == {
        *("seed=0", "model=VGG", "model.norm=BatchNorm2d", "loss=CrossEntropyLoss", "optim=Adam", "optim.lr=0.001")
    }
    (group,) = gather(tmp_path / "a").groups
    (run,) = group.runs
    assert run.config["data"] == {"batch_size": 8}
    assert run.seed == 0 and len(run.epochs["train/loss"]) == 2 and "probe.gradient.loss" in run.recordings
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "a"), "--format", "png"])
    report()
    page = (tmp_path / "a" / "report" / "report.md").read_text()
    assert "nothing was selected" not in page, "which nobody knows of a run from elsewhere"
    assert "effective beta" in page


class Own(pl.LightningModule):
    """A LightningModule that is its own model, with names of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.last = slow.SmallVGG(), nn.Linear(10, 10)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.last(self.body(x))

    def training_step(self, batch, _):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loaders():
    data = torch.utils.data.TensorDataset(torch.randn(32, 3, 8, 8), torch.randint(10, (32,)))
    return torch.utils.data.DataLoader(data, 8), torch.utils.data.DataLoader(data, 16)


def fit(model, callbacks, **options):
    torch.manual_seed(0)
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        inference_mode=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, *loaders())
    return model


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_lightning_module_of_ones_own_trains_the_same_and_is_recorded(tmp_path):
    torch.manual_seed(0)
    first = Own()
    second = copy.deepcopy(first)
    recorder = RunRecorderCallback(tmp_path / "run", [*everything(), HeldOutAccuracy(every=3)], {"seed": 3})
    fit(first, [recorder]), fit(second, [])
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    arrays = np.load(tmp_path / "run" / "recordings.npz")
    assert arrays["last_layer.layer"] == "last" and arrays["last_layer.step"].tolist() == list(range(8))
    assert arrays["held_out.step"].tolist() == [0, 3, 6] and (arrays["probe.gradient.gradient_distance"] > 0).all()
    (run,) = gather(tmp_path).groups[0].runs
    assert run.config["optim"] == {"_target_": "torch.optim.sgd.SGD", "lr": 0.1} and run.seed == 3
    assert np.isfinite(run.epochs["val/loss"]).all()


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_an_epoch_without_validation_has_no_metrics_of_one(tmp_path):
    fit(Own(), [RunRecorderCallback(tmp_path, [])], max_epochs=4, check_val_every_n_epoch=2)
    last = {row["epoch"]: row for row in rows(tmp_path)}
    assert [row["val/loss"] != "" for row in last.values()] == [False, True, False, True]
    assert all(row["train/loss"] for row in last.values())


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_what_a_lightning_module_must_have(tmp_path):
    with pytest.raises(UserError, match="accumulate_grad_batches=1"):
        fit(Own(), [RunRecorderCallback(tmp_path / "run", [])], accumulate_grad_batches=2)
    model = Own()
    del model.criterion
    with pytest.raises(UserError, match="Own has no loss .* give it an attribute `loss`"):
        fit(model, [RunRecorderCallback(tmp_path / "run", [])])


class Unreadable(Own):
    """A module whose training ends with a file that cannot be read."""

    def training_step(self, batch, index):
        if index == 2:
            raise FileNotFoundError("image.png")
        return super().training_step(batch, index)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_lightning_run_that_ends_with_an_error_of_a_file_has_failed(tmp_path):
    with pytest.raises(FileNotFoundError):
        fit(Unreadable(), [RunRecorderCallback(tmp_path, [LastLayerGradients()])])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed" and result["error"] == "FileNotFoundError: image.png"
    assert len(rows(tmp_path)) == 2


def start(folder, **options):
    model, x, y = slow.problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return RunRecorder(folder, model, cross_entropy, optimizer, [LastLayerGradients()], **options), model, (x, y)


def step(recorder, model, batch, factor=1.0):
    recorder.before_step(batch)
    model.zero_grad()
    value = factor * cross_entropy(model(batch[0]), batch[1])
    value.backward()
    recorder.after_backward()
    recorder.after_step(value)


def test_a_folder_that_contains_a_run_is_an_error(tmp_path):
    recorder, model, batch = start(tmp_path)
    with recorder:
        step(recorder, model, batch)
    with pytest.raises(UserError, match="already contains a run"):
        start(tmp_path)


def test_calls_in_a_wrong_order_are_an_error(tmp_path):
    recorder, model, batch = start(tmp_path)
    with pytest.raises(UserError, match="after_backward was called instead of before_step; every step calls"):
        recorder.after_backward()
    recorder.before_step(batch)
    with pytest.raises(UserError, match="before_step was called instead of after_backward"):
        recorder.before_step(batch)


@pytest.mark.parametrize(("error", "status"), [(KeyError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_loop_that_ends_early_leaves_what_it_has(tmp_path, error, status):
    recorder, model, batch = start(tmp_path)
    with pytest.raises(error), recorder:
        step(recorder, model, batch)
        raise error("why")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == status and "why" in result["error"]
    assert len(rows(tmp_path)) == 1 and len(np.load(tmp_path / "recordings.npz")["last_layer.norm"]) == 1


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path):
    recorder, model, batch = start(tmp_path)
    with recorder:
        for factor in (1.0, float("nan")):
            step(recorder, model, batch, factor)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "diverged" and result["divergence"]["step"] == 1


def test_metrics_logged_before_the_last_epoch_ends_are_kept(tmp_path):
    recorder, model, batch = start(tmp_path)
    with recorder:
        recorder.log({"test/acc": 0.25})
        step(recorder, model, batch)
        recorder.after_epoch({"val/acc": 0.75})
        step(recorder, model, batch)
        recorder.log({"test/acc": 0.5})
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["test/acc"] == 0.5 and metrics.keys() == {"test/acc", "train/loss"}, "no val/acc of an earlier epoch"


def test_after_backward_without_gradients_is_an_error(tmp_path):
    recorder, _, batch = start(tmp_path)
    recorder.before_step(batch)
    with pytest.raises(UserError, match="found no gradient in the model"):
        recorder.after_backward()


class LayerAsAttribute(pl.LightningModule):
    """A module in which `last_layer` is the layer, not its name."""

    def __init__(self):
        super().__init__()
        self.first, self.last_layer, self.aux = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(3, 2)


def test_the_attribute_last_layer_of_a_lightning_module_is_a_name_or_is_not_used():
    trainer, module = SimpleNamespace(is_global_zero=True), LayerAsAttribute()
    assert LightningTraining(trainer, module, 0).last_layer == "aux"
    named = Own()
    named.last_layer = "none"
    with pytest.raises(UserError, match="no linear layer none"):
        _ = LightningTraining(trainer, named, 0).last_layer


def tied():
    """Two linear layers that share their weight, which has the name of the first."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def record_steps(folder, model, recorders):
    batch, optimizer = (torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), torch.optim.SGD(model.parameters(), lr=0.1)
    with RunRecorder(folder, model, cross_entropy, optimizer, recorders) as recorder:
        for _ in range(3):
            step(recorder, model, batch)
    return np.load(folder / "recordings.npz")


def test_the_last_layer_may_share_its_weight(tmp_path):
    arrays = record_steps(tmp_path, tied(), [LastLayerGradients(), StepChange(every=2)])
    assert arrays["last_layer.layer"] == "1" and (arrays["last_layer.norm"] > 0).all()
    np.testing.assert_allclose(
        arrays["step_change.head_total"], arrays["last_layer.first_difference"][[1]], rtol=1e-4, atol=1e-7
    )


def test_a_last_layer_with_weight_norm_is_an_error(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UserError, match="last linear layer, 1, is computed from other parameters"):
        record_steps(tmp_path, model, [LastLayerGradients()])


class Attention(nn.Module):
    """Attention after a linear layer; torch does not call the modules of its output projection."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.attention, self.head = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(x))[:, None]
        return self.head(self.attention(x, x, x)[0][:, 0])


def test_layers_that_a_pass_does_not_call_have_no_activations(tmp_path):
    arrays = record_steps(tmp_path, Attention(), [ActivationDrift(every=1)])
    assert arrays["activation_drift.layers"].tolist() == ["first", "attention.out_proj", "head"]
    np.testing.assert_allclose(arrays["activation_drift.mean"][0, 0], 0, atol=1e-6)  # the output of the LayerNorm
    assert np.isnan(arrays["activation_drift.mean"]).all(axis=0).tolist() == [False, True, False]
    with pytest.raises(UserError, match="no convolution"):
        record_steps(tmp_path / "other", Scale(), [ActivationDrift()])


class Scale(nn.Module):
    """A model without a layer whose activations could be measured."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.scale * x


def test_other_mistakes(tmp_path):
    with pytest.raises(UserError, match="config: model must be a dict"):
        start(tmp_path, config={"model": "vgg"})
    with pytest.raises(UserError, match="config: 'config.seed' takes"):
        start(tmp_path, config={"seed": "first"})
    with pytest.raises(UserError, match="config: data must be a dict"):
        start(tmp_path, config={"data": "mine"})
    with pytest.raises(UserError, match="recorders must be objects such as LastLayerGradients"):
        RunRecorder(tmp_path, nn.Linear(2, 2), cross_entropy, torch.optim.SGD([torch.ones(1)]), [LastLayerGradients])
    with pytest.raises(UserError, match="config: x must be a number, a string or a list, not object"):
        start(tmp_path, config={"x": object()})
    twice = [LastLayerGradients(), LastLayerGradients()]
    with pytest.raises(UserError, match="LastLayerGradients is given twice"):
        RunRecorder(tmp_path, nn.Linear(2, 2), cross_entropy, torch.optim.SGD([torch.ones(1)]), twice)
    recorder, model, batch = start(tmp_path)
    step(recorder, model, batch)
    with pytest.raises(UserError, match="no column val_acc; there are train/loss"):
        recorder.after_epoch({"val_acc": 0.5})
    recorder.after_epoch()
    with pytest.raises(UserError, match="without a step since its last call; call it once for each epoch"):
        recorder.after_epoch({"val/acc": 0.5})
    recorder, *_, batch = start(tmp_path / "other", last_layer="fc")
    with pytest.raises(UserError, match="no linear layer fc; its linear layers are 10"):
        recorder.before_step(batch)


def test_the_loss_may_be_a_number(tmp_path):
    recorder, model, (inputs, labels) = start(tmp_path)
    recorder.before_step((inputs, labels))
    loss = cross_entropy(model(inputs), labels)
    loss.backward()
    recorder.after_backward()
    recorder.after_step(loss.item())
    recorder.after_epoch()
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["train/loss"] == pytest.approx(loss.item())
