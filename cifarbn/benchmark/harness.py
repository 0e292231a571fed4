"""Sides that take turns, so that a machine that slows down slows them all, and the table of what came out."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cifarbn.formatting import number, text_table

Report = dict[str, Any]


def in_turn(
    rounds: int, sides: Mapping[str, Callable[[], float | None]], warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each side in each round: A B A B.

    If `warm_up`, every side runs once beforehand, uncounted. A side that returns seconds of its own, because it has to
    leave something out, is believed; of any other the whole call is timed.
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
    """How many times as fast the second is: the median over rounds of first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_text(report: Report) -> str:
    """Return the report as text, its sides as a table whose last column is the speed as a multiple of the first's."""
    lines = [report["what"], report["device"]]
    if "unit" not in report:
        return "\n".join([*lines, *report.get("notes", [])])
    first, *_ = report["seconds"].values()
    rows = []
    for name, seconds in report["seconds"].items():
        median, fastest, slowest = (number(report["amount"] / f(seconds), 0) for f in (statistics.median, min, max))
        spread = f"(median of {len(seconds)}; {slowest} to {fastest})"
        rows.append((name, f"{median} {report['unit']}", spread, f"x{median_ratio(first, seconds):.2f}"))
    return "\n".join([*lines, text_table(rows, "<><>"), *report.get("notes", [])])
