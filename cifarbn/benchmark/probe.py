"""`probe`: the time that each recorder adds to a training step."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytorch_lightning as pl

from cifarbn.benchmark.harness import Results, wait_for
from cifarbn.benchmark.lightning import adam_classifier, plain_trainer
from cifarbn.benchmark.step import MODELS
from cifarbn.data import Augmentation, Shapes
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.recorders import Recorder
from cifarbn.runs.measures import TABLES
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.callbacks.timing import Timing

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end")
RECORDERS: dict[str, Callable[[Path], pl.Callback]] = {
    "metrics.csv": MetricsLogger,
    **{table.title: resolve_name(table.recorder) for table in TABLES},
}


def measure_probe(args: argparse.Namespace) -> Results:
    """Train with one recorder at a time and add up the seconds inside its hooks.

    The hooks are timed, waiting for the device before and after, because in the difference of two whole runs a cost of
    1 % would disappear in the machine's noise. A recorder that measures every k steps measures once per round here; its
    cost is reported per measurement and, divided by its default k, per step.
    """
    hardware = Hardware.choose(compile=False, cuda_graphs=False)
    seconds: dict[str, list[float]] = {"a step without recorders": []}
    seconds |= {name: [] for name in RECORDERS}
    every: dict[str, int] = {}
    for counted in [False] + args.rounds * [True]:
        for name, make in RECORDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                recorder = make(Path(folder))
                every[name] = getattr(recorder, "every", 1)
                if isinstance(recorder, Recorder) and every[name] > 1:
                    recorder.every = args.steps  # type: ignore[attr-defined]
                inside, training = _seconds_inside(recorder, hardware, args)
            if counted:
                per_entry = args.steps if every[name] == 1 else 1
                seconds[name].append(inside / per_entry)
                seconds["a step without recorders"].append((training - inside) / args.steps)
    step = statistics.median(seconds.pop("a step without recorders"))
    costs = {name: statistics.median(values) for name, values in seconds.items()}
    notes = [f"a step without recorders: {step * 1e3:.1f} ms; {hardware}"]
    notes += [
        f"{name}: {cost * 1e3:.2f} ms, every {every[name]} steps: {cost / every[name] / step:.2%} of a step"
        for name, cost in costs.items()
    ]
    return {
        "title": f"seconds inside recorders, {args.model} on shapes, batch {args.batch_size}",
        "unit": "measurements/s",
        "amount": 1,
        "seconds": seconds,
        "step_seconds": step,
        "every": every,
        "notes": notes,
    }


def _seconds_inside(recorder: pl.Callback, hardware: Hardware, args: argparse.Namespace) -> tuple[float, float]:
    """Train for `steps` steps; return the seconds inside the recorder's hooks and of the whole training."""
    spent = [0.0]

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def around(trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
            wait_for(pl_module.device)
            start = time.perf_counter()
            hook(trainer, pl_module, *rest)
            wait_for(pl_module.device)
            spent[0] += time.perf_counter() - start

        return around

    for name in HOOKS:
        setattr(recorder, name, timed(getattr(recorder, name)))
    classifier = adam_classifier(accelerate(MODELS[args.model](), hardware), hardware)
    size = args.steps * args.batch_size
    data = Shapes(
        train_size=size + 100, test_size=10, val_size=100, batch_size=args.batch_size, augmentation=Augmentation()
    )
    timing = Timing()
    plain_trainer(hardware, [timing, recorder], max_epochs=1).fit(classifier, data)
    return spent[0], timing.seconds["first_step"] + timing.seconds["train"]
