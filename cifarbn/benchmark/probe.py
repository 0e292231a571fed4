"""`probe`: what each recorder adds to a training step."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytorch_lightning as pl

from cifarbn.benchmark.harness import Report, wait_for
from cifarbn.benchmark.lightning import adam_classifier, plain_trainer
from cifarbn.benchmark.step import NETS
from cifarbn.data import Augmentation, Shapes
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.recorders import Recorder
from cifarbn.runs.measures import TABLES
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.callbacks.timing import Timing

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end")
RECORDERS: dict[str, Callable[[Path], pl.Callback]] = {
    "step history": MetricsLogger,
    **{table.title: resolve_name(table.recorder) for table in TABLES},
}


def measure_probe(chosen: argparse.Namespace) -> Report:
    """Train with one recorder at a time and add up the seconds inside its hooks.

    Timed inside the hooks, the device waited for at both ends, since the difference of two whole runs drowns a
    recorder of 1 % in the machine's noise. A recorder that works every k steps works once a round here; its cost is
    given per measurement and, over its own default k, per step.
    """
    hardware = Hardware.choose(compile=False, cuda_graphs=False)
    seconds: dict[str, list[float]] = {"a step without recorders": []}
    seconds |= {name: [] for name in RECORDERS}
    every: dict[str, int] = {}
    for counted in [False] + chosen.rounds * [True]:
        for name, make in RECORDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                recorder = make(Path(folder))
                every[name] = getattr(recorder, "every", 1)
                if isinstance(recorder, Recorder) and every[name] > 1:
                    recorder.every = chosen.steps  # type: ignore[attr-defined]
                inside, training = _seconds_inside(recorder, hardware, chosen)
            if counted:
                per_entry = chosen.steps if every[name] == 1 else 1
                seconds[name].append(inside / per_entry)
                seconds["a step without recorders"].append((training - inside) / chosen.steps)
    step = statistics.median(seconds.pop("a step without recorders"))
    costs = {name: statistics.median(values) for name, values in seconds.items()}
    notes = [f"a step without recorders: {step * 1e3:.1f} ms; {hardware}"]
    notes += [
        f"{name}: {cost * 1e3:.2f} ms, every {every[name]} steps: {cost / every[name] / step:.2%} of a step"
        for name, cost in costs.items()
    ]
    return {
        "what": f"seconds inside recorders, {chosen.net} on shapes, batch {chosen.batch_size}",
        "unit": "measurements/s",
        "amount": 1,
        "seconds": seconds,
        "step_seconds": step,
        "every": every,
        "notes": notes,
    }


def _seconds_inside(recorder: pl.Callback, hardware: Hardware, chosen: argparse.Namespace) -> tuple[float, float]:
    """Seconds inside the recorder's hooks, and of the training they are part of, over `steps` steps."""
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
    classifier = adam_classifier(accelerate(NETS[chosen.net](), hardware), hardware)
    size = chosen.steps * chosen.batch_size
    data = Shapes(
        train_size=size + 100, test_size=10, val_size=100, batch_size=chosen.batch_size, augmentation=Augmentation()
    )
    timing = Timing()
    plain_trainer(hardware, [timing, recorder], max_epochs=1).fit(classifier, data)
    return spent[0], timing.seconds["first_step"] + timing.seconds["train"]
