"""Callbacks that watch a run and never touch it: with all of them on it ends with bit-equal weights."""

from cifarbn.recorders.activation_drift import ActivationDrift
from cifarbn.recorders.covariate_shift import CovariateShift
from cifarbn.recorders.gradient_probe import GradientProbe
from cifarbn.recorders.held_out_accuracy import HeldOutAccuracy
from cifarbn.recorders.last_layer_gradients import LastLayerGradients
from cifarbn.recorders.recorder import Recorder, RecordingsFile
from cifarbn.recorders.scale_invariant_beta import ScaleInvariantBeta
from cifarbn.recorders.step_change import StepChange
from cifarbn.training.callbacks.metrics_logger import StepHistory
from cifarbn.training.callbacks.resume_checkpoint import LastCheckpoint, signals_kept
from cifarbn.training.callbacks.tensorboard_log import TensorBoardLog
from cifarbn.training.callbacks.timing import Timing

__all__ = [
    "ActivationDrift",
    "CovariateShift",
    "GradientProbe",
    "HeldOutAccuracy",
    "LastCheckpoint",
    "LastLayerGradients",
    "Recorder",
    "RecordingsFile",
    "ScaleInvariantBeta",
    "StepChange",
    "StepHistory",
    "TensorBoardLog",
    "Timing",
    "signals_kept",
]
