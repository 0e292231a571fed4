"""The smoothness section: the report's figures 11 to 14, the course's band, the paper's figures, and their factors."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cifarbn import figures
from cifarbn.report import factors
from cifarbn.report.captions import count
from cifarbn.report.families import Family, find_families, find_pairs
from cifarbn.report.family_captions import SCALE, SEEDS, data_of, ending, runs_of, span
from cifarbn.report.gather import RunSet
from cifarbn.report.layers import activation_distributions, activation_moments, covariate_shift
from cifarbn.report.probe_curves import probe_bands
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.runs.measures import MEASURES, Band, Curve, HeldOutKeys, Lines, ProbeKeys, ProbePanel, curves, shown_in
from cifarbn.smoothness.bands import SeedBand, band, over_seeds

DISTANCE_CURVES = 4  # steps in the figure of distance curves

RATES = "The band runs over learning rates, that is over different trajectories: it measures sensitivity to the rate."


def smoothness(sweep: RunSet, options: Options) -> Section | None:
    """All figures that the recordings allow, and every definition's values as one long table."""
    everyone = find_families(sweep)
    families = [family for family in everyone if family.runs]
    found = {run.name: curves(run.recordings) for family in families for _, run in family.each()}
    if not any(found.values()):
        return None
    pairs = [(plain, other, factors.compare(plain, other, found)) for plain, other in find_pairs(families)]
    drawings: list[Drawing] = []
    sets = list(dict.fromkeys(family.data for family in families))
    for data in sets:
        alike = [family for family in families if family.data == data]
        own = _drawings(alike, found, [pair for pair in pairs if pair[0].data == data])
        drawings += own if len(sets) == 1 else [replace(d, name=f"{d.name}-{data}") for d in own]
    excluded = {name: why for family in everyone for name, why in family.excluded.items()}
    text = "Three definitions of smoothness, and controls, of the same runs. "
    text += "Left out of every band: " + "; ".join(f"{n} ({w})" for n, w in excluded.items()) + "." if excluded else ""
    files = {"smoothness.csv": _as_csv(families, found), "factors.csv": factors.as_csv(pairs)}
    measured = {name for own in found.values() for name in own}
    points = [f"{m.name} ({m.origin.source}), in {m.unit}: {m.meaning}." for m in MEASURES if m.name in measured]
    return Section("Smoothness", text.strip(), drawings, files, points=points)


def _drawings(
    families: list[Family],
    found: Mapping[str, Mapping[str, Curve]],
    pairs: list[tuple[Family, Family, list[factors.Comparison]]],
) -> list[Drawing]:
    """All figures of families on the same data."""
    drawings = [
        *_accuracy(families),
        *_over_rates(families, found),
        *_per_rate(families, found),
        *_walks(families),
        *_distances(families),
        *covariate_shift(families),
        *activation_moments(families),
        *activation_distributions(families),
    ]
    for number, (plain, other, comparisons) in enumerate(pairs, 1):
        suffix = f"-{number}" if len(pairs) > 1 else ""
        words = f"{SCALE} {data_of([plain, other])}"
        drawings += factors.drawings(plain, other, comparisons, suffix, words)
    return drawings


def _accuracy(families: list[Family]) -> list[Drawing]:
    recorded = {
        family.label: {
            rate: with_it
            for rate, runs in family.runs.items()
            if (with_it := [run.recordings for run in runs if HeldOutKeys.acc in run.recordings])
        }
        for family in families
    }
    recorded = {label: by_rate for label, by_rate in recorded.items() if by_rate}
    if not recorded:
        return []
    found = {
        label: {rate: [(r[HeldOutKeys.step], r[HeldOutKeys.acc]) for r in runs] for rate, runs in by_rate.items()}
        for label, by_rate in recorded.items()
    }
    one, *_ = (r for by_rate in recorded.values() for runs in by_rate.values() for r in runs)
    every = int(np.diff(one[HeldOutKeys.step][:2])[0]) if len(one[HeldOutKeys.step]) > 1 else 0
    source = HeldOutKeys.SOURCES[str(one[HeldOutKeys.source])]
    ends = _readings(found, lambda values: float(values[-1]), "{:.1%}")
    words = ending(families, {label: runs_of(by_rate) for label, by_rate in found.items()})
    caption = (
        f"Accuracy on {source} pictures every {every} steps (the report's figure 11), a line for each run. {words}"
    )
    figure = figures.lines(found, "accuracy", "Accuracy during training")
    return [Drawing("accuracy-every-few-steps", figure, caption, f"Accuracy against step. At the end: {ends}.")]


def _readings(
    found: Mapping[str, Mapping[str, Sequence[Curve]]], read: Callable[[np.ndarray], float], form: str
) -> str:
    """For each family and rate one number of its run, or the median of its runs' with the least and the greatest."""
    families = []
    for label, by_rate in found.items():
        parts = []
        for rate, runs in by_rate.items():
            values = [read(values) for _, values in runs]
            middle = form.format(float(np.median(values)))
            if len(values) > 1:
                middle += f" ({form.format(min(values))} to {form.format(max(values))} over {len(values)} runs)"
            parts.append(f"{middle} at lr {rate}")
        families.append(f"{label}: " + ", ".join(parts))
    return "; ".join(families)


def _over_rates(families: list[Family], found: Mapping[str, Mapping[str, Curve]]) -> list[Drawing]:
    """The bands over learning rates, the report's figure 12 and the course's: one for each seed, then their median."""
    drawings = []
    everyone = [run for family in families for _, run in family.each()]
    if losses := _bands_over_rates(families, {r.name: (r.steps["step"], r.steps["step/loss"]) for r in everyone}):
        figure = figures.bands(
            {label: one for label, (one, _) in losses.items()},
            "training loss",
            "Loss landscape as the report draws it: min and max over rates",
        )
        caption = (
            "At every step the least and the greatest training loss over the learning rates (the report's figure 12). "
            f"{RATES} {_seeds(losses)}{ending(families, _bands_drawn(losses))}"
        )
        drawings.append(Drawing("loss-landscape-over-rates", figure, caption, _band_words(losses, "Training loss")))
    for measure, how in shown_in(Band):
        of_runs = {run: own[measure.name] for run, own in found.items() if measure.name in own}
        shown = _bands_over_rates(families, of_runs)
        if not shown:
            continue
        figure = figures.bands(
            {label: one for label, (one, _) in shown.items()},
            how.label,
            f"{how.title}: min and max over rates",
            log=True,
        )
        caption = (
            f"{measure.meaning}: band over the learning rates. {measure.caveat} {RATES} "
            f"{_seeds(shown)}{ending(families, _bands_drawn(shown))}"
        )
        alt = _band_words(shown, measure.name.capitalize())
        drawings.append(Drawing(_file_name(measure.name), figure, caption, alt))
    return drawings


OverRates = Mapping[str, tuple[SeedBand, list[str]]]
"""Family -> the median of its seeds' bands, and the learning rates of each."""


def _bands_over_rates(families: list[Family], curves: Mapping[str, Curve]) -> OverRates:
    """For each family the band over rates of every seed that has them all; without families that have no such seed.

    Args:
        families: with runs.
        curves: by the names of the runs that have one.
    """
    bands: dict[str, tuple[SeedBand, list[str]]] = {}
    for family in families:
        edges, rates = [], []
        for by_rate in family.across_rates():
            measured = {rate: curves[run.name] for rate, run in by_rate.items() if run.name in curves}
            if len(measured) == len(by_rate) and not (one := band(measured)).omitted:
                edges.append((one.steps, one.low, one.high))
                rates = list(by_rate)
        if edges:
            bands[family.label] = over_seeds(edges), rates
    return bands


def _bands_drawn(bands: OverRates) -> dict[str, str]:
    return {
        label: f"n = {count(one.seeds, 'seed')} with a run at each of lr {', '.join(rates)}"
        for label, (one, rates) in bands.items()
    }


def _seeds(bands: OverRates) -> str:
    return f"{SEEDS} " if any(one.seeds > 1 for one, _ in bands.values()) else ""


def _band_words(bands: OverRates, what: str) -> str:
    widths = "; ".join(f"{label}: median width {_middle(b.high - b.low):.3g}" for label, (b, _) in bands.items())
    return f"{what} between its least and greatest over learning rates, against the step. {widths}."


def _per_rate(families: list[Family], found: Mapping[str, Mapping[str, Curve]]) -> list[Drawing]:
    """A line for each run: the report's figures 13 and 14."""
    drawings = []
    for measure, how in shown_in(Lines):
        shown = {
            family.label: {
                rate: measured
                for rate, runs in family.runs.items()
                if (measured := [found[run.name][measure.name] for run in runs if measure.name in found[run.name]])
            }
            for family in families
        }
        shown = {label: by_rate for label, by_rate in shown.items() if by_rate}
        if not shown:
            continue
        words = ending(families, {label: runs_of(by_rate) for label, by_rate in shown.items()})
        where = f" ({how.where})" if how.where else ""
        text = (f"{measure.meaning}, a line for each run{where}.", measure.caveat, words)
        drawings.append(
            Drawing(
                _file_name(measure.name),
                figures.lines(shown, how.label, f"{how.title or measure.name}, per learning rate", log=True),
                " ".join(part for part in text if part),
                f"{measure.name} against step, medians: {_readings(shown, _middle, '{:.3g}')}.",
            )
        )
    return drawings


def _file_name(measure: str) -> str:
    return measure.replace(" ", "-").lower()


def _walks(families: list[Family]) -> list[Drawing]:
    """The paper's figure 4, one for each learning rate: the median edges over its runs, and how far any reaches."""
    drawings = []
    for rate in dict.fromkeys(rate for family in families for rate in family.runs):
        probed = {
            family.label: seen
            for family in families
            if (seen := [walk for run in family.runs.get(rate, []) if (walk := probe_bands(run.recordings))])
        }
        if not probed:
            continue
        shown = {
            panel.label: {family: over_seeds([walk[panel.label] for walk in seen]) for family, seen in probed.items()}
            for _, panel in shown_in(ProbePanel)
        }
        lines = [panel.label for _, panel in shown_in(ProbePanel) if panel.edges is None]
        drawn = {
            family: f"n = {count(len(seen), 'run')} of {span((_probes(walk) for walk in seen), 'probe')}"
            for family, seen in probed.items()
        }
        one = next(
            run.recordings
            for family in families
            for run in family.runs.get(rate, [])
            if ProbeKeys.gradient.loss in run.recordings
        )
        s = one[ProbeKeys.s]
        settings = (
            f"At every {int(one[ProbeKeys.every])}th step the loss and the gradient at {len(s)} points along the "
            f"gradient, s from {s[0]:.3g} to {s[-1]:.3g} (distance moved s‖g‖), on that step's minibatch, in fp32, "
            "batch normalisation in train mode; training goes on from where it was."
        )
        medians = "; ".join(
            f"{family}: median {quantity} {_middle(own.low):.3g}"
            for quantity in lines
            for family, own in shown[quantity].items()
        )
        seeds = f"{SEEDS} " if any(len(seen) > 1 for seen in probed.values()) else ""
        drawings.append(
            Drawing(
                f"paper-figure-4-lr-{rate}",
                figures.walks(
                    shown, f"Along the gradient, as the paper measures it, lr\N{NO-BREAK SPACE}{rate}", lines=lines
                ),
                "Santurkar et al. 2018, figure 4: band of the loss, band of the gradient distance "
                f"‖∇L(θ − s g) − g‖, and effective beta, the greatest of that distance over s‖g‖. {settings} {SCALE} "
                f"{seeds}{ending(families, drawn)}",
                f"Against the step at lr {rate}: {', '.join(shown)}. {medians}.",
            )
        )
    return drawings


def _probes(walk: Mapping[str, tuple[np.ndarray, ...]]) -> int:
    steps, *_ = next(iter(walk.values()))
    return len(steps)


def _distances(families: list[Family]) -> list[Drawing]:
    """The paper's figure 11 at the learning rate that most families have been probed at, a curve for each run."""
    probed = {
        rate: {
            family.label: runs
            for family in families
            if (runs := [r for run in family.runs.get(rate, []) if ProbeKeys.gradient.loss in (r := run.recordings)])
        }
        for rate in dict.fromkeys(rate for family in families for rate in family.runs)
    }
    rate = max(probed, key=lambda rate: len(probed[rate]))
    if not probed[rate]:
        return []
    shown: dict[str, dict[int, list[Curve]]] = {}
    for label, runs in probed[rate].items():
        steps = runs[0][ProbeKeys.step]
        chosen = steps[np.unique(np.linspace(0, len(steps) - 1, DISTANCE_CURVES).round().astype(int))]
        shown[label] = {
            int(step): [
                (r[ProbeKeys.gradient.distance_moved][i], r[ProbeKeys.gradient.gradient_distance][i])
                for r in runs
                for i in np.flatnonzero(r[ProbeKeys.step] == step)
            ]
            for step in chosen
        }
    drawn = {
        label: f"n = {span(map(len, by_step.values()), 'run')} at each of {count(len(by_step), 'step')}"
        for label, by_step in shown.items()
    }
    title = f"How far the gradient changes along its own direction, lr\N{NO-BREAK SPACE}{rate}"
    caption = (
        "Santurkar et al. 2018, figure 11: gradient distance against distance moved, a line for each run at some of "
        f"its probes. {ending(families, drawn)}"
    )
    alt = "Gradient distance against distance moved along the gradient, a line for each of some steps."
    return [Drawing("distance-curves", figures.distance_curves(shown, title), caption, alt)]


def _middle(values: np.ndarray) -> float:
    """The median of the finite values; NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _as_csv(families: list[Family], found: Mapping[str, Mapping[str, Curve]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "lr", "norm", "family", "seed", "definition", "source", "value"))
    origin = {measure.name: measure.origin for measure in MEASURES}
    for family in families:
        for rate, run in family.each():
            for name, (steps, values) in found[run.name].items():
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    if np.isfinite(value):
                        row = (step, rate, family.norm, family.label, run.seed, name, origin[name], f"{value:.6g}")
                        writer.writerow(row)
    return text.getvalue()
