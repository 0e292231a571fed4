"""Mistakes that can be detected before training end in one error message before the first step."""

import json
import sys
import textwrap

import pytest
import torch
from hydra import compose, initialize_config_dir
from in_process import make_run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifarbn.cli.command_line import CONF
from cifarbn.data import InMemoryLoader
from cifarbn.data.interface import inputs_and_labels
from cifarbn.errors import UserError
from cifarbn.losses import OneHotMSELoss, SumOfSquares
from cifarbn.models import VGG, DeepLinear, ResNet
from cifarbn.train import train
from cifarbn.training.preflight import check_batch_of_one, check_model, smallest_batch

TINY = [
    *("data=shapes", "data.train_size=70", "data.test_size=20", "data.val_size=20", "data.batch_size=25"),
    *("model=vgg_a", "model.width=2", "epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false", "logger=none"),
]


def run(folder, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*TINY, *overrides])
    folder.mkdir()
    return train(cfg, folder, [*TINY, *overrides])


def assert_refused(tmp_path, message, *overrides):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", *overrides)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed" and not result.get("steps")
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_classes=100"], "100 logits .* 10 classes; set model.num_classes=10"),
        (["model.num_classes=9"], "9 logits .* 10 classes; set model.num_classes=10"),
        (["loss=sum_of_squares"], "loss: it does not accept .* outputs and targets of the same shape"),
        (["+loss.reduction=none"], "loss: it must return a scalar tensor"),
        (["model=resnet18_imagenet", "data.train_size=46"], "batch of one image.*data.drop_last=true"),
        (["model=resnet18_imagenet", "data.batch_size=1"], "batch of one image.*another data.batch_size"),
        (["model.classifier_norm=true", "data.batch_size=7"], "batch of one image"),
    ],
)
def test_what_does_not_fit_together_is_an_error_before_training(overrides, message, tmp_path):
    assert_refused(tmp_path, message, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=resnet18_imagenet", "data.train_size=46", "data.drop_last=true"],
        ["model=resnet18_imagenet", "data.train_size=46", "trainer.limit_train_batches=1"],
        ["model=resnet18_imagenet", "data.train_size=46", "trainer.max_steps=1"],
        ["model.classifier_norm=true", "data.batch_size=5"],
        ["model=vgg_a_bn", "data.batch_size=7"],
    ],
)
def test_what_does_fit_is_not_refused(overrides, tmp_path):
    assert run(tmp_path / "run", *overrides)["status"] == "done"


def batch(n=4, classes=10):
    return torch.randn(n, 3, 32, 32), torch.arange(n) % classes


def test_a_look_at_a_model_leaves_no_trace():
    model = ResNet(18, width=4, dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shown = batch()
    state = torch.get_rng_state()
    check_model(model, nn.CrossEntropyLoss(), shown, num_classes=10, tta="flip_shift")
    check_batch_of_one(model, shown[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters()) and all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 10, 1), r"logits of shape \(2, classes\), not \(2, 10, 32, 32\)"),
        (type("Pair", (nn.Flatten,), {"forward": lambda s, x: (x, x)})(), r"logits of shape \(2, classes\), not tuple"),
    ],
)
def test_an_output_that_is_no_logits_is_an_error(model, message):
    with pytest.raises(UserError, match=message):
        check_model(model, nn.CrossEntropyLoss(), batch(), num_classes=10, tta="none")


REGRESSION = torch.randn(4, 10), torch.randn(4, 10)


@pytest.mark.parametrize(
    ("model", "loss", "shown", "message"),
    [
        (DeepLinear(), nn.CrossEntropyLoss(), batch(), r"does not accept this data's inputs of shape \(3, 32, 32\)"),
        (VGG("A", width=2), SumOfSquares(), REGRESSION, r"does not accept this data's inputs of shape \(10,\)"),
        (DeepLinear(), OneHotMSELoss(), REGRESSION, "loss: it does not accept this model's logits and this data's"),
        (
            DeepLinear(features=10),
            SumOfSquares(),
            (REGRESSION[0], torch.randn(4)),
            "outputs and targets of the same shape",
        ),
    ],
)
def test_a_model_or_a_loss_for_other_data_is_an_error(model, loss, shown, message):
    with pytest.raises(UserError, match=message):
        check_model(model, loss, shown, num_classes=None, tta="none")


def test_views_of_what_is_no_image_are_errors():
    with pytest.raises(UserError, match="tta=flip: it does not work for this model and data"):
        check_model(DeepLinear(), SumOfSquares(), REGRESSION, num_classes=0, tta="flip")
    check_model(DeepLinear(), SumOfSquares(), REGRESSION, num_classes=0, tta="none")


def test_labels_that_the_model_has_no_class_for_are_errors():
    model = VGG("A", width=2, num_classes=3)
    with pytest.raises(UserError, match="labels must be between 0 and 2.*labels from 0 to 3; set model.num_classes"):
        check_model(model, nn.CrossEntropyLoss(), batch(), num_classes=None, tta="none")


@pytest.mark.parametrize("wrong", [{"x": torch.zeros(1)}, (torch.zeros(1),), (torch.zeros(1), "cat"), torch.zeros(2)])
def test_a_batch_that_is_no_pair_is_an_error(wrong):
    with pytest.raises(UserError, match=r"a batch must be a pair of tensors \(inputs, labels\)"):
        inputs_and_labels(wrong)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("images", "batch_size"), [(21, 10), (20, 10), (11, 10), (3, 10)])
def test_the_smallest_batch_of_an_epoch(images, batch_size, drop_last, make_images):
    if drop_last and images < batch_size:
        pytest.skip("no batch at all")
    ours = InMemoryLoader(
        make_images(images), batch_size, mean=[0.5] * 3, std=[0.25] * 3, shuffle=True, drop_last=drop_last
    )
    theirs = DataLoader(TensorDataset(torch.arange(images)), batch_size, drop_last=drop_last)
    sizes = [len(labels) for _, labels in ours]
    for batches in range(1, len(sizes) + 1):
        assert smallest_batch(ours, batches) == smallest_batch(theirs, batches) == min(sizes[:batches])


# The user's own model and data


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's, `mine`, whose module `parts` a test writes."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        (tmp_path / "mine" / "parts.py").write_text(textwrap.dedent(text))

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]  # another test file may have a module of this name


DATA = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Mine(pl.LightningDataModule):
    EXTRA

    def __init__(self, size=16):
        super().__init__()
        self.size = size

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        self.set = TensorDataset(torch.randn(30, 3, self.size, self.size, generator=generator), torch.arange(30) % 4)

    def train_dataloader(self):
        return DataLoader(self.set, 10, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.set, 10)

    def test_dataloader(self):
        return DataLoader(self.set, 7)


class Model(torch.nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Auxiliary(Model):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class NoLinear(Model):
    def __init__(self):
        super().__init__()
        del self.fc

    def forward(self, x):
        return self.conv(x).mean((2, 3))
"""
NO_WORKERS = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def own(folder, *overrides, model="Model"):
    """Run the user's own data and model, as a yaml of their own would name them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*TINY, *overrides])
    cfg.data = {"_target_": "mine.parts.Mine"}
    cfg.model = {"_target_": f"mine.parts.{model}"}
    folder.mkdir()
    return train(cfg, folder, list(overrides))


@NO_WORKERS
@pytest.mark.parametrize(
    ("extra", "classes"),
    [
        ("", []),
        ("num_classes = 4", ["0", "1", "2", "3"]),
        ("classes = ['a', 'b', 'c', 'd']", ["a", "b", "c", "d"]),
        ("def describe(self): return {'source': 'noise'}", []),
    ],
)
def test_a_data_module_of_the_user_s_own_works_to_the_end_with_every_recorder(
    extra, classes, package, tmp_path, capsys
):
    package(DATA.replace("EXTRA", extra))
    result = own(tmp_path / "run", "record=all", "epochs=2")
    assert "the training loader has no state_dict" in capsys.readouterr().out
    assert result["status"] == "done" and result["steps"] == 6
    assert result["data"]["name"] == "Mine" and result["data"]["classes"] == classes
    assert {"val/acc", "test/acc", "test/loss"} <= set(result["metrics"])
    assert len(result["confusion"]) == 4 and sum(map(sum, result["confusion"])) == 30
    if "describe" in extra:
        assert result["data"]["source"] == "noise"


@NO_WORKERS
def test_a_look_at_the_user_s_data_draws_nothing_from_the_run_s_generators(package, tmp_path):
    package(DATA.replace("EXTRA", ""))
    alone = own(tmp_path / "alone", "record=none")
    watched = own(tmp_path / "watched", "record=all")
    assert alone["metrics"] == watched["metrics"]
    a, b = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("alone", "watched"))
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])


@NO_WORKERS
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("num_classes = 7", "4 logits .* 7 classes"),
        ("num_classes = 'four'", "num_classes of Mine must be a whole number"),
        ("num_classes, classes = 4, ['a', 'b']", "has num_classes=4, but 2 names in classes"),
        ("val_names = ('holdout',)", r"may contain val and test_curve, not \['holdout'\]"),
        ("val_names = ()", "there are 1 validation loaders, but 0 names in val_names"),
        ("def describe(self): return 5", r"describe\(\) of Mine must return a dict"),
    ],
)
def test_a_data_module_that_contradicts_itself_is_an_error_before_training(extra, message, package, tmp_path):
    package(DATA.replace("EXTRA", extra))
    with pytest.raises(UserError, match=message):
        own(tmp_path / "run", "record=none")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_data_module_without_a_test_and_what_is_no_data_module_are_errors(package, tmp_path):
    package(DATA.replace("EXTRA", "").replace("test_dataloader", "other_dataloader"))
    with pytest.raises(UserError, match="Mine has no test_dataloader"):
        own(tmp_path / "run")
    package(DATA.replace("EXTRA", "").replace("pl.LightningDataModule", "torch.nn.Module"))
    sys.modules.pop("mine.parts")
    with pytest.raises(UserError, match="must return a LightningDataModule, not a Mine"):
        own(tmp_path / "other")


@NO_WORKERS
def test_the_last_linear_layer_is_found_said_and_recorded(package, tmp_path, capsys):
    import numpy as np

    package(DATA.replace("EXTRA", ""))
    own(tmp_path / "run", "record=[last_layer_gradients,step_change]", "record.step_change.every=2")
    assert capsys.readouterr().out.count("last layer: fc, the model's last nn.Linear") == 1
    recorded = np.load(tmp_path / "run" / "recordings.npz")
    assert recorded["last_layer.layer"] == recorded["step_change.layer"] == "fc"
    assert len(recorded["last_layer.norm"]) == 3 and (recorded["last_layer.norm"] > 0).all()


@NO_WORKERS
@pytest.mark.parametrize("record", ["none", "gradient_probe"])
def test_a_model_that_returns_more_in_train_mode_is_an_error_before_its_first_step(record, package, tmp_path):
    package(DATA.replace("EXTRA", ""))
    with pytest.raises(UserError, match=r"it must return logits of shape \(10, classes\), not tuple"):
        own(tmp_path / "run", f"record={record}", model="Auxiliary")
    assert not (tmp_path / "run" / "metrics.csv").exists()


@NO_WORKERS
@pytest.mark.parametrize("record", ["last_layer_gradients", "step_change"])
def test_a_model_without_a_linear_layer_trains_without_these_recorders_only(record, package, tmp_path):
    package(DATA.replace("EXTRA", ""))
    with pytest.raises(UserError, match="no linear layer .* record=none"):
        own(tmp_path / "run", f"record=[{record}]", model="NoLinear")
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert own(tmp_path / "without", "record=none", model="NoLinear")["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "measured"),
    [
        (["data.val_size=0"], set()),
        (["data.val_size=0", "data.test_curve=true"], {"test_curve/loss", "test_curve/acc"}),
    ],
)
def test_a_run_needs_no_validation_set(tmp_path, overrides, measured):
    metrics = make_run(tmp_path, *overrides, "epochs=1")["metrics"]
    assert set(metrics) == {"train/loss", "train/acc", "test/loss", "test/acc", *measured}
