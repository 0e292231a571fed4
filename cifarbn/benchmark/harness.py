"""Measure several sides in turn, so that changes of the machine's speed affect all of them, and print a table."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cifarbn.durable import replace_file
from cifarbn.formatting import number, text_table

Results = dict[str, Any]


def in_turn(
    rounds: int, sides: Mapping[str, Callable[[], float | None]], warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure the seconds of each side in each round, in the order A B A B.

    Args:
        rounds: number of rounds.
        sides: name -> function to measure. If it returns a number of seconds, because it excludes a part of its work,
            that is used; otherwise the whole call is timed.
        warm_up: whether every side runs once before, without being measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for counted in warm_up * [False] + rounds * [True]:
        for name, side in sides.items():
            start = time.perf_counter()
            own = side()
            if counted:
                seconds[name].append(time.perf_counter() - start if own is None else own)
    return seconds


def median_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the speed-up of the second over the first: the median over rounds of first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_json(file: Path, value: Any) -> None:
    """Write JSON into a file; a crash leaves either its old or its new content."""
    replace_file(file, lambda opened: opened.write((json.dumps(value, indent=1, default=str) + "\n").encode()))


def as_text(results: Results) -> str:
    """Format results as text, with a table of sides whose last column is the speed relative to the first side."""
    lines = [results["title"], results["device"]]
    if "unit" not in results:
        return "\n".join([*lines, *results.get("notes", [])])
    first, *_ = results["seconds"].values()
    rows = []
    for name, seconds in results["seconds"].items():
        median, fastest, slowest = (number(results["amount"] / f(seconds), 0) for f in (statistics.median, min, max))
        spread = f"(median of {len(seconds)}; {slowest} to {fastest})"
        rows.append((name, f"{median} {results['unit']}", spread, f"x{median_ratio(first, seconds):.2f}"))
    return "\n".join([*lines, text_table(rows, "<><>"), *results.get("notes", [])])
