"""Every definition of smoothness, as a curve of one run, computed from its recordings."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cifarbn.smoothness.differences import course_distance, report_beta, report_lipschitz
from cifarbn.smoothness.walk_curves import effective_beta, loss_band, predictiveness_band, scale_invariant_beta

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


def curves(recordings: Recordings) -> dict[str, Curve]:
    """The definitions that these recordings can give, by name, each against the step."""
    found: dict[str, Curve] = {}
    for prefix, definitions in _BY_RECORDER.items():
        steps = recordings.get(f"{prefix}.step")
        if steps is not None and len(steps):
            found |= {name: (steps, np.asarray(make(recordings))) for name, make in definitions.items()}
    return {name: found[name] for name in WHOSE if name in found}


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
    largest = predictiveness_band(r["probe.gradient.gradient_distance"])[1]
    norm = r["probe.gradient.gradient_norm"]
    return np.divide(largest, norm, out=np.full(len(norm), np.nan), where=norm > 0)


def _scale_invariant(r: Recordings) -> NDArray:
    """The median over the layers' weights.

    Vectors are left out: a bias before a normalisation has no gradient but rounding, and a normalisation's own scale is
    no weight that a normalisation follows.
    """
    weights = np.flatnonzero(r["probe.dimensions"] > 1)
    distance, moved, norm = (r[f"probe.gradient.parameter_{k}"] for k in ("distance", "moved", "norm"))
    beta = scale_invariant_beta(distance[:, :, weights], moved[:, :, weights], norm[:, weights])
    return np.nanmedian(beta, axis=1)


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
        "scale-invariant beta": _scale_invariant,
    },
    "step_change": {
        "step change": lambda r: r["step_change.change"],
        "step change per distance": lambda r: r["step_change.ratio"],
        "drift, last layer": lambda r: r["step_change.head_drift"],
        "minibatch noise, last layer": lambda r: r["step_change.head_noise"],
    },
}
