"""torch.compile traces the forward pass and loss of every option of conf/ as one graph, for both batch sizes.

The code that the GPU's compiler generates from the graph is tested by `python -m cifarbn.benchmark checks`.
"""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from cifarbn.cli.command_line import CONF
from cifarbn.fast.training_step import TrainingStep
from cifarbn.losses import in_full_precision
from cifarbn.training.classifier import accuracy

DEEP = ("resnet101", "resnet152", "resnet34")  # the same blocks as resnet18 and resnet50
CHOICES = [
    f"{group}={file.stem}"
    for group in ("model", "norm", "activation", "loss")
    for file in sorted((Path(CONF) / group).glob("*.yaml"))
    if file.stem not in (*DEEP, "sum_of_squares", "dln", "dln_bn", "custom", "timm", "torchvision")
]


def make_model(cfg, choice):
    """Return the model of an option of `model`; for other options a convolution with the norm and the activation."""
    if choice.startswith("model="):
        return instantiate(cfg.model)
    norm, activation = instantiate(cfg.norm), instantiate(cfg.activation)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), norm(4), activation(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_compiles_to_one_graph_with_the_same_loss(choice, monkeypatch):
    narrow = ["model.width=4"] if choice.startswith("model=") and choice != "model=speednet" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[choice, *narrow])
    model, loss = make_model(cfg, choice), instantiate(cfg.loss)
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, mode, dynamic: compiler(f, backend="eager", fullgraph=True, dynamic=dynamic)
    )
    step = TrainingStep(model, lambda logits, y: in_full_precision(loss, logits, y), accuracy, compile="default")
    step.begin(10)
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for size in (4, 3):
        step.backward(step(x[:size], y[:size])[0])
    assert step.compiled == "default", step.notes
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
