"""`sweep`: runs of a sweep in parallel against one after another."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cifarbn.benchmark.harness import Results, in_turn, median_ratio
from cifarbn.errors import UserError
from cifarbn.fast.cores import usable_cores

IN_ONE_PROCESS = "one after another, in one process"
A_PROCESS_EACH = "one after another, a process each"
IN_PARALLEL = "two in parallel"


def measure_sweep(args: argparse.Namespace) -> Results:
    """Execute the same sweep of small runs on the CPU in three ways, and time each command from start to end.

    Runs one after another use a thread for each core; two in parallel use half as many each.
    """
    cores = usable_cores()
    local, threads = "hydra/launcher=local", f"trainer.threads={cores}"
    sides = {
        IN_ONE_PROCESS: [threads],
        A_PROCESS_EACH: [threads, local, "hydra.launcher.jobs=1"],
        IN_PARALLEL: [f"trainer.threads={max(1, cores // 2)}", local, "hydra.launcher.jobs=2"],
    }
    sweep = [
        *("-m", "data=shapes", f"data.train_size={args.images}"),
        *(f"data.{part}_size={max(1, args.images // 10)}" for part in ("val", "test")),
        *("model=resnet18", f"model.width={args.width}", f"data.batch_size={args.batch_size}", "trainer=cpu"),
        *("trainer.enable_progress_bar=false", "epochs=1", f"seed=range({args.runs})"),
    ]

    def side(overrides: Sequence[str]) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                execute([*sweep, *overrides], Path(folder))

        return run

    seconds = in_turn(args.rounds, {name: side(overrides) for name, overrides in sides.items()}, warm_up=False)
    return {
        "title": f"a sweep of {args.runs} runs of ResNet-18, width {args.width}, {args.images} images, batch "
        f"{args.batch_size}, on {cores} CPU cores",
        "unit": "runs/h",
        "amount": args.runs * 3600,
        "seconds": seconds,
        "notes": [
            f"{IN_PARALLEL}: {median_ratio(seconds[name], seconds[IN_PARALLEL]):.2f} times the runs per hour of {name}"
            for name in (IN_ONE_PROCESS, A_PROCESS_EACH)
        ],
    }


def execute(arguments: Sequence[str], folder: Path) -> None:
    """Execute `python -m cifarbn.train` in a folder.

    Raises:
        UserError: if it fails.
    """
    command = [sys.executable, "-m", "cifarbn.train", *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"the sweep failed: {(finished.stderr or finished.stdout).strip().splitlines()[-1]}")
