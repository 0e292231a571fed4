"""Hooks on the stages of models, and tools that trace models."""

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cifarbn.fast.accelerate import use_fast_layers
from cifarbn.models import VGG, ResNet, SpeedNet

MODELS = {
    "resnet18": (lambda: ResNet(18, width=4), ["layer1", "layer2", "layer3", "layer4"]),
    "resnet50": (lambda: ResNet(50, width=2), ["layer1", "layer2", "layer3", "layer4"]),
    "resnet18_pool": (lambda: ResNet(18, width=4, pool_blocks=True), ["layer1", "layer2", "layer3", "layer4"]),
    "vgg_a": (lambda: VGG("A", width=4), ["features", "classifier"]),
    "vgg_a_bn": (lambda: VGG("A", norm=nn.BatchNorm2d, width=4), ["features", "classifier"]),
    "speednet": (lambda: SpeedNet((4, 4, 4)), ["groups"]),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [True, False])
def test_hooks_on_every_stage_fire_once_and_see_its_output(name, train, fast):
    make, stages = MODELS[name]
    torch.manual_seed(0)
    model = make().train(train)
    if fast:
        use_fast_layers(model)
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    seen = {}
    for stage in stages:
        module = model.get_submodule(stage)
        module.register_forward_hook(lambda _, inputs, output, stage=stage: seen.setdefault(stage, []).append(output))
        module[-1].register_forward_hook(
            lambda _, inputs, output, stage=stage: seen.setdefault(f"{stage}'s last", output)
        )
    assert torch.equal(model(images), logits)
    assert {stage for stage in seen if stage in stages} == set(stages)
    for stage in stages:
        (output,) = seen[stage]
        assert torch.equal(output, seen[f"{stage}'s last"])


@pytest.mark.parametrize("name", MODELS)
def test_a_hook_can_replace_the_output_of_a_stage(name):
    make, stages = MODELS[name]
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    model.get_submodule(stages[0]).register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
    assert not torch.equal(model(images), before)


@pytest.mark.parametrize("name", MODELS)
def test_torchvisions_feature_extractor(name):
    make, stages = MODELS[name]
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    seen = []
    model.get_submodule(stages[0]).register_forward_hook(lambda _, inputs, output: seen.append(output))
    model(images)
    features = create_feature_extractor(model, [stages[0]])(images)
    assert torch.equal(features[stages[0]], seen[0])


@pytest.mark.parametrize("name", MODELS)
def test_fx_symbolic_trace(name):
    model = MODELS[name][0]().eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))


def test_a_stage_is_a_sequential_with_its_blocks_names():
    model = ResNet(18, width=4)
    assert isinstance(model.layer1, nn.Sequential) and isinstance(VGG("A", width=4).features, nn.Sequential)
    assert "layer1.0.conv1.weight" in model.state_dict()
