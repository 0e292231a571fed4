"""Record your own PyTorch training loop: run folders that the report reads, without Hydra and Lightning.

    python examples/own_loop.py
    python -m cifarbn.report multirun_outputs/own_loop

The recorders and the figures are those of `python -m cifarbn.train`.
"""

import torch
from torch import nn

from cifarbn.recorders import CovariateShift, GradientProbe, LastLayerGradients, RunRecorder, StepChange


def train(folder: str, norm: bool, steps: int) -> None:
    """Train a small model on random vectors whose class is the sign of their sum."""
    torch.manual_seed(0)
    layers = [nn.Linear(20, 64), nn.BatchNorm1d(64) if norm else nn.Identity(), nn.ReLU(), nn.Linear(64, 2)]
    model, loss = nn.Sequential(*layers), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorders = [LastLayerGradients(), GradientProbe(every=10), StepChange(every=10), CovariateShift(every=10)]

    config = {"seed": 0, "model": {"norm": type(layers[1]).__name__}}  # what differs between your runs
    with RunRecorder(folder, model, loss, optimizer, recorders, config=config) as recorder:
        for _ in range(steps):
            inputs = torch.randn(128, 20)
            targets = (inputs.sum(1) > 0).long()
            recorder.before_step((inputs, targets))
            optimizer.zero_grad()
            value = loss(model(inputs), targets)
            value.backward()
            recorder.after_backward()
            optimizer.step()
            recorder.after_step(value)


def main(folder: str = "multirun_outputs/own_loop", steps: int = 200) -> None:
    """Train with and without batch norm."""
    train(f"{folder}/with_batch_norm", norm=True, steps=steps)
    train(f"{folder}/without", norm=False, steps=steps)


if __name__ == "__main__":
    main()
