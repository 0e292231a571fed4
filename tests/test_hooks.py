"""What people do with a net from outside: hooks on its stages, and tools that trace it."""

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cifarbn.fast.accelerate import use_fast_layers
from cifarbn.models import VGG, ResNet, SpeedNet

NETS = {
    "resnet18": (lambda: ResNet(18, width=4), ["layer1", "layer2", "layer3", "layer4"]),
    "resnet50": (lambda: ResNet(50, width=2), ["layer1", "layer2", "layer3", "layer4"]),
    "resnet18_pool": (lambda: ResNet(18, width=4, pool_blocks=True), ["layer1", "layer2", "layer3", "layer4"]),
    "vgg_a": (lambda: VGG("A", width=4), ["features", "classifier"]),
    "vgg_a_bn": (lambda: VGG("A", norm=nn.BatchNorm2d, width=4), ["features", "classifier"]),
    "speednet": (lambda: SpeedNet((4, 4, 4)), ["groups"]),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("train", [True, False])
def test_hooks_on_every_stage_fire_once_a_pass_and_see_what_the_stage_gives(name, train, fast):
    make, stages = NETS[name]
    torch.manual_seed(0)
    net = make().train(train)
    if fast:
        use_fast_layers(net)
    pictures = torch.randn(2, 3, 32, 32)
    logits = net(pictures)
    seen = {}
    for stage in stages:
        module = net.get_submodule(stage)
        module.register_forward_hook(lambda _, inputs, output, stage=stage: seen.setdefault(stage, []).append(output))
        module[-1].register_forward_hook(
            lambda _, inputs, output, stage=stage: seen.setdefault(f"{stage}'s last", output)
        )
    assert torch.equal(net(pictures), logits)
    assert {stage for stage in seen if stage in stages} == set(stages)
    for stage in stages:
        (output,) = seen[stage]
        assert torch.equal(output, seen[f"{stage}'s last"])


@pytest.mark.parametrize("name", NETS)
def test_what_a_hook_returns_takes_the_place_of_a_stage_s_output(name):
    make, stages = NETS[name]
    net = make().eval()
    pictures = torch.randn(2, 3, 32, 32)
    before = net(pictures)
    net.get_submodule(stages[0]).register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
    assert not torch.equal(net(pictures), before)


@pytest.mark.parametrize("name", NETS)
def test_torchvision_s_feature_extractor(name):
    make, stages = NETS[name]
    net = make().eval()
    pictures = torch.randn(2, 3, 32, 32)
    seen = []
    net.get_submodule(stages[0]).register_forward_hook(lambda _, inputs, output: seen.append(output))
    net(pictures)
    features = create_feature_extractor(net, [stages[0]])(pictures)
    assert torch.equal(features[stages[0]], seen[0])


@pytest.mark.parametrize("name", NETS)
def test_fx(name):
    net = NETS[name][0]().eval()
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(pictures), net(pictures))


def test_a_stage_is_a_sequential_with_its_blocks_names():
    net = ResNet(18, width=4)
    assert isinstance(net.layer1, nn.Sequential) and isinstance(VGG("A", width=4).features, nn.Sequential)
    assert "layer1.0.conv1.weight" in net.state_dict()
