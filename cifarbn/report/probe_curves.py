"""Curves from the gradient probe of one run: the bands of Santurkar et al. 2018, and measures at a fixed distance."""

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
"""Distances along the gradient at which families are compared, as multiples of the optimizer's step length."""

LOSS_CHANGE = "loss change"
AT_ONE_DISTANCE = (LOSS_CHANGE, PREDICTIVENESS, EFFECTIVE_BETA, RELATIVE_DISTANCE)
"""The measures at a fixed distance, see `at_true_steps`."""

_GRADIENT, _MATCHED = ProbeKeys.gradient, ProbeKeys.matched


def at_true_steps(recordings: Recordings) -> dict[tuple[str, float], Curve]:
    """Return measures along the gradient at multiples of the optimizer's step length: (measure, multiple) -> curve.

    The definitions of Santurkar et al. 2018 (arXiv 1805.11604), evaluated at one distance instead of over a range: the
    gradient distance, and the gradient distance divided by the distance moved and by the gradient norm; instead of the
    loss range, the absolute change of the loss ("loss change"). Values at multiples in `probe.shares` were measured;
    others are interpolated between the points of the probe, and NaN outside their range.
    """
    true_step = ProbeKeys.update.distance_moved
    if not {_GRADIENT.loss, true_step} <= recordings.keys():
        return {}
    steps, start = recordings[ProbeKeys.step], recordings[_GRADIENT.loss_at_start]
    norm = recordings[_GRADIENT.gradient_norm]
    result: dict[tuple[str, float], Curve] = {}
    for share in SHARES:
        moved = share * recordings[true_step][:, 0]
        loss = _at_share(recordings, _MATCHED.loss, _GRADIENT.loss, share, moved)
        distance = _at_share(recordings, _MATCHED.gradient_distance, _GRADIENT.gradient_distance, share, moved)
        measured = {
            LOSS_CHANGE: np.abs(loss - start),
            PREDICTIVENESS: distance,
            EFFECTIVE_BETA: _quotient(distance, moved),
            RELATIVE_DISTANCE: _quotient(distance, norm),
        }
        result |= {(name, share): (steps, measured[name]) for name in AT_ONE_DISTANCE}
    return result


def probe_bands(recordings: Recordings) -> dict[str, tuple[NDArray, NDArray, NDArray]] | None:
    """Return the bands of figure 4 of Santurkar et al. 2018: panel label -> steps, lower and upper edge, (T,) each.

    The two edges of a measure that is drawn as a line are equal. None if the run has no gradient probe.
    """
    if _GRADIENT.loss not in recordings:
        return None
    bands = {}
    for measure, panel in shown_in(ProbePanel):
        if panel.edges:
            low, high = panel.edges(recordings)
        else:
            low = high = measure.compute(recordings)
        bands[panel.label] = recordings[measure.table.step], low, high
    return bands


def _at_share(r: Recordings, measured: Key, along: Key, share: float, moved: NDArray) -> NDArray:
    """Return a value at a multiple of the step length: as measured, else interpolated between points of the probe."""
    if measured in r and share in r[ProbeKeys.shares]:
        return r[measured][:, list(r[ProbeKeys.shares]).index(share)].astype(np.float64)
    return at_distance(r[_GRADIENT.distance_moved], r[along], moved)


def _quotient(rise: NDArray, run: NDArray) -> NDArray:
    return np.divide(rise, run, out=np.full(len(run), np.nan), where=run > 0)
