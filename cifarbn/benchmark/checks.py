"""`checks`: correctness checks on a GPU: small runs, captured and compiled, compared with runs that are neither.

Every check raises AssertionError if it fails.
"""

import argparse
import contextlib
import csv
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from cifarbn.benchmark.harness import Results, write_json
from cifarbn.benchmark.lightning import plain_trainer
from cifarbn.benchmark.loader import our_loader
from cifarbn.cli.command_line import CONF
from cifarbn.data import Images
from cifarbn.errors import UserError
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import COMPILE_MODES, Hardware
from cifarbn.fast.training_step import WITHOUT_GRAPHS, TrainingStep
from cifarbn.recorders import LastLayerGradients
from cifarbn.runs.schema import METRICS, Result, Status, StepColumn
from cifarbn.train import train
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.classifier import Classifier

# Three steps, the last one with a smaller batch. Without benchmark=false, cuDNN's search would take most of the time.
SMALL = (
    *("data=shapes", "data.train_size=50", "data.val_size=10", "data.test_size=20", "data.batch_size=16", "epochs=1"),
    *("trainer=gpu", "trainer.enable_progress_bar=false", "+trainer.benchmark=false"),
)
MODEL = ("model=vgg_a_bn", "model.width=8")
LINEAR = (
    *("data=gaussian", "loss=sum_of_squares", "optim=sgd", "optim.lr=1e-6", "optim.momentum=0", "optim.nesterov=false"),
    *("trainer=gpu", "trainer.enable_progress_bar=false", "trainer.max_steps=3", "epochs=1"),
)
GROUPS = ("model", "norm", "activation", "optim", "loss", "schedule")
EXTERNAL = ("custom", "timm", "torchvision")  # options for models and other parts from elsewhere
CLOSE = 0.02  # relative difference of two losses that bf16 rounding can explain


def choices() -> list[str]:
    """Return every option of conf/ that changes the training step, such as "norm=group"."""
    files = [file for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
    return [f"{file.parent.name}={file.stem}" for file in files if file.stem not in EXTERNAL]


def check_choice(choice: str, folder: Path) -> None:
    """Check that an option of conf/ can be trained in a CUDA graph."""
    if choice.startswith("model=dln"):
        result = _run(folder, choice, base=LINEAR)
    elif choice == "loss=sum_of_squares":
        result = _run(folder, "model=dln_bn", base=LINEAR)
    elif choice.startswith("model="):
        result = _run(folder, choice, *(() if choice == "model=speednet" else ("model.width=8",)))
    else:
        result = _run(folder, *MODEL, choice)
    assert result["status"] == Status.DONE, result.get("error")
    assert result["cuda_graphs"], result["step_notes"]
    assert len(_losses(folder)) == 3


def check_compiled(model: str, folder: Path, mode: str = "default") -> None:
    """Check that the losses of a compiled and captured run equal those of an uncompiled run, up to rounding."""
    width = () if model == "speednet" else ("model.width=8",)
    losses = {}
    for fast in (False, True):
        options = (f"trainer.compile={mode if fast else False}", f"trainer.cuda_graphs={fast}")
        result = _run(folder / str(fast), f"model={model}", *width, *options)
        assert result["compile"] == (mode if fast else ""), result["step_notes"]
        assert result["cuda_graphs"] == (fast and mode in WITHOUT_GRAPHS), result["step_notes"]
        losses[fast] = [float(loss) for loss, _ in _losses(folder / str(fast))]
    for plain, fast_loss in zip(losses[False], losses[True], strict=True):
        assert abs(plain - fast_loss) <= CLOSE * plain, losses


def check_captured_is_plain(folder: Path) -> None:
    """Check that a captured run with dropout is bit-identical to an uncaptured one, with deterministic algorithms."""
    for graphs in (False, True):
        options = (f"trainer.cuda_graphs={graphs}", "trainer.compile=false", "+trainer.deterministic=true", "epochs=2")
        result = _run(folder / str(graphs), "model=resnet18", "model.width=8", "model.dropout=0.5", *options)
        assert result["cuda_graphs"] == graphs, result["step_notes"]
    assert _losses(folder / "True") == _losses(folder / "False")


def check_recorders(folder: Path) -> None:
    """Check that recording everything leaves all losses bit-identical, with deterministic algorithms."""
    for record in ("all", "none"):
        _run(folder / record, *MODEL, "+trainer.deterministic=true", f"record={record}")
    assert _losses(folder / "all") == _losses(folder / "none")


def check_sigterm(folder: Path) -> None:
    """Check that SIGTERM ends a run within 10 s while it compiles."""
    caches = {"XDG_CACHE_HOME": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder)}  # nothing is compiled yet
    overrides = [*SMALL, "model=resnet18", "model.width=8", "trainer.compile=true", f"hydra.run.dir={folder / 'run'}"]
    command = [sys.executable, "-m", "cifarbn.train", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | caches, text=True) as process:
        assert process.stdout is not None
        assert any("compiling" in line for line in process.stdout)
        time.sleep(8)
        process.terminate()
        try:
            code = process.wait(10)
        finally:
            process.kill()
    assert code == 143, code


def check_no_waiting(folder: Path) -> None:
    """Check that no step of an epoch, with the default recorders, makes the host wait for the device."""
    pixels = torch.randint(256, (2080, 3, 32, 32), dtype=torch.uint8, device="cuda")
    images = Images(pixels, torch.arange(2080, device="cuda") % 10)
    model = accelerate(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), Hardware.choose())
    classifier = Classifier(model, nn.CrossEntropyLoss(), torch.optim.Adam, cuda_graphs=True)
    callbacks = [_Watch(), MetricsLogger(folder), LastLayerGradients(folder)]
    trainer = plain_trainer(Hardware.choose(), callbacks, default_root_dir=folder, max_epochs=2)
    try:
        trainer.fit(classifier, our_loader(images, 16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert classifier.step.captured, classifier.step.notes
    assert len(_losses(folder)) == 260


class _Watch(pl.Callback):
    """Makes waiting for the device an error, except in the first and last step of an epoch."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        inside = 0 < batch_idx < int(trainer.num_training_batches) - 1
        torch.cuda.set_sync_debug_mode("error" if inside else "default")


class _Waits(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum().item() else y * 2


class _Draws(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + random.random())


class _Counts(nn.Sequential):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def check_fallback(kind: type[nn.Sequential], reason: str) -> None:
    """Check that a model that a CUDA graph cannot replay is trained without one, with a note that has the reason."""
    model = kind(nn.Flatten(), nn.Linear(12, 10)).cuda()
    step, gradient = _stepper(model)
    assert gradient().abs().sum() > 0 and gradient().abs().sum() > 0
    assert not step.captured and reason in step.notes[0], step.notes
    assert torch.rand(2, device="cuda").isfinite().all()


def check_hooks() -> None:
    """Check that a hook on a layer is called, and that the captured step is used again once it is removed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).cuda()
    step, gradient = _stepper(model)
    captured, called = gradient(), []
    assert step.captured, step.notes
    handle = model[1].register_forward_hook(lambda *_: called.append(True))
    hooked = gradient()
    handle.remove()
    assert called == [True]
    torch.testing.assert_close(hooked, captured)
    assert torch.equal(gradient(), captured)


def _stepper(model: nn.Sequential) -> tuple[TrainingStep, Callable[[], Tensor]]:
    step = TrainingStep(model, nn.functional.cross_entropy, lambda logits, labels: logits.sum(), graphs=True)
    step.begin(10)
    x, y = torch.randn(4, 3, 2, 2, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")

    def gradient() -> Tensor:
        model.zero_grad()
        step.backward(step(x, y)[0])
        return model[1].weight.grad.clone()  # type: ignore[union-attr,operator]

    return step, gradient


def all_checks() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Return all checks by name, the most important ones first; each one takes an empty folder."""
    yield "a captured run is bit-identical to an uncaptured one", check_captured_is_plain
    yield "no step waits for the device", check_no_waiting
    for kind, reason in ((_Waits, "synchroniz"), (_Draws, "random"), (_Counts, "attributes")):
        yield f"fallback: {reason}", lambda _, kind=kind, reason=reason: check_fallback(kind, reason)  # type: ignore[misc]
    yield "hooks are called", lambda _: check_hooks()
    yield "recorders change nothing", check_recorders
    for model in ("resnet18_imagenet", "speednet"):
        yield f"compiled {model}", lambda folder, model=model: check_compiled(model, folder)  # type: ignore[misc]
    yield "SIGTERM while compiling", check_sigterm
    for choice in choices():
        yield choice, lambda folder, choice=choice: check_choice(choice, folder)  # type: ignore[misc]
    for mode in COMPILE_MODES[1:]:
        yield f"compiled vgg_a_bn, {mode}", lambda folder, mode=mode: check_compiled("vgg_a_bn", folder, mode)  # type: ignore[misc]


def measure_checks(args: argparse.Namespace) -> Results:
    """Run the checks one after another within the time limit; return which passed and which failed, with the reason.

    Raises:
        UserError: If there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("the checks need a CUDA device, but torch finds none")
    began = time.perf_counter()
    results: dict[str, str] = {}
    for name, check in all_checks():
        if time.perf_counter() - began > args.seconds:
            results[name] = "not run: out of time"
            continue
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                check(Path(folder))
            results[name] = "passed"
        except Exception as error:
            results[name] = f"failed: {type(error).__name__}: {str(error)[:300]}"
        print(f"{name}: {results[name]} ({time.perf_counter() - start:.1f} s)", flush=True)
        if args.json:  # after each check, so that results are kept if a later one takes too long
            write_json(args.json, _summarize(results))
    return _summarize(results)


def _summarize(results: dict[str, str]) -> Results:
    passed = sum(result == "passed" for result in results.values())
    run = sum(not result.startswith("not run") for result in results.values())
    return {
        "title": "checks on a GPU",
        "results": results,
        "notes": [
            f"{passed} of {run} passed, {len(results) - run} not run",
            *(f"{name} {result}" for name, result in results.items() if result.startswith("failed")),
        ],
    }


def _run(folder: Path, *overrides: str, base: tuple[str, ...] = SMALL) -> Result:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*base, *overrides])
    return train(cfg, folder, list(overrides))


def _losses(folder: Path) -> list[tuple[str, str]]:
    """Return each step's loss and gradient norm, as written in metrics.csv."""
    loss: StepColumn = "step/loss"
    norm: StepColumn = "step/grad_norm"
    with (folder / METRICS).open() as file:
        return [(row[loss], row[norm]) for row in csv.DictReader(file)]
