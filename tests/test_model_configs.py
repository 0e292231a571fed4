"""The yaml files of conf/model, conf/norm and conf/activation, composed without the rest of the config."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from cifarbn.cli.command_line import CONF
from cifarbn.models import VGG, DeepLinear, ResNet, SpeedNet
from cifarbn.models.normalization import GroupNorm2d, LayerNorm2d, LpNorm2d, NoisyBatchNorm2d

ROOT = f"""
defaults:
  - norm: batch
  - activation: relu
  - model: resnet18
  - _self_
data: {{_target_: cifarbn.data.Shapes}}
hydra:
  searchpath: [file://{CONF}]
"""

COUNTS = {
    "resnet18": 11_173_962,
    "resnet18_pool": 11_188_042,
    "resnet18_imagenet": 11_181_642,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "resnet152": 58_156_618,
    "vgg_a": 9_750_922,
    "vgg_a_bn": 9_756_426,
    "vgg_b": 9_935_434,
    "vgg_b_bn": 9_941_322,
    "vgg_d": 15_245_130,
    "vgg_d_bn": 15_253_578,
    "vgg_e": 20_554_826,
    "vgg_e_bn": 20_565_834,
    "dln": 2_500,
    "dln_bn": 2_980,
    "speednet": 1_972_504,
}


def values(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture
def build(tmp_path):
    (tmp_path / "root.yaml").write_text(ROOT)

    def build(*overrides):
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return instantiate(compose("root", overrides=list(overrides)).model)

    return build


def test_every_model_has_a_count():
    assert values("model") == sorted([*COUNTS, "custom", "timm", "torchvision"])


@pytest.mark.parametrize("name", COUNTS)
def test_model_yamls_build_and_state_the_parameter_count(build, name):
    with torch.device("meta"):
        model = build(f"model={name}")
    assert isinstance(model, (ResNet, VGG, DeepLinear, SpeedNet))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    header = (CONF / "model" / f"{name}.yaml").read_text().splitlines()[0]
    assert header.startswith("# ") and header.endswith(f" {COUNTS[name]:,} parameters.")


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "batch": nn.BatchNorm2d,
        "none": nn.Identity,
        "noisy_batch": NoisyBatchNorm2d,
        "l1": LpNorm2d,
        "l2": LpNorm2d,
        "linf": LpNorm2d,
        "group": GroupNorm2d,
        "layer": LayerNorm2d,
    }.items(),
)
def test_norm_yamls_set_the_models_norm(build, name, kind):
    assert type(build(f"norm={name}", "model.width=2").layer4[1].bn2) is kind


def test_every_norm_is_tested():
    assert values("norm") == sorted(["batch", "none", "noisy_batch", "l1", "l2", "linf", "group", "layer", "custom"])


@pytest.mark.parametrize(("name", "p"), [("l1", 1), ("l2", 2), ("linf", float("inf"))])
def test_lp_norm_yamls_set_p(build, name, p):
    assert build(f"norm={name}", "model.width=2").bn1.p == p


@pytest.mark.parametrize("variant", "abde")
def test_vgg_yamls_set_the_default_norm_and_overrides_take_precedence(build, variant):
    def norms(*overrides):
        model = build(*overrides, "model.width=1")
        others = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)
        return {type(layer) for layer in model.features if not isinstance(layer, others)}

    for name, default in ((f"vgg_{variant}", set()), (f"vgg_{variant}_bn", {nn.BatchNorm2d})):
        assert norms(f"model={name}") == default
        assert norms(f"model={name}", "norm=l1") == norms("norm=l1", f"model={name}") == {LpNorm2d}
        assert norms(f"model={name}", "norm=none") == set()


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "relu": nn.ReLU,
        "swish": nn.SiLU,
        "mish": nn.Mish,
        "gelu": nn.GELU,
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "tanh": nn.Tanh,
    }.items(),
)
def test_activation_yamls_give_every_layer_its_own_instance(build, name, kind):
    model = build(f"activation={name}", "model.width=1")
    assert len({id(layer) for layer in model.modules() if isinstance(layer, kind)}) == 1 + 8 * 2


def test_every_activation_is_tested():
    assert values("activation") == sorted(["relu", "swish", "mish", "gelu", "leaky_relu", "elu", "tanh", "custom"])
