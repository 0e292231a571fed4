"""The arrays of `recordings.npz`, one table of keys for each recorder, and the table of measures computed from them.

Recorders write by these keys and the report reads by them, so the type checker finds a key that only one of them knows.
To add a measure: write a recorder, its yaml, its table of keys and its line of `MEASURES` here, and a test.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cifarbn.smoothness.differences import course_distance, report_beta, report_lipschitz
from cifarbn.smoothness.walk_curves import effective_beta, loss_band, predictiveness_band, relative_distance
from cifarbn.smoothness.weight_walks import scale_invariant_beta


class Key(str):
    """The name of an array in `recordings.npz`, such as "probe.gradient.loss".

    Attributes:
        axes: a letter for each axis of an array of numbers, see `AXES`; a digit is a length. None for any other array.
    """

    axes: str | None

    def __new__(cls, name: str, axes: str | None = None) -> "Key":
        """Make the key `prefix.name`."""
        key = super().__new__(cls, name)
        key.axes = axes
        return key

    @property
    def prefix(self) -> str:
        """The part before the first dot: the recorder's."""
        return self.partition(".")[0]

    @property
    def short(self) -> str:
        """The part after the prefix."""
        return self.partition(".")[2]


AXES = {"T": "step", "S": "s", "M": "shares", "W": "weights", "P": "parameters", "L": "layers", "B": "bins"}
"""Letter of an axis -> the array of the same recorder that is as long, where there is one."""

Recordings = Mapping[Key, NDArray]
Curve = tuple[NDArray, NDArray]
"""Steps and values, both (T,)."""


class Table:
    """The keys of one recorder.

    Attributes:
        recorder: the import path of the recorder's class.
        title: the recorder, for people.
        one_minibatch: whether each entry is measured on the minibatch of its step alone.
        step: optimizer steps taken before each measurement.
    """

    recorder: ClassVar[str]
    title: ClassVar[str]
    one_minibatch: ClassVar[bool] = False
    step: ClassVar[Key]

    @classmethod
    def keys(cls) -> Iterator[Key]:
        """Every key of the table."""
        for value in vars(cls).values():
            if isinstance(value, WalkKeys):
                yield from vars(value).values()
            elif isinstance(value, Key):
                yield value


@dataclass(frozen=True)
class WalkKeys:
    """The keys of one walk, see `cifarbn.smoothness.walk.Walk`; all but its step sizes."""

    distance_moved: Key
    loss_at_start: Key
    gradient_norm: Key
    loss: Key
    gradient_distance: Key
    cosine: Key
    parameter_distance: Key
    parameter_moved: Key
    parameter_norm: Key

    @classmethod
    def of(cls, name: str, points: str) -> "WalkKeys":
        """Return the keys under a name such as "probe.gradient"; `points` is the axis of the walk's points."""
        return cls(
            distance_moved=Key(f"{name}.distance_moved", f"T{points}"),
            loss_at_start=Key(f"{name}.loss_at_start", "T"),
            gradient_norm=Key(f"{name}.gradient_norm", "T"),
            loss=Key(f"{name}.loss", f"T{points}"),
            gradient_distance=Key(f"{name}.gradient_distance", f"T{points}"),
            cosine=Key(f"{name}.cosine", f"T{points}"),
            parameter_distance=Key(f"{name}.parameter_distance", f"T{points}P"),
            parameter_moved=Key(f"{name}.parameter_moved", f"T{points}P"),
            parameter_norm=Key(f"{name}.parameter_norm", "TP"),
        )


class LastLayerKeys(Table):
    """||G_t||, ||G_t - G_{t-1}|| and ||2 G_{t-1} - G_t - G_{t-2}||, G_t the last linear layer's weight's gradient."""

    recorder = "cifarbn.recorders.LastLayerGradients"
    title = "last-layer gradients"
    step = Key("last_layer.step", "T")
    norm = Key("last_layer.norm", "T")
    first_difference = Key("last_layer.first_difference", "T")
    second_difference = Key("last_layer.second_difference", "T")
    layer = Key("last_layer.layer")


class HeldOutKeys(Table):
    """Loss and accuracy on images that are not trained on; `source`, one of `SOURCES`, says on which."""

    recorder = "cifarbn.recorders.HeldOutAccuracy"
    title = "held-out accuracy"
    step = Key("held_out.step", "T")
    loss = Key("held_out.loss", "T")
    acc = Key("held_out.acc", "T")
    source = Key("held_out.source")
    SOURCES: ClassVar = {"val": "held-out", "test_curve": "test"}


class ProbeKeys(Table):
    """Walks from theta_t: along the gradient, a random direction, the true step, and the gradient in true steps."""

    recorder = "cifarbn.recorders.GradientProbe"
    title = "gradient probe"
    one_minibatch = True
    step = Key("probe.step", "T")
    s = Key("probe.s", "S")
    shares = Key("probe.shares", "M")
    every = Key("probe.every")
    parameters = Key("probe.parameters")
    dimensions = Key("probe.dimensions", "P")
    gradient = WalkKeys.of("probe.gradient", "S")
    random = WalkKeys.of("probe.random", "S")
    update = WalkKeys.of("probe.update", "1")
    matched = WalkKeys.of("probe.matched", "M")


class ScaleInvariantBetaKeys(Table):
    """Each weight walked alone, see `cifarbn.smoothness.weight_walks.WeightWalks`."""

    recorder = "cifarbn.recorders.ScaleInvariantBeta"
    title = "scale-invariant beta"
    one_minibatch = True
    step = Key("scale_invariant_beta.step", "T")
    loss = Key("scale_invariant_beta.loss", "TMW")
    gradient_distance = Key("scale_invariant_beta.gradient_distance", "TMW")
    distance_moved = Key("scale_invariant_beta.distance_moved", "TMW")
    weight_norm = Key("scale_invariant_beta.weight_norm", "TW")
    every = Key("scale_invariant_beta.every")
    shares = Key("scale_invariant_beta.shares", "M")
    weights = Key("scale_invariant_beta.weights")


class StepChangeKeys(Table):
    """The true step on one minibatch, and what the next minibatch adds; see `cifarbn.smoothness.step_change`."""

    recorder = "cifarbn.recorders.StepChange"
    title = "step change"
    one_minibatch = True
    step = Key("step_change.step", "T")
    loss_before = Key("step_change.loss_before", "T")
    loss_after = Key("step_change.loss_after", "T")
    change = Key("step_change.change", "T")
    moved = Key("step_change.moved", "T")
    ratio = Key("step_change.ratio", "T")
    total = Key("step_change.total", "T")
    drift = Key("step_change.drift", "T")
    noise = Key("step_change.noise", "T")
    inner = Key("step_change.inner", "T")
    head_total = Key("step_change.head_total", "T")
    head_drift = Key("step_change.head_drift", "T")
    head_noise = Key("step_change.head_noise", "T")
    head_inner = Key("step_change.head_inner", "T")
    layer = Key("step_change.layer")


class CovariateShiftKeys(Table):
    """||G - G'||, cos(G, G') and ||G|| of every layer, see `cifarbn.smoothness.covariate_shift`."""

    recorder = "cifarbn.recorders.CovariateShift"
    title = "covariate shift"
    one_minibatch = True
    step = Key("covariate_shift.step", "T")
    distance = Key("covariate_shift.distance", "TL")
    cosine = Key("covariate_shift.cosine", "TL")
    gradient_norm = Key("covariate_shift.gradient_norm", "TL")
    layers = Key("covariate_shift.layers")


class ActivationDriftKeys(Table):
    """Mean, standard deviation and histogram (fractions, with `edges`, one more than bins) of every layer's output."""

    recorder = "cifarbn.recorders.ActivationDrift"
    title = "activation drift"
    one_minibatch = True
    step = Key("activation_drift.step", "T")
    mean = Key("activation_drift.mean", "TL")
    std = Key("activation_drift.std", "TL")
    histogram = Key("activation_drift.histogram", "TLB")
    layers = Key("activation_drift.layers")
    edges = Key("activation_drift.edges")


TABLES: tuple[type[Table], ...] = (
    *(LastLayerKeys, HeldOutKeys, ProbeKeys, ScaleInvariantBetaKeys, StepChangeKeys),
    *(CovariateShiftKeys, ActivationDriftKeys),
)


class Origin(str, Enum):
    """Who defines a measure; the value is what CSV files say."""

    REPORT = "report"
    COURSE = "course"
    PAPER = "paper"
    CONTROL = "control"

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]

    @property
    def source(self) -> str:
        """The publication; "control" for a measure that none of them has."""
        return _SOURCES[self]


_SOURCES = {
    Origin.REPORT: "course report",
    Origin.COURSE: "course handout",
    Origin.PAPER: "Santurkar et al. 2018",
    Origin.CONTROL: "control",
}


class Figure(Enum):
    """The figure that shows a measure by itself, beside those of factors, which show all."""

    LINES = "a panel for each family of runs, in it a line for each run"
    BAND = "the band over learning rates"
    WALK = "the walk along the gradient"
    LAYERS = "some layers of a family"


NOISE = (
    "Consecutive steps see different minibatches, so this mixes curvature with minibatch noise: for independent "
    "batches its square is about drift² + 2 tr(Σ) / |B|."
)


@dataclass(frozen=True)
class Measure:
    """One measure: a curve of a run, computed from its recordings.

    Attributes:
        name: in tables, figures and CSV files.
        origin: who defines it.
        table: the keys of the recorder that it is computed from.
        compute: recordings -> the value at each of `table.step`, (T,); NaN where it is not defined.
        label: of the axis that shows it.
        unit: of its values.
        meaning: for captions: the formula and what is in it.
        figure: that shows it by itself; None for none.
        title: of that figure, if it has one of its own.
        where: the figure of its origin, for captions.
        caveat: a sentence for captions.
    """

    name: str
    origin: Origin
    table: type[Table]
    compute: Callable[[Recordings], NDArray]
    label: str
    unit: str
    meaning: str
    figure: Figure | None = None
    title: str = ""
    where: str = ""
    caveat: str = ""

    def curve(self, recordings: Recordings) -> Curve | None:
        """Return the steps and the values, both (T,); None where the recordings do not have what it needs."""
        steps = recordings.get(self.table.step)
        return (steps, np.asarray(self.compute(recordings))) if steps is not None and len(steps) else None


def curves(recordings: Recordings) -> dict[str, Curve]:
    """Return the measures that these recordings can give, by name, in the order of the table."""
    found = ((measure.name, measure.curve(recordings)) for measure in MEASURES)
    return {name: curve for name, curve in found if curve is not None}


def paper_beta(r: Recordings) -> NDArray:
    """Return the effective beta of every probe, (T,), see `cifarbn.smoothness.walk_curves.effective_beta`."""
    return effective_beta(r[ProbeKeys.gradient.gradient_distance], r[ProbeKeys.gradient.distance_moved])


def _loss_range(r: Recordings) -> NDArray:
    low, high = loss_band(r[ProbeKeys.gradient.loss])
    return high - low


def _relative(r: Recordings) -> NDArray:
    walk = ProbeKeys.gradient
    return relative_distance(r[walk.gradient_distance], r[walk.gradient_norm]).max(axis=-1)


def _scale_invariant(r: Recordings) -> NDArray:
    keys = ScaleInvariantBetaKeys
    return _median(scale_invariant_beta(r[keys.gradient_distance], r[keys.distance_moved], r[keys.weight_norm]))


def _angle(r: Recordings) -> NDArray:
    return np.degrees(np.arccos(np.clip(r[CovariateShiftKeys.cosine].astype(np.float64), -1, 1)))


def _change(values: NDArray) -> NDArray:
    """How much each layer's value, (T, L), differs from the measurement before: the median over layers, (T,)."""
    return np.append(np.full(min(len(values), 1), np.nan), _median(np.abs(np.diff(values.astype(np.float64), axis=0))))


def _median(values: NDArray) -> NDArray:
    """The median of each row, (T, N) -> (T,), of what is finite; NaN where nothing is."""
    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    median = np.full(len(values), np.nan)
    median[known] = np.nanmedian(values[known], axis=1)
    return median


_G = "G the gradient of the last linear layer's weight"
_LAYERS = "the median over all layers but the first"

MEASURES: tuple[Measure, ...] = (
    Measure(
        "report Lipschitz",
        Origin.REPORT,
        LastLayerKeys,
        lambda r: report_lipschitz(r[LastLayerKeys.first_difference]),
        label="‖Gₜ₊₁ − Gₜ‖",
        unit="loss / parameter",
        meaning=f"‖G(t+1) − G(t)‖, {_G}",
        figure=Figure.LINES,
        title="The report’s Lipschitz",
        where="the report's figure 13",
        caveat=NOISE,
    ),
    Measure(
        "report beta",
        Origin.REPORT,
        LastLayerKeys,
        lambda r: report_beta(r[LastLayerKeys.second_difference]),
        label="‖2Gₜ − Gₜ₊₁ − Gₜ₋₁‖",
        unit="loss / parameter",
        meaning=f"‖2 G(t) − G(t+1) − G(t−1)‖, {_G}",
        figure=Figure.LINES,
        title="The report’s beta",
        where="the report's figure 14",
        caveat=NOISE,
    ),
    Measure(
        "course gradient distance",
        Origin.COURSE,
        LastLayerKeys,
        lambda r: course_distance(r[LastLayerKeys.first_difference]),
        label="‖Gₜ − Gₜ₋₁‖",
        unit="loss / parameter",
        meaning=f"‖G(t) − G(t−1)‖, {_G}",
        figure=Figure.BAND,
        title="The course's gradient distance",
        caveat=f"Its upper edge is what the course calls beta; it is divided by no distance. {NOISE}",
    ),
    Measure(
        "paper loss range",
        Origin.PAPER,
        ProbeKeys,
        _loss_range,
        label="loss",
        unit="loss",
        meaning="the greatest minus the least loss at the points of the walk along the gradient",
        figure=Figure.WALK,
    ),
    Measure(
        "paper gradient predictiveness",
        Origin.PAPER,
        ProbeKeys,
        lambda r: predictiveness_band(r[ProbeKeys.gradient.gradient_distance])[1],
        label="gradient distance",
        unit="loss / parameter",
        meaning="the greatest ‖∇L(θ − s g) − g‖ over the points of the walk",
        figure=Figure.WALK,
    ),
    Measure(
        "paper effective beta",
        Origin.PAPER,
        ProbeKeys,
        paper_beta,
        label="effective β",
        unit="loss / parameter²",
        meaning="the greatest ‖∇L(θ − s g) − g‖ / (s ‖g‖) over the points of the walk",
        figure=Figure.WALK,
    ),
    Measure(
        "covariate shift",
        Origin.PAPER,
        CovariateShiftKeys,
        lambda r: _median(r[CovariateShiftKeys.distance][:, 1:]),
        label="‖G − G′‖",
        unit="loss / parameter",
        meaning="‖G − G′‖, G a layer's gradient and G′ the same with the layers before it already updated: " + _LAYERS,
        figure=Figure.LAYERS,
    ),
    Measure(
        "covariate shift angle",
        Origin.PAPER,
        CovariateShiftKeys,
        lambda r: _median(_angle(r)[:, 1:]),
        label="angle of G and G′",
        unit="degrees",
        meaning="the angle between G and G′: " + _LAYERS,
        figure=Figure.LAYERS,
    ),
    Measure(
        "activation mean change",
        Origin.PAPER,
        ActivationDriftKeys,
        lambda r: _change(r[ActivationDriftKeys.mean]),
        label="mean",
        unit="units of the activation",
        meaning="how far the mean of a layer's output moves from one measurement to the next: the median over layers",
        figure=Figure.LAYERS,
    ),
    Measure(
        "activation std change",
        Origin.PAPER,
        ActivationDriftKeys,
        lambda r: _change(r[ActivationDriftKeys.std]),
        label="standard deviation",
        unit="units of the activation",
        meaning="how far the standard deviation of a layer's output moves likewise: the median over layers",
        figure=Figure.LAYERS,
    ),
    Measure(
        "relative gradient distance",
        Origin.CONTROL,
        ProbeKeys,
        _relative,
        label="‖∇L(θ − s g) − g‖ / ‖g‖",
        unit="1 (a ratio)",
        meaning="the greatest ‖∇L(θ − s g) − g‖ / ‖g‖ over the points of the walk",
    ),
    Measure(
        "scale-invariant beta",
        Origin.CONTROL,
        ScaleInvariantBetaKeys,
        _scale_invariant,
        label="β ‖w‖²",
        unit="loss",
        meaning="β ‖w‖², each weight walked alone by shares of its own norm: the median over weights with a gradient",
    ),
    Measure(
        "step change",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.change],
        label="‖∇L(θₜ₊₁) − ∇L(θₜ)‖",
        unit="loss / parameter",
        meaning="‖∇L(θ(t+1)) − ∇L(θ(t))‖ of the true step, both on its minibatch",
    ),
    Measure(
        "step change per distance",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.ratio],
        label="‖∇L(θₜ₊₁) − ∇L(θₜ)‖ / ‖θₜ₊₁ − θₜ‖",
        unit="loss / parameter²",
        meaning="the step change over the length of the step",
    ),
    Measure(
        "drift, last layer",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.head_drift],
        label="drift",
        unit="loss / parameter",
        meaning=f"the part of ‖G(t+1) − G(t)‖ that the step makes, on one minibatch, {_G}",
    ),
    Measure(
        "minibatch noise, last layer",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.head_noise],
        label="noise",
        unit="loss / parameter",
        meaning=f"the part of ‖G(t+1) − G(t)‖ that the change of minibatch makes, at one point, {_G}",
    ),
)
"""In the order of tables and figures; those of one origin stand together."""
