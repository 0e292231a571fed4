"""Models of torchvision and timm by name, and stems for small images."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from cifarbn.errors import UserError
from cifarbn.models.external import timm_model, torchvision_model, use_small_stem
from cifarbn.runs.load import build_model, checked

# (function, name, convolution of the stem, pool of the stem)
WITH_STEM = [
    (torchvision_model, "resnet18", "conv1", "maxpool"),
    (torchvision_model, "shufflenet_v2_x0_5", "conv1.0", "maxpool"),
    (torchvision_model, "densenet121", "features.conv0", "features.pool0"),
    (torchvision_model, "mobilenet_v3_small", "features.0.0", None),
    (torchvision_model, "regnet_x_400mf", "stem.0", None),
    (timm_model, "resnet18", "conv1", "maxpool"),
    (timm_model, "resnet18d", "conv1.0", "maxpool"),
    (timm_model, "regnetx_002", "stem.conv", None),
    (timm_model, "mobilenetv3_small_050", "conv_stem", None),
]


@pytest.mark.parametrize(("create", "name", "conv", "pool"), WITH_STEM)
def test_a_small_stem_is_a_3x3_convolution_of_stride_1_without_pool(create, name, conv, pool):
    before = create(name).get_submodule(conv)
    model = create(name, stem="small", num_classes=7).eval()
    small = model.get_submodule(conv)
    assert (small.kernel_size, small.stride, small.padding) == ((3, 3), (1, 1), (1, 1))
    assert small.out_channels == before.out_channels and type(small) is type(before)
    assert pool is None or type(model.get_submodule(pool)) is nn.Identity
    sizes = []
    small.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[2:]))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert sizes == [(32, 32)]


def test_the_default_stem_is_the_librarys_model():
    torch.manual_seed(0)
    ours = [torchvision_model("resnet18"), timm_model("resnet18")]
    torch.manual_seed(0)
    theirs = [torchvision.models.resnet18(num_classes=10), timm.create_model("resnet18", num_classes=10)]
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_arguments_are_passed_on():
    assert torchvision_model("densenet121", bn_size=2).features.denseblock1.denselayer1.conv1.out_channels == 64
    model = timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=3)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("create", "name"),
    [(torchvision_model, "vgg11"), (torchvision_model, "squeezenet1_1"), (timm_model, "vit_tiny_patch16_224")],
)
def test_a_stem_that_cannot_be_replaced_is_an_error(create, name):
    with pytest.raises(UserError, match=f"{name} has no stem that can be replaced .* use model.stem=default"):
        create(name, stem="small")


def test_a_stem_without_its_pool_is_not_replaced():
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, 4, 7, stride=2))
    assert not use_small_stem(model) and model.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("create", "name", "message"),
    [
        (torchvision_model, "resnet17", "model.name=resnet17: torchvision has no model of this name; did you mean res"),
        (timm_model, "resnet17", "model.name=resnet17: timm has no model of this name; did you mean resnet18"),
        (timm_model, "hf-hub:user/model", "timm has no model of this name; timm.list_models"),
        (torchvision_model, "??", r"torchvision.models.list_models\(\) shows all names"),
        (torchvision_model, "fasterrcnn_resnet50_fpn", "torchvision has no model of this name"),
    ],
)
def test_an_unknown_name_is_an_error(create, name, message):
    with pytest.raises(UserError, match=message):
        create(name)


@pytest.mark.parametrize("create", [torchvision_model, timm_model])
@pytest.mark.parametrize("argument", ["weights", "checkpoint_path", "pretrained_cfg"])
def test_arguments_that_load_files_are_an_error(create, argument):
    with pytest.raises(UserError, match=f"model.{argument} cannot be set; use model.pretrained=true"):
        create("resnet18", **{argument: "file"})


def test_an_unknown_stem_is_an_error():
    with pytest.raises(UserError, match="stem must be default or small, not 'tiny'"):
        torchvision_model("resnet18", stem="tiny")


def test_a_tag_of_timm_is_part_of_the_name():
    assert isinstance(timm_model("resnet18.a1_in1k"), nn.Module)


def test_weights_that_cannot_be_downloaded_are_an_error(monkeypatch):
    def offline(*args, **options):
        raise OSError("no network\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    for create in (torchvision_model, timm_model):
        with pytest.raises(UserError, match=r"cannot be loaded \(OSError: no network\); use model.pretrained=false"):
            create("resnet18", pretrained=True)


def test_a_pretrained_model_gets_a_new_last_layer(monkeypatch):
    get_model = torchvision.models.get_model
    calls = []

    def downloaded(name, weights):
        calls.append(weights)
        return get_model(name, weights=None)

    monkeypatch.setattr(torchvision.models, "get_model", downloaded)
    assert torchvision_model("resnet18", pretrained=True, num_classes=7).fc.out_features == 7
    assert torchvision_model("vgg11", pretrained=True, num_classes=7).classifier[6].out_features == 7
    assert calls == ["DEFAULT", "DEFAULT"]
    with pytest.raises(UserError, match="squeezenet1_1 has no linear layer to replace"):
        torchvision_model("squeezenet1_1", pretrained=True)


@pytest.mark.parametrize("target", ["cifarbn.models.external.timm_model", "cifarbn.models.external.torchvision_model"])
def test_a_stored_config_is_loaded_without_downloading_weights(target):
    config = {"_target_": target, "name": "resnet18", "pretrained": True, "num_classes": 7}
    assert checked(config) == {"_target_": target, "name": "resnet18", "num_classes": 7}
    with pytest.raises(UserError, match="model.checkpoint_path cannot be set"):
        build_model({"model": config | {"checkpoint_path": "file"}})
