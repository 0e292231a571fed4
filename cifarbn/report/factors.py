"""By which factor every definition differs between two families that differ in the norm only: table and figures."""

import csv
import io
import itertools
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
OF_PROBES = [measure.name for measure in MEASURES if measure.table.one_minibatch]  # these have a loss at their start
WARM_UP = 10  # first steps left out of the factors: there the nets have not learnt anything yet
LOSS_TOLERANCE = 0.1
COLUMNS = (
    *("matched", "definition", "source", "true steps", "lr", "reference", "other"),
    *("median reference", "median other", "factor", "interval low", "interval high", "interval over"),
    *("runs reference", "runs other", "probes reference", "probes other"),
)


class Comparison(NamedTuple):
    """One factor between two families.

    Attributes:
        matched: what the two have in common: "step" (the same steps), "distance" (the same number of true steps along
            the gradient) or "loss" (probes that start from losses equal within 10 %, paired).
        definition: the name of what was measured.
        share: how many true steps, where the distance is matched; else None.
        rate: the learning rate of both.
        factor: the reference over the other.
    """

    matched: str
    definition: str
    share: float | None
    rate: str
    factor: Factor


def compare(reference: Family, other: Family, found: Mapping[str, Mapping[str, Curve]]) -> list[Comparison]:
    """Every factor that the recordings allow, by definition and rate; the first 10 steps left out.

    Args:
        reference: the family in the numerator.
        other: the one in the denominator.
        found: name of run -> definition -> its curve.
    """
    rates = [rate for rate in reference.runs if rate in other.runs]
    walked = {run.name: at_true_steps(run.recordings) for family in (reference, other) for _, run in family.each()}
    matched: list[tuple[str, str, float | None, Mapping[str, Curve | None]]] = [
        ("step", name, None, {run: curves.get(name) for run, curves in found.items()}) for name in ORIGIN
    ]
    matched += [
        ("distance", *key, {run: curves.get(key) for run, curves in walked.items()})
        for key in itertools.product(AT_ONE_DISTANCE, SHARES)
    ]
    matched += [("loss", name, None, {run: curves.get(name) for run, curves in found.items()}) for name in OF_PROBES]
    results = []
    for how, name, share, curves in matched:
        for rate in rates:
            first, second = (
                [
                    (_losses_at(run, curve), _after_warm_up(curve))
                    for run in family.runs[rate]
                    if (curve := curves[run.name])
                ]
                for family in (reference, other)
            )
            if how == "loss":
                one = factor_at_matched_loss(first, second, tolerance=LOSS_TOLERANCE)
            else:
                one = factor([values for _, values in first], [values for _, values in second])
            if one:
                results.append(Comparison(how, name, share, rate, one))
    return results


def as_csv(pairs: Iterable[tuple[Family, Family, list[Comparison]]]) -> str:
    """A row for every pair of families and every factor between them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for reference, other, comparisons in pairs:
        for matched, definition, share, rate, one in comparisons:
            interval = [f"{end:.4g}" for end in one.interval] if one.interval else ["", ""]
            writer.writerow(
                (
                    *(
                        matched,
                        definition,
                        ORIGIN.get(definition, Origin.CONTROL),
                        "" if share is None else f"{share:g}",
                    ),
                    *(rate, reference.label, other.label, *(f"{median:.6g}" for median in one.medians)),
                    *(f"{one.factor:.4g}", *interval, _over(one) if one.interval else "", *one.runs, *one.probes),
                )
            )
    return text.getvalue()


def drawings(reference: Family, other: Family, comparisons: list[Comparison], suffix: str, words: str) -> list[Drawing]:
    """The figure of where definitions disagree, and that of factors at matched distance and loss.

    Args:
        reference: the family in the numerator.
        other: the one in the denominator.
        comparisons: the factors between them.
        suffix: of the figures' names, where there are several pairs.
        words: the end of every caption.
    """
    side = f"{reference.label} over {other.label}: right of 1, {other.label} is smoother"
    drawn: list[Drawing] = []
    steps = [c for c in comparisons if c.matched == "step"]
    if steps:
        blocks = [
            sum(ORIGIN[name] is who for name in _rows(steps)) for who in dict.fromkeys(ORIGIN[n] for n in _rows(steps))
        ]
        caption = (
            f"For each definition and learning rate the median of {reference.label} over its steps or probes (the "
            f"first {WARM_UP} steps left out), divided by that of {other.label}. Blocks: the report's, the course's, "
            f"the paper's, controls. {_n(steps)} {words}"
        )
        figure = figures.factors(_rows(steps), side, "Where definitions disagree", blocks)
        drawn.append(
            Drawing(
                f"where-definitions-disagree{suffix}", figure, caption, f"Factors by definition. {_reading(steps)}."
            )
        )
    distance = [c for c in comparisons if c.matched == "distance" and c.definition == PREDICTIVENESS]
    loss = [c for c in comparisons if c.matched == "loss"]
    if distance or loss:
        parts = []
        if distance:
            parts.append(
                "Upper rows: the gradient's distance so many true optimizer steps along the gradient, for the probes "
                "whose walk reaches there: not the same ones at every distance."
            )
        if loss:
            parts.append(
                f"{'Lower rows' if distance else 'Rows'}: every definition over pairs of probes, one of each net, "
                f"whose losses at the start are equal within {LOSS_TOLERANCE:.0%}."
            )
        shown = distance + loss
        caption = (
            f"As where definitions disagree, between equals: {reference.label} over {other.label}. {' '.join(parts)} "
            f"{_n(shown)} factors.csv has all definitions. {words}"
        )
        figure = figures.factors(
            _rows(shown), side, "At matched distance and at matched loss", [len(_rows(distance)), len(_rows(loss))]
        )
        alt = f"Factors at matched distance and loss. {_reading(shown)}."
        drawn.append(Drawing(f"factors-at-matched-distance-and-loss{suffix}", figure, caption, alt))
    return drawn


def _after_warm_up(curve: Curve) -> np.ndarray:
    steps, values = curve
    return np.where(np.asarray(steps) >= WARM_UP, values, np.nan)


def _losses_at(run: RunRecord, curve: Curve) -> np.ndarray:
    """The training loss of the curve's steps, NaN where metrics.csv has none."""
    steps = np.asarray(curve[0])
    known, losses = run.steps["step"], run.steps["step/loss"]
    if not len(known):
        return np.full(len(steps), np.nan)
    at = np.searchsorted(known, steps).clip(max=len(known) - 1)
    return np.where(known[at] == steps, losses[at], np.nan)


def _rows(comparisons: list[Comparison]) -> dict[str, dict[str, Factor]]:
    """Row of a figure -> learning rate -> factor."""
    rows: dict[str, dict[str, Factor]] = {}
    for one in comparisons:
        name = one.definition
        if one.share is not None:
            name = f"gradient distance at {one.share:g} true step{'' if one.share <= 1 else 's'}"
        rows.setdefault(name, {})[one.rate] = one.factor
    return rows


def _n(comparisons: list[Comparison]) -> str:
    """How many runs and probes each dot rests on, and what its interval covers."""
    factors = [one.factor for one in comparisons]
    runs = _from_to(n for one in factors for n in one.runs)
    probes = _from_to(n for one in factors for n in one.probes)
    text = (
        f"Each dot: n = {runs} run{'' if runs == '1' else 's'} of each net, {probes} steps or probes of all its runs. "
    )
    over = dict.fromkeys(_over(one) for one in factors if one.interval)
    if over:
        text += f"A line is a 95 % interval of the bootstrap over {' or '.join(over)}. "
    if "probes" in over:
        text += "Over the probes of a single run it says nothing about other seeds. "
    if "probes and seeds" in over:
        text += "Over a few seeds it is too narrow. "
    if len([one for one in factors if one.interval]) < len(factors):
        text += f"A hollow dot has fewer than {FEWEST} probes and no interval. "
    return text.rstrip()


def _from_to(numbers: Iterable[int]) -> str:
    least, *_, greatest = sorted([*numbers] * 2)
    return f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}"


def _over(one: Factor) -> str:
    return "probes and seeds" if one.over_seeds else "probes"


def _reading(comparisons: list[Comparison]) -> str:
    return "; ".join(
        f"{name}: {min(f.factor for f in values.values()):.2g} to {max(f.factor for f in values.values()):.2g}"
        for name, values in _rows(comparisons).items()
    )
