"""Recorders measure a training run without changing it: the weights end bit-equal with and without them."""

from cifarbn.recorders.activation_drift import ActivationDrift
from cifarbn.recorders.covariate_shift import CovariateShift
from cifarbn.recorders.gradient_probe import GradientProbe
from cifarbn.recorders.held_out_accuracy import HeldOutAccuracy
from cifarbn.recorders.last_layer_gradients import LastLayerGradients
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.recordings_file import RecordingsFile
from cifarbn.recorders.run_recorder import RunRecorder, RunRecorderCallback
from cifarbn.recorders.scale_invariant_beta import ScaleInvariantBeta
from cifarbn.recorders.step_change import StepChange

__all__ = [
    "ActivationDrift",
    "CovariateShift",
    "GradientProbe",
    "HeldOutAccuracy",
    "LastLayerGradients",
    "Recorder",
    "RecordingsFile",
    "RunRecorder",
    "RunRecorderCallback",
    "ScaleInvariantBeta",
    "StepChange",
]
