"""`loop`: `cifarbn.train` against a bare training loop and the usual way of training on CIFAR-10."""

import argparse
import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from typing import Any

import torch
from torch import nn

from cifarbn.benchmark.harness import Results, in_turn, median_ratio, wait_for
from cifarbn.benchmark.images import read_images
from cifarbn.benchmark.lightning import adam_classifier, recording_trainer
from cifarbn.benchmark.loader import DRAWN, our_loader, usual_loader
from cifarbn.benchmark.step import MODELS, training_step
from cifarbn.data import Images, InMemoryLoader
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.threads import set_threads
from cifarbn.fast.training_step import TrainingStep
from cifarbn.losses import accuracy

IMAGES = 50_000
USUAL = "the usual way"
BARE = "a bare loop"
OURS = "cifarbn.train"

_usual: "_Loop"  # set in the process of the usual way only


def measure_loop(args: argparse.Namespace) -> Results:
    """Train one model for some steps in three ways, without measuring the first step.

    The usual way: torchvision's transforms on one image at a time, DataLoader with 2 workers, fp32, contiguous memory
    format; in its own process, which `accelerate` does not configure. A bare loop: the same loader, precision, memory
    format and `TrainingStep` as `cifarbn.train`, without Lightning and recorders. `cifarbn.train`: Lightning with
    progress bar, TensorBoard, metrics.csv, last-layer recorder and checkpoint.
    """
    name, images, _ = read_images(args.root, IMAGES, drawn=DRAWN)
    hardware = Hardware.choose(compile=args.compile)
    device = torch.device("cuda" if hardware.accelerator == "gpu" else "cpu")
    steps, sides = args.steps, {}
    if not args.without_usual:
        setup = (args.model, images, args.batch_size, device, hardware.threads.count)
        usual_process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_usual, setup)
        sides[USUAL] = lambda: usual_process.submit(_run_usual, steps).result()
    images = images.to(device)
    bare_model = accelerate(MODELS[args.model]().to(device), hardware)
    step = TrainingStep(bare_model, nn.functional.cross_entropy, accuracy, hardware.compile, hardware.cuda_graphs)
    step.begin((steps + 1) * (args.rounds + 1))
    bare = _Loop(bare_model, our_loader(images, args.batch_size), device, hardware.precision, step)
    ours = _Lightning(hardware, accelerate(MODELS[args.model](), hardware), images, args.batch_size)
    sides |= {BARE: lambda: bare(steps), OURS: lambda: ours(steps)}
    # The first step of each measurement is left out; on a GPU, where it is long, it serves as the warm-up.
    seconds = in_turn(args.rounds, sides, warm_up=device.type == "cpu")
    if not args.without_usual:
        usual_process.shutdown()
    step_facts = {BARE: step.facts, OURS: ours.classifier.step.facts}
    return {
        "title": f"{steps} steps of {args.model} on {name}, batch {args.batch_size}; cifarbn: {hardware}",
        "unit": "images/s",
        "amount": steps * args.batch_size,
        "seconds": seconds,
        "outside_training_seconds": ours.outside,
        "training_step": step_facts,
        "notes": [
            f"cifarbn.train reaches {median_ratio(seconds[BARE], seconds[OURS]):.1%} of the bare loop's images/s",
            "outside the training steps, last round: "
            + ", ".join(f"{kind} {value:.2f} s" for kind, value in ours.outside.items()),
            *(f"{side}: {facts}" for side, facts in step_facts.items()),
        ],
    }


class _Loop:
    """An ordinary PyTorch training loop."""

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        device: torch.device,
        precision: str | None = None,
        step: TrainingStep | None = None,
    ) -> None:
        self.model, self.loader, self.device, self.step = model, loader, device, step
        self.autocast = (
            torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # as Lightning's
            if precision == "bf16-mixed"
            else contextlib.nullcontext()
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def __call__(self, steps: int) -> float:
        """Return the seconds of `steps` steps with full batches, from the images per second.

        The first step of each batch size is left out, as by `Timing`.
        """
        seconds, start, seen = 0.0, 0.0, 0
        sizes: list[int] = []
        for images, labels in islice(self._batches(), steps + 1):
            if new := len(labels) not in sizes:
                wait_for(self.device)
                seconds += time.perf_counter() - start if sizes else 0.0
            self._train_on(images.to(self.device), labels.to(self.device))
            if new:
                sizes.append(len(labels))
                wait_for(self.device)
                start = time.perf_counter()
            else:
                seen += len(labels)
        wait_for(self.device)
        seconds += time.perf_counter() - start
        return seconds * steps * sizes[0] / seen

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in count():
            yield from self.loader

    def _train_on(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.step is None:
            training_step(self.model, self.optimizer, self.autocast, images, labels)
            return
        with self.autocast:
            loss, _ = self.step(images, labels)
        self.optimizer.zero_grad()
        self.step.backward(loss)
        self.optimizer.step()


def _prepare_usual(model: str, images: Images, batch_size: int, device: torch.device, threads: int) -> None:
    global _usual
    set_threads(threads)
    _usual = _Loop(MODELS[model]().to(device), usual_loader(images, batch_size), device)


def _run_usual(steps: int) -> float:
    return _usual(steps)


class _Lightning:
    """The training of `cifarbn.train`, without composing the config and testing."""

    def __init__(self, hardware: Hardware, model: nn.Module, images: Images, batch_size: int) -> None:
        self.hardware = hardware
        self.classifier = adam_classifier(model, hardware, fused=True)
        self.loader: InMemoryLoader = our_loader(images, batch_size)
        self.val_loader = our_loader(images[:1000], 1000)
        self.outside: dict[str, float] = {}

    def __call__(self, steps: int) -> float:
        """Return the seconds of `steps` steps after the first."""
        epochs = steps // len(self.loader) + 1
        with recording_trainer(self.hardware, max_epochs=epochs, max_steps=steps + 1) as (trainer, timing):
            start = time.perf_counter()
            trainer.fit(self.classifier, self.loader, self.val_loader)
            whole = time.perf_counter() - start
        known = sum(timing.seconds.values())
        self.outside = {k: v for k, v in timing.seconds.items() if k != "train"} | {"start and end": whole - known}
        return timing.seconds["train"] * steps * self.loader.batch_sizes[0] / timing.images
