"""The side of Lightning in a benchmark: a classifier and its trainer, with what `cifarbn.train` records or without."""

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
from cifarbn.training.callbacks.tensorboard_log import TensorBoardLog
from cifarbn.training.callbacks.timing import Timing
from cifarbn.training.classifier import Classifier
from cifarbn.training.trainer import make_trainer


def adam_classifier(model: nn.Module, hardware: Hardware, **adam: Any) -> Classifier:
    """Return a classifier that trains a prepared model with cross-entropy and Adam, lr 1e-3; `adam` are its options."""
    return Classifier(
        model,
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3, **adam),
        compile=hardware.compile,
        cuda_graphs=hardware.cuda_graphs,
    )


@contextmanager
def recording_trainer(hardware: Hardware, **arguments: Any) -> Iterator[tuple[pl.Trainer, Timing]]:
    """Yield a trainer with everything that `cifarbn.train` has by default, writing into a temporary run folder.

    That is a progress bar, TensorBoard, the step history, the last-layer recorder and a checkpoint. The number of
    threads stays as it is: each side of a benchmark has the same.

    Args:
        hardware: to train on.
        **arguments: of Lightning's Trainer.
    """
    with tempfile.TemporaryDirectory() as name, TensorBoardLog(Path(name)) as logger:
        callbacks = StandardCallbacks(Path(name), [LastLayerGradients(Path(name))])
        whole = {"callbacks": callbacks.in_order, "logger": logger, "default_root_dir": name}
        yield make_trainer(hardware, **whole, **arguments), callbacks.timing


def plain_trainer(hardware: Hardware, callbacks: Sequence[pl.Callback], **arguments: Any) -> pl.Trainer:
    """Return a trainer that has these callbacks only, and neither validates nor writes anything."""
    return make_trainer(
        hardware,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        **arguments,
    )
