"""The smoothness figures: the report's 11 to 14, the course's band, the paper's figure 4, and where they disagree."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cifarbn import figures
from cifarbn.figures.smoothness import Curve
from cifarbn.report.definitions import WHOSE, Recordings, curves, walk_of
from cifarbn.report.gather import RunRecord, Sweep, without_seed
from cifarbn.report.names import name_groups, short
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.runs import Result
from cifarbn.smoothness.bands import Band, band

WARM_UP = 10  # first steps left out of the factors: there the nets have not learnt anything yet
DISTANCE_CURVES = 4  # steps in the figure of distance curves

NOISE = (
    "Consecutive steps see different minibatches, so this mixes curvature with minibatch noise: for independent "
    "batches its square is about drift² + 2 tr(Σ) / |B|."
)
RATES = "The band runs over learning rates, that is over different trajectories: it measures sensitivity to the rate."
SCALE = (
    "A weight before batch normalisation times c leaves the loss alone and divides the curvature by c²: raw beta is "
    "not invariant to reparametrisation, so compare it between nets together with the scale-invariant beta."
)


@dataclass
class Family:
    """Runs that differ in nothing but their learning rate and seed.

    Attributes:
        label: what sets it apart, to be read by people.
        norm: its normalisation layer's class, such as BatchNorm2d; Identity for none.
        runs: learning rate -> its runs that count.
        left_out: name of run -> why it is in no band.
        data: the name of its data set.
    """

    label: str = ""
    norm: str = ""
    runs: dict[str, list[RunRecord]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    data: str = ""

    def first_of_each(self) -> dict[str, RunRecord]:
        """Learning rate -> the run with the least seed, which the figures of single runs draw."""
        return {rate: runs[0] for rate, runs in self.runs.items()}


def smoothness(sweep: Sweep, options: Options) -> Section | None:
    """All figures that the recordings allow, and every definition's values as one long table."""
    everyone = _families(sweep)
    families = [family for family in everyone if family.runs]
    found = {run.name: curves(run.recordings) for family in families for _, run in _each(family)}
    if not any(found.values()):
        return None
    drawings: list[Drawing] = []
    sets = list(dict.fromkeys(family.data for family in families))
    for data in sets:
        own = _drawings([family for family in families if family.data == data], found)
        drawings += own if len(sets) == 1 else [replace(d, name=f"{d.name}-{data}") for d in own]
    left_out = {name: why for family in everyone for name, why in family.left_out.items()}
    text = "Three definitions of smoothness, and controls, of the same runs. "
    text += "Left out of every band: " + "; ".join(f"{n} ({w})" for n, w in left_out.items()) + "." if left_out else ""
    files = {"smoothness.csv": _as_csv(families, found), "factors.csv": _factors_as_csv(families, found)}
    return Section("Smoothness", text.strip(), drawings, files)


def _drawings(families: list[Family], found: Mapping[str, Mapping[str, Curve]]) -> list[Drawing]:
    """All figures of families on the same data."""
    words = _words(families)
    return [
        *_accuracy(families, words),
        *_over_rates(families, found, words),
        *_per_rate(families, found, words),
        *_walks(families, words),
        *_distances(families, words),
        *_disagreement(families, found, words),
    ]


def _families(sweep: Sweep) -> list[Family]:
    members: dict[str, list[RunRecord]] = {}
    for group in sweep.groups:
        for run in (*group.runs, *group.left_out):
            if run.config.get("optim", {}).get("lr") is None:
                continue  # an optimizer that has no rate of its own: nothing here could be said of it
            members.setdefault(json.dumps(_without_rate(run.config), sort_keys=True), []).append(run)
    stripped: list[Result] = []
    for runs in members.values():
        # Where rates are experiments of their own, the family has the plainest one's name.
        result = min((run.result for run in runs), key=lambda result: len(" ".join(result.get("overrides", []))))
        overrides = [o for o in result.get("overrides", []) if not o.startswith("optim.lr=")]
        stripped.append({"overrides": overrides, "config": _without_rate(result.get("config", {}))})
    labels, _ = name_groups(stripped)
    families = []
    for label, runs in zip(labels, members.values(), strict=True):
        norm = runs[0].config.get("model", {}).get("norm")
        norm = str(norm.get("_target_", "") if isinstance(norm, dict) else norm or "").rpartition(".")[2]
        family = Family(label, norm, data=runs[0].data)
        for run in sorted(runs, key=lambda run: (run.config["optim"]["lr"], run.seed or 0)):
            if run.trouble:
                family.left_out[run.name] = run.trouble
            else:
                family.runs.setdefault(short(run.config["optim"]["lr"]), []).append(run)
        families.append(family)
    return sorted(families, key=lambda family: family.norm == "Identity")


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without seed, learning rate and what goes with it: a schedule's peak, a probe's range, a target."""
    kept = json.loads(json.dumps(without_seed(config)))
    for key in ("source", "target"):
        kept.pop(key, None)
    for *groups, key in (("optim", "lr"), ("schedule", "max_lr"), ("record", "gradient_probe", "eta")):
        node = kept
        for group in groups:
            node = node.get(group) or {}
        node.pop(key, None)
    return kept


def _each(family: Family) -> list[tuple[str, RunRecord]]:
    return [(rate, run) for rate, runs in family.runs.items() for run in runs]


def _words(families: list[Family]) -> str:
    """Data, batch, runs: what every caption must say."""
    run = _each(families[0])[0][1]
    data = run.result.get("data", {})
    batches = dict.fromkeys(
        str(run.config.get("data", {}).get("batch_size", "full")) for family in families for _, run in _each(family)
    )
    counts = "; ".join(
        f"{family.label}: n = {len(_each(family))} ({', '.join(f'lr {rate}' for rate in family.runs)})"
        for family in families
    )
    size = f", {data['train_size']:,} training pictures" if "train_size" in data else ""
    return f"Data: {run.data}{size}, batch {' or '.join(batches)}. {counts}. Nothing is smoothed."


def _accuracy(families: list[Family], words: str) -> list[Drawing]:
    recorded = {
        family.label: by_rate for family in families if (by_rate := _with("held_out.acc", family.first_of_each()))
    }
    if not recorded:
        return []
    found = {
        label: {rate: (recordings["held_out.step"], recordings["held_out.acc"]) for rate, recordings in by_rate.items()}
        for label, by_rate in recorded.items()
    }
    one, *_ = (recordings for by_rate in recorded.values() for recordings in by_rate.values())
    every = int(np.diff(one["held_out.step"][:2])[0]) if len(one["held_out.step"]) > 1 else 0
    source = {"val": "held-out", "test_curve": "test"}[str(one["held_out.source"])]
    ends = "; ".join(
        f"{label}: " + ", ".join(f"{float(values[-1]):.1%} at lr {rate}" for rate, (_, values) in by_rate.items())
        for label, by_rate in found.items()
    )
    caption = f"Accuracy on {source} pictures every {every} steps (the report's figure 11). {words}"
    figure = figures.lines(found, "accuracy", "Accuracy during training")
    return [Drawing("accuracy-every-few-steps", figure, caption, f"Accuracy against step. At the end: {ends}.")]


def _with(name: str, runs: Mapping[str, RunRecord]) -> dict[str, Recordings]:
    """The recordings of those runs that recorded this, under the same keys."""
    return {key: run.recordings for key, run in runs.items() if name in run.recordings}


def _over_rates(families: list[Family], found: Mapping[str, Mapping[str, Curve]], words: str) -> list[Drawing]:
    """The bands over learning rates: the report's figure 12 and the course's; of each rate the run of least seed."""
    families = _with_rates(families)
    if not families:
        return []
    losses = {
        family.label: band(
            {rate: (run.steps["step"], run.steps["step/loss"]) for rate, run in family.first_of_each().items()}
        )
        for family in families
    }
    drawings = [
        Drawing(
            "loss-landscape-over-rates",
            figures.bands(losses, "training loss", "Loss landscape as the report draws it: min and max over rates"),
            f"At every step the least and the greatest training loss over the learning rates (the report's figure "
            f"12). {RATES} {words}",
            _band_words(losses, "Training loss"),
        )
    ]
    distance = "course gradient distance"
    course = {
        family.label: band({rate: found[run.name][distance] for rate, run in family.first_of_each().items()})
        for family in families
        if all(distance in found[run.name] for _, run in family.first_of_each().items())
    }
    if course:
        drawings.append(
            Drawing(
                "course-gradient-distance",
                figures.bands(
                    course, "‖Gₜ − Gₜ₋₁‖", "The course's gradient distance: min and max over rates", log=True
                ),
                "‖G(t) − G(t−1)‖, G the gradient of the last linear layer's weight: band over the learning rates. Its "
                f"upper edge is what the course calls beta; it is divided by no distance. {RATES} {NOISE} {words}",
                _band_words(course, "Gradient distance"),
            )
        )
    return drawings


def _with_rates(families: list[Family]) -> list[Family]:
    """Those of which a band over rates can be drawn."""
    return [family for family in families if len(family.runs) > 1]


def _per_rate(families: list[Family], found: Mapping[str, Mapping[str, Curve]], words: str) -> list[Drawing]:
    """A line per learning rate: the report's figures 13 and 14."""
    drawings = []
    for name, what, number, caption in (
        ("report Lipschitz", "‖Gₜ₊₁ − Gₜ‖", 13, "‖G(t+1) − G(t)‖"),
        ("report beta", "‖2Gₜ − Gₜ₊₁ − Gₜ₋₁‖", 14, "‖2 G(t) − G(t+1) − G(t−1)‖"),
    ):
        shown = {
            family.label: {
                rate: found[run.name][name] for rate, run in family.first_of_each().items() if name in found[run.name]
            }
            for family in families
        }
        if not any(shown.values()):
            continue
        medians = "; ".join(
            f"{label}: " + ", ".join(f"{_middle(v):.3g} at lr {rate}" for rate, (_, v) in by_rate.items())
            for label, by_rate in shown.items()
        )
        drawings.append(
            Drawing(
                name.replace(" ", "-").lower(),
                figures.lines(shown, what, f"The {name.replace('report', 'report’s')}, per learning rate", log=True),
                f"{caption}, G the gradient of the last linear layer's weight, for each learning rate (the report's "
                f"figure {number}). {NOISE} {words}",
                f"{name} against step, medians: {medians}.",
            )
        )
    return drawings


def _walks(families: list[Family], words: str) -> list[Drawing]:
    drawings = []
    for rate in dict.fromkeys(rate for family in families for rate in family.runs):
        at_rate = {family.label: family.runs[rate][0] for family in families if rate in family.runs}
        probed = _with("probe.gradient.loss", at_rate)
        shown = {label: seen for label, recordings in probed.items() if (seen := walk_of(recordings))}
        if not shown:
            continue
        one, *_ = probed.values()
        s = one["probe.s"]
        settings = (
            f"At every {int(one['probe.every'])}th step the loss and the gradient at {len(s)} points along the "
            f"gradient, s from {s[0]:.3g} to {s[-1]:.3g} (distance moved s‖g‖), on that step's minibatch, in fp32, "
            "batch normalisation in train mode; training goes on from where it was."
        )
        medians = "; ".join(f"{label}: median beta {_middle(v['beta']):.3g}" for label, v in shown.items())
        drawings.append(
            Drawing(
                f"paper-figure-4-lr-{rate}",
                figures.walks(shown, f"Along the gradient, as the paper measures it, lr {rate}"),
                f"Santurkar et al. 2018, figure 4: band of the loss, band of the gradient distance "
                f"‖∇L(θ − s g) − g‖, and effective beta, the greatest of that distance over s‖g‖. {settings} {SCALE} "
                f"{words}",
                f"Three panels against the step at lr {rate}. {medians}.",
            )
        )
    return drawings


def _distances(families: list[Family], words: str) -> list[Drawing]:
    rates = [rate for rate in families[0].runs if all(rate in family.runs for family in families)]
    if not rates:
        return []
    rate, shown = rates[0], {}
    for family in families:
        recordings = family.runs[rate][0].recordings
        if "probe.gradient.gradient_distance" not in recordings:
            continue
        steps = recordings["probe.step"]
        chosen = np.unique(np.linspace(0, len(steps) - 1, DISTANCE_CURVES).round().astype(int))
        moved, distance = (recordings[f"probe.gradient.{k}"] for k in ("distance_moved", "gradient_distance"))
        shown[family.label] = {int(steps[i]): (moved[i], distance[i]) for i in chosen}
    if not shown:
        return []
    figure = figures.distance_curves(shown, f"How far the gradient changes along its own direction, lr {rate}")
    caption = f"Santurkar et al. 2018, figure 11: gradient distance against distance moved, at some steps. {words}"
    alt = "Gradient distance against distance moved along the gradient, a line for each of some steps."
    return [Drawing("distance-curves", figure, caption, alt)]


def _disagreement(families: list[Family], found: Mapping[str, Mapping[str, Curve]], words: str) -> list[Drawing]:
    families = _with_rates(families) or families
    if len(families) != 2:
        return []
    other, plain = families
    factors = _factors(plain, other, found)
    if not factors:
        return []
    blocks = [sum(WHOSE[name] == who for name in factors) for who in dict.fromkeys(WHOSE[n] for n in factors)]
    reading = "; ".join(
        f"{name}: {min(values.values()):.2g} to {max(values.values()):.2g}" for name, values in factors.items()
    )
    figure = figures.factors(
        factors,
        f"{plain.label} over {other.label}: right of 1, {other.label} is smoother",
        "Where definitions disagree",
        blocks,
    )
    caption = (
        f"For each definition and learning rate the median over steps (the first {WARM_UP} left out) of {plain.label}, "
        f"divided by that of {other.label}. Blocks: the report's, the course's, the paper's, controls. {SCALE} {words}"
    )
    return [Drawing("where-definitions-disagree", figure, caption, f"Factors by definition. {reading}.")]


def _factors(plain: Family, other: Family, found: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, float]]:
    """Definition -> learning rate -> median of the plain net over median of the other."""
    factors: dict[str, dict[str, float]] = {}
    for name in WHOSE:
        for rate in plain.runs:
            medians = [_median(found, family.runs.get(rate, []), name) for family in (plain, other)]
            if all(m is not None and m > 0 for m in medians):
                factors.setdefault(name, {})[rate] = medians[0] / medians[1]  # type: ignore[operator]
    return factors


def _median(found: Mapping[str, Mapping[str, Curve]], runs: list[RunRecord], name: str) -> float | None:
    values = [v[steps >= WARM_UP] for run in runs if name in found[run.name] for steps, v in [found[run.name][name]]]
    finite = np.concatenate(values)[np.isfinite(np.concatenate(values))] if values else np.empty(0)
    return float(np.median(finite)) if len(finite) else None


def _middle(values: np.ndarray) -> float:
    """The median of the finite values; NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _band_words(found: Mapping[str, Band], what: str) -> str:
    widths = "; ".join(f"{label}: median width {_middle(b.high - b.low):.3g}" for label, b in found.items())
    return f"{what} between its least and greatest over learning rates, against the step. {widths}."


def _as_csv(families: list[Family], found: Mapping[str, Mapping[str, Curve]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "lr", "norm", "family", "seed", "definition", "source", "value"))
    for family in families:
        for rate, run in _each(family):
            for name, (steps, values) in found[run.name].items():
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    if np.isfinite(value):
                        row = (step, rate, family.norm, family.label, run.seed, name, WHOSE[name], f"{value:.6g}")
                        writer.writerow(row)
    return text.getvalue()


def _factors_as_csv(families: list[Family], found: Mapping[str, Mapping[str, Curve]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("definition", "source", "lr", *(f"median {family.label}" for family in families), "factor"))
    for name in WHOSE:
        for rate in dict.fromkeys(rate for family in families for rate in family.runs):
            medians = [_median(found, family.runs.get(rate, []), name) for family in families]
            if all(m is not None for m in medians):
                factor = medians[-1] / medians[0] if len(medians) == 2 and medians[0] else ""  # type: ignore[operator]
                writer.writerow(
                    (name, WHOSE[name], rate, *(f"{m:.6g}" for m in medians), f"{factor:.4g}" if factor else "")
                )
    return text.getvalue()
