"""`GROUP._target_=...` chooses the option `custom` of a group, and its arguments need no `+`."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from torch import nn

from cifarbn.cli.composition import CONF
from cifarbn.cli.custom import GROUPS, with_custom_options
from cifarbn.errors import UserError
from cifarbn.train import train


class TinyModel(nn.Module):
    """A model whose last linear layer is not called head."""

    def __init__(self, width=4, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, images):
        return self.classifier(self.body(images))


def loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def lines(*overrides):
    return with_custom_options(OverridesParser.create().parse_overrides(list(overrides)))


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def run(folder, *overrides):
    data = ("data=shapes", "data.train_size=40", "data.test_size=10", "data.val_size=10", "data.batch_size=10")
    device = ("trainer=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false")
    folder.mkdir()
    return train(config(*data, *device, "epochs=1", *overrides), folder, list(overrides))


def test_a_target_chooses_custom_unless_an_option_is_given():
    assert lines("model._target_=a.B", "seed=1") == ["model=custom", "++model._target_=a.B", "seed=1"]
    assert lines("model=resnet18", "model._target_=a.B") == ["model=resnet18", "model._target_=a.B"]
    assert lines("model=custom", "model.width=3") == ["model=custom", "++model.width=3"]
    assert lines("model=custom", "+model.width=3", "~model.depth") == ["model=custom", "+model.width=3", "~model.depth"]
    assert lines("data._target_=a.B", "optim.lr=1") == ["data._target_=a.B", "optim.lr=1"]
    assert lines("~optim._target_") == ["~optim._target_"]
    assert lines("model._target_=a.B,a.C") == ["model=custom", "++model._target_=a.B,a.C"]


def test_no_argument_of_the_default_option_is_passed():
    cfg = config(
        *("model._target_=a.B", "model.width=3", "optim._target_=a.C", "loss._target_=a.D", "schedule._target_=a.E"),
        *("norm._target_=a.F", "norm.eps=0.1", "activation._target_=a.G"),
    )
    assert cfg.model == {"_target_": "a.B", "width": 3}
    assert cfg.optim == {"_target_": "a.C", "_partial_": True, "lr": 1e-3}
    assert cfg.loss == {"_target_": "a.D"}
    assert cfg.schedule == {"_target_": "a.E", "_partial_": True}
    assert cfg.norm == {"_target_": "a.F", "_partial_": True, "eps": 0.1}
    assert cfg.activation == {"_target_": "a.G", "_partial_": True}


def test_an_experiment_keeps_its_other_settings(capsys):
    cfg = config("experiment=course_report/vgg_a_bn", "model._target_=a.B")
    assert cfg.model == {"_target_": "a.B"}
    assert cfg.optim == config("experiment=course_report/vgg_a_bn").optim
    assert "_target_" not in capsys.readouterr().err


def test_a_target_can_be_swept(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader, search = GlobalHydra.instance().config_loader(), ["model._target_=a.B,a.C", "optim._target_=a.D,a.E"]
        cfg = loader.load_configuration("train", search, RunMode.MULTIRUN)
        assert cfg.hydra.overrides.task == search
        with pytest.raises(UserError, match="model needs model._target_"):
            loader.load_configuration("train", ["model=custom", "optim._target_=a.D,a.E"], RunMode.MULTIRUN)


@pytest.mark.parametrize("group", GROUPS)
def test_custom_without_a_target_is_an_error(group):
    with pytest.raises(UserError, match=f"{group} needs {group}._target_, the class or function to call"):
        config(f"{group}=custom")


def test_a_run_with_parts_from_elsewhere(tmp_path, capsys):
    overrides = (
        *("model._target_=test_custom.TinyModel", "model.width=2", "optim._target_=timm.optim.Lion", "optim.lr=1e-4"),
        *("loss._target_=test_custom.loss", "loss._partial_=true"),
    )
    result = run(tmp_path / "run", *overrides)
    assert result["status"] == "done"
    assert result["config"]["model"] == {"_target_": "test_custom.TinyModel", "width": 2}
    assert "last layer: classifier.2, the model's last nn.Linear" in capsys.readouterr().out
    other = run(tmp_path / "other", *overrides, "model_head=classifier.0")
    assert other["status"] == "done" and "last layer" not in capsys.readouterr().out


@pytest.mark.parametrize("record", [[], ["record=none"]])
def test_a_model_head_that_does_not_exist_is_an_error(tmp_path, record):
    overrides = ("model._target_=test_custom.TinyModel", "model_head=classifier.1", *record)
    with pytest.raises(UserError, match="model_head=classifier.1: .*its linear layers are classifier.0, classifier.2"):
        run(tmp_path / "run", *overrides)
