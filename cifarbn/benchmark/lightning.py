"""Classifiers and Lightning trainers for the benchmarks, with or without the callbacks of `cifarbn.train`."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from cifarbn.fast.hardware import Hardware
from cifarbn.recorders import LastLayerGradients
from cifarbn.training.callbacks.standard import StandardCallbacks
from cifarbn.training.callbacks.timing import Timing
from cifarbn.training.classifier import Classifier
from cifarbn.training.loggers import TensorBoardLog
from cifarbn.training.trainer import make_trainer


def adam_classifier(model: nn.Module, hardware: Hardware, **adam: Any) -> Classifier:
    """Return a classifier that trains a model with cross-entropy and Adam, lr 1e-3.

    Args:
        model: the model, already accelerated.
        hardware: the hardware settings.
        **adam: more options of Adam.
    """
    return Classifier(
        model,
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3, **adam),
        compile=hardware.compile,
        cuda_graphs=hardware.cuda_graphs,
    )


@contextmanager
def recording_trainer(hardware: Hardware, **arguments: Any) -> Iterator[tuple[pl.Trainer, Timing]]:
    """Yield a trainer with the defaults of `cifarbn.train`, which writes into a temporary run folder.

    The defaults are a progress bar, TensorBoard, metrics.csv, the last-layer recorder and a checkpoint. The number of
    threads is not changed, so that it is the same for each side of a benchmark.

    Args:
        hardware: the hardware settings.
        **arguments: more arguments of Lightning's Trainer.
    """
    with tempfile.TemporaryDirectory() as name, TensorBoardLog(Path(name)) as logger:
        callbacks = StandardCallbacks(Path(name), [LastLayerGradients(Path(name))])
        whole = {"callbacks": callbacks.in_order, "logger": logger, "default_root_dir": name}
        yield make_trainer(hardware, **whole, **arguments), callbacks.timing


def plain_trainer(hardware: Hardware, callbacks: Sequence[pl.Callback], **arguments: Any) -> pl.Trainer:
    """Return a trainer with only these callbacks, without validation, that writes nothing."""
    return make_trainer(
        hardware,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        **arguments,
    )
