"""Every definition of smoothness, as a curve of one run, computed from its recordings."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cifarbn.smoothness.differences import course_distance, report_beta, report_lipschitz
from cifarbn.smoothness.walk_curves import (
    at_distance,
    effective_beta,
    loss_band,
    predictiveness_band,
    relative_distance,
)
from cifarbn.smoothness.weight_walks import scale_invariant_beta

Recordings = Mapping[str, NDArray]
Curve = tuple[NDArray, NDArray]
"""Steps and values, both (T,)."""

WHOSE = {
    "report Lipschitz": "report",
    "report beta": "report",
    "course gradient distance": "course",
    "paper loss range": "paper",
    "paper gradient predictiveness": "paper",
    "paper effective beta": "paper",
    "relative gradient distance": "control",
    "scale-invariant beta": "control",
    "step change": "control",
    "step change per distance": "control",
    "drift, last layer": "control",
    "minibatch noise, last layer": "control",
}
"""Who defines it: the report, the course, the paper, or nobody (our controls); in the order of tables and figures."""

SHARES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Distances along the gradient at which families are compared, in units of the optimizer's true step of that probe."""

AT_ONE_DISTANCE = ("loss change", "paper gradient predictiveness", "paper effective beta", "relative gradient distance")
"""What is read at one distance, see `at_true_steps`."""

PROBES = ("probe", "scale_invariant_beta", "step_change")
"""Prefixes of the recorders that measure every so many steps, on one minibatch each: what has a loss at its start."""


def curves(recordings: Recordings) -> dict[str, Curve]:
    """The definitions that these recordings can give, by name, each against the step."""
    found: dict[str, Curve] = {}
    for prefix, definitions in _BY_RECORDER.items():
        steps = recordings.get(f"{prefix}.step")
        if steps is not None and len(steps):
            found |= {name: (steps, np.asarray(make(recordings))) for name, make in definitions.items()}
    return {name: found[name] for name in WHOSE if name in found}


def of_probes() -> list[str]:
    """The definitions that recorders measure every so many steps."""
    return [name for name in WHOSE if any(name in _BY_RECORDER[prefix] for prefix in PROBES)]


def at_true_steps(recordings: Recordings) -> dict[tuple[str, float], Curve]:
    """What the walk along the gradient has at a distance of so many true steps: (definition, share) -> a curve.

    The paper's definitions, read at one distance instead of over a range: the gradient's distance, and that divided by
    the distance moved and by the gradient's norm; in place of the loss range, how far the loss is from that at the
    start ("loss change"). Shares that the probe has walked are taken as they are, others from between the points of
    the paper's walk; NaN outside these.
    """
    if not {"probe.gradient.loss", "probe.update.distance_moved"} <= recordings.keys():
        return {}
    steps, start, norm = (
        recordings[f"probe.{k}"] for k in ("step", "gradient.loss_at_start", "gradient.gradient_norm")
    )
    found: dict[tuple[str, float], Curve] = {}
    for share in SHARES:
        wanted = share * recordings["probe.update.distance_moved"][:, 0]
        loss, distance = (_at_share(recordings, name, share, wanted) for name in ("loss", "gradient_distance"))
        measured = np.abs(loss - start), distance, _quotient(distance, wanted), _quotient(distance, norm)
        found |= {(name, share): (steps, values) for name, values in zip(AT_ONE_DISTANCE, measured, strict=True)}
    return found


def _at_share(r: Recordings, name: str, share: float, wanted: NDArray) -> NDArray:
    if f"probe.matched.{name}" in r and share in r["probe.shares"]:
        return r[f"probe.matched.{name}"][:, list(r["probe.shares"]).index(share)].astype(np.float64)
    return at_distance(r["probe.gradient.distance_moved"], r[f"probe.gradient.{name}"], wanted)


def walk_of(recordings: Recordings) -> dict[str, NDArray] | None:
    """What the paper's figure 4 draws of a run: `step`, the two bands' edges and `beta`, all (T,); None if unprobed."""
    if "probe.gradient.loss" not in recordings:
        return None
    loss_low, loss_high = loss_band(recordings["probe.gradient.loss"])
    distance_low, distance_high = predictiveness_band(recordings["probe.gradient.gradient_distance"])
    return {
        "step": recordings["probe.step"],
        "loss_low": loss_low,
        "loss_high": loss_high,
        "distance_low": distance_low,
        "distance_high": distance_high,
        "beta": _paper_beta(recordings),
    }


def _paper_beta(r: Recordings) -> NDArray:
    return effective_beta(r["probe.gradient.gradient_distance"], r["probe.gradient.distance_moved"])


def _loss_range(r: Recordings) -> NDArray:
    low, high = loss_band(r["probe.gradient.loss"])
    return high - low


def _relative(r: Recordings) -> NDArray:
    distance, norm = r["probe.gradient.gradient_distance"], r["probe.gradient.gradient_norm"]
    return relative_distance(distance, norm).max(axis=-1)


def _quotient(rise: NDArray, run: NDArray) -> NDArray:
    return np.divide(rise, run, out=np.full(len(run), np.nan), where=run > 0)


def _scale_invariant(r: Recordings) -> NDArray:
    """The median over the weights; one without a gradient is not counted."""
    beta = scale_invariant_beta(
        *(r[f"scale_invariant_beta.{k}"] for k in ("gradient_distance", "distance_moved", "weight_norm"))
    )
    known = np.flatnonzero(np.isfinite(beta).any(axis=1))
    median = np.full(len(beta), np.nan)
    median[known] = np.nanmedian(beta[known], axis=1)
    return median


_BY_RECORDER: dict[str, dict[str, Callable[[Recordings], NDArray]]] = {
    "last_layer": {
        "report Lipschitz": lambda r: report_lipschitz(r["last_layer.first_difference"]),
        "report beta": lambda r: report_beta(r["last_layer.second_difference"]),
        "course gradient distance": lambda r: course_distance(r["last_layer.first_difference"]),
    },
    "probe": {
        "paper loss range": _loss_range,
        "paper gradient predictiveness": lambda r: predictiveness_band(r["probe.gradient.gradient_distance"])[1],
        "paper effective beta": _paper_beta,
        "relative gradient distance": _relative,
    },
    "scale_invariant_beta": {"scale-invariant beta": _scale_invariant},
    "step_change": {
        "step change": lambda r: r["step_change.change"],
        "step change per distance": lambda r: r["step_change.ratio"],
        "drift, last layer": lambda r: r["step_change.head_drift"],
        "minibatch noise, last layer": lambda r: r["step_change.head_noise"],
    },
}
