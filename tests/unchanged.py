"""A snapshot of everything that a measurement of a model could change, and the check that nothing did."""

import random

import numpy as np
import torch


def snapshot(model):
    """Return copies of weights, buffers, gradients and modes, and the states of the global random generators."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def assert_same(first, second):
    """Compare two snapshots bit for bit."""
    for name in ("training", "numpy", "python"):
        assert first[name] == second[name], name
    assert torch.equal(first["torch"], second["torch"])
    for name, value in first["state"].items():
        assert value.dtype == second["state"][name].dtype, name
        assert torch.equal(value, second["state"][name]), name
    for a, b in zip(first["grad"], second["grad"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
