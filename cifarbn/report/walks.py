"""What the walk along the gradient gives of one run: the paper's figure 4, and measures at one distance."""

import numpy as np
from numpy.typing import NDArray

from cifarbn.runs.measures import Curve, Key, ProbeKeys, Recordings, paper_beta
from cifarbn.smoothness.walk_curves import at_distance, loss_band, predictiveness_band

SHARES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Distances along the gradient at which families are compared, in units of the optimizer's true step of that probe."""

AT_ONE_DISTANCE = ("loss change", "paper gradient predictiveness", "paper effective beta", "relative gradient distance")
"""What is read at one distance, see `at_true_steps`."""

_GRADIENT, _MATCHED = ProbeKeys.gradient, ProbeKeys.matched


def at_true_steps(recordings: Recordings) -> dict[tuple[str, float], Curve]:
    """What the walk along the gradient has at a distance of so many true steps: (measure, share) -> a curve.

    The paper's definitions, read at one distance instead of over a range: the gradient's distance, and that divided by
    the distance moved and by the gradient's norm; in place of the loss range, how far the loss is from that at the
    start ("loss change"). Shares that the probe has walked are taken as they are, others from between the points of
    the paper's walk; NaN outside these.
    """
    true_step = ProbeKeys.update.distance_moved
    if not {_GRADIENT.loss, true_step} <= recordings.keys():
        return {}
    steps, start = recordings[ProbeKeys.step], recordings[_GRADIENT.loss_at_start]
    norm = recordings[_GRADIENT.gradient_norm]
    found: dict[tuple[str, float], Curve] = {}
    for share in SHARES:
        wanted = share * recordings[true_step][:, 0]
        loss = _at_share(recordings, _MATCHED.loss, _GRADIENT.loss, share, wanted)
        distance = _at_share(recordings, _MATCHED.gradient_distance, _GRADIENT.gradient_distance, share, wanted)
        measured = np.abs(loss - start), distance, _quotient(distance, wanted), _quotient(distance, norm)
        found |= {(name, share): (steps, values) for name, values in zip(AT_ONE_DISTANCE, measured, strict=True)}
    return found


def walk_of(recordings: Recordings) -> dict[str, NDArray] | None:
    """What the paper's figure 4 draws of a run: `step`, the two bands' edges and `beta`, all (T,); None if unprobed."""
    if _GRADIENT.loss not in recordings:
        return None
    loss_low, loss_high = loss_band(recordings[_GRADIENT.loss])
    distance_low, distance_high = predictiveness_band(recordings[_GRADIENT.gradient_distance])
    return {
        "step": recordings[ProbeKeys.step],
        "loss_low": loss_low,
        "loss_high": loss_high,
        "distance_low": distance_low,
        "distance_high": distance_high,
        "beta": paper_beta(recordings),
    }


def _at_share(r: Recordings, walked: Key, along: Key, share: float, wanted: NDArray) -> NDArray:
    """What a probe has at a share of the true step: as walked, else from between the points of the paper's walk."""
    if walked in r and share in r[ProbeKeys.shares]:
        return r[walked][:, list(r[ProbeKeys.shares]).index(share)].astype(np.float64)
    return at_distance(r[_GRADIENT.distance_moved], r[along], wanted)


def _quotient(rise: NDArray, run: NDArray) -> NDArray:
    return np.divide(rise, run, out=np.full(len(run), np.nan), where=run > 0)
