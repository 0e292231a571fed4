"""The paper's probe: loss and gradient along the gradient's direction, every so many steps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder, due, measuring, trained
from cifarbn.runs.measures import DirectionalProbeKeys, Key, ProbeKeys
from cifarbn.smoothness.directional_probe import DirectionalProbe, dln_steps, probe_along, vgg_steps
from cifarbn.smoothness.evaluation import LossAndGradient, loss_and_gradient, parameters_at
from cifarbn.smoothness.vectors import norm, random_direction

DIRECTIONS = ("gradient", "random", "update")
SHARES = (0.5, 1.0, 2.0, 4.0)  # the paper's [1/2, 4] x eta, in true steps


class GradientProbe(Recorder):
    """Walks theta_t(s) = theta_t - s d from step t's parameters, on step t's minibatch, and records what it meets.

    Santurkar et al. 2018 (arXiv 1805.11604), section 3.2. For each direction the arrays are those of
    `smoothness.directional_probe.DirectionalProbe`, named `gradient.loss`, `gradient.gradient_distance`, ...:
    (probes, S) and, per parameter tensor, (probes, S, P). The parameters are saved and copied back, bit for bit.

    The paper's step sizes are made for SGD at a rate of 0.1; under Adam the same s is another number of optimizer
    steps at every rate. `matched.loss`, ... are of a further walk along the gradient, by `shares` of the length of the
    step that the optimizer then takes: the paper's range, in true steps, whatever the optimizer.

    Costs |S| + 1 forward-backward passes for the gradient's direction, |S| more for the random one, and one more for
    the update plus one for each share; holds two more copies of the parameters, and a third for a direction other than
    the gradient.

    Args:
        folder: the run folder.
        every: steps between probes.
        steps: "vgg" or "dln" (the paper's ranges, log-spaced), or the step sizes s themselves.
        eta: the learning rate that the paper's ranges are multiples of: 0.1 for VGG, 1e-6 for the linear net.
        points: how many s in those ranges; the paper gives no number.
        directions: "gradient"; "random", uniform on the sphere of the gradient's length, drawn from a generator of
            its own, another one at every probe; "update", the optimizer's true step, at its end: s = 1.
        shares: the lengths of the walk called `matched`, in units of the true step's; none leaves it out, and so does
            leaving out the update.

    Raises:
        UserError: for an unknown preset or direction, or a number out of range.
    """

    table = ProbeKeys

    def __init__(
        self,
        folder: Path,
        every: int = 50,
        steps: str | Sequence[float] = "vgg",
        eta: float = 0.1,
        points: int = 8,
        directions: Sequence[str] = DIRECTIONS,
        shares: Sequence[float] = SHARES,
    ) -> None:
        super().__init__()
        if every < 1 or points < 1:
            raise UserError("record.gradient_probe: every and points must be at least 1")
        if unknown := set(directions) - set(DIRECTIONS):
            raise UserError(f"record.gradient_probe.directions are {DIRECTIONS}, not {sorted(unknown)}")
        presets = {"vgg": vgg_steps, "dln": dln_steps}
        if isinstance(steps, str):
            if steps not in presets:
                raise UserError(f"record.gradient_probe.steps is vgg, dln or a list of numbers, not {steps!r}")
            steps = presets[steps](eta, points)
        if not steps or not all(0 < s < math.inf for s in steps):
            raise UserError(f"record.gradient_probe.steps must be positive numbers, not {list(steps)}")
        if any(share <= 0 for share in shares):
            raise UserError(f"record.gradient_probe.shares must be positive numbers, not {list(shares)}")
        self.every = every
        self.shares = tuple(float(share) for share in shares)
        self.s = tuple(float(s) for s in steps)
        self.directions = tuple(directions)
        self._names: list[str] = []
        self._before: list[Tensor] = []  # theta_t, until the step is taken
        self._start: LossAndGradient | None = None
        self._entry: dict[Key, Any] = {}
        self._dimensions: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the names of the parameter tensors."""
        self._names = list(trained(pl_module))
        self._dimensions = [p.ndim for p in trained(pl_module).values()]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Probe before the step is taken."""
        if not due(trainer, self.every):
            return
        if list(trained(pl_module)) != self._names:
            raise UserError(
                "record.gradient_probe: this net freezes or frees parameters during training, so that its gradients "
                "cannot be compared between steps (for speednet, model.whitening_bias_epochs=null keeps them all)"
            )
        parameters = list(trained(pl_module).values())
        with measuring(pl_module, batch) as loss_fn:
            start = loss_and_gradient(loss_fn, parameters)
            self._entry = {self.table.step: trainer.global_step}
            for kind in self.directions:
                if kind == "update":
                    continue  # known only after the step
                direction = None
                if kind == "random":
                    generator = torch.Generator().manual_seed(torch.initial_seed() + trainer.global_step)
                    direction = random_direction(start.gradient, generator)
                seen = probe_along(loss_fn, parameters, self.s, start=start, direction=direction)
                self._enter(self.table.random if kind == "random" else self.table.gradient, seen)
        if "update" in self.directions:
            self._before, self._start = [p.detach().clone() for p in parameters], start
        else:
            self.note(self._entry)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look along the step that the optimizer has taken, and as far along the gradient, on the same minibatch."""
        if self._start is None:
            return
        parameters = list(trained(pl_module).values())
        with measuring(pl_module, batch) as loss_fn, parameters_at(parameters, self._before) as after:
            update = [old - new for old, new in zip(self._before, after, strict=True)]
            self._enter(self.table.update, probe_along(loss_fn, parameters, [1.0], start=self._start, direction=update))
            if self.shares:
                scale = norm(update) / norm(self._start.gradient)
                as_long = [g * scale.to(g.dtype) for g in self._start.gradient]
                self._enter(
                    self.table.matched,
                    probe_along(loss_fn, parameters, self.shares, start=self._start, direction=as_long),
                )
        self.note(self._entry)
        self._before, self._start = [], None

    def _enter(self, keys: DirectionalProbeKeys, seen: DirectionalProbe) -> None:
        self._entry |= {
            keys.distance_moved: seen.distance_moved,
            keys.loss_at_start: seen.loss_at_start,
            keys.gradient_norm: seen.gradient_norm,
            keys.loss: seen.loss,
            keys.gradient_distance: seen.gradient_distance,
            keys.cosine: seen.cosine,
            keys.parameter_distance: seen.parameter_distance,
            keys.parameter_moved: seen.parameter_moved,
            keys.parameter_norm: seen.parameter_norm,
        }

    def constants(self) -> dict[Key, NDArray]:
        """Return the step sizes and shares, and the names and dimensions of the parameter tensors."""
        return {
            self.table.s: np.array(self.s),
            self.table.shares: np.array(self.shares),
            self.table.every: np.array(self.every),
            self.table.parameters: np.array(self._names),
            self.table.dimensions: np.array(self._dimensions),
        }
