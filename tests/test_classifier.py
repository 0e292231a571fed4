"""The Classifier: the model's optional hooks, TTA, metrics, and layers with statistics per process."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from cifarbn.data import Images, InMemoryLoader, Shapes
from cifarbn.errors import UserError
from cifarbn.fast.hardware import Hardware
from cifarbn.losses import OneHotMSELoss
from cifarbn.models import VGG
from cifarbn.models.normalization import GroupNorm2d, LpNorm2d
from cifarbn.training.classifier import Classifier
from cifarbn.training.trainer import make_trainer


class Listening(nn.Module):
    """A linear model that records the calls of its hooks."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)
        self.heard = []

    def initialize_from(self, images):
        self.heard.append(("images", images))

    def start_epoch(self, epoch):
        self.heard.append(("epoch", epoch))

    def forward(self, images):
        if self.training:
            self.heard.append(("step", images))
        return self.head(images.flatten(1))


@pytest.fixture
def loader(make_images):
    images = make_images(8)
    return InMemoryLoader(
        Images(images.pixels, images.labels), 4, mean=[0.5] * 3, std=[0.25] * 3, shuffle=True, drop_last=True
    )


def fit(loader, folder, epochs, checkpoint=None):
    model = Listening()
    classifier = Classifier(model, nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, lr=0.01))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model.heard


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*smaller than the logging", "ignore:.*but have no `val_data"
)
def test_the_model_sees_a_batch_before_its_first_step_and_hears_of_every_epoch_but_sees_none_on_a_resume(
    loader, tmp_path
):
    heard = fit(loader, tmp_path, epochs=2)
    whats = [what for what, _ in heard]
    assert whats.count("images") == 1 and whats.count("step") == 4
    assert whats.index("images") < whats.index("step")
    (shown,) = (value for what, value in heard if what == "images")
    first = next(value for what, value in heard if what == "step")
    assert torch.equal(shown, first), "the first batch, and showing it leaves the order as it is"
    assert [value for what, value in heard if what == "epoch"] == [0, 0, 1]

    resumed = fit(loader, tmp_path, epochs=3, checkpoint=tmp_path / "last.ckpt")
    assert "images" not in [what for what, _ in resumed]
    assert {value for what, value in resumed if what == "epoch"} == {2}


class Corner(nn.Module):
    """Predicts the class whose index is in the upper left pixel."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, images):
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_tta_has_an_accuracy_of_its_own(tta):
    images = torch.zeros(4, 3, 32, 32)
    images[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 9.0])
    images[:, 0, 0, 31] = torch.tensor([1.0, 2.0, 3.0, 9.0])
    images[3, 0, 0, 31] = 0.0  # seen from both sides: 9 and 0, a draw that argmax gives to 0
    labels = torch.tensor([1, 2, 4, 0])
    classifier = Classifier(Corner(), nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, lr=0.01), tta=tta)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    trainer.test(classifier, DataLoader([(images, labels)], batch_size=None), verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["test/acc"] == 0.5
    assert metrics.get("test/acc_flip") == (0.75 if tta == "flip" else None)
    assert classifier.confusion.trace() == 2


class Searched(VGG):
    """A model that records whether cuDNN would measure its algorithms for a batch."""

    def __init__(self):
        super().__init__("A", width=1)
        self.searched = {True: set(), False: set()}

    def forward(self, images):
        self.searched[self.training].add(torch.backends.cudnn.benchmark)
        return super().forward(images)


def test_cudnn_measures_algorithms_for_training_batches_only(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    classifier = Classifier(Searched(), nn.CrossEntropyLoss(), sgd, num_classes=10, tta="flip")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = make_trainer(Hardware.choose("cpu", "32-true"), max_epochs=1, **options)
    data = Shapes(train_size=12, test_size=4, val_size=4, batch_size=4)
    trainer.fit(classifier, data)
    trainer.test(classifier, data, verbose=False)
    assert classifier.net.searched == {True: {True}, False: {False}}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def metrics(eval_batch_size, loss, precision="32-true"):
    """Return all metrics of a model trained for one epoch; they must not depend on the evaluation batch size."""
    torch.manual_seed(0)
    classifier = Classifier(VGG("A", width=2), loss, sgd, num_classes=10)
    trainer = make_trainer(
        Hardware.choose("cpu", precision),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    sizes = {"train_size": 100, "test_size": 50, "val_size": 40, "batch_size": 30, "eval_batch_size": eval_batch_size}
    data = Shapes(**sizes, test_curve=True)
    trainer.fit(classifier, data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(classifier, data, verbose=False)
    return found | {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_metrics_are_means_over_images_for_any_the_batch_size():
    whole = metrics(1000, nn.CrossEntropyLoss())
    assert {"val/loss", "val/acc", "test_curve/loss", "test_curve/acc", "test/loss", "test/acc"} <= set(whole)
    for size in (7, 13, 1):
        assert metrics(size, nn.CrossEntropyLoss()) == pytest.approx(whole, rel=1e-6)
    assert whole["test/loss"] == pytest.approx(whole["test_curve/loss"], rel=1e-6)


def test_every_loss_of_a_bf16_run_is_computed_in_full_precision():
    seen = []

    class Watched(OneHotMSELoss):
        def forward(self, logits, labels):
            value = super().forward(logits, labels)
            seen.append((logits.dtype, value.dtype))
            return value

    found = metrics(1000, Watched(), precision="bf16-mixed")
    # The check before training, 2 steps, the validation set, the test curve and the test.
    assert seen == [(torch.float32, torch.float32)] * 6
    bits = torch.tensor(found["test/loss"], dtype=torch.float32)
    assert bits != bits.bfloat16().float()


class SeveralProcesses:
    world_size = 2

    def __init__(self, device):
        self.strategy = type("Strategy", (), {"root_device": torch.device(device)})


@pytest.mark.parametrize("norm", [lambda channels: LpNorm2d(channels, 2)])
def test_statistics_of_one_process_are_errors_on_several_cpus(norm):
    classifier = Classifier(nn.Sequential(nn.Linear(4, 4), norm(4)), nn.CrossEntropyLoss(), sgd)
    classifier._trainer = SeveralProcesses("cpu")
    with pytest.raises(UserError, match="Norm.d computes statistics per process.*norm=batch"):
        classifier.setup("fit")


def test_a_norm_without_statistics_of_the_batch_may_have_several_processes():
    classifier = Classifier(nn.Sequential(nn.Linear(4, 4), GroupNorm2d(4)), nn.CrossEntropyLoss(), sgd)
    classifier._trainer = SeveralProcesses("cpu")
    classifier.setup("fit")


def test_batch_norm_may_have_several_gpus_where_lightning_synchronises_it():
    classifier = Classifier(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.CrossEntropyLoss(), sgd)
    classifier._trainer = SeveralProcesses("cuda")
    classifier.setup("fit")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.BatchNorm1d(5)), "1"),
        (nn.ModuleDict({"head": nn.Linear(3, 4), "aux": nn.Linear(3, 4)}), "head"),
        (nn.Linear(3, 4), ""),
    ],
)
def test_the_last_layer_is_head_or_else_the_last_linear_one(model, name):
    assert Classifier(model, nn.CrossEntropyLoss(), sgd).last_layer == name


def test_a_last_layer_that_is_frozen_is_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5).requires_grad_(False))
    with pytest.raises(UserError, match="last linear layer, 1, is frozen .* use record=none"):
        _ = Classifier(model, nn.CrossEntropyLoss(), sgd).last_layer
