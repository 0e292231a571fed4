"""Probes of loss and gradient along the gradient, a random direction and the optimizer's step."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.errors import UserError
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.training import Training
from cifarbn.runs.measures import DirectionalProbeKeys, Key, ProbeKeys
from cifarbn.smoothness.directional_probe import DirectionalProbe, dln_steps, probe_along, vgg_steps
from cifarbn.smoothness.evaluation import LossAndGradient, loss_and_gradient, parameters_at
from cifarbn.smoothness.minibatch_loss import Batch
from cifarbn.smoothness.vectors import norm, random_direction

DIRECTIONS = ("gradient", "random", "update")
SHARES = (0.5, 1.0, 2.0, 4.0)  # the range [1/2, 4] of Santurkar et al., in units of the optimizer's step


class GradientProbe(Recorder):
    """Records loss and gradient at theta_t(s) = theta_t - s d, on the minibatch of step t, every `every` steps.

    This is the measurement of Santurkar et al. 2018 (arXiv 1805.11604), section 3.2. For each direction d the arrays
    are those of `smoothness.directional_probe.DirectionalProbe`, under `gradient.loss`, `gradient.gradient_distance`
    and so on: (probes, S) and, per parameter tensor, (probes, S, P). The parameters are restored bit for bit.

    The step sizes of Santurkar et al. are for SGD at a learning rate of 0.1. With Adam, the same s corresponds to a
    different number of optimizer steps at each learning rate. `matched.loss` and so on are therefore from a second
    probe along the gradient, at multiples (`shares`) of the length of the optimizer's step, for any optimizer.

    Costs |S| + 1 forward and backward passes for the gradient, |S| for the random direction, and 1 + len(shares) for
    the update. Holds two copies of the parameters, and a third for a direction other than the gradient.

    Args:
        folder: the run folder.
        every: steps between probes.
        steps: "vgg" or "dln" for the ranges of Santurkar et al., log-spaced, or the step sizes s.
        eta: the learning rate that these ranges are multiples of: 0.1 for VGG, 1e-6 for the deep linear network.
        points: number of step sizes in these ranges; the publication states none.
        directions: any of "gradient"; "random", uniform on the sphere of the gradient's length, different at every
            probe, from a separate generator; and "update", the optimizer's step, at its end (s = 1).
        shares: distances of the probe `matched`, in units of the length of the optimizer's step. Without shares, or
            without "update", there is no `matched`.

    Raises:
        UserError: if a name is unknown, a number is out of range, or the set of trained parameters changes during
            training.
    """

    table = ProbeKeys

    def __init__(
        self,
        folder: Path | None = None,
        every: int = 50,
        steps: str | Sequence[float] = "vgg",
        eta: float = 0.1,
        points: int = 8,
        directions: Sequence[str] = DIRECTIONS,
        shares: Sequence[float] = SHARES,
    ) -> None:
        super().__init__(folder)
        if every < 1 or points < 1:
            raise UserError("record.gradient_probe: every and points must be at least 1")
        if unknown := set(directions) - set(DIRECTIONS):
            names = ", ".join(DIRECTIONS)
            raise UserError(f"record.gradient_probe.directions may contain {names}, not {', '.join(sorted(unknown))}")
        presets = {"vgg": vgg_steps, "dln": dln_steps}
        if isinstance(steps, str):
            if steps not in presets:
                raise UserError(f"record.gradient_probe.steps must be vgg, dln or a list of numbers, not {steps!r}")
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

    def start(self, training: Training) -> None:
        """Note the names and dimensions of the parameter tensors."""
        self._names = list(training.trained)
        self._dimensions = [p.ndim for p in training.trained.values()]

    def before_step(self, training: Training, batch: Batch) -> None:
        """Probe along the gradient and the random direction."""
        if training.step % self.every:
            return
        if list(training.trained) != self._names:
            raise UserError(
                "record.gradient_probe: the model freezes or unfreezes parameters during training, so gradients at "
                "different steps cannot be compared. For speednet, set model.whitening_bias_epochs=null; otherwise "
                "remove this recorder from record="
            )
        parameters = list(training.trained.values())
        with training.minibatch_loss(batch) as loss_fn:
            start = loss_and_gradient(loss_fn, parameters)
            self._entry = {self.table.step: training.step}
            for kind in self.directions:
                if kind == "update":
                    continue  # known only after the step
                direction = None
                if kind == "random":
                    generator = torch.Generator().manual_seed(torch.initial_seed() + training.step)
                    direction = random_direction(start.gradient, generator)
                probe = probe_along(loss_fn, parameters, self.s, start=start, direction=direction)
                self._enter(self.table.random if kind == "random" else self.table.gradient, probe)
        if "update" in self.directions:
            self._before, self._start = [p.detach().clone() for p in parameters], start
        else:
            self.note(self._entry)

    def after_step(self, training: Training, batch: Batch) -> None:
        """Probe along the optimizer's step, and at its multiples along the gradient, on the same minibatch."""
        if self._start is None:
            return
        parameters = list(training.trained.values())
        with training.minibatch_loss(batch) as loss_fn, parameters_at(parameters, self._before) as after:
            update = [old - new for old, new in zip(self._before, after, strict=True)]
            self._enter(self.table.update, probe_along(loss_fn, parameters, [1.0], start=self._start, direction=update))
            if self.shares:
                scale = norm(update) / norm(self._start.gradient)
                matched = [g * scale.to(g.dtype) for g in self._start.gradient]
                self._enter(
                    self.table.matched,
                    probe_along(loss_fn, parameters, self.shares, start=self._start, direction=matched),
                )
        self.note(self._entry)
        self._before, self._start = [], None

    def _enter(self, keys: DirectionalProbeKeys, probe: DirectionalProbe) -> None:
        self._entry |= {
            keys.distance_moved: probe.distance_moved,
            keys.loss_at_start: probe.loss_at_start,
            keys.gradient_norm: probe.gradient_norm,
            keys.loss: probe.loss,
            keys.gradient_distance: probe.gradient_distance,
            keys.cosine: probe.cosine,
            keys.parameter_distance: probe.parameter_distance,
            keys.parameter_moved: probe.parameter_moved,
            keys.parameter_norm: probe.parameter_norm,
        }

    def constants(self) -> dict[Key, NDArray]:
        """Return the step sizes and shares, the interval, and the names and dimensions of the parameter tensors."""
        return {
            self.table.s: np.array(self.s),
            self.table.shares: np.array(self.shares),
            self.table.every: np.array(self.every),
            self.table.parameters: np.array(self._names),
            self.table.dimensions: np.array(self._dimensions),
        }
