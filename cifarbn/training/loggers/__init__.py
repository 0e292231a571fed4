"""Loggers: where a run's curves are shown, in addition to metrics.csv, which every run writes."""

from cifarbn.training.loggers.mlflow_log import MLFlowLog
from cifarbn.training.loggers.no_log import NoLog
from cifarbn.training.loggers.run_logger import RunLogger
from cifarbn.training.loggers.tensorboard_log import TensorBoardLog
from cifarbn.training.loggers.wandb_log import WandbLog

__all__ = ["MLFlowLog", "NoLog", "RunLogger", "TensorBoardLog", "WandbLog"]
