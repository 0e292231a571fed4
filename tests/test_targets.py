"""Errors in the `_target_`s of a config and in their arguments."""

import sys

import pytest
import torch
from torch import nn

from cifarbn.cli.targets import build, build_loss, build_model
from cifarbn.errors import UserError

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()

class Broken(nn.Module):
    def __init__(self):
        raise ValueError("too wide")

def loss(logits, labels):
    return logits.sum()

WORD = "a word"
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Put the modules own_models and own_broken on the path."""
    (tmp_path / "own_models.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import no_such_package_of_mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_models", None)


def test_a_nested_config_is_built():
    norm = {"_target_": "torch.nn.BatchNorm2d", "_partial_": True}
    model = build_model({"_target_": "cifarbn.models.VGG", "variant": "A", "width": 1, "norm": norm})
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "own_model.Net"}, "there is no module 'own_model'; did you mean 'own_models'\\? Otherwise"),
        ({"_target_": "own_models.Nett"}, "own_models has no 'Nett'; did you mean own_models.Net\\?"),
        ({"_target_": "own_models.nothing.Net"}, "own_models has no 'nothing'"),
        ({"_target_": "own_broken.Net"}, "importing own_broken failed \\(ModuleNotFoundError: No module named 'no_suc"),
        ({"_target_": "own_models"}, "takes the name of a class or function, package.Name, not 'own_models'"),
        ({"_target_": "../x.Net"}, "takes the name of a class or function"),
        ({"_target_": "os.path"}, "model._target_=os.path is a module, not a class or function"),
        ({"_target_": "own_models.WORD"}, "own_models.WORD is a str, not a class or function"),
        ({"_target_": "own_models.Net"}, "Net missing a required argument: 'width'; its arguments are: width, depth"),
        ({"_target_": "own_models.Net", "width": 1, "size": 2}, "Net got an unexpected keyword argument 'size'"),
        ({"_target_": "own_models.Net", "size": 2, "width": 1}, "model=custom passes only the arguments that you set"),
        ({"_target_": "own_models.Broken"}, "^model: too wide$"),
        ({"_target_": "torch.nn.LazyLinear", "out_features": 3}, "model: weight belongs to a lazy layer"),
        ({"_target_": "builtins.dict"}, "model: builtins.dict returned a dict, not a torch.nn.Module"),
        (
            {"_target_": "own_models.Net", "width": {"_target_": "torch.nn.Relu"}},
            "model.width: model.width._target_=torch.nn.Relu: torch.nn has no 'Relu'; did you mean torch.nn.ReLU",
        ),
    ],
)
def test_one_error_names_the_mistake_in_a_model(config, message):
    with pytest.raises(UserError, match=message):
        build_model(config)


def test_a_partial_may_lack_arguments_but_not_have_unknown_ones():
    factory = build("optim", {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert factory([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.5
    with pytest.raises(
        UserError, match="optim: SGD got an unexpected keyword argument 'speed'; its arguments are: par"
    ):
        build("optim", {"_target_": "torch.optim.SGD", "_partial_": True, "speed": 1})


def test_an_optimizer_without_a_learning_rate_names_the_key_to_leave_out():
    config = {"_target_": "own_models.Net", "_partial_": True, "lr": 1e-3}
    with pytest.raises(
        UserError, match=r"unexpected keyword argument 'lr'.*depth\. Leave out optim\.lr with ~optim\.lr$"
    ):
        build("optim", config)


def test_a_loss_may_be_a_partial_function():
    with pytest.raises(UserError, match="loss missing a required argument: 'logits'.* add loss._partial_=true"):
        build_loss({"_target_": "own_models.loss"})
    assert build_loss({"_target_": "own_models.loss", "_partial_": True})(torch.ones(2), None) == 2
    with pytest.raises(UserError, match="loss: builtins.dict returned a dict, not a function of"):
        build_loss({"_target_": "builtins.dict"})
