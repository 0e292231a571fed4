"""Callbacks that watch a run and never touch it: with all of them on it ends with bit-equal weights."""

from cifarbn.recorders.last_checkpoint import LastCheckpoint
from cifarbn.recorders.step_history import StepHistory
from cifarbn.recorders.timing import Timing

__all__ = ["LastCheckpoint", "StepHistory", "Timing"]
