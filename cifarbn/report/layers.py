"""Figures of single layers: internal covariate shift and the distribution of activations (Santurkar et al. 2018)."""

from collections.abc import Mapping, Sequence

import numpy as np

from cifarbn import figures
from cifarbn.report.captions import count
from cifarbn.report.families import Family
from cifarbn.report.family_captions import SEED_LINES, ending, span
from cifarbn.report.section import Drawing
from cifarbn.runs.measures import ActivationDriftKeys, CovariateShiftKeys, Key, Layers, Recordings, shown_in
from cifarbn.smoothness.bands import SeedBand, over_seeds

PLACES = {"early": 0.0, "middle": 0.5, "last": 1.0}
"""Which layers are drawn, as shares of the way from the first one that is measured to the last."""
ABREAST = 3  # families beside each other in a figure of distributions

Probed = Mapping[str, Sequence[Recordings]]
"""Family -> the recordings of its runs."""
LayerKeys = type[CovariateShiftKeys] | type[ActivationDriftKeys]
DRAWN: tuple[LayerKeys, ...] = (CovariateShiftKeys, ActivationDriftKeys)
"""The recorders whose layers are drawn here."""


def covariate_shift(families: list[Family]) -> list[Drawing]:
    """Draw cos(G, G') and ||G - G'|| of some layers, a figure for each learning rate: the paper's figures 3 and 9.

    The first layer is not drawn: no layer precedes it, so that its shift is exactly 0.
    """
    caption = (
        "Internal covariate shift (Santurkar et al. 2018, definition 2.1, figures 3 and 9): G is a layer's "
        "gradient, G′ the same on the same minibatch with all layers before it already updated. Without a shift "
        "the cosine is 1 and the distance 0, as in the first layer, which is not drawn."
    )
    alt = "Cosine and distance of a layer's gradient before and after the update below it"
    title = "Internal covariate shift"
    return _against_step(families, CovariateShiftKeys, "covariate-shift", title, caption, alt, skipped=1)


def activation_moments(families: list[Family]) -> list[Drawing]:
    """Draw mean and standard deviation of some layers' outputs against the step, a figure for each learning rate."""
    caption = (
        "Mean and standard deviation of layers' outputs, after the normalisation where there is one and before the "
        "activation, on the minibatch of each measured step: how stable their distribution is (Santurkar et al. "
        "2018, section 2, who draw the change of both moments)."
    )
    alt = "Mean and standard deviation of layers' outputs against the step"
    return _against_step(
        families, ActivationDriftKeys, "activation-moments", "Moments of layers' outputs", caption, alt
    )


def _against_step(
    families: list[Family], keys: LayerKeys, name: str, title: str, caption: str, alt: str, skipped: int = 0
) -> list[Drawing]:
    """Draw some layers' measurements against the step, a figure for each learning rate, without the first `skipped`."""
    drawings = []
    for rate, probed in _by_rate(families, keys).items():
        first = {label: min(skipped, len(runs[0][keys.layers]) - 1) for label, runs in probed.items()}
        panels = _panels(probed, keys, first)
        figure = figures.layers(panels, f"{title}, lr\N{NO-BREAK SPACE}{rate}", log=_log(keys))
        layers, end = _named(probed, keys, first), ending(families, _drawn(probed, keys.step))
        whole = f"{caption} Layers: {layers}. {SEED_LINES} {end}"
        drawings.append(Drawing(f"{name}-lr-{rate}", figure, whole, f"{alt}, lr {rate}. {_medians(panels)}"))
    return drawings


def activation_distributions(families: list[Family]) -> list[Drawing]:
    """Draw the histograms of some layers' outputs against the step: the paper's figure 2.

    At the learning rate that most families have been probed at, of the run of the lowest seed of each family.
    """
    keys = ActivationDriftKeys
    by_rate = _by_rate(families, keys)
    if not by_rate:
        return []
    rate = max(by_rate, key=lambda rate: len(by_rate[rate]))
    probed, drawings = by_rate[rate], []
    labels = list(probed)
    for number, start in enumerate(range(0, len(labels), ABREAST), 1):
        shown = {label: probed[label] for label in labels[start : start + ABREAST]}
        panels = {
            f"{place} layer": {
                label: figures.Distribution(
                    runs[0][keys.step],
                    runs[0][keys.edges],
                    runs[0][keys.histogram][:, _at(share, 0, len(runs[0][keys.layers]))],
                )
                for label, runs in shown.items()
            }
            for place, share in PLACES.items()
        }
        of_run = {label: f"one run of {count(len(runs[0][keys.step]), 'measurement')}" for label, runs in shown.items()}
        caption = (
            "How the distribution of layers' outputs moves during training (Santurkar et al. 2018, figure 2): the "
            "darker, the more of a minibatch's outputs, after the normalisation where there is one and before the "
            "activation; what lies beyond the axis is counted at its ends. Layers: "
            f"{_named(shown, keys, dict.fromkeys(shown, 0))}. {ending(families, of_run)}"
        )
        title = f"Distribution of layers' outputs, lr\N{NO-BREAK SPACE}{rate}"
        alt = f"Histograms of layers' outputs against the step, for {', '.join(shown)}, lr {rate}."
        name = "activation-distributions" + (f"-{number}" if len(labels) > ABREAST else "")
        drawings.append(Drawing(name, figures.distributions(panels, title), caption, alt))
    return drawings


def _by_rate(families: list[Family], keys: LayerKeys) -> dict[str, Probed]:
    """Learning rate -> family -> the recordings of its runs that have such measurements."""
    found = {
        rate: {
            family.label: runs
            for family in families
            if (runs := [r for run in family.runs.get(rate, []) if keys.step in (r := run.recordings)])
        }
        for rate in dict.fromkeys(rate for family in families for rate in family.runs)
    }
    return {rate: probed for rate, probed in found.items() if probed}


def _columns(keys: LayerKeys) -> list[Layers]:
    """What the measures of a recorder show of each layer, linear axes first."""
    shown = [column for measure, column in shown_in(Layers) if measure.table is keys]
    return sorted(shown, key=lambda column: column.log)


def _log(keys: LayerKeys) -> list[str]:
    return [column.label for column in _columns(keys) if column.log]


def _panels(probed: Probed, keys: LayerKeys, first: Mapping[str, int]) -> dict[str, dict[str, dict[str, SeedBand]]]:
    """Place of a layer -> quantity -> family -> its curves over seeds."""
    return {
        f"{place} layer": {
            column.label: {
                label: _over_seeds(runs, keys.step, column.values, _at(share, first[label], len(runs[0][keys.layers])))
                for label, runs in probed.items()
            }
            for column in _columns(keys)
        }
        for place, share in PLACES.items()
    }


def _over_seeds(runs: Sequence[Recordings], step: Key, key: Key, layer: int) -> SeedBand:
    return over_seeds([(r[step], r[key][:, layer], r[key][:, layer]) for r in runs])


def _at(share: float, first: int, layers: int) -> int:
    return round(first + share * (layers - 1 - first))


def _named(probed: Probed, keys: LayerKeys, first: Mapping[str, int]) -> str:
    """Which layers are drawn: numbers from 1 and their modules' names, by family where these differ."""

    def of(label: str) -> str:
        names = probed[label][0][keys.layers]
        at = dict.fromkeys(_at(share, first[label], len(names)) for share in PLACES.values())
        return f"{', '.join(f'{i + 1} ({names[i]})' for i in at)} of {len(names)}"

    texts = {label: of(label) for label in probed}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{label}: {text}" for label, text in texts.items())


def _drawn(probed: Probed, step: Key) -> dict[str, str]:
    return {
        label: f"n = {count(len(runs), 'run')} of {span((len(r[step]) for r in runs), 'measurement')}"
        for label, runs in probed.items()
    }


def _medians(panels: Mapping[str, Mapping[str, Mapping[str, SeedBand]]]) -> str:
    """The medians over the steps of what the middle panels show."""
    place = list(panels)[len(panels) // 2]
    parts = [
        f"{label}: median {quantity} {np.median(one.low):.3g}"
        for quantity, shown in panels[place].items()
        for label, one in shown.items()
        if len(one.low)
    ]
    return f"{place.capitalize()}: {'; '.join(parts)}."
