"""`kills`: time to N steps of a run that is killed every T seconds, against the same run undisturbed."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cifarbn.benchmark.harness import Results, in_turn
from cifarbn.errors import UserError
from cifarbn.runs.schema import CHECKPOINT, RESULT

STUCK = 3  # kills in a row without a new checkpoint, after which the benchmark gives up
UNDISTURBED = "undisturbed"


def measure_kills(args: argparse.Namespace) -> Results:
    """Train one model for some steps, undisturbed and with a SIGKILL every `args.every` seconds, in turns.

    After each kill the same command is started again, until it has finished. Each kill costs the steps since the last
    checkpoint and the start of a process, so the overhead of a kill should be at most the time between checkpoints plus
    the start: process, imports, data and model, before the first step.
    """
    killed = f"SIGKILL every {args.every:g} s"
    runs: dict[str, list[_Timed]] = {UNDISTURBED: [], killed: []}

    def side(name: str, every: float | None) -> float:
        runs[name].append(_run(args, every))
        return runs[name][-1].seconds

    seconds = in_turn(
        args.rounds, {UNDISTURBED: lambda: side(UNDISTURBED, None), killed: lambda: side(killed, args.every)}, False
    )
    kills = [run.kills for run in runs[killed]]
    if not all(kills):
        raise UserError(f"the run takes less than {args.every:g} s and was not killed; lower --every or raise --steps")
    start = statistics.median(run.start for run in runs[UNDISTURBED])
    pairs = zip(runs[killed], runs[UNDISTURBED], strict=True)
    overheads = [(disturbed.seconds - undisturbed.seconds) / disturbed.kills for disturbed, undisturbed in pairs]
    allowed, median = args.checkpoint + start, statistics.median(overheads)
    return {
        "title": f"{args.steps} steps of ResNet-18 of width {args.width} on shapes, batch {args.batch_size}, "
        f"a checkpoint every {args.checkpoint:g} s",
        "unit": "steps/min",
        "amount": 60 * args.steps,
        "seconds": seconds,
        "kills": kills,
        "start_seconds": start,
        "overhead_seconds_per_kill": overheads,
        "notes": [
            f"kills per run: {', '.join(map(str, kills))}",
            f"overhead per kill: median {median:.1f} s ({min(overheads):.1f} to {max(overheads):.1f})",
            f"checkpoint interval {args.checkpoint:g} s + start {start:.1f} s = {allowed:.1f} s: "
            + ("the overhead is within it" if median <= allowed else "the overhead exceeds it"),
        ],
    }


@dataclass
class _Timed:
    """A finished run.

    Attributes:
        seconds: from the first start to the end.
        kills: how often it was killed.
        start: seconds of its last process that were neither training, evaluation nor checkpoints.
    """

    seconds: float
    kills: int
    start: float


def _run(args: argparse.Namespace, every: float | None) -> _Timed:
    """Run the command until it has finished, and kill it every `every` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began, saved = time.monotonic(), [-1]
        while True:
            process_began = time.monotonic()
            with (Path(folder) / "log").open("wb") as log:
                process = subprocess.Popen(_command(args), cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            try:
                code = process.wait(timeout=every)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                saved.append(_saved_at(Path(folder) / "run"))
                if len(saved) > STUCK and saved[-1] == saved[-1 - STUCK]:
                    raise UserError(f"{every:g} s are too short for a start and a checkpoint; raise --every") from None
                continue
            now = time.monotonic()
            if code:
                raise UserError(f"the run failed: {(Path(folder) / 'log').read_text(errors='replace')[-1000:]}")
            measured = json.loads((Path(folder) / "run" / RESULT).read_text())["seconds"]
            busy = sum(measured[kind] for kind in ("train", "evaluate", "checkpoint"))
            return _Timed(now - began, len(saved) - 1, now - process_began - busy)


def _command(args: argparse.Namespace) -> list[str]:
    """Return the command of the run, which writes into the folder `run`."""
    return [
        *(sys.executable, "-m", "cifarbn.train", "data=shapes", "model=resnet18", f"model.width={args.width}"),
        *(f"data.batch_size={args.batch_size}", f"trainer.max_steps={args.steps}", "epochs=100000"),
        *(f"checkpoint_minutes={args.checkpoint / 60}", "trainer.enable_progress_bar=false", "logger=none"),
        "hydra.run.dir=run",
    ]


def _saved_at(folder: Path) -> int:
    """Return when the run's newest checkpoint was written; 0 if there is none."""
    file = folder / CHECKPOINT
    return file.stat().st_mtime_ns if file.exists() else 0
