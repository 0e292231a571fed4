"""Measure your own model: no Hydra, no Lightning, no files. Replace the first four lines by your own objects."""

import torch
from torch import nn

from cifarbn.smoothness import covariate_shift, hessian, probe, step_change

model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3))
loss = nn.CrossEntropyLoss()
batch = torch.randn(128, 20), torch.randint(3, (128,))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

print("effective beta along the gradient:", probe(model, loss, batch).effective_beta)
print("gradient change per distance of the next step:", step_change(model, loss, batch, optimizer).ratio)
print("internal covariate shift of each layer:", covariate_shift(model, loss, batch, optimizer).distance)
print("largest eigenvalue of the Hessian:", hessian(model, loss, batch).largest)
