"""The versions in result.json."""

from importlib.metadata import version

from cifarbn.runs.provenance import environment

ALWAYS = {"python", "cifarbn", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "torchmetrics"}
ALWAYS |= {"numpy"}


def test_the_packages_of_the_config_s_targets_are_included():
    config = {
        "model": {"_target_": "cifarbn.models.external.timm_model", "activation": {"_target_": "torch.nn.ReLU"}},
        "data": {"dataset": {"_target_": "PIL.Image.new"}},
        "loss": {"_target_": "a_module_of_mine.Loss"},
        "optim": {"_target_": "../no_module"},
    }
    found = environment(config)["versions"]
    assert found.keys() == ALWAYS | {"timm", "pillow"}
    assert found["timm"] == version("timm") and found["numpy"] == version("numpy")
    assert environment()["versions"].keys() == ALWAYS
