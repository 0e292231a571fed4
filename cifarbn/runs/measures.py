"""The keys of `recordings.npz`, one table per recorder, and the measures computed from these arrays.

Recorders and the report share these keys, so the type checker finds one that only one of them uses. To add a measure,
add a recorder with its yaml and test, and here its table of keys and its entry in `MEASURES`. `Measure.figure` selects
how the report draws it. (`Layers` of a new recorder also need a function in `cifarbn.report.layers`.)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from cifarbn.smoothness.differences import course_handout_distance, course_report_beta, course_report_lipschitz
from cifarbn.smoothness.probe_curves import effective_beta, loss_band, predictiveness_band, relative_distance
from cifarbn.smoothness.weight_probes import scale_invariant_beta


class Key(str):
    """The name of an array in `recordings.npz`, such as "probe.gradient.loss".

    Attributes:
        axes: one letter per axis of a numeric array, see `AXES`; a digit is a fixed length. None for other arrays.
    """

    axes: str | None

    def __new__(cls, name: str, axes: str | None = None) -> "Key":
        """Create the key `prefix.name`."""
        key = super().__new__(cls, name)
        key.axes = axes
        return key

    @property
    def prefix(self) -> str:
        """The part before the first dot, which identifies the recorder."""
        return self.partition(".")[0]

    @property
    def short(self) -> str:
        """The part after the prefix."""
        return self.partition(".")[2]


AXES = {"T": "step", "S": "s", "M": "shares", "W": "weights", "P": "parameters", "L": "layers", "B": "bins"}
"""Axis letter -> the array of the same recorder with one entry per index, if there is one."""

Recordings = Mapping[Key, NDArray]
Curve = tuple[NDArray, NDArray]
"""Steps and values, both of shape (T,)."""


class Table:
    """The keys of one recorder.

    Attributes:
        recorder: the import path of the recorder's class.
        title: the recorder's name in tables and figures.
        one_minibatch: whether each entry uses only the minibatch of its step.
        step: number of optimizer steps taken before each measurement.
        needed: arrays without which the recordings have no measures of this table, because of the recorder's options.
    """

    recorder: ClassVar[str]
    title: ClassVar[str]
    one_minibatch: ClassVar[bool] = False
    step: ClassVar[Key]
    needed: ClassVar[tuple[Key, ...]] = ()

    @classmethod
    def keys(cls) -> Iterator[Key]:
        """Yield every key of the table."""
        for value in vars(cls).values():
            if isinstance(value, DirectionalProbeKeys):
                yield from vars(value).values()
            elif isinstance(value, Key):
                yield value


@dataclass(frozen=True)
class DirectionalProbeKeys:
    """The keys of one probe, see `cifarbn.smoothness.directional_probe.DirectionalProbe`; without its step sizes."""

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
    def of(cls, name: str, points: str) -> "DirectionalProbeKeys":
        """Return the keys with a prefix such as "probe.gradient"; `points` is the axis letter of the probe's points."""
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
    """||G_t||, ||G_t - G_{t-1}|| and ||2 G_{t-1} - G_t - G_{t-2}||, G_t the gradient of the last layer's weight."""

    recorder = "cifarbn.recorders.LastLayerGradients"
    title = "last-layer gradients"
    step = Key("last_layer.step", "T")
    norm = Key("last_layer.norm", "T")
    first_difference = Key("last_layer.first_difference", "T")
    second_difference = Key("last_layer.second_difference", "T")
    layer = Key("last_layer.layer")


class HeldOutKeys(Table):
    """Loss and accuracy on images not used for training; `source`, one of `SOURCES`, names the data split."""

    recorder = "cifarbn.recorders.HeldOutAccuracy"
    title = "held-out accuracy"
    step = Key("held_out.step", "T")
    loss = Key("held_out.loss", "T")
    acc = Key("held_out.acc", "T")
    source = Key("held_out.source")
    SOURCES: ClassVar = {"val": "held-out", "test_curve": "test"}


class ProbeKeys(Table):
    """Probes from theta_t along the gradient, a random direction and the optimizer's step.

    `matched` is along the gradient, at multiples of the length of the optimizer's step.
    """

    recorder = "cifarbn.recorders.GradientProbe"
    title = "gradient probe"
    one_minibatch = True
    step = Key("probe.step", "T")
    s = Key("probe.s", "S")
    shares = Key("probe.shares", "M")
    every = Key("probe.every")
    parameters = Key("probe.parameters")
    dimensions = Key("probe.dimensions", "P")
    gradient = DirectionalProbeKeys.of("probe.gradient", "S")
    random = DirectionalProbeKeys.of("probe.random", "S")
    update = DirectionalProbeKeys.of("probe.update", "1")
    matched = DirectionalProbeKeys.of("probe.matched", "M")
    needed = (gradient.loss,)


class ScaleInvariantBetaKeys(Table):
    """Probes of each weight by itself, see `cifarbn.smoothness.weight_probes.WeightProbes`."""

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
    """Gradient change by the optimizer's step and by the next minibatch, see `cifarbn.smoothness.gradient_change`."""

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
    layer_change = Key("step_change.layer_change", "TL")
    layer_moved = Key("step_change.layer_moved", "TL")
    layer_drift = Key("step_change.layer_drift", "TL")
    layer_noise = Key("step_change.layer_noise", "TL")
    layers = Key("step_change.layers")


class CovariateShiftKeys(Table):
    """||G - G'||, cos(G, G') and ||G|| of every layer, see `cifarbn.smoothness.internal_covariate_shift`."""

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
    """Where a measure is defined: a publication, or "control" for none; tables and CSV files show the value."""

    COURSE_REPORT = "course report"
    COURSE_HANDOUT = "course handout"
    SANTURKAR_2018 = "Santurkar et al. 2018"
    CONTROL = "control"

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


Edges = tuple[NDArray, NDArray]
"""The smallest and the largest value at each step, both of shape (T,)."""


@dataclass(frozen=True)
class Lines:
    """Draw a measure in its own figure, with one panel per family of runs and one line per run.

    Attributes:
        label: label of the vertical axis.
        title: title of the figure; "" means the measure's name.
        where: the corresponding figure of the publication, for captions.
    """

    label: str
    title: str = ""
    where: str = ""


@dataclass(frozen=True)
class Band:
    """Draw a measure in its own figure, as the band over learning rates.

    Attributes:
        label: label of the vertical axis.
        title: title of the figure.
    """

    label: str
    title: str


@dataclass(frozen=True)
class ProbePanel:
    """Draw a measure of `ProbeKeys` as a panel of the figure of the probe along the gradient.

    Attributes:
        label: label of the vertical axis; unique within the figure.
        edges: recordings -> the band to draw; None draws the measure as a line.
    """

    label: str
    edges: Callable[[Recordings], Edges] | None = None


@dataclass(frozen=True)
class Layers:
    """Draw a per-layer measure as a column of its recorder's figure of selected layers.

    Attributes:
        label: label of the vertical axis; unique among the measures of a recorder.
        values: key of the array to draw, (T, L); the measure itself may be another statistic.
        log: whether the vertical axis is logarithmic; linear columns come first.
    """

    label: str
    values: Key
    log: bool = False


Figure = Lines | Band | ProbePanel | Layers
"""How a measure is drawn by itself. (The figures of factors show all measures.)"""
F = TypeVar("F", Lines, Band, ProbePanel, Layers)


NOISE = (
    "Consecutive steps use different minibatches, so this measure contains minibatch noise as well as curvature: for "
    "independent minibatches its square is about drift² + 2 tr(Σ) / |B|."
)


@dataclass(frozen=True)
class Measure:
    """A measure: a curve of a run, computed from its recordings.

    Attributes:
        name: name in tables, figures and CSV files.
        origin: where it is defined.
        table: the keys of the recorder it is computed from.
        compute: recordings -> the value at each of `table.step`, (T,); NaN where undefined.
        unit: unit of its values.
        meaning: the formula and its symbols, for captions.
        figure: how to draw it by itself; None to draw it in the figures of factors only.
        caveat: a sentence for captions.
    """

    name: str
    origin: Origin
    table: type[Table]
    compute: Callable[[Recordings], NDArray]
    unit: str
    meaning: str
    figure: Figure | None = None
    caveat: str = ""

    def curve(self, recordings: Recordings) -> Curve | None:
        """Return the steps and the values, both (T,); None if its recorder was off or did not record what it needs."""
        steps = recordings.get(self.table.step)
        if steps is None or not len(steps) or any(key not in recordings for key in self.table.needed):
            return None
        return steps, np.asarray(self.compute(recordings))


def shown_in(kind: type[F]) -> list[tuple[Measure, F]]:
    """Return the measures drawn by this kind of figure, each with its settings, in the order of the table."""
    return [(measure, measure.figure) for measure in MEASURES if isinstance(measure.figure, kind)]


def curves(recordings: Recordings) -> dict[str, Curve]:
    """Return the curves of all measures available in the recordings, by name, in the order of the table."""
    named = ((measure.name, measure.curve(recordings)) for measure in MEASURES)
    return {name: curve for name, curve in named if curve is not None}


def _effective_beta(r: Recordings) -> NDArray:
    return effective_beta(r[ProbeKeys.gradient.gradient_distance], r[ProbeKeys.gradient.distance_moved])


def _loss_band(r: Recordings) -> Edges:
    return loss_band(r[ProbeKeys.gradient.loss])


def _loss_range(r: Recordings) -> NDArray:
    low, high = _loss_band(r)
    return high - low


def _predictiveness_band(r: Recordings) -> Edges:
    return predictiveness_band(r[ProbeKeys.gradient.gradient_distance])


def _relative(r: Recordings) -> NDArray:
    keys = ProbeKeys.gradient
    return relative_distance(r[keys.gradient_distance], r[keys.gradient_norm]).max(axis=-1)


def _scale_invariant(r: Recordings) -> NDArray:
    keys = ScaleInvariantBetaKeys
    return _median(scale_invariant_beta(r[keys.gradient_distance], r[keys.distance_moved], r[keys.weight_norm]))


def _angle(r: Recordings) -> NDArray:
    return np.degrees(np.arccos(np.clip(r[CovariateShiftKeys.cosine].astype(np.float64), -1, 1)))


def _change(values: NDArray) -> NDArray:
    """Return the change of each layer's value, (T, L), since the previous measurement: median over layers, (T,)."""
    return np.append(np.full(min(len(values), 1), np.nan), _median(np.abs(np.diff(values.astype(np.float64), axis=0))))


def _median(values: NDArray) -> NDArray:
    """Return the median of each row's finite values, (T, N) -> (T,); NaN if there are none."""
    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    median = np.full(len(values), np.nan)
    median[known] = np.nanmedian(values[known], axis=1)
    return median


_G = "G the gradient of the last linear layer's weight"
_LAYERS = "median over all layers except the first"

# Names that the report looks up.
PREDICTIVENESS = "gradient predictiveness"
EFFECTIVE_BETA = "effective beta"
RELATIVE_DISTANCE = "relative gradient distance"

MEASURES: tuple[Measure, ...] = (
    Measure(
        "course report Lipschitz",
        Origin.COURSE_REPORT,
        LastLayerKeys,
        lambda r: course_report_lipschitz(r[LastLayerKeys.first_difference]),
        unit="loss / parameter",
        meaning=f"‖G(t+1) − G(t)‖, {_G}",
        figure=Lines(
            "‖Gₜ₊₁ − Gₜ‖", title="Lipschitz, as the course report defines it", where="course report, figure 13"
        ),
        caveat=NOISE,
    ),
    Measure(
        "course report beta",
        Origin.COURSE_REPORT,
        LastLayerKeys,
        lambda r: course_report_beta(r[LastLayerKeys.second_difference]),
        unit="loss / parameter",
        meaning=f"‖2 G(t) − G(t+1) − G(t−1)‖, {_G}",
        figure=Lines(
            "‖2Gₜ − Gₜ₊₁ − Gₜ₋₁‖", title="Beta, as the course report defines it", where="course report, figure 14"
        ),
        caveat=NOISE,
    ),
    Measure(
        "course handout gradient distance",
        Origin.COURSE_HANDOUT,
        LastLayerKeys,
        lambda r: course_handout_distance(r[LastLayerKeys.first_difference]),
        unit="loss / parameter",
        meaning=f"‖G(t) − G(t−1)‖, {_G}",
        figure=Band("‖Gₜ − Gₜ₋₁‖", title="Gradient distance, as the course handout defines it"),
        caveat=f"The course handout calls the upper edge beta; it is not divided by a distance. {NOISE}",
    ),
    Measure(
        "loss range",
        Origin.SANTURKAR_2018,
        ProbeKeys,
        _loss_range,
        unit="loss",
        meaning="largest minus smallest loss over the points of the probe along the gradient",
        figure=ProbePanel("loss", edges=_loss_band),
    ),
    Measure(
        PREDICTIVENESS,
        Origin.SANTURKAR_2018,
        ProbeKeys,
        lambda r: _predictiveness_band(r)[1],
        unit="loss / parameter",
        meaning="largest ‖∇L(θ − s g) − g‖ over the points of the probe, g the gradient at θ",
        figure=ProbePanel("gradient distance", edges=_predictiveness_band),
    ),
    Measure(
        EFFECTIVE_BETA,
        Origin.SANTURKAR_2018,
        ProbeKeys,
        _effective_beta,
        unit="loss / parameter²",
        meaning="largest ‖∇L(θ − s g) − g‖ / (s ‖g‖) over the points of the probe, g the gradient at θ",
        figure=ProbePanel("effective β"),
    ),
    Measure(
        "covariate shift",
        Origin.SANTURKAR_2018,
        CovariateShiftKeys,
        lambda r: _median(r[CovariateShiftKeys.distance][:, 1:]),
        unit="loss / parameter",
        meaning="‖G − G′‖, G a layer's gradient and G′ the same with the layers before it already updated: " + _LAYERS,
        figure=Layers("‖G − G′‖", CovariateShiftKeys.distance, log=True),
    ),
    Measure(
        "covariate shift angle",
        Origin.SANTURKAR_2018,
        CovariateShiftKeys,
        lambda r: _median(_angle(r)[:, 1:]),
        unit="degrees",
        meaning="the angle between G and G′: " + _LAYERS,
        figure=Layers("cos(G, G′)", CovariateShiftKeys.cosine),
    ),
    Measure(
        "activation mean change",
        Origin.SANTURKAR_2018,
        ActivationDriftKeys,
        lambda r: _change(r[ActivationDriftKeys.mean]),
        unit="units of the activation",
        meaning="change of the mean of a layer's output since the last measurement: median over layers",
        figure=Layers("mean", ActivationDriftKeys.mean),
    ),
    Measure(
        "activation std change",
        Origin.SANTURKAR_2018,
        ActivationDriftKeys,
        lambda r: _change(r[ActivationDriftKeys.std]),
        unit="units of the activation",
        meaning="change of the standard deviation of a layer's output since the last measurement: median over layers",
        figure=Layers("std", ActivationDriftKeys.std),
    ),
    Measure(
        RELATIVE_DISTANCE,
        Origin.CONTROL,
        ProbeKeys,
        _relative,
        unit="1 (a ratio)",
        meaning="largest ‖∇L(θ − s g) − g‖ / ‖g‖ over the points of the probe, g the gradient at θ",
    ),
    Measure(
        "scale-invariant beta",
        Origin.CONTROL,
        ScaleInvariantBetaKeys,
        _scale_invariant,
        unit="loss",
        meaning="β ‖w‖², each weight moved alone by fractions of its norm: median over weights with a gradient",
    ),
    Measure(
        "step change",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.change],
        unit="loss / parameter",
        meaning="‖∇L(θ(t+1)) − ∇L(θ(t))‖ over the optimizer's step, both on the minibatch of step t",
    ),
    Measure(
        "step change per distance",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.ratio],
        unit="loss / parameter²",
        meaning="the step change divided by the length of the step",
    ),
    Measure(
        "drift, last layer",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.head_drift],
        unit="loss / parameter",
        meaning=f"the part of ‖G(t+1) − G(t)‖ due to the step, on the same minibatch, {_G}",
    ),
    Measure(
        "minibatch noise, last layer",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.head_noise],
        unit="loss / parameter",
        meaning=f"the part of ‖G(t+1) − G(t)‖ due to the change of minibatch, at the same parameters, {_G}",
    ),
)
"""In the order of tables and figures, grouped by origin."""
