"""Run airbench94_muon.py (Jordan 2024) in its own process, on the same images and the same GPU."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cifarbn.benchmark.speedrun_recipe import Outcome
from cifarbn.data import Images
from cifarbn.data.cifar10 import CLASSES
from cifarbn.errors import UserError

RUNS = re.compile(r"range\(200\)")  # the number of runs after the warm-up run, in the script
COLUMNS = ("run", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds")


def run_peer(script: str, train: Images, test: Images, runs: int, minutes: float) -> list[Outcome]:
    """Run the script and return the results that it prints, without the warm-up run.

    Args:
        script: the text of airbench94_muon.py, from github.com/KellerJordan/cifar10-airbench.
        train: the training images; written to the script's data folder, so that it downloads nothing.
        test: the test images, likewise.
        runs: number of runs, instead of the script's 200.
        minutes: time limit.

    Raises:
        UserError: If it is a different script, it fails, exceeds the time limit, or prints no results.
    """
    if len(RUNS.findall(script)) != 1:
        raise UserError(
            "--peer must be an unchanged airbench94_muon.py from github.com/KellerJordan/cifar10-airbench; "
            "this file is not"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cifar10").mkdir()
        for part, images in {"train": train, "test": test}.items():
            pixels = images.pixels.permute(0, 2, 3, 1).contiguous().cpu()
            content = {"images": pixels, "labels": images.labels.cpu(), "classes": list(CLASSES)}
            torch.save(content, folder / "cifar10" / f"{part}.pt")
        (folder / "peer.py").write_text(RUNS.sub(f"range({runs})", script))
        command = [sys.executable, "peer.py"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60 * minutes)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"--peer: the script was stopped after {minutes:g} minutes; raise --peer-minutes"
            ) from error
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"--peer: the script failed with exit status {done.returncode}: {last}")
    outcomes = parse(done.stdout)
    if len(outcomes) != runs:
        raise UserError(f"--peer: the script printed {len(outcomes)} results instead of {runs}")
    return outcomes


def parse(table: str) -> list[Outcome]:
    """Return the results in the script's table, without the warm-up run."""
    outcomes = []
    for line in table.splitlines():
        cells = dict(zip(COLUMNS, (cell.strip() for cell in line.strip("|").split("|")), strict=False))
        if cells.get("epoch") == "eval":
            outcomes.append(Outcome(float(cells["time_seconds"]), float(cells["tta_val_acc"]), float(cells["val_acc"])))
    return outcomes[1:]
