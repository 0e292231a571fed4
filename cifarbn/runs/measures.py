"""The arrays of `recordings.npz`, one table of keys for each recorder, and the table of measures computed from them.

Recorders write by these keys and the report reads by them, so the type checker finds a key that only one of them knows.
To add a measure: write a recorder, its yaml, its table of keys and its line of `MEASURES` here, and a test. Its
`figure` there draws it, but for `Layers` of another recorder than those of `cifarbn.report.layers`, which need a
function there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from cifarbn.smoothness.differences import course_distance, report_beta, report_lipschitz
from cifarbn.smoothness.probe_curves import effective_beta, loss_band, predictiveness_band, relative_distance
from cifarbn.smoothness.weight_probes import scale_invariant_beta


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
            if isinstance(value, DirectionalProbeKeys):
                yield from vars(value).values()
            elif isinstance(value, Key):
                yield value


@dataclass(frozen=True)
class DirectionalProbeKeys:
    """The keys of one walk, see `cifarbn.smoothness.directional_probe.DirectionalProbe`; all but its step sizes."""

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
    gradient = DirectionalProbeKeys.of("probe.gradient", "S")
    random = DirectionalProbeKeys.of("probe.random", "S")
    update = DirectionalProbeKeys.of("probe.update", "1")
    matched = DirectionalProbeKeys.of("probe.matched", "M")


class ScaleInvariantBetaKeys(Table):
    """Each weight walked alone, see `cifarbn.smoothness.weight_probes.WeightProbes`."""

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
    """The true step on one minibatch, and what the next minibatch adds; see `cifarbn.smoothness.gradient_change`."""

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
    """Who defines a measure; the value is what CSV files say."""

    COURSE_REPORT = "course report"
    COURSE_HANDOUT = "course handout"
    SANTURKAR_2018 = "Santurkar et al. 2018"
    CONTROL = "control"

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]

    @property
    def source(self) -> str:
        """The publication; "control" for a measure that none of them has."""
        return _SOURCES[self]


_SOURCES = {
    Origin.COURSE_REPORT: "course report",
    Origin.COURSE_HANDOUT: "course handout",
    Origin.SANTURKAR_2018: "Santurkar et al. 2018",
    Origin.CONTROL: "control",
}


Edges = tuple[NDArray, NDArray]
"""The least and the greatest value at each step, both (T,)."""


@dataclass(frozen=True)
class Lines:
    """Show a measure in a figure of its own: a panel for each family of runs, in it a line for each run.

    Attributes:
        label: of the vertical axis.
        title: of the figure; "" for the measure's name.
        where: the figure of the measure's origin, for captions.
    """

    label: str
    title: str = ""
    where: str = ""


@dataclass(frozen=True)
class Band:
    """Show a measure in a figure of its own: the band over learning rates.

    Attributes:
        label: of the vertical axis.
        title: of the figure.
    """

    label: str
    title: str


@dataclass(frozen=True)
class ProbePanel:
    """Show a measure of `ProbeKeys` in a panel of the figure of the walk along the gradient.

    Attributes:
        label: of the vertical axis; no two measures of the figure share one.
        edges: recordings -> the band that is drawn; None to draw the measure as a line.
    """

    label: str
    edges: Callable[[Recordings], Edges] | None = None


@dataclass(frozen=True)
class Layers:
    """Show a measure of layers in a column of its recorder's figure of some layers.

    Attributes:
        label: of the vertical axis; no two measures of a recorder share one.
        values: the key of what is drawn, (T, L); its median over layers need not be the measure.
        log: whether the vertical axis is logarithmic; linear columns come first.
    """

    label: str
    values: Key
    log: bool = False


Figure = Lines | Band | ProbePanel | Layers
"""How a measure is shown by itself, beside the figures of factors, which show all."""
F = TypeVar("F", Lines, Band, ProbePanel, Layers)


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
        unit: of its values.
        meaning: for captions: the formula and what is in it.
        figure: that shows it by itself, and how; None for none.
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
        """Return the steps and the values, both (T,); None where the recordings do not have what it needs."""
        steps = recordings.get(self.table.step)
        return (steps, np.asarray(self.compute(recordings))) if steps is not None and len(steps) else None


def shown_in(kind: type[F]) -> list[tuple[Measure, F]]:
    """Return the measures that a kind of figure shows, each with how it does, in the order of the table."""
    return [(measure, measure.figure) for measure in MEASURES if isinstance(measure.figure, kind)]


def curves(recordings: Recordings) -> dict[str, Curve]:
    """Return the measures that these recordings can give, by name, in the order of the table."""
    found = ((measure.name, measure.curve(recordings)) for measure in MEASURES)
    return {name: curve for name, curve in found if curve is not None}


def _paper_beta(r: Recordings) -> NDArray:
    return effective_beta(r[ProbeKeys.gradient.gradient_distance], r[ProbeKeys.gradient.distance_moved])


def _loss_band(r: Recordings) -> Edges:
    return loss_band(r[ProbeKeys.gradient.loss])


def _loss_range(r: Recordings) -> NDArray:
    low, high = _loss_band(r)
    return high - low


def _predictiveness_band(r: Recordings) -> Edges:
    return predictiveness_band(r[ProbeKeys.gradient.gradient_distance])


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

# Names by which the report finds measures.
PREDICTIVENESS = "paper gradient predictiveness"
EFFECTIVE_BETA = "paper effective beta"
RELATIVE_DISTANCE = "relative gradient distance"

MEASURES: tuple[Measure, ...] = (
    Measure(
        "report Lipschitz",
        Origin.COURSE_REPORT,
        LastLayerKeys,
        lambda r: report_lipschitz(r[LastLayerKeys.first_difference]),
        unit="loss / parameter",
        meaning=f"‖G(t+1) − G(t)‖, {_G}",
        figure=Lines("‖Gₜ₊₁ − Gₜ‖", title="The report’s Lipschitz", where="the report's figure 13"),
        caveat=NOISE,
    ),
    Measure(
        "report beta",
        Origin.COURSE_REPORT,
        LastLayerKeys,
        lambda r: report_beta(r[LastLayerKeys.second_difference]),
        unit="loss / parameter",
        meaning=f"‖2 G(t) − G(t+1) − G(t−1)‖, {_G}",
        figure=Lines("‖2Gₜ − Gₜ₊₁ − Gₜ₋₁‖", title="The report’s beta", where="the report's figure 14"),
        caveat=NOISE,
    ),
    Measure(
        "course gradient distance",
        Origin.COURSE_HANDOUT,
        LastLayerKeys,
        lambda r: course_distance(r[LastLayerKeys.first_difference]),
        unit="loss / parameter",
        meaning=f"‖G(t) − G(t−1)‖, {_G}",
        figure=Band("‖Gₜ − Gₜ₋₁‖", title="The course's gradient distance"),
        caveat=f"Its upper edge is what the course calls beta; it is divided by no distance. {NOISE}",
    ),
    Measure(
        "paper loss range",
        Origin.SANTURKAR_2018,
        ProbeKeys,
        _loss_range,
        unit="loss",
        meaning="the greatest minus the least loss at the points of the walk along the gradient",
        figure=ProbePanel("loss", edges=_loss_band),
    ),
    Measure(
        PREDICTIVENESS,
        Origin.SANTURKAR_2018,
        ProbeKeys,
        lambda r: _predictiveness_band(r)[1],
        unit="loss / parameter",
        meaning="the greatest ‖∇L(θ − s g) − g‖ over the points of the walk",
        figure=ProbePanel("gradient distance", edges=_predictiveness_band),
    ),
    Measure(
        EFFECTIVE_BETA,
        Origin.SANTURKAR_2018,
        ProbeKeys,
        _paper_beta,
        unit="loss / parameter²",
        meaning="the greatest ‖∇L(θ − s g) − g‖ / (s ‖g‖) over the points of the walk",
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
        meaning="how far the mean of a layer's output moves from one measurement to the next: the median over layers",
        figure=Layers("mean", ActivationDriftKeys.mean),
    ),
    Measure(
        "activation std change",
        Origin.SANTURKAR_2018,
        ActivationDriftKeys,
        lambda r: _change(r[ActivationDriftKeys.std]),
        unit="units of the activation",
        meaning="how far the standard deviation of a layer's output moves likewise: the median over layers",
        figure=Layers("std", ActivationDriftKeys.std),
    ),
    Measure(
        RELATIVE_DISTANCE,
        Origin.CONTROL,
        ProbeKeys,
        _relative,
        unit="1 (a ratio)",
        meaning="the greatest ‖∇L(θ − s g) − g‖ / ‖g‖ over the points of the walk",
    ),
    Measure(
        "scale-invariant beta",
        Origin.CONTROL,
        ScaleInvariantBetaKeys,
        _scale_invariant,
        unit="loss",
        meaning="β ‖w‖², each weight walked alone by shares of its own norm: the median over weights with a gradient",
    ),
    Measure(
        "step change",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.change],
        unit="loss / parameter",
        meaning="‖∇L(θ(t+1)) − ∇L(θ(t))‖ of the true step, both on its minibatch",
    ),
    Measure(
        "step change per distance",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.ratio],
        unit="loss / parameter²",
        meaning="the step change over the length of the step",
    ),
    Measure(
        "drift, last layer",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.head_drift],
        unit="loss / parameter",
        meaning=f"the part of ‖G(t+1) − G(t)‖ that the step makes, on one minibatch, {_G}",
    ),
    Measure(
        "minibatch noise, last layer",
        Origin.CONTROL,
        StepChangeKeys,
        lambda r: r[StepChangeKeys.head_noise],
        unit="loss / parameter",
        meaning=f"the part of ‖G(t+1) − G(t)‖ that the change of minibatch makes, at one point, {_G}",
    ),
)
"""In the order of tables and figures; those of one origin stand together."""
