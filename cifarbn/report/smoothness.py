"""The smoothness section: figures of all recorded measures, and their ratios between models.

It repeats figures 11 to 14 of the course report, the band of the course handout, and figures of Santurkar et al. 2018
(arXiv 1805.11604).
"""

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

RATES = "Each learning rate is a different trajectory, so the band measures sensitivity to the learning rate."


def smoothness(sweep: RunSet, options: Options) -> Section | None:
    """Return all figures that the recordings allow, and the values of all measures as CSV."""
    everyone = find_families(sweep)
    families = [family for family in everyone if family.runs]
    measured = {run.name: curves(run.recordings) for family in families for _, run in family.each()}
    if not any(measured.values()):
        return None
    pairs = [(plain, other, factors.compare(plain, other, measured)) for plain, other in find_pairs(families)]
    drawings: list[Drawing] = []
    sets = list(dict.fromkeys(family.data for family in families))
    for data in sets:
        alike = [family for family in families if family.data == data]
        own = _drawings(alike, measured, [pair for pair in pairs if pair[0].data == data])
        drawings += own if len(sets) == 1 else [replace(d, name=f"{d.name}-{data}") for d in own]
    text = "Definitions of smoothness from several publications, and control measures, on the same runs."
    if any(family.excluded for family in everyone):
        text += " Runs that are excluded from all means are also excluded from all bands."
    files = {"smoothness.csv": _as_csv(families, measured), "factors.csv": factors.as_csv(pairs)}
    names = {name for own in measured.values() for name in own}
    points = [f"{m.name} ({m.origin}), in {m.unit}: {m.meaning}." for m in MEASURES if m.name in names]
    return Section("Smoothness", text, drawings, files, points=points)


def _drawings(
    families: list[Family],
    measured: Mapping[str, Mapping[str, Curve]],
    pairs: list[tuple[Family, Family, list[factors.Comparison]]],
) -> list[Drawing]:
    """Return all figures of families on the same data."""
    drawings = [
        *_accuracy(families),
        *_over_rates(families, measured),
        *_per_rate(families, measured),
        *_along_gradient(families),
        *_distances(families),
        *covariate_shift(families),
        *activation_moments(families),
        *activation_distributions(families),
    ]
    for number, (plain, other, comparisons) in enumerate(pairs, 1):
        suffix = f"-{number}" if len(pairs) > 1 else ""
        end = f"{SCALE} {data_of([plain, other])}"
        drawings += factors.drawings(plain, other, comparisons, suffix, end)
    return drawings


def _accuracy(families: list[Family]) -> list[Drawing]:
    recorded = {
        family.label: {
            rate: recordings
            for rate, runs in family.runs.items()
            if (recordings := [run.recordings for run in runs if HeldOutKeys.acc in run.recordings])
        }
        for family in families
    }
    recorded = {label: by_rate for label, by_rate in recorded.items() if by_rate}
    if not recorded:
        return []
    accuracies = {
        label: {rate: [(r[HeldOutKeys.step], r[HeldOutKeys.acc]) for r in runs] for rate, runs in by_rate.items()}
        for label, by_rate in recorded.items()
    }
    first, *_ = (r for by_rate in recorded.values() for runs in by_rate.values() for r in runs)
    every = int(np.diff(first[HeldOutKeys.step][:2])[0]) if len(first[HeldOutKeys.step]) > 1 else 0
    source = HeldOutKeys.SOURCES[str(first[HeldOutKeys.source])]
    final = _readings(accuracies, lambda values: float(values[-1]), "{:.1%}")
    end = ending(families, {label: runs_of(by_rate) for label, by_rate in accuracies.items()})
    caption = (
        f"Accuracy on {source} images every {every} steps (figure 11 of the course report); one line per run. {end}"
    )
    figure = figures.lines(accuracies, "accuracy", "Accuracy during training")
    return [Drawing("accuracy-every-few-steps", figure, caption, f"Accuracy against step. At the end: {final}.")]


def _readings(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], read: Callable[[np.ndarray], float], form: str
) -> str:
    """Return one number per family and rate: of its run, or the median over runs with minimum and maximum."""
    families = []
    for label, by_rate in curves.items():
        parts = []
        for rate, runs in by_rate.items():
            values = [read(values) for _, values in runs]
            middle = form.format(float(np.median(values)))
            if len(values) > 1:
                middle += f" ({form.format(min(values))} to {form.format(max(values))} over {len(values)} runs)"
            parts.append(f"{middle} at lr {rate}")
        families.append(f"{label}: " + ", ".join(parts))
    return "; ".join(families)


def _over_rates(families: list[Family], measured: Mapping[str, Mapping[str, Curve]]) -> list[Drawing]:
    """Return the bands over learning rates: one band for each seed, then the median of their edges."""
    drawings = []
    everyone = [run for family in families for _, run in family.each()]
    if losses := _bands_over_rates(families, {r.name: (r.steps["step"], r.steps["step/loss"]) for r in everyone}):
        figure = figures.bands(
            {label: seed_band for label, (seed_band, _) in losses.items()},
            "training loss",
            "Training loss: minimum and maximum over learning rates",
        )
        caption = (
            "Minimum and maximum training loss over the learning rates at every step (figure 12 of the course report). "
            f"{RATES} {_seeds(losses)}{ending(families, _bands_drawn(losses))}"
        )
        drawings.append(Drawing("loss-landscape-over-rates", figure, caption, _band_words(losses, "Training loss")))
    for measure, style in shown_in(Band):
        of_runs = {run: own[measure.name] for run, own in measured.items() if measure.name in own}
        bands = _bands_over_rates(families, of_runs)
        if not bands:
            continue
        figure = figures.bands(
            {label: seed_band for label, (seed_band, _) in bands.items()},
            axis_label(style.label, measure.unit),
            f"{style.title}: minimum and maximum over learning rates",
            log=True,
        )
        caption = (
            f"{measure.meaning}: band over the learning rates. {measure.caveat} {RATES} "
            f"{_seeds(bands)}{ending(families, _bands_drawn(bands))}"
        )
        alt = _band_words(bands, measure.name.capitalize())
        drawings.append(Drawing(_file_name(measure.name), figure, caption, alt))
    return drawings


OverRates = Mapping[str, tuple[SeedBand, list[str]]]
"""Family -> the median of its seeds' bands, and the learning rates of each."""


def _bands_over_rates(families: list[Family], curves: Mapping[str, Curve]) -> OverRates:
    """Return the bands over learning rates of each family, over the seeds that have a run at every rate.

    Families without such a seed are omitted.

    Args:
        families: with runs.
        curves: name of a run -> curve, for runs that have one.
    """
    bands: dict[str, tuple[SeedBand, list[str]]] = {}
    for family in families:
        edges, rates = [], []
        for by_rate in family.across_rates():
            available = {rate: curves[run.name] for rate, run in by_rate.items() if run.name in curves}
            if len(available) == len(by_rate) and not (own := band(available)).omitted:
                edges.append((own.steps, own.low, own.high))
                rates = list(by_rate)
        if edges:
            bands[family.label] = over_seeds(edges), rates
    return bands


def _bands_drawn(bands: OverRates) -> dict[str, str]:
    return {
        label: f"n = {count(seed_band.seeds, 'seed')} with a run at each of lr {', '.join(rates)}"
        for label, (seed_band, rates) in bands.items()
    }


def _seeds(bands: OverRates) -> str:
    return f"{SEEDS} " if any(seed_band.seeds > 1 for seed_band, _ in bands.values()) else ""


def _band_words(bands: OverRates, quantity: str) -> str:
    widths = "; ".join(f"{label}: median width {_middle(b.high - b.low):.3g}" for label, (b, _) in bands.items())
    return f"{quantity}, minimum to maximum over learning rates, against the step. {widths}."


def _per_rate(families: list[Family], measured: Mapping[str, Mapping[str, Curve]]) -> list[Drawing]:
    """Return figures with one line per run, as figures 13 and 14 of the course report."""
    drawings = []
    for measure, style in shown_in(Lines):
        by_family = {
            family.label: {
                rate: own
                for rate, runs in family.runs.items()
                if (own := [measured[run.name][measure.name] for run in runs if measure.name in measured[run.name]])
            }
            for family in families
        }
        by_family = {label: by_rate for label, by_rate in by_family.items() if by_rate}
        if not by_family:
            continue
        end = ending(families, {label: runs_of(by_rate) for label, by_rate in by_family.items()})
        where = f" ({style.where})" if style.where else ""
        text = (f"{measure.meaning}; one line per run{where}.", measure.caveat, end)
        drawings.append(
            Drawing(
                _file_name(measure.name),
                figures.lines(
                    by_family,
                    axis_label(style.label, measure.unit),
                    f"{style.title or measure.name}, per learning rate",
                    log=True,
                ),
                " ".join(part for part in text if part),
                f"{measure.name} against step, medians: {_readings(by_family, _middle, '{:.3g}')}.",
            )
        )
    return drawings


def axis_label(label: str, unit: str) -> str:
    """Return the label of an axis with its unit; a loss is its own unit."""
    return label if unit == label else f"{label}\n({unit})"


def _file_name(measure: str) -> str:
    return measure.replace(" ", "-").lower()


def _along_gradient(families: list[Family]) -> list[Drawing]:
    """Return figure 4 of Santurkar et al. 2018 for each learning rate: median edges over runs, and their range."""
    drawings = []
    for rate in dict.fromkeys(rate for family in families for rate in family.runs):
        probed = {
            family.label: of_runs
            for family in families
            if (of_runs := [bands for run in family.runs.get(rate, []) if (bands := probe_bands(run.recordings))])
        }
        if not probed:
            continue
        panels = {
            panel.label: {
                family: over_seeds([bands[panel.label] for bands in of_runs]) for family, of_runs in probed.items()
            }
            for _, panel in shown_in(ProbePanel)
        }
        lines = [panel.label for _, panel in shown_in(ProbePanel) if panel.edges is None]
        axes = {panel.label: axis_label(panel.label, measure.unit) for measure, panel in shown_in(ProbePanel)}
        drawn = {
            family: f"n = {count(len(of_runs), 'run')} of {span(map(_probes, of_runs), 'probe')}"
            for family, of_runs in probed.items()
        }
        example = next(
            run.recordings
            for family in families
            for run in family.runs.get(rate, [])
            if ProbeKeys.gradient.loss in run.recordings
        )
        s, bits = example[ProbeKeys.s], 8 * example[ProbeKeys.gradient.loss].itemsize
        settings = (
            f"Every {int(example[ProbeKeys.every])} steps, loss and gradient are evaluated at {len(s)} points along "
            f"the gradient, s from {s[0]:.3g} to {s[-1]:.3g} (distance moved s‖g‖), on that step's minibatch, in "
            f"fp{bits}, with batch normalisation in training mode. The probe does not affect training."
        )
        medians = "; ".join(
            f"{family}: median {quantity} {_middle(own.low):.3g}"
            for quantity in lines
            for family, own in panels[quantity].items()
        )
        seeds = f"{SEEDS} " if any(len(of_runs) > 1 for of_runs in probed.values()) else ""
        drawings.append(
            Drawing(
                f"along-gradient-lr-{rate}",
                figures.along_gradient(
                    {axes[label]: by_family for label, by_family in panels.items()},
                    f"Loss and gradient along the gradient direction, lr\N{NO-BREAK SPACE}{rate}",
                    lines=[axes[label] for label in lines],
                ),
                "Santurkar et al. 2018, figure 4: range of the loss, range of the gradient distance "
                f"‖∇L(θ − s g) − g‖, and effective beta, the maximum of that distance divided by s‖g‖. {settings} "
                f"{SCALE} {seeds}{ending(families, drawn)}",
                f"Against the step at lr {rate}: {', '.join(panels)}. {medians}.",
            )
        )
    return drawings


def _probes(bands: Mapping[str, tuple[np.ndarray, ...]]) -> int:
    steps, *_ = next(iter(bands.values()))
    return len(steps)


def _distances(families: list[Family]) -> list[Drawing]:
    """Return figure 11 of Santurkar et al. 2018, at the learning rate with the most families; one curve per run."""
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
    distances: dict[str, dict[int, list[Curve]]] = {}
    for label, runs in probed[rate].items():
        steps = runs[0][ProbeKeys.step]
        drawn_steps = steps[np.unique(np.linspace(0, len(steps) - 1, DISTANCE_CURVES).round().astype(int))]
        distances[label] = {
            int(step): [
                (r[ProbeKeys.gradient.distance_moved][i], r[ProbeKeys.gradient.gradient_distance][i])
                for r in runs
                for i in np.flatnonzero(r[ProbeKeys.step] == step)
            ]
            for step in drawn_steps
        }
    drawn = {
        label: f"n = {span(map(len, by_step.values()), 'run')} at each of {count(len(by_step), 'step')}"
        for label, by_step in distances.items()
    }
    title = f"Change of the gradient along its own direction, lr\N{NO-BREAK SPACE}{rate}"
    caption = (
        "Santurkar et al. 2018, figure 11: gradient distance against distance moved; one line per run and probed "
        f"step. {ending(families, drawn)}"
    )
    alt = "Gradient distance against distance moved along the gradient, one line for each of several steps."
    return [Drawing("distance-curves", figures.distance_curves(distances, title), caption, alt)]


def _middle(values: np.ndarray) -> float:
    """Return the median of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _as_csv(families: list[Family], measured: Mapping[str, Mapping[str, Curve]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "lr", "norm", "family", "seed", "definition", "source", "value"))
    origin = {measure.name: measure.origin for measure in MEASURES}
    for family in families:
        for rate, run in family.each():
            for name, (steps, values) in measured[run.name].items():
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    if np.isfinite(value):
                        row = (step, rate, family.norm, family.label, run.seed, name, origin[name], f"{value:.6g}")
                        writer.writerow(row)
    return text.getvalue()
