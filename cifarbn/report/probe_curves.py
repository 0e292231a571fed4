"""What the walk along the gradient gives of one run: the paper's figure 4, and measures at one distance."""

import numpy as np
from numpy.typing import NDArray

from cifarbn.runs.measures import (
    EFFECTIVE_BETA,
    PREDICTIVENESS,
    RELATIVE_DISTANCE,
    Curve,
    Key,
    ProbeKeys,
    ProbePanel,
    Recordings,
    shown_in,
)
from cifarbn.smoothness.probe_curves import at_distance

SHARES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Distances along the gradient at which families are compared, in units of the optimizer's true step of that probe."""

LOSS_CHANGE = "loss change"
AT_ONE_DISTANCE = (LOSS_CHANGE, PREDICTIVENESS, EFFECTIVE_BETA, RELATIVE_DISTANCE)
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
        measured = {
            LOSS_CHANGE: np.abs(loss - start),
            PREDICTIVENESS: distance,
            EFFECTIVE_BETA: _quotient(distance, wanted),
            RELATIVE_DISTANCE: _quotient(distance, norm),
        }
        found |= {(name, share): (steps, measured[name]) for name in AT_ONE_DISTANCE}
    return found


def probe_bands(recordings: Recordings) -> dict[str, tuple[NDArray, NDArray, NDArray]] | None:
    """What the paper's figure 4 draws of a run: label of a panel -> steps and the band's edges, (T,) each.

    The edges of a measure that is drawn as a line are alike. None if unprobed.
    """
    if _GRADIENT.loss not in recordings:
        return None
    found = {}
    for measure, panel in shown_in(ProbePanel):
        if panel.edges:
            low, high = panel.edges(recordings)
        else:
            low = high = measure.compute(recordings)
        found[panel.label] = recordings[measure.table.step], low, high
    return found


def _at_share(r: Recordings, walked: Key, along: Key, share: float, wanted: NDArray) -> NDArray:
    """What a probe has at a share of the true step: as walked, else from between the points of the paper's walk."""
    if walked in r and share in r[ProbeKeys.shares]:
        return r[walked][:, list(r[ProbeKeys.shares]).index(share)].astype(np.float64)
    return at_distance(r[_GRADIENT.distance_moved], r[along], wanted)


def _quotient(rise: NDArray, run: NDArray) -> NDArray:
    return np.divide(rise, run, out=np.full(len(run), np.nan), where=run > 0)
