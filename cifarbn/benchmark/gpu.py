"""`gpu`: all checks and measurements of a GPU within a time limit, the most important ones first."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifarbn.benchmark.harness import Results, write_json
from cifarbn.benchmark.images import data_overrides, has_cifar10
from cifarbn.errors import UserError
from cifarbn.runs.folder import find_runs
from cifarbn.runs.provenance import environment
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import Status

FOLDER = Path("multirun_outputs") / "benchmark_gpu"
LEAST = 10.0  # seconds; a part is not started with less time left
KILL_AFTER = 20.0  # seconds between SIGTERM, after which runs save, and SIGKILL
PAGE = 45.0  # seconds that `reproduce` needs after its budget, to save runs and write its page

STRETCH = 20  # approximate seconds of a measurement, at 50,000 to 80,000 images a second


@dataclass(frozen=True)
class Part:
    """One measurement: a command that runs in its own process.

    Attributes:
        shows: description of the measurement.
        limit: time limit in seconds.
        command: the arguments of `python -m`.
        takes: the options to add to the command: "json" (the JSON file to write), "root" (the folder of CIFAR-10),
            "peer" (a copy of airbench94_muon.py and its time limit), "overrides" (the data), "budget" (of `reproduce`).
        runs: the folder of the runs to read results from; None if the command writes JSON.
        needs_cifar10: whether the measurement is skipped without CIFAR-10 instead of using synthetic images.
    """

    shows: str
    limit: float
    command: tuple[str, ...]
    takes: tuple[str, ...]
    runs: Path | None = None
    needs_cifar10: bool = False


def _loop(shows: str, limit: float, batch_size: int, *more: str) -> Part:
    steps = STRETCH * (70_000 if batch_size > 256 else 50_000) // batch_size
    options = ("--batch-size", str(batch_size), "--steps", str(steps), "--rounds", "1", "--without-usual")
    return Part(shows, limit, ("cifarbn.benchmark", "loop", *options, *more), ("json", "root"))


def _train(shows: str, limit: float, name: str, *overrides: str) -> Part:
    place = (f"hydra.run.dir={FOLDER / name}", "resume=false", "trainer.enable_progress_bar=false")
    return Part(shows, limit, ("cifarbn.train", *overrides, *place), ("overrides",), runs=FOLDER / name)


PARTS = {
    "checks": Part("correctness checks", 90, ("cifarbn.benchmark", "checks", "--seconds", "60"), ("json",)),
    "resnet18_512": _loop("ResNet-18, batch 512, compiled", 110, 512, "--compile"),
    "resnet18_128": _loop("ResNet-18, batch 128, compiled", 110, 128, "--compile"),
    "vgg_a_bn": _train("VGG-A with BN, 20 epochs at batch 128", 90, "vgg_a_bn", "experiment=course_handout/vgg_a_bn"),
    "speedrun": Part("94 % as quickly as possible", 150, ("cifarbn.benchmark", "speedrun"), ("json", "root", "peer")),
    "resnet18_512_uncompiled": _loop("ResNet-18, batch 512, captured only", 80, 512),
    "resnet18_128_uncompiled": _loop("ResNet-18, batch 128, captured only", 80, 128),
    "course_report": Part(
        "the course report at scale fast",
        600,
        (
            *("cifarbn.reproduce", "course_report", "--scale", "fast", "--jobs", "auto", "resume=false"),
            *("--name", f"{FOLDER.name}/course_report"),
        ),
        ("overrides", "budget"),
        runs=FOLDER / "course_report",
        needs_cifar10=True,
    ),
    "resnet18_200_epochs": _train(
        "ResNet-18, 200 epochs at batch 128", 300, "resnet18_200_epochs", "experiment=course_report/augmentation"
    ),
}
# The entries of result.json that are reported for each run.
RUN_FIGURES = (
    *("status", "seconds", "images_per_second", "metrics", "epochs"),
    *("compile", "cuda_graphs", "step_notes", "error", "data"),
)


def measure_gpu(args: argparse.Namespace) -> Results:
    """Run the parts one after another; write all results so far to `FOLDER`/gpu.json and gpu.md after each.

    Without CIFAR-10, throughput and times are measured on synthetic images, which the results state, and the course
    report is skipped.

    Raises:
        UserError: If there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("benchmark gpu needs a CUDA device, but torch finds none")
    FOLDER.mkdir(parents=True, exist_ok=True)
    deadline, began = time.monotonic() + 60 * args.minutes, time.monotonic()
    facts = {"device": torch.cuda.get_device_name(), "driver": _driver(), **environment()}
    parts: dict[str, Any] = {}
    for name in args.only or PARTS:
        left = deadline - time.monotonic()
        if left < LEAST:
            parts[name] = {"not measured": "out of time"}
        elif PARTS[name].needs_cifar10 and not has_cifar10(args.root):
            parts[name] = {"not measured": f"no CIFAR-10 in {args.root}"}
        else:
            print(f"{name}: {PARTS[name].shows}", flush=True)
            parts[name] = _measure(name, min(left, PARTS[name].limit), args)
        _write(facts, parts)
    print(f"written: {FOLDER / 'gpu.json'} and gpu.md")
    return {
        "title": "benchmark gpu",
        "minutes": (time.monotonic() - began) / 60,
        "parts": parts,
        "notes": [table(facts, parts)],
    }


def _measure(name: str, limit: float, args: argparse.Namespace) -> dict[str, Any]:
    """Run one part; return its results, with the reason under "not measured" if it failed or was stopped."""
    part, start = PARTS[name], time.monotonic()
    output, log = FOLDER / f"{name}.json", FOLDER / f"{name}.log"
    output.unlink(missing_ok=True)
    options = {
        "json": ["--json", str(output)],
        "root": ["--root", args.root],
        "peer": ["--peer", str(args.peer), "--peer-minutes", f"{limit / 120:.2f}"] if args.peer else [],
        "budget": ["--budget", f"{max(1, int(limit - PAGE))}s"],
        "overrides": data_overrides(args.root),
    }
    command = [*part.command, *(option for key in part.takes for option in options[key])]
    failure = _run([sys.executable, "-m", *command], limit, log)
    measured: dict[str, Any] = {"seconds with start": time.monotonic() - start}
    if output.exists():
        measured |= json.loads(output.read_text())
    if part.runs:
        results = {folder.name: read_result(folder) for folder in find_runs(part.runs)}
        measured["runs"] = {
            run: {key: result.get(key) for key in RUN_FIGURES} for run, result in results.items() if result
        }
    return measured | ({"not measured": failure} if failure else {})


def _run(command: Sequence[str], limit: float, log: Path) -> str:
    """Run a command with its output in `log`, for at most `limit` seconds; return why it failed, or ""."""
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            code = process.wait(limit)
            why = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            why = f"stopped after {limit:.0f} s"
            process.terminate()
            try:
                process.wait(KILL_AFTER)
            except subprocess.TimeoutExpired:
                process.kill()
    if not why:
        return ""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{why}; last line: {lines[-1][:200] if lines else 'none'}"


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def _write(facts: dict[str, Any], parts: dict[str, Any]) -> None:
    write_json(FOLDER / "gpu.json", facts | {"parts": parts})
    (FOLDER / "gpu.md").write_text(table(facts, parts) + "\n")


def table(facts: dict[str, Any], parts: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"{facts['device']}, driver {facts['driver']}; {versions}",
        "",
        "| part | description | results |",
        "|---|---|---|",
    ]
    for name, part in parts.items():
        figures = part.get("not measured") and f"not measured: {part['not measured']}"
        lines.append(f"| {name} | {PARTS[name].shows} | {figures or '; '.join(_figures(part))} |")
    return "\n".join(lines)


def _figures(part: dict[str, Any]) -> list[str]:
    if "runs" in part:
        done = [result for result in part["runs"].values() if Status(result["status"]) is Status.DONE]
        lines = [f"{len(done)} of {len(part['runs'])} runs done in {part['seconds with start']:.0f} s"]
        return lines + [f"{run}: {_run_figures(result)}" for run, result in part["runs"].items() if result in done]
    if part.get("unit") == "images/s" and "training_step" in part:
        return [f"{side} {part['amount'] / times[0]:,.0f} images/s" for side, times in part["seconds"].items()]
    return [note for note in part.get("notes", []) if "|" not in note] or [f"{part['seconds with start']:.0f} s"]


def _run_figures(result: dict[str, Any]) -> str:
    """Return one run's test accuracies, throughput and seconds."""
    metrics = {name: round(value, 4) for name, value in result["metrics"].items() if name.startswith("test/")}
    seconds = {kind: round(value, 1) for kind, value in result["seconds"].items()}
    return f"{metrics}, {result['images_per_second'] or 0:,.0f} images/s, seconds {seconds}"
