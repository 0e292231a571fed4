"""The linear schedule of conf/schedule against written-out numbers."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from cifarbn.cli.command_line import CONF


def learning_rates(total_steps, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    optimizer = instantiate(cfg.optim)([nn.Parameter(torch.zeros(2, 2, 1, 1)), nn.Parameter(torch.zeros(2))])
    scheduler = instantiate(cfg.schedule)(optimizer, total_steps=total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def test_linear_decays_to_zero():
    rates = [rate for (rate,) in learning_rates(5, "schedule=linear", "optim=sgd", "optim.lr=1.0")]
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-6)


def test_linear_schedules_every_group_of_muon():
    rates = learning_rates(4, "schedule=linear", "optim=muon", "optim.lr=0.2")
    assert rates == [pytest.approx([r, r], abs=1e-6) for r in (0.15, 0.1, 0.05, 0.0)]
