"""Ratios of every measure between two families that differ only in normalisation: table and figures."""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from cifarbn import figures
from cifarbn.report.families import Family
from cifarbn.report.gather import RunRecord
from cifarbn.report.probe_curves import AT_ONE_DISTANCE, SHARES, at_true_steps
from cifarbn.report.section import Drawing
from cifarbn.runs.measures import MEASURES, PREDICTIVENESS, Curve, Origin
from cifarbn.smoothness.factors import FEWEST, Factor, factor, factor_at_matched_loss

ORIGIN = {measure.name: measure.origin for measure in MEASURES}
# Measured on the minibatch of one step, so that the loss at that step is known.
OF_PROBES = [measure.name for measure in MEASURES if measure.table.one_minibatch]
WARM_UP = 10  # initial steps excluded from the ratios: the models have not learnt anything yet
LOSS_TOLERANCE = 0.1
COLUMNS = (
    *("matched", "definition", "source", "true steps", "lr", "reference", "other"),
    *("median reference", "median other", "factor", "interval low", "interval high", "interval over"),
    *("runs reference", "runs other", "probes reference", "probes other"),
)


class Comparison(NamedTuple):
    """One ratio between two families.

    Attributes:
        matched: what is equal for both: "step" (the same steps), "distance" (the same multiple of the optimizer's step
            length along the gradient) or "loss" (pairs of probes whose initial losses are equal within 10 %).
        definition: name of the measure.
        share: the multiple of the step length if the distance is matched, else None.
        rate: the learning rate of both.
        factor: the ratio of the reference to the other.
    """

    matched: str
    definition: str
    share: float | None
    rate: str
    factor: Factor


def compare(reference: Family, other: Family, curves: Mapping[str, Mapping[str, Curve]]) -> list[Comparison]:
    """Return all ratios that the recordings allow, by measure and learning rate; the first 10 steps are excluded.

    Args:
        reference: the family in the numerator.
        other: the family in the denominator.
        curves: name of a run -> measure -> curve.
    """
    rates = [rate for rate in reference.runs if rate in other.runs]
    probed = {run.name: at_true_steps(run.recordings) for family in (reference, other) for _, run in family.each()}
    matched: list[tuple[str, str, float | None, Mapping[str, Curve | None]]] = [
        ("step", name, None, {run: measured.get(name) for run, measured in curves.items()}) for name in ORIGIN
    ]
    matched += [
        ("distance", *key, {run: measured.get(key) for run, measured in probed.items()})
        for key in itertools.product(AT_ONE_DISTANCE, SHARES)
    ]
    matched += [
        ("loss", name, None, {run: measured.get(name) for run, measured in curves.items()}) for name in OF_PROBES
    ]
    results = []
    for quantity, name, share, by_run in matched:
        for rate in rates:
            first, second = (
                [
                    (_losses_at(run, curve), _after_warm_up(curve))
                    for run in family.runs[rate]
                    if (curve := by_run[run.name])
                ]
                for family in (reference, other)
            )
            if quantity == "loss":
                ratio = factor_at_matched_loss(first, second, tolerance=LOSS_TOLERANCE)
            else:
                ratio = factor([values for _, values in first], [values for _, values in second])
            if ratio:
                results.append(Comparison(quantity, name, share, rate, ratio))
    return results


def as_csv(pairs: Iterable[tuple[Family, Family, list[Comparison]]]) -> str:
    """Format the ratios as CSV, one row per pair of families, measure and learning rate."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for reference, other, comparisons in pairs:
        for matched, definition, share, rate, ratio in comparisons:
            interval = [f"{end:.4g}" for end in ratio.interval] if ratio.interval else ["", ""]
            writer.writerow(
                (
                    *(
                        matched,
                        definition,
                        ORIGIN.get(definition, Origin.CONTROL),
                        "" if share is None else f"{share:g}",
                    ),
                    *(rate, reference.label, other.label, *(f"{median:.6g}" for median in ratio.medians)),
                    *(f"{ratio.factor:.4g}", *interval, _over(ratio) if ratio.interval else ""),
                    *(*ratio.runs, *ratio.probes),
                )
            )
    return text.getvalue()


def drawings(
    reference: Family, other: Family, comparisons: list[Comparison], suffix: str, ending: str
) -> list[Drawing]:
    """Return the figure of the ratios of all measures, and that of ratios at matched distance and loss.

    Args:
        reference: the family in the numerator.
        other: the family in the denominator.
        comparisons: the ratios between them.
        suffix: appended to the figures' names if there are several pairs.
        ending: of every caption.
    """
    axis = f"{reference.label} divided by {other.label}; above 1 the latter is smoother"
    drawn: list[Drawing] = []
    steps = [c for c in comparisons if c.matched == "step"]
    if steps:
        origins = Counter(ORIGIN[name] for name in _rows(steps))
        caption = (
            f"For each measure and learning rate, the median of {reference.label} over its steps or probes (without "
            f"the first {WARM_UP} steps), divided by the median of {other.label}. Blocks from top to bottom: "
            f"{', '.join(origins)}. {_n(steps)} {ending}"
        )
        title = "Ratio of each smoothness measure"
        figure = figures.factors(_rows(steps), axis, title, list(origins.values()))
        drawn.append(Drawing(f"ratios{suffix}", figure, caption, f"Ratios by measure. {_reading(steps)}."))
    distance = [c for c in comparisons if c.matched == "distance" and c.definition == PREDICTIVENESS]
    loss = [c for c in comparisons if c.matched == "loss"]
    if distance or loss:
        parts = []
        if distance:
            parts.append(
                "Upper rows: the gradient distance at a multiple of the optimizer's step length along the gradient, "
                "for the probes that reach that far, which differ between distances."
            )
        if loss:
            parts.append(
                f"{'Lower rows' if distance else 'Rows'}: every measure over pairs of probes, one of each model, "
                f"whose initial losses are equal within {LOSS_TOLERANCE:.0%}."
            )
        matched = distance + loss
        caption = (
            f"Ratios of {reference.label} to {other.label} under equal conditions. {' '.join(parts)} {_n(matched)} "
            f"factors.csv has all measures. {ending}"
        )
        title = "Ratios at equal distance and at equal loss"
        figure = figures.factors(_rows(matched), axis, title, [len(_rows(distance)), len(_rows(loss))])
        alt = f"Ratios at equal distance and at equal loss. {_reading(matched)}."
        drawn.append(Drawing(f"ratios-at-equal-distance-and-loss{suffix}", figure, caption, alt))
    return drawn


def _after_warm_up(curve: Curve) -> np.ndarray:
    steps, values = curve
    return np.where(np.asarray(steps) >= WARM_UP, values, np.nan)


def _losses_at(run: RunRecord, curve: Curve) -> np.ndarray:
    """Return the training loss at the steps of a curve; NaN where metrics.csv has none."""
    steps = np.asarray(curve[0])
    known, losses = run.steps["step"], run.steps["step/loss"]
    if not len(known):
        return np.full(len(steps), np.nan)
    at = np.searchsorted(known, steps).clip(max=len(known) - 1)
    return np.where(known[at] == steps, losses[at], np.nan)


def _rows(comparisons: list[Comparison]) -> dict[str, dict[str, Factor]]:
    """Return row of a figure -> learning rate -> ratio."""
    rows: dict[str, dict[str, Factor]] = {}
    for comparison in comparisons:
        name = comparison.definition
        if comparison.share is not None:
            name = f"gradient distance at {comparison.share:g} step length{'' if comparison.share <= 1 else 's'}"
        rows.setdefault(name, {})[comparison.rate] = comparison.factor
    return rows


def _n(comparisons: list[Comparison]) -> str:
    """Return the number of runs and probes behind each dot, and the meaning of its interval."""
    ratios = [comparison.factor for comparison in comparisons]
    runs = _from_to(n for ratio in ratios for n in ratio.runs)
    probes = _from_to(n for ratio in ratios for n in ratio.probes)
    text = (
        f"Each dot: n = {runs} run{'' if runs == '1' else 's'} of each model with {probes} steps or probes in total. "
    )
    over = dict.fromkeys(_over(ratio) for ratio in ratios if ratio.interval)
    if over:
        text += f"Each line is a 95 % bootstrap interval over {' or '.join(over)}. "
    if "probes" in over:
        text += "An interval over the probes of a single run does not cover the variation between seeds. "
    if "probes and seeds" in over:
        text += "With few seeds the interval is too narrow. "
    if not all(ratio.interval for ratio in ratios):
        text += f"A hollow dot has fewer than {FEWEST} probes and no interval. "
    return text.rstrip()


def _from_to(numbers: Iterable[int]) -> str:
    least, *_, greatest = sorted([*numbers] * 2)
    return f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}"


def _over(ratio: Factor) -> str:
    return "probes and seeds" if ratio.over_seeds else "probes"


def _reading(comparisons: list[Comparison]) -> str:
    return "; ".join(
        f"{name}: {min(f.factor for f in by_rate.values()):.2g} to {max(f.factor for f in by_rate.values()):.2g}"
        for name, by_rate in _rows(comparisons).items()
    )
