"""`loop`: our whole training loop against a bare one, and against the usual way of training on CIFAR-10."""

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarbn.benchmark.passes import our_loader, read_pictures, usual_loader
from cifarbn.benchmark.sides import Report, in_turn, median_ratio, wait_for
from cifarbn.benchmark.step import NETS, training_step
from cifarbn.classifier import Classifier
from cifarbn.data import Images, InMemoryLoader
from cifarbn.errors import UserError
from cifarbn.hardware import Hardware, make_trainer
from cifarbn.progress import EpochLine, ProgressBar
from cifarbn.recorders import LastCheckpoint, LastLayerGradients, RecordingsFile, StepHistory, TensorBoardLog, Timing

PICTURES = 10_000  # at the least
USUAL = "the usual way"
BARE = "a bare loop"
OURS = "cifarbn.train"

_usual: "_Loop"  # in the other process only


def measure_loop(chosen: argparse.Namespace) -> Report:
    """Train one net for some steps in three ways; the first step of each stretch is left out everywhere.

    The usual way: torchvision's transforms picture by picture, DataLoader with 2 workers, fp32, contiguous; in a
    process of its own, where nothing is set as `Hardware.prepare` would. A bare loop: our loader, precision and layout,
    no Lightning, nothing recorded. Ours: Lightning with progress bar, TensorBoard, step history, last-layer recorder
    and checkpoint.
    """
    name, images = read_pictures(chosen.root, max(PICTURES, (chosen.steps + 1) * chosen.batch_size))
    if len(images) <= chosen.steps * chosen.batch_size:
        raise UserError(f"{len(images):,} pictures are too few for {chosen.steps} steps and one; lower --steps")
    hardware = Hardware.choose(compile=chosen.compile)
    device = torch.device("cuda" if hardware.accelerator == "gpu" else "cpu")
    elsewhere = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _prepare_usual, (chosen.net, images, chosen.batch_size, device)
    )
    images = images.to(device)
    bare_net = hardware.prepare(NETS[chosen.net]().to(device))
    bare = _Loop(bare_net, our_loader(images, chosen.batch_size), hardware.precision, device)
    ours = _Lightning(hardware, hardware.prepare(NETS[chosen.net]()), images, chosen.batch_size)
    steps = chosen.steps
    with elsewhere:
        sides = {USUAL: lambda: elsewhere.submit(_run_usual, steps).result()}
        seconds = in_turn(chosen.rounds, sides | {BARE: lambda: bare(steps), OURS: lambda: ours(steps)})
    return {
        "what": f"{steps} steps of {chosen.net} on {name}, batch {chosen.batch_size}; cifarbn: {hardware}",
        "unit": "images/s",
        "amount": steps * chosen.batch_size,
        "seconds": seconds,
        "outside_training_seconds": ours.outside,
        "notes": [
            f"ours keeps {median_ratio(seconds[BARE], seconds[OURS]):.1%} of the bare loop's images/s",
            "outside the training steps, last round: "
            + ", ".join(f"{kind} {value:.2f} s" for kind, value in ours.outside.items()),
        ],
    }


class _Loop:
    """A loop as anybody would write it."""

    def __init__(self, net: nn.Module, loader: Any, precision: str | None, device: torch.device) -> None:
        self.net, self.loader, self.device = net, loader, device
        self.autocast = (
            torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()
        )
        self.optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def __call__(self, steps: int) -> float:
        """Seconds of `steps` steps, after one that is not counted."""
        start = 0.0
        for number, (pictures, labels) in enumerate(islice(self.loader, steps + 1)):
            pictures, labels = pictures.to(self.device), labels.to(self.device)
            training_step(self.net, self.optimizer, self.autocast, pictures, labels)
            if number == 0:
                wait_for(self.device)
                start = time.perf_counter()
        wait_for(self.device)
        return time.perf_counter() - start


def _prepare_usual(net: str, images: Images, batch_size: int, device: torch.device) -> None:
    global _usual
    _usual = _Loop(NETS[net]().to(device), usual_loader(images, batch_size), None, device)


def _run_usual(steps: int) -> float:
    return _usual(steps)


class _Lightning:
    """What `cifarbn.train` does between reading the config and the test."""

    def __init__(self, hardware: Hardware, net: nn.Module, images: Images, batch_size: int) -> None:
        self.hardware = hardware
        self.classifier = Classifier(net, nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, lr=1e-3))
        self.loader: InMemoryLoader = our_loader(images, batch_size)
        self.val_loader = our_loader(images[:1000], 1000)
        self.outside: dict[str, float] = {}

    def __call__(self, steps: int) -> float:
        """Seconds of `steps` steps after the first."""
        with tempfile.TemporaryDirectory() as name, TensorBoardLog(Path(name)) as logger:
            folder, timing = Path(name), Timing()
            history, recorders = StepHistory(folder), [LastLayerGradients(folder)]
            trainer = make_trainer(
                self.hardware,
                callbacks=[
                    *(timing, history, *recorders, RecordingsFile(folder, recorders)),
                    *(LastCheckpoint(folder, 5, timing), ProgressBar(), EpochLine(history, timing)),
                ],
                logger=logger,
                default_root_dir=folder,
                max_epochs=1,
                limit_train_batches=steps + 1,
            )
            start = time.perf_counter()
            trainer.fit(self.classifier, self.loader, self.val_loader)
            whole = time.perf_counter() - start
        known = sum(timing.seconds.values())
        self.outside = {k: v for k, v in timing.seconds.items() if k != "train"} | {"start and end": whole - known}
        return timing.seconds["train"]
