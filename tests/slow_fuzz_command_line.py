"""Random command lines through real runs: `python tests/slow_fuzz_command_line.py [N [SEED]]`, 500 of them by default.

Each either runs or gives one message and exit code 1, never a traceback, and never a result.json with status done
without any training. Half of those that create a run folder are repeated in another folder, where they are killed by
SIGKILL at a random moment and started again: each must end like the undisturbed one. Prints the command lines that
violate this, with their output.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from test_fuzz_command_line import command_line, keys

from cifarbn import train

TINY = ["data=shapes", "trainer=smoke", "model.width=8", "trainer.limit_train_batches=1", "trainer.max_steps=2"]
TINY += ["data.train_size=300", "data.test_size=60", "data.val_size=60", "data.batch_size=32", "epochs=1"]
TINY += ["trainer.enable_progress_bar=false"]
SECONDS = 120  # a run that takes longer counts as one that works
KILLED = 0.5  # share of the runs that are repeated with a kill


def run(overrides: list[str], folder: Path, seconds: float = SECONDS) -> tuple[int | None, str]:
    """Run one command in its own process; return its exit code (None if killed after `seconds`) and its output."""
    log = folder / "output"
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 0
        os.chdir(folder)
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = ["train", *overrides]
        try:
            train.main()
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, log.read_text(errors="replace")


def fault(code: int | None, printed: str, folder: Path) -> str | None:
    """Return what is wrong with the end of a command; None if nothing is."""
    results = [json.loads(file.read_text()) for file in folder.rglob("result.json")]
    if "Traceback" in printed:
        return "traceback"
    if code not in (None, 0, 1):
        return f"exit code {code}"
    if code == 1 and sum(line.startswith("error: ") for line in printed.splitlines()) != 1:
        return "not one message"
    if any(result["status"] == "done" and not result.get("steps") for result in results):
        return "status done without training"
    if code == 0 and not any(result["status"] in ("done", "diverged") for result in results) and "-m" not in printed:
        return "exit code 0 without a finished run"
    return None


def results(folder: Path) -> dict[str, Any]:
    """Return, by run folder, the parts of all results that a kill must not change."""
    read = {str(file.parent.relative_to(folder)): json.loads(file.read_text()) for file in folder.rglob("result.json")}
    return {
        name: [result.get(key) for key in ("status", "steps", "metrics", "config", "error")]
        for name, result in read.items()
    }


def fault_after_kill(
    overrides: list[str], folder: Path, after: float, expected: tuple[int | None, dict[str, Any]]
) -> str | None:
    """Kill a command after some seconds and repeat it; return how it then differs from the undisturbed one, or None."""
    run(overrides, folder, after)
    code, printed = run(overrides, folder)
    if wrong := fault(code, printed, folder.parent):
        return f"after a kill at {after:.2f} s: {wrong}\n{printed[-1500:]}"
    if code is None or (code, ended := results(folder.parent)) == expected:
        return None
    return f"after a kill at {after:.2f} s: {code} {ended}, undisturbed: {expected}\n{printed[-1500:]}"


def main() -> None:
    """Run the command lines and print those that went wrong."""
    arguments = [int(argument) for argument in sys.argv[1:]]
    count, first = (*arguments, *(500, 0)[len(arguments) :])
    warnings.simplefilter("ignore")
    known, faults, ran, killed, done = keys(), 0, 0, 0, 0
    for seed in itertools.count(first):
        chance = random.Random(seed)
        overrides = [*TINY, *command_line(chance, known)]
        if any(sum(c.isdigit() for c in o) > 12 or "1e30" in o for o in overrides):
            continue  # would fill this machine's memory
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / "inside"  # hydra.run.dir=../x would leave it
            inside.mkdir()
            began = time.monotonic()
            code, printed = run(overrides, inside)
            seconds = time.monotonic() - began
            ran += code == 0
            wrong, undisturbed = fault(code, printed, Path(folder)), (code, results(Path(folder)))
        if not wrong and code is not None and undisturbed[1] and chance.random() < KILLED:
            killed += 1
            with tempfile.TemporaryDirectory() as folder:
                inside = Path(folder) / "inside"
                inside.mkdir()
                wrong = fault_after_kill(overrides, inside, chance.uniform(0, seconds), undisturbed)
        if wrong:
            faults += 1
            print(f"seed {seed}: {wrong}: {' '.join(overrides[len(TINY) :])}\n{printed[-1500:]}\n", flush=True)
        if (done := done + 1) == count:
            break
    print(f"{count} command lines, {ran} ran, {killed} of them again with a kill, {faults} faults")
    sys.exit(min(faults, 1))


if __name__ == "__main__":
    main()
