"""Every smoothness measurement a second time: from the formulas, naive, slow, sharing nothing with the package.

The model is deep-copied for every evaluation, gradients come from `.backward()`, and everything after the backward
pass is computed on one float64 NumPy vector. Agreement with `cifarbn.smoothness` means that two independent
implementations read the definitions in the same way.
"""

import copy

import numpy as np
import torch
from torch import nn


class SmallVGG(nn.Sequential):
    """Two conv-BN-ReLU-pool blocks and a linear layer on 8x8 RGB images; every mechanism of VGG-A, 966 parameters."""

    def __init__(self, norm=nn.BatchNorm2d, dropout=0.0):
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1),
            norm(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            norm(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * 2 * 2, 10),
        )


def problem(seed=0, **options):
    """A model, 16 images and their labels."""
    torch.manual_seed(seed)
    return SmallVGG(**options), torch.randn(16, 3, 8, 8), torch.randint(10, (16,))


def get(model):
    return np.concatenate([p.detach().numpy().astype(np.float64).ravel() for p in model.parameters()])


def put(model, vector):
    """A copy of the model whose parameters are the entries of the vector, rounded to their dtype."""
    model = copy.deepcopy(model)
    start = 0
    for p in model.parameters():
        entries = vector[start : start + p.numel()]
        p.data = torch.tensor(entries, dtype=p.dtype).reshape(p.shape)
        start += p.numel()
    return model


def evaluate(model, x, y):
    """Loss and gradient in train mode."""
    model = copy.deepcopy(model)
    model.train()
    for p in model.parameters():
        p.grad = None
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    gradient = np.concatenate([p.grad.numpy().astype(np.float64).ravel() for p in model.parameters()])
    return float(loss.detach()), gradient


def length(v):
    return float(sum(float(a) ** 2 for a in v) ** 0.5)


def cosine(a, b):
    return float(sum(a * b)) / (length(a) * length(b))


def spans(model):
    """The slice of each parameter tensor in the vector."""
    start = 0
    for p in model.parameters():
        yield slice(start, start + p.numel())
        start += p.numel()


# --- the definitions of course report and course handout, on a list of gradients ---------------------------------


def course_report_lipschitz(gradients):
    """t -> ||G_{t+1} - G_t||."""
    return {t: length((gradients[t + 1] - gradients[t]).ravel()) for t in range(len(gradients) - 1)}


def course_report_beta(gradients):
    """t -> ||2 G_t - G_{t+1} - G_{t-1}||."""
    return {
        t: length((2 * gradients[t] - gradients[t + 1] - gradients[t - 1]).ravel())
        for t in range(1, len(gradients) - 1)
    }


def course_handout_distance(gradients):
    """t -> ||G_t - G_{t-1}||."""
    return {t: length((gradients[t] - gradients[t - 1]).ravel()) for t in range(1, len(gradients))}


def band(runs):
    """`runs` is {name: {step: value}}; gives {step: (min, max, number of runs)}."""
    answer = {}
    for run in runs.values():
        for step in run:
            here = [other[step] for other in runs.values() if step in other]
            answer[step] = (min(here), max(here), len(here))
    return dict(sorted(answer.items()))


# --- the definitions of Santurkar et al. --------------------------------------------------------------------------


def probe_along(model, x, y, scales, direction=None):
    """One dictionary per s."""
    theta = get(model)
    _, g = evaluate(model, x, y)
    if direction is None:
        direction = g
    rows = []
    for s in scales:
        loss, there = evaluate(put(model, theta - s * direction), x, y)
        d = length(there - g)
        rows.append(
            {
                "loss": loss,
                "moved": s * length(direction),
                "distance": d,
                "relative": d / length(g),
                "cosine": cosine(there, g),
                "beta": d / (s * length(direction)),
                "layer_distance": [length((there - g)[part]) for part in spans(model)],
                "layer_moved": [s * length(direction[part]) for part in spans(model)],
            }
        )
    return rows


def covariate_shift(before, after, x, y, layers):
    """Definition 2.1; `layers` lists, per layer, the positions of its tensors in model.parameters()."""
    old, new = get(before), get(after)
    parts = list(spans(before))
    _, plain = evaluate(before, x, y)
    distances, cosines = [], []
    for i in range(len(layers)):
        mixed = old.copy()
        for earlier in layers[:i]:
            for position in earlier:
                mixed[parts[position]] = new[parts[position]]
        _, shifted = evaluate(put(before, mixed), x, y)
        g = np.concatenate([plain[parts[position]] for position in layers[i]])
        h = np.concatenate([shifted[parts[position]] for position in layers[i]])
        distances.append(length(g - h))
        cosines.append(cosine(g, h))
    return distances, cosines


# --- the controls -------------------------------------------------------------------------------------------------


def step_change(before, after, x, y):
    """c_t and c_t / ||theta_{t+1} - theta_t||."""
    _, g = evaluate(before, x, y)
    _, h = evaluate(after, x, y)
    change = length(h - g)
    return change, change / length(get(after) - get(before))


def consecutive(before, after, batch, next_batch):
    """||total||, ||drift||, ||noise|| of grad L_{t+1}(theta_{t+1}) - grad L_t(theta_t)."""
    _, now = evaluate(before, *batch)
    _, crossed = evaluate(before, *next_batch)
    _, following = evaluate(after, *next_batch)
    return length(following - now), length(following - crossed), length(crossed - now)


# --- curvature and landscape --------------------------------------------------------------------------------------


def hessian(model, x, y):
    """The whole matrix, row by row."""
    model = copy.deepcopy(model)
    model.train()
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = []
    for entry in flat:
        row = torch.autograd.grad(entry, parameters, retain_graph=True)
        rows.append(np.concatenate([r.detach().numpy().astype(np.float64).ravel() for r in row]))
    return np.stack(rows)


def filter_normalise(model, direction):
    """Li et al. 2018, filter by filter; biases and BN parameters zero."""
    answer = np.zeros_like(direction)
    theta = get(model)
    for part, p in zip(spans(model), model.parameters(), strict=True):
        if p.dim() < 2:
            continue
        d = direction[part].reshape(p.shape)
        w = theta[part].reshape(p.shape)
        rows = [d[j] / length(d[j].ravel()) * length(w[j].ravel()) for j in range(len(d))]
        answer[part] = np.stack(rows).ravel()
    return answer


def surface(model, x, y, first, second, a_values, b_values):
    theta = get(model)
    return [[evaluate(put(model, theta + a * first + b * second), x, y)[0] for b in b_values] for a in a_values]


def principal_directions(points):
    """Leading two eigenvectors of the covariance of the points (T, n), as rows, and their shares of the variance."""
    covariance = np.cov(points.T)
    values, vectors = np.linalg.eigh(covariance)
    return vectors[:, ::-1][:, :2].T, values[::-1][:2] / values.sum()
